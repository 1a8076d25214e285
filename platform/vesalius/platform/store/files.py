"""Files that are either complete or absent, and their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.platform.store.remote import RemotePath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.platform.store.place import Place


def write_file(path: Place, content: bytes, aside: Place) -> None:
    """Write ``content`` so that after a crash at any moment ``path`` holds the old content or the new, whole.

    Args:
        path: where; an existing file is replaced.
        content: all of it.
        aside: an existing folder on the same disk for the unfinished file; a URL's object is whole by itself.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    unfinished = Path(str(aside)) / f"{path.name}.{uuid.uuid4().hex}"
    try:
        with unfinished.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder's files, by relative path, and make all of it last; ``folder``'s own parent must exist.

    No folder above it is made: where that was moved away in between, the next step fails, and nothing comes to life.
    """
    folder.mkdir()
    made = {folder}
    for name, content in files.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            if folder / parent not in made:
                (folder / parent).mkdir()
                made.add(folder / parent)
        with path.open("xb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    for parent in made:
        sync_folder(parent)


def sync_folder(path: Path) -> None:
    """Make a folder's entries (what was created in it or renamed into it) last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content last through a loss of power."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def file_digest(path: Place) -> str:
    """Return the SHA-256 of a file's bytes."""
    if isinstance(path, RemotePath):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digests(folder: Place, *, sync: bool = False) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder`` by relative path, sorted; ``sync`` makes all of it last."""
    if isinstance(folder, RemotePath):
        return digests_of(folder.read_many(folder.files()))
    digests: dict[str, str] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            digests[path.relative_to(folder).as_posix()] = file_digest(path)
            if sync:
                sync_file(path)
        if sync:
            sync_folder(Path(parent))
    return dict(sorted(digests.items()))


def digests_of(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of every file whose content is given, by the same names, sorted."""
    return {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)}


def remove(path: Place) -> None:
    """Remove a file, or a folder with all below it; what cannot be removed from a disk is left."""
    if isinstance(path, RemotePath):
        path.remove_all()
        path.unlink(missing_ok=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
