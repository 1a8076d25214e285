"""A subject's files: on a disk written aside, made to last and moved into place in one step; at a URL, see below.

**At a URL** nothing can be moved in one step. There a subject's files lie below a name that follows from their content
(:func:`~vesalius.platform.store.manifest.subject_folder`), its group's metadata is written last, and the manifest alone
makes it visible. Whoever writes to that name writes the same bytes, so a writer that lost its lock, or a worker that
outlived its driver, can at worst leave files that nobody lists.

**A worker that outlives its driver** on a disk is kept out by its *session*, a folder below ``.partial/`` that the
lock's holder makes and the next holder moves away: then no file of it can be written, and none moved into place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import canonical_json
from vesalius.platform.errors import CohortError, StoreError
from vesalius.platform.store.arrays import ChunkSettings, array_facts, array_files, encode, group_content
from vesalius.platform.store.checking import is_clutter, read_written, uncommitted_folders
from vesalius.platform.store.files import remove, sync_folder, write_files
from vesalius.platform.store.manifest import (
    LOCK,
    PARTIAL,
    SUBJECTS,
    Entry,
    Manifest,
    read_manifest,
    record_digest,
    subject_folder,
)
from vesalius.platform.store.ngff import array_path, image_metadata, label_groups
from vesalius.platform.store.records import SubjectArrays, SubjectRecord, check_subject_id
from vesalius.platform.store.remote_lock import read_lock
from vesalius.platform.store.space import require_space, space_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from vesalius.platform.store.place import Place
    from vesalius.platform.store.remote import RemotePath

SLACK_BYTES = 1_000_000
"""Room for metadata, the manifest and the file system's own blocks, beside the voxels themselves."""


def write_subject(
    path: Place,
    manifest: Manifest,
    record: SubjectRecord,
    arrays: SubjectArrays,
    *,
    session: str | None = None,
    joined: bool = False,
) -> SubjectRecord:
    """Write a subject into the store at ``path`` without committing it; see :meth:`CohortStore.write`.

    Args:
        path: the store.
        manifest: what is committed, or was.
        record: the subject.
        arrays: its voxels.
        session: of the lock's holder, where there is one.
        joined: this is a worker of that holder, and what lies there may be another worker's.
    """
    check_subject_id(record.subject_id)
    encoded = encode(record, arrays, manifest.recipe.get("dtype", "float32"))
    record = _complete(path, manifest, record, encoded)
    known = manifest.subjects.get(record.subject_id)
    if known is None and isinstance(path, Path) and (path / SUBJECTS / record.subject_id).exists():
        # Either a writer was killed between writing and committing, or ``manifest`` is older than the store's.
        known = read_manifest(path).subjects.get(record.subject_id)
    if known is not None:
        require_same(path, known.record, record)
        return known.record
    if not isinstance(path, Path):
        _upload(path, record, subject_files(record, encoded, manifest.chunks), session)
        return record
    require_space(path, sum(array.nbytes for array in encoded.values()) + SLACK_BYTES)
    with space_errors(path):
        return _write_aside(path, record, subject_files(record, encoded, manifest.chunks), session, joined)


def subject_files(
    record: SubjectRecord, encoded: Mapping[str, NDArray[Any]], chunks: ChunkSettings
) -> dict[str, bytes]:
    """Return all files of a subject's group by relative path, the group's own metadata last."""
    files = {
        f"{array_path(role)}/{name}": content
        for role, array in encoded.items()
        for name, content in array_files(array, chunks).items()
    }
    for folder, label in label_groups(record, encoded):
        files[f"{folder}/zarr.json"] = group_content({"ome": label})
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    ours = {"record": record.model_dump(mode="json"), "files": digests}
    return {**files, "zarr.json": group_content({"ome": image_metadata(record, encoded), "vesalius": ours})}


def committable(path: Place, record: SubjectRecord) -> Entry:
    """Return the manifest's entry for a subject that :func:`write_subject` has written.

    Raises:
        StoreError: it was not written, or with another record.
    """
    check_subject_id(record.subject_id)
    found = False
    for folder in written_folders(path, record.subject_id):
        metadata = folder / "zarr.json"
        try:
            content = metadata.read_bytes()
            written = json.loads(content)["attributes"]["vesalius"]["record"]
        except (OSError, ValueError, KeyError):
            continue
        found = True
        if canonical_json(written) == canonical_json(record):
            return Entry(record=record, metadata_sha256=hashlib.sha256(content).hexdigest())
    if found:
        raise StoreError(f"{path}: subject {record.subject_id} was written with another record than is committed")
    raise StoreError(f"{path}: subject {record.subject_id} was not written before its commit")


