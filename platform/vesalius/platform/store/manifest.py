"""The manifest: what the store holds. Its replacement is the commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator

from vesalius.platform.config import Settings, canonical_json, digest
from vesalius.platform.errors import CohortError, StoreError
from vesalius.platform.store.arrays import ChunkSettings
from vesalius.platform.store.connection import Conflict
from vesalius.platform.store.files import write_file
from vesalius.platform.store.records import SubjectRecord
from vesalius.platform.store.remote import RemotePath

if TYPE_CHECKING:
    from vesalius.platform.store.place import Place

FORMAT = 2
NAME = "manifest.json"
SUBJECTS = "subjects"
PARTIAL = ".partial"
LOCK = ".lock"


class Entry(Settings):
    """A committed subject.

    Attributes:
        record: the record.
        metadata_sha256: digest of the subject group's ``zarr.json``, which in turn lists every file's digest.
    """

    record: SubjectRecord
    metadata_sha256: str


class Manifest(Settings):
    """All that is committed.

    Attributes:
        format: version of the folder's layout.
        name: what the cohort is called, for people.
        recipe: the recipe every subject was prepared by.
        channels: modality names of every image, in order.
        chunks: how arrays are cut and compressed.
        subjects: entries by subject id.
    """

    format: int = FORMAT
    name: str = ""
    recipe: dict[str, Any]
    channels: tuple[str, ...]
    chunks: ChunkSettings = ChunkSettings()
    subjects: dict[str, Entry] = Field(default_factory=dict)

    @field_validator("subjects")
    @classmethod
    def _filed_under_their_ids(cls, subjects: dict[str, Entry]) -> dict[str, Entry]:
        for key, entry in subjects.items():
            if key != entry.record.subject_id:
                raise ValueError(f"subject {entry.record.subject_id} is filed under {key}")
        return subjects

    @property
    def recipe_digest(self) -> str:
        """Digest of the recipe."""
        return digest(self.recipe)

    @property
    def cohort_digest(self) -> str:
        """Digest of recipe, channels and every subject's content; knows no order, time, notes, chunks or codec."""
        return digest(
            {
                "recipe": self.recipe_digest,
                "channels": self.channels,
                "subjects": [record_digest(self.subjects[key].record) for key in sorted(self.subjects)],
            }
        )


def record_digest(record: SubjectRecord) -> str:
    """Return the digest of a subject: voxels (through their digests), labels, split, geometry, source; no notes."""
    return digest(record.model_dump(mode="json", exclude={"notes"}))


def subject_folder(path: Place, subject_id: str, metadata_sha256: str) -> str:
    """Return the name below ``subjects/`` that a subject lies under.

    On a disk it is the id. At a URL, where nothing can be renamed, it also follows from the content, so that two who
    write at once never write to one name unless they write the same: a committed subject cannot be overwritten.
    """
    return subject_id if isinstance(path, Path) else f"{subject_id}@{metadata_sha256[:16]}"


def read_manifest(folder: Place) -> Manifest:
    """Read a store's manifest.

    Raises:
        StoreError: the folder is no store, or its manifest is damaged or of another format.
    """
    return read_current(folder)[0]


def read_current(folder: Place) -> tuple[Manifest, str | None]:
    """Read a store's manifest to replace it: return it, and at a URL the version that :func:`write_manifest` wants.

    Raises:
        StoreError: see :func:`read_manifest`.
    """
    path = folder / NAME
    version = None
    try:
        if isinstance(path, RemotePath):
            content, version = path.read_versioned()
        else:
            content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise StoreError(
            f"{folder} is not a cohort store (it has no {NAME}): give the folder that 'vesalius ingest' wrote"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): check the disk and who may read it") from None
    try:
        tree = json.loads(content)
        body, checksum = tree["manifest"], tree["sha256"]
    except (ValueError, KeyError, TypeError):
        raise StoreError(_damaged(path, "it is not the JSON that was written")) from None
    if digest(body) != checksum:
        raise StoreError(_damaged(path, "its content does not match its checksum"))
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = body.get("format") if isinstance(body, dict) else None
        advice = "update Vesalius" if isinstance(found, int) and found > FORMAT else "ingest the cohort anew"
        raise StoreError(f"{path} is of format {found} and this version reads format {FORMAT}: {advice}")
    try:
        return Manifest.model_validate(body), version
    except CohortError as error:
        raise StoreError(_damaged(path, str(error))) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(_damaged(path, f"{place}: {first['msg']}")) from None


def write_manifest(folder: Place, manifest: Manifest, aside: Place, version: str | None = None) -> None:
    """Replace a store's manifest in one step.

    Args:
        folder: the store.
        manifest: the new one.
        aside: see :func:`write_file`.
        version: at a URL, of the manifest that is replaced; None where there must be none yet.

    Raises:
        StoreError: at a URL, another writer has replaced or made it since.
    """
    body = manifest.model_dump(mode="json")
    content = canonical_json({"manifest": body, "sha256": digest(body)}).encode()
    path = folder / NAME
    if not isinstance(path, RemotePath):
        write_file(path, content, aside)
        return
    try:
        if version is None:
            path.create(content)
        else:
            path.replace(content, version)
    except (Conflict, FileExistsError):
        raise StoreError(
            f"{path} was written by somebody else in the meantime; nothing of this was committed: run the same again"
        ) from None


def _damaged(path: Place, reason: str) -> str:
    return (
        f"{path} is damaged: {reason}; move it away and run the same ingest again, "
        "which takes the subjects that are still whole back in"
    )
