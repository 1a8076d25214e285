"""Which held-out subjects get a lesion, and which mask each of them gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.phantom.lattice import stream
from vesalius.platform.errors import CohortError, SettingError, VolumeError
from vesalius.platform.geometry import resample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.datasets.lesions.settings import PlantingSettings
    from vesalius.platform.store import CohortStore, SubjectRecord

_MOST_NEGATIVE = 0.01  # share of brain voxels below 0 from which on a relative change has no meaning


def mask_files(folder: Path) -> list[Path]:
    """Return the mask files of a folder, by name.

    Raises:
        SettingError: it is no folder, or holds none.
    """
    if not folder.is_dir():
        raise SettingError(f"masks: {folder} is not a folder: give one with lesion masks as .nii or .nii.gz")
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise SettingError(f"masks: {folder} holds no .nii or .nii.gz file: give a folder with lesion masks")
    return files


def choose(store: CohortStore, settings: PlantingSettings) -> tuple[list[SubjectRecord], list[str]]:
    """Return the subjects that get a lesion and the ids of those that stay healthy, split by split.

    Raises:
        CohortError: there is no healthy subject in the splits.
    """
    chosen: list[SubjectRecord] = []
    healthy: list[str] = []
    for split in dict.fromkeys(settings.splits):
        # Ranked by a hash of their own, so that the share is exact and order plays no part.
        ranked = sorted(store.subjects(split, healthy=True), key=lambda record: _rank(settings.seed, record.subject_id))
        num_healthy = round(settings.healthy_fraction * len(ranked))
        if len(ranked) > 1:
            # A split with several subjects shows both kinds, however small it is.
            num_healthy = min(max(num_healthy, int(settings.healthy_fraction > 0)), len(ranked) - 1)
        healthy += [record.subject_id for record in ranked[:num_healthy]]
        chosen += ranked[num_healthy:]
    if not chosen:
        raise CohortError(
            f"{store.path} holds no healthy subject in the splits {', '.join(settings.splits)}: "
            "lesions are set into held-out healthy subjects"
        )
    return sorted(chosen, key=lambda record: record.subject_id), healthy


def _rank(seed: int, subject_id: str) -> float:
    return float(stream(seed, f"stays healthy {subject_id}").random())


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A lesion mask on a subject's grid, before it is cut at the brain."""

    file_name: str
    sha256: str
    mask: NDArray[np.bool_]


def draw_shape(store: CohortStore, record: SubjectRecord, files: Sequence[Path], settings: PlantingSettings) -> Shape:
    """Draw masks in the subject's own random order until one lies in its brain.

    Raises:
        VolumeError: its intensities are not positive, or a mask cannot be read.
        CohortError: no mask lies in its brain.
    """
    brain = store.brain(record.subject_id)
    image = store.image(record.subject_id)
    inside = image[:, brain]
    if np.count_nonzero(inside < 0) > _MOST_NEGATIVE * inside.size:
        raise VolumeError(
            f"{record.subject_id} has negative intensities in the brain, where a relative contrast has no meaning: "
            "prepare the store with scale, or with clip_minimum 0"
        )
    for index in stream(settings.seed, f"mask {record.subject_id}").permutation(len(files)):
        shape = read_shape(files[index], record)
        if (shape.mask & brain).sum() >= settings.min_voxels:
            return shape
    raise CohortError(
        f"none of the {len(files)} masks has {settings.min_voxels} voxels in the brain of {record.subject_id}: "
        "are the store and the masks both in MNI space?"
    )


def read_shape(file: Path, record: SubjectRecord) -> Shape:
    """Bring a mask to a subject's grid, by nearest neighbour."""
    volume = read_nifti(file)
    values = resample((volume.array > 0.5).astype(np.float32), volume.affine, record.shape, record.affine, order=0)
    return Shape(file_name=file.name, sha256=volume.sha256, mask=values > 0.5)