def written_folders(path: Place, subject_id: str) -> Sequence[Place]:
    """Return where a subject may lie, committed or not: one folder on a disk, any number of prefixes at a URL."""
    subjects = path / SUBJECTS
    if isinstance(subjects, Path):
        return [subjects / subject_id]
    return [subjects / name for name in subjects.names(f"{subject_id}@")]


def uncommitted_records(path: Place, manifest: Manifest) -> list[SubjectRecord]:
    """Return the records of subjects that lie whole in the store, of whatever recipe, and are not committed."""
    found = (read_written(entry) for entry in uncommitted_folders(path, manifest))
    return [record for record in found if record is not None]


def clear_unfinished(path: Place, manifest: Manifest, confirm: Callable[[], None]) -> None:
    """Remove what writers before us left half-way; for the one writer, before anybody writes for it.

    Args:
        path: the store.
        manifest: what is committed.
        confirm: raises where the lock is ours no more. Asked before each removal: at a URL whoever took it over may
            have committed under that very name.
    """
    if not isinstance(path, Path):
        for entry in uncommitted_folders(path, manifest):
            if is_clutter(entry, manifest):
                confirm()
                remove(entry)
        return
    for leftover in (path / PARTIAL).iterdir():
        # Moved first: from this step on, nothing that is still being written below it can be moved into place.
        doomed = path / PARTIAL / f"cleared.{uuid.uuid4().hex}"
        os.rename(leftover, doomed)
        remove(doomed)


def make_way(
    path: Place, manifest: Manifest, subject_ids: Collection[str], session: str | None, confirm: Callable[[], None]
) -> None:
    """Remove what lies uncommitted under some ids, whole or not; for the one writer. See :func:`clear_unfinished`."""
    committed = {
        subject_folder(path, key, entry.metadata_sha256)
        for key, entry in manifest.subjects.items()
        if key in set(subject_ids)
    }
    for subject_id in subject_ids:
        for folder in written_folders(path, subject_id):
            if folder.name in committed:
                continue
            if isinstance(folder, Path):
                if folder.exists():
                    doomed = path / PARTIAL / (session or "") / f"{subject_id}.{uuid.uuid4().hex}"
                    os.rename(folder, str(doomed))
                    remove(doomed)
            else:
                confirm()
                remove(folder)


def require_same(path: Place, committed: SubjectRecord, record: SubjectRecord) -> None:
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
    path: Place, manifest: Manifest, record: SubjectRecord, encoded: Mapping[str, NDArray[Any]]
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
    path: Path, record: SubjectRecord, files: Mapping[str, bytes], session: str | None, joined: bool
) -> SubjectRecord:
    parent = path / PARTIAL / (session or "")
    partial = parent / f"{record.subject_id}.{uuid.uuid4().hex}"
    replaced = partial.with_name(f"{partial.name}.replaced")
    final = path / SUBJECTS / record.subject_id
    try:
        if session is None:
            parent.mkdir(exist_ok=True)
        write_files(partial, files)
        if not joined and final.exists():
            # The manifest may have been read long ago: what was committed since is not touched, not for a moment.
            known = read_manifest(path).subjects.get(record.subject_id)
            if known is not None:
                require_same(path, known.record, record)
                return known.record
            os.rename(final, replaced)
        moved = _move(path, partial, final, record)
        sync_folder(final.parent)
        return moved
    except FileNotFoundError:
        if session is None or parent.is_dir():
            raise
        raise StoreError(_ended(path, record)) from None
    finally:
        remove(partial)
        remove(replaced)


def _move(path: Path, partial: Path, final: Path, record: SubjectRecord) -> SubjectRecord:
    """Move a subject into place, or return what another worker that was given the same one has put there."""
    try:
        os.rename(partial, final)
        return record
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        there = read_written(final)
        if there is None or record_digest(there) != record_digest(record):
            raise StoreError(
                f"{path}: subject {record.subject_id} is being written by another worker, with other content: run the "
                "same ingest again"
            ) from None
        return there


def _upload(path: RemotePath, record: SubjectRecord, files: Mapping[str, bytes], session: str | None) -> None:
    if session is not None:
        lock = read_lock(path / LOCK)
        if lock is None or lock.token != session or lock.state != "held":
            raise StoreError(_ended(path, record))
    name = subject_folder(path, record.subject_id, hashlib.sha256(files["zarr.json"]).hexdigest())
    for file, content in files.items():
        (path / SUBJECTS / name / file).write_bytes(content)


def _ended(path: Place, record: SubjectRecord) -> str:
    return f"{path}: the ingest that subject {record.subject_id} was prepared for has ended, and it was not written"
