"""Re-reading a store against its checksums."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import Settings
from vesalius.platform.errors import StoreError, UnreachableError
from vesalius.platform.progress import silent
from vesalius.platform.store.arrays import array_facts, array_of, read_array
from vesalius.platform.store.files import digests_of, folder_digests
from vesalius.platform.store.lock import is_held
from vesalius.platform.store.manifest import FORMAT, LOCK, NAME, PARTIAL, SUBJECTS, read_manifest, subject_folder
from vesalius.platform.store.ngff import array_path
from vesalius.platform.store.place import place_of
from vesalius.platform.store.records import SubjectRecord
from vesalius.platform.store.remote import RemotePath

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from vesalius.platform.progress import Progress
    from vesalius.platform.store.manifest import Entry, Manifest
    from vesalius.platform.store.place import Place

FRAME: dict[str, dict[str, Any]] = {SUBJECTS: {}, ".": {"vesalius": {"format": FORMAT}}}
"""Attributes of the groups above the subjects, by folder."""

_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,128}@[0-9a-f]{16}")
_KNOWN = frozenset({NAME, LOCK, PARTIAL, SUBJECTS, "zarr.json"})


class Problem(Settings):
    """One thing that is wrong with a store.

    Attributes:
        subject_id: the committed subject it damages; None where it damages none.
        sentence: what is wrong, where, and what to do.
    """

    subject_id: str | None
    sentence: str


def check_store(path: Place | str, progress: Progress = silent) -> list[str]:
    """Re-read everything against its checksums.

    Args:
        path: a store, by folder or URL; one whose manifest is damaged, too.
        progress: called before every subject.

    Returns:
        One sentence a problem; an empty list means that every byte is what was committed.
    """
    return [problem.sentence for problem in find_problems(path, progress)]


def find_problems(path: Place | str, progress: Progress = silent) -> list[Problem]:
    """Do what :func:`check_store` does and say which subject each problem damages."""
    path = place_of(path)
    try:
        manifest = read_manifest(path)
    except UnreachableError:
        raise
    except StoreError as error:
        return [Problem(subject_id=None, sentence=str(error))]
    problems = [Problem(subject_id=None, sentence=text) for text in _frame_problems(path)]
    total = len(manifest.subjects)
    for done, (subject_id, entry) in enumerate(manifest.subjects.items()):
        progress(done, total, subject_id)
        problems.extend(
            Problem(
                subject_id=subject_id,
                sentence=f"subject {subject_id}: {text}: 'vesalius check --repair' drops the subject, "
                "and the same ingest takes it in again",
            )
            for text in _lasting_problems(path, subject_id, entry)
        )
    progress(total, total, "")
    problems.extend(Problem(subject_id=None, sentence=text) for text in _lasting_leftovers(path))
    return problems


def _lasting_problems(path: Place, subject_id: str, entry: Entry) -> list[str]:
    """Return what is wrong with a subject for as long as it is committed: one that is forgotten goes file by file.

    It may have been forgotten and taken in again with the same content, so that what is wrong has to be seen twice.
    """
    current: Entry | None = entry
    before: tuple[Entry, list[str]] | None = None
    while current is not None:
        try:
            found = list(subject_problems(folder_of(path, subject_id, current), current))
        except FileNotFoundError as error:  # between being listed and being read
            found = [f"{error.filename or error} is missing"]
        if not found:
            break
        if before == (current, found):
            return found
        before, current = (current, found), read_manifest(path).subjects.get(subject_id)
    return []


def _lasting_leftovers(path: Place) -> list[str]:
    """Return what nobody has committed, seen while no writer was at work: theirs is no problem, nor is what they drop.

    One may come and go while we look. The manifest tells, and is read first: whoever commits before the lock is looked
    at then shows.
    """
    while True:
        manifest = read_manifest(path)
        if is_held(path / LOCK):
            return []
        try:
            found = list(_leftovers(path, manifest))
        except FileNotFoundError:
            continue  # a writer is at work: the lock will say so
        if not is_held(path / LOCK) and read_manifest(path) == manifest:
            return found


def folder_of(path: Place, subject_id: str, entry: Entry) -> Place:
    """Return where a committed subject's group lies."""
    return path / SUBJECTS / subject_folder(path, subject_id, entry.metadata_sha256)


def committed_folders(path: Place, manifest: Manifest) -> set[str]:
    """Return the names below ``subjects/`` that are committed."""
    return {subject_folder(path, key, entry.metadata_sha256) for key, entry in manifest.subjects.items()}


def subject_problems(folder: Place, entry: Entry) -> Iterator[str]:
    """Yield what is wrong with one committed subject's folder."""
    found = _look(folder)
    if not found.digests:
        yield f"{folder} is missing"
        return
    metadata = folder / "zarr.json"
    readable = True
    if found.metadata is None:
        yield f"{metadata} is missing"
    elif sha256(found.metadata).hexdigest() != entry.metadata_sha256:
        yield f"{metadata} is not what was committed"
    else:
        for name, complaint in _file_problems(found.digests, _files_in(found.metadata)):
            readable = readable and complaint == _STRANGE
            yield f"{folder / name} {complaint}"
    if readable:
        yield from _array_problems(folder, entry.record, found.contents)


