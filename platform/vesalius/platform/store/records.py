"""What the store knows of a subject: plain, frozen, JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from vesalius.platform.config import Matrix4, Settings
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SUBJECT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

IDENTITY: Matrix4 = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def check_subject_id(text: str) -> str:
    """Return ``text`` if it can name a subject, and with it a folder.

    Raises:
        CohortError: it is empty, longer than 128 characters, begins with a dot, or holds anything but letters,
            digits, dot, underscore and hyphen.
    """
    # A leading dot would hide the folder and let '.' and '..' through.
    if not _SUBJECT_ID.fullmatch(text) or text.startswith("."):
        raise CohortError(
            f"{text[:160]!r} cannot be a subject id: use 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', "
            "beginning with anything but '.'"
        )
    return text


class SourceFacts(Settings):
    """Where a subject came from, and the way back to it.

    Attributes:
        files: file name (no directories) by role: a modality, ``brain_mask``, ``lesion_mask``, ``structures``.
        sha256: digest of each file's bytes, by the same roles.
        shape: voxels of the source's first image, as in the file.
        affine: its affine, as in the file.
        to_source: (4, 4) from the stored world's mm to the source world's mm; identity when nothing was registered.
    """

    files: dict[str, str]
    sha256: dict[str, str]
    shape: tuple[int, int, int]
    affine: Matrix4
    to_source: Matrix4 = IDENTITY

    @field_validator("files")
    @classmethod
    def _names_only(cls, files: dict[str, str]) -> dict[str, str]:
        # A folder's name may identify a patient or a machine, and it would make the digest depend on the place.
        for name in files.values():
            if "/" in name or "\\" in name:
                raise ValueError(f"{name} is a path: give the file's name alone")
        return files


class ArrayFacts(Settings):
    """One stored array.

    Attributes:
        dtype: NumPy name, such as ``float32``.
        shape: of the whole array.
        sha256: of the decoded values in C order, little-endian: the same whatever the chunks and the codec.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


class SubjectRecord(Settings):
    """Everything about a subject but its voxels.

    Attributes:
        subject_id: unique in the store; see :func:`check_subject_id`.
        split: ``train``, ``validation``, ``gate`` or ``test``.
        group: a named part of the cohort (a site, a diagnosis), if any.
        channels: modality names in the order of the image's first axis.
        shape: (D, H, W).
        spacing_mm: voxel size along D, H, W.
        affine: voxel indices to mm (RAS+).
        source: where it came from; None for what was never a file.
        recipe_digest: digest of the recipe that prepared it.
        demographics: age, sex, ... as the data set gives them.
        labels: subject-level labels, such as ``bleed_left: true``.
        structures: label value in the structures array, by structure name.
        has_lesion: any lesion voxel, or a label saying ``anomalous``.
        notes: further JSON, such as a registration's metric; not part of the digest.
        arrays: facts of the stored arrays, by name; filled when written.
    """

    subject_id: str
    split: str
    group: str | None = None
    channels: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Matrix4
    source: SourceFacts | None = None
    recipe_digest: str = ""
    demographics: dict[str, str | float | int | bool | None] = Field(default_factory=dict)
    labels: dict[str, bool | int | float | str] = Field(default_factory=dict)
    structures: dict[str, int] = Field(default_factory=dict)
    has_lesion: bool = False
    notes: dict[str, Any] = Field(default_factory=dict)
    arrays: dict[str, ArrayFacts] = Field(default_factory=dict)

    @field_validator("subject_id")
    @classmethod
    def _names_a_folder(cls, subject_id: str) -> str:
        return check_subject_id(subject_id)


@dataclass(frozen=True, kw_only=True)
class SubjectArrays:
    """A subject's voxels.

    Attributes:
        image: (C, D, H, W) float32, finite.
        brain: (D, H, W) bool.
        head: (D, H, W) bool, where there is one.
        lesion: (D, H, W) bool, where there is one.
        structures: (D, H, W) whole numbers, where there are any; 0 is background.
    """

    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    head: NDArray[np.bool_] | None = None
    lesion: NDArray[np.bool_] | None = None
    structures: NDArray[np.integer[Any]] | None = None
