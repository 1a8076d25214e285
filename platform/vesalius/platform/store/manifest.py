"""The manifest: what the store holds. Its replacement is the commit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator

from vesalius.platform.config import Settings, canonical_json, digest
from vesalius.platform.errors import CohortError, StoreError
from vesalius.platform.store.arrays import ChunkSettings
from vesalius.platform.store.files import write_file
from vesalius.platform.store.records import SubjectRecord

if TYPE_CHECKING:
    from pathlib import Path

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


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        StoreError: the folder is no store, or its manifest is damaged or of another format.
    """
    path = folder / NAME
    try:
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
        return Manifest.model_validate(body)
    except CohortError as error:
        raise StoreError(_damaged(path, str(error))) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(_damaged(path, f"{place}: {first['msg']}")) from None


def write_manifest(folder: Path, manifest: Manifest, aside: Path) -> None:
    """Replace a store's manifest in one step."""
    body = manifest.model_dump(mode="json")
    content = canonical_json({"manifest": body, "sha256": digest(body)})
    write_file(folder / NAME, content.encode(), aside)


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged: {reason}; move it away and run the same ingest again, "
        "which takes the subjects that are still whole back in"
    )