def read_written(folder: Place) -> SubjectRecord | None:
    """Return the record of a subject's folder if every file of it is what was written, whoever committed it or not."""
    try:
        found = _look(folder)
        metadata = found.metadata or b""
        record = SubjectRecord.model_validate(json.loads(metadata)["attributes"]["vesalius"]["record"])
        files = _files_in(metadata)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if subject_folder(folder, record.subject_id, sha256(metadata).hexdigest()) != folder.name:
        return None
    if any(True for _ in _file_problems(found.digests, files)):
        return None
    # Whole, and still of another format: its arrays lie elsewhere.
    if any(f"{array_path(role)}/zarr.json" not in files for role in record.arrays):
        return None
    return record


_STRANGE = "does not belong to the store"


@dataclass(frozen=True)
class _Found:
    """What lies in a subject's folder.

    Attributes:
        digests: of every file, by relative path.
        metadata: the group's own.
        contents: of every file, at a URL, where each is fetched once; None on a disk, which is read again rather than
            held in memory.
    """

    digests: Mapping[str, str]
    metadata: bytes | None
    contents: Mapping[str, bytes] | None


def _look(folder: Place) -> _Found:
    if isinstance(folder, RemotePath):
        contents = folder.read_many(folder.files())
        return _Found(digests_of(contents), contents.get("zarr.json"), contents)
    digests = folder_digests(folder)
    return _Found(digests, (folder / "zarr.json").read_bytes() if "zarr.json" in digests else None, None)


def _files_in(metadata: bytes) -> dict[str, str]:
    return dict(json.loads(metadata)["attributes"]["vesalius"]["files"])


def _file_problems(found: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted({*expected, *found} - {"zarr.json"}):
        if name not in found:
            yield name, "is missing"
        elif name not in expected:
            yield name, _STRANGE
        elif found[name] != expected[name]:
            yield name, "is not what was committed"


def _array_problems(folder: Place, record: SubjectRecord, contents: Mapping[str, bytes] | None) -> Iterator[str]:
    """Decode every array: files may be whole and still not give the values back, with another version of a codec."""
    for name, facts in record.arrays.items():
        try:
            found = array_facts(_decoded(folder, array_path(name), contents))
        except UnreachableError:
            raise  # that says nothing of what is stored
        except Exception as error:  # whatever a decoder throws at damaged bytes
            yield f"{folder / array_path(name)} cannot be decoded ({type(error).__name__})"
        else:
            if found != facts:
                yield f"{folder / array_path(name)} does not decode to what was committed"


def _decoded(folder: Place, path: str, contents: Mapping[str, bytes] | None) -> NDArray[Any]:
    if contents is None:
        return read_array(folder / path)
    inside = f"{path}/"
    return array_of({name.removeprefix(inside): held for name, held in contents.items() if name.startswith(inside)})


def _frame_problems(path: Place) -> Iterator[str]:
    for folder, expected in FRAME.items():
        metadata = path / folder / "zarr.json"
        if group_attributes(metadata) != expected:
            yield f"{metadata} is missing or damaged: Vesalius reads on without it, other Zarr readers do not"
    strange = sorted({entry.name for entry in path.iterdir()} - _KNOWN)
    yield from (f"{path / name} {_STRANGE}: move it away" for name in strange)


def group_attributes(metadata: Place) -> Any:
    """Return the attributes of a Zarr v3 group's metadata file, or None where it is none."""
    try:
        tree = json.loads(metadata.read_bytes())
        return tree["attributes"] if (tree["zarr_format"], tree["node_type"]) == (3, "group") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def uncommitted_folders(path: Place, manifest: Manifest) -> Iterator[Place]:
    """Yield what lies below ``subjects/`` and is not committed, by name: folders on a disk, prefixes at a URL."""
    committed = committed_folders(path, manifest) | {"zarr.json"}
    if (path / SUBJECTS).is_dir():
        yield from sorted((e for e in (path / SUBJECTS).iterdir() if e.name not in committed), key=lambda e: e.name)


def is_clutter(entry: Place, manifest: Manifest) -> bool:
    """Say whether an uncommitted prefix at a URL is of no use to anybody, so that the next writer may clear it.

    It lacks its metadata, which is written last; or a file that these list, as when a writer that was taken over went
    on beside the next one's clearing; or its subject is committed under another name (two workers were given it, and
    their notes differ).
    """
    if isinstance(entry, Path) or not _PREFIX.fullmatch(entry.name):
        return False
    if entry.name.partition("@")[0] in manifest.subjects:
        return True
    try:
        files = _files_in((entry / "zarr.json").read_bytes())
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False  # damaged, which is for a person to see
    return not files.keys() <= set(entry.files())


def _leftovers(path: Place, manifest: Manifest) -> Iterator[str]:
    unfinished = "holds what an interrupted ingest left unfinished: the next ingest clears it"
    for entry in uncommitted_folders(path, manifest):
        if is_clutter(entry, manifest):
            yield f"{entry} {unfinished}"
            continue
        written = read_written(entry)
        if written is not None:
            yield (
                f"subject {written.subject_id} was written and never committed: run the same ingest again to take it "
                "in, or drop it with 'vesalius check --repair'"
            )
        else:
            yield f"{entry} {_STRANGE}: move it away"
    partial = path / PARTIAL
    if partial.is_dir() and any(True for _ in partial.iterdir()):
        yield f"{partial} {unfinished}"
