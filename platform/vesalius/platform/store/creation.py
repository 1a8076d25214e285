"""An empty store, and the frame that makes it one Zarr hierarchy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import canonical_json
from vesalius.platform.errors import DiskSpaceError, StoreError
from vesalius.platform.store.arrays import ChunkSettings, write_group
from vesalius.platform.store.checking import FRAME, group_attributes
from vesalius.platform.store.files import remove
from vesalius.platform.store.lock import exclusive
from vesalius.platform.store.manifest import LOCK, NAME, PARTIAL, SUBJECTS, Manifest, write_manifest
from vesalius.platform.store.space import require_space, space_errors
from vesalius.platform.store.writing import SLACK_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.store.place import Place

_OURS = frozenset({PARTIAL, LOCK, SUBJECTS, "zarr.json"})


def new_manifest(
    path: Place, recipe: Mapping[str, Any], channels: Sequence[str], name: str, chunks: ChunkSettings | None
) -> Manifest:
    """Return the manifest of an empty store.

    Raises:
        StoreError: the recipe's dtype cannot be stored, or the channels are none or not different.
    """
    plain = json.loads(canonical_json(dict(recipe)))
    if plain.get("dtype", "float32") not in ("float32", "float16"):
        raise StoreError(f"{path}: the recipe's dtype is {plain['dtype']!r}, expected float32 or float16")
    if not channels or len(set(channels)) != len(channels):
        raise StoreError(f"{path}: the channels are {list(channels)}, expected one or more different names")
    return Manifest(name=name, recipe=plain, channels=tuple(channels), chunks=chunks or ChunkSettings())


def make_store(path: Place, manifest: Manifest) -> None:
    """Write an empty store; one whose making was interrupted, or whose manifest was moved away, is made anew.

    Where a manifest stands by now, nothing is written.

    Raises:
        StoreError: the folder holds something else, or another writer is at work in it.
        DiskSpaceError: there is no room; a folder that was not there before is not there now.
    """
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if NAME in names:
        return  # another writer has just made it; opening says what it is
    foreign = sorted(names - _OURS)
    if foreign:
        raise StoreError(f"{path} is not empty and not a cohort store (it holds {foreign[0]}): give another folder")
    require_space(path, SLACK_BYTES)
    is_new = not path.exists()
    try:
        with space_errors(path):
            if isinstance(path, Path):
                path.mkdir(parents=True, exist_ok=True)
            with exclusive(path / LOCK):
                # Another writer may have made it while this one waited for nothing.
                if not (path / NAME).exists():
                    if isinstance(path, Path):
                        (path / PARTIAL).mkdir(exist_ok=True)
                        (path / SUBJECTS).mkdir(exist_ok=True)
                    write_frame(path)
                    write_manifest(path, manifest, path / PARTIAL)
    except DiskSpaceError:
        if is_new:
            remove(path)
        raise


def holds_nothing(path: Place) -> bool:
    """Say whether a place is absent or empty; the lock that an earlier writer left at a URL counts for nothing."""
    if not path.exists():
        return True
    return path.is_dir() and all(entry.name == LOCK for entry in path.iterdir())


def write_frame(path: Place) -> None:
    """Write the groups that make the folder one Zarr hierarchy; the store itself lives by its manifest."""
    for folder, attributes in FRAME.items():
        metadata = path / folder / "zarr.json"
        if group_attributes(metadata) != attributes:
            write_group(path / folder, attributes, path / PARTIAL)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return in words where two recipes part, the first three places."""
    keys = [key for key in sorted({*old, *new}) if canonical_json(old.get(key)) != canonical_json(new.get(key))]
    return "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in keys[:3])
