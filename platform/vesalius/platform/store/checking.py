"""Re-reading a store against its checksums."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vesalius.platform.errors import StoreError
from vesalius.platform.progress import silent
from vesalius.platform.store.arrays import array_facts, read_array
from vesalius.platform.store.files import file_digest, folder_digests
from vesalius.platform.store.manifest import Entry, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.progress import Progress


def check_store(path: Path, progress: Progress = silent) -> list[str]:
    """Return one sentence for every problem of the store at ``path``; an empty list means that all is well."""
    try:
        manifest = read_manifest(path)
    except StoreError as error:
        return [str(error)]
    problems: list[str] = []
    for done, (subject_id, entry) in enumerate(manifest.subjects.items()):
        progress(done, len(manifest.subjects), subject_id)
        problems.extend(_subject_problems(path / "subjects" / subject_id, subject_id, entry))
    progress(len(manifest.subjects), len(manifest.subjects), "")
    on_disk = {folder.name for folder in (path / "subjects").iterdir() if folder.is_dir()}
    problems.extend(
        f"subject {name} lies in the store and was never committed: run the same ingest again to take it in"
        for name in sorted(on_disk - set(manifest.subjects))
    )
    return problems


def _subject_problems(folder: Path, subject_id: str, entry: Entry) -> Iterator[str]:
    metadata = folder / "zarr.json"
    if not metadata.exists():
        yield f"subject {subject_id} is committed and {metadata} is missing"
        return
    if file_digest(metadata) != entry.metadata_sha256:
        yield f"subject {subject_id}: {metadata} is not what was committed"
        return
    expected = json.loads(metadata.read_bytes())["attributes"]["vesalius"]["files"]
    found = folder_digests(folder)
    found.pop("zarr.json")
    damaged = False
    for name in sorted({*expected, *found}):
        if name not in found:
            yield f"subject {subject_id}: {folder / name} is missing"
        elif name not in expected:
            yield f"subject {subject_id}: {folder / name} does not belong to the store"
            continue
        elif found[name] != expected[name]:
            yield f"subject {subject_id}: {folder / name} is not what was committed"
        else:
            continue
        damaged = True
    if damaged:
        return
    for name, facts in entry.record.arrays.items():
        if array_facts(read_array(folder / name)) != facts:
            yield f"subject {subject_id}: {folder / name} does not decode to what was committed"
