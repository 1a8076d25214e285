"""A subject's folder: written aside, made to last, moved into place in one step."""

from __future__ import annotations

import json
import os
import uuid
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import canonical_json
from vesalius.platform.errors import CohortError, StoreError
from vesalius.platform.store.arrays import ChunkSettings, array_facts, encode, write_array, write_group
from vesalius.platform.store.checking import read_written
from vesalius.platform.store.files import file_digest, folder_digests, remove, sync_folder
from vesalius.platform.store.manifest import PARTIAL, SUBJECTS, Entry, Manifest, read_manifest, record_digest
from vesalius.platform.store.ngff import array_path, image_metadata, label_groups
from vesalius.platform.store.records import SubjectArrays, SubjectRecord, check_subject_id
from vesalius.platform.store.space import require_space, space_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SLACK_BYTES = 1_000_000
"""Room for metadata, the manifest and the file system's own blocks, beside the voxels themselves."""


def write_subject(path: Path, manifest: Manifest, record: SubjectRecord, arrays: SubjectArrays) -> SubjectRecord:
    """Write a subject into the store at ``path`` without committing it; see :meth:`CohortStore.write`."""
    check_subject_id(record.subject_id)
    encoded = encode(record, arrays, manifest.recipe.get("dtype", "float32"))
    record = _complete(path, manifest, record, encoded)
    known = manifest.subjects.get(record.subject_id)
    if known is None and (path / SUBJECTS / record.subject_id).exists():
        # Either a writer was killed between writing and committing, or ``manifest`` is older than the store's.
        known = read_manifest(path).subjects.get(record.subject_id)
    if known is not None:
        require_same(path, known.record, record)
        return known.record
    require_space(path, sum(array.nbytes for array in encoded.values()) + SLACK_BYTES)
    with space_errors(path):
        return _write_aside(path, record, encoded, manifest.chunks)


def committable(path: Path, record: SubjectRecord) -> Entry:
    """Return the manifest's entry for a subject that :func:`write_subject` has written.

    Raises:
        StoreError: it was not written, or with another record.
    """
    metadata = path / SUBJECTS / check_subject_id(record.subject_id) / "zarr.json"
    try:
        written = json.loads(metadata.read_bytes())["attributes"]["vesalius"]["record"]
    except (OSError, ValueError, KeyError):
        raise StoreError(f"{path}: subject {record.subject_id} was not written before its commit") from None
    if canonical_json(written) != canonical_json(record):
        raise StoreError(f"{path}: subject {record.subject_id} was written with another record than is committed")
    return Entry(record=record, metadata_sha256=file_digest(metadata))


def uncommitted_records(path: Path, manifest: Manifest) -> list[SubjectRecord]:
    """Return the records of subjects that lie whole in the store, of whatever recipe, and are not committed."""
    names = sorted(entry.name for entry in (path / SUBJECTS).iterdir() if entry.is_dir())
    found = (read_written(path / SUBJECTS / name) for name in names if name not in manifest.subjects)
    return [record for record in found if record is not None]


def require_same(path: Path, committed: SubjectRecord, record: SubjectRecord) -> None:
    """Check that a record says of a subject what is committed of it.

    Raises:
        StoreError: it does not.
    """
    if record_digest(committed) != record_digest(record):
        differing = [
            name
            for name, value in committed.model_dump(mode="json", exclude={"notes"}).items()
            if value != record.model_dump(mode="json")[name]
        ]
        raise StoreError(
            f"{path}: subject {record.subject_id} is already in the store with another {' and '.join(differing)}: "
            "what is committed never changes; give it another id, or another store"
        )


def _complete(
    path: Path, manifest: Manifest, record: SubjectRecord, encoded: Mapping[str, NDArray[Any]]
) -> SubjectRecord:
    name = record.subject_id
    if record.channels != manifest.channels:
        raise StoreError(
            f"subject {name} has the channels {', '.join(record.channels)} "
            f"and {path} holds {', '.join(manifest.channels)}"
        )
    if record.recipe_digest not in ("", manifest.recipe_digest):
        raise StoreError(f"subject {name} was prepared by another recipe than {path}")
    lesion = encoded.get("lesion")
    marked = record.labels.get("anomalous") is True or (lesion is not None and bool(lesion.any()))
    completed = record.model_copy(
        update={
            "recipe_digest": manifest.recipe_digest,
            "arrays": {role: array_facts(array) for role, array in encoded.items()},
            "has_lesion": record.has_lesion or marked,
        }
    )
    try:
        # Pydantic would write NaN as null, in silence.
        json.dumps(record.notes, allow_nan=False)
        # Through JSON and back, so that what is returned equals what a later reader finds, tuples in notes included.
        return SubjectRecord.model_validate_json(canonical_json(completed))
    except (TypeError, ValueError) as error:
        raise CohortError(f"subject {name}: its notes cannot be kept as JSON ({error})") from None


def _write_aside(
    path: Path, record: SubjectRecord, encoded: Mapping[str, NDArray[Any]], chunks: ChunkSettings
) -> SubjectRecord:
    partial = path / PARTIAL / f"{record.subject_id}.{uuid.uuid4().hex}"
    replaced = partial.with_name(f"{partial.name}.replaced")
    final = path / SUBJECTS / record.subject_id
    image, labels = image_metadata(record, encoded), dict(label_groups(record, encoded))
    try:
        partial.mkdir(parents=True)
        for name, array in encoded.items():
            write_array(partial / array_path(name), array, chunks)
        for folder, label in labels.items():
            write_group(partial / folder, {"ome": label}, partial.parent)
        files = folder_digests(partial, sync=True)
        ours = {"record": record.model_dump(mode="json"), "files": files}
        write_group(partial, {"ome": image, "vesalius": ours}, partial.parent)
        if final.exists():
            # A worker outlives its killed writer for a while. What the next writer has put here since is not touched:
            # it may be committed, and be read at this moment.
            if canonical_json(read_written(final)) == canonical_json(record):
                return record
            known = read_manifest(path).subjects.get(record.subject_id)
            if known is not None:
                require_same(path, known.record, record)
                return known.record
            os.rename(final, replaced)
        os.rename(partial, final)
        sync_folder(final.parent)
    finally:
        remove(partial)
        remove(replaced)
    return record
