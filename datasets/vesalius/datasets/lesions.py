"""Synthetic lesions in real brains: real lesion shapes set into held-out healthy volumes, so that truth is exact.

The masks lie in MNI space, and so must the store (a recipe with registration, or sources in MNI space). Within the
brain a voxel's intensity x becomes x * (1 + contrast * profile * texture): the profile rises over ``softness_mm``
around the mask's surface, the texture is smooth noise with mean 1. The stored lesion mask is exact: it is where the
profile is at least 0.5, which is where the mask, read by nearest neighbour, lies in the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.phantom.lattice import Lattice, smooth_noise, stream
from vesalius.platform.config import Settings, validate
from vesalius.platform.errors import CohortError, SettingError, StoreError, VolumeError
from vesalius.platform.geometry import resample
from vesalius.platform.progress import silent
from vesalius.platform.store import CohortStore, SubjectArrays, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.platform.progress import Progress
    from vesalius.platform.store import Place, SubjectRecord

TEXTURE_SCALE_MM = 6.0
_MOST_NEGATIVE = 0.01  # share of brain voxels below 0 from which on a relative change has no meaning


class PlantingSettings(Settings):
    """How lesions are set.

    Attributes:
        contrast: relative change of the intensity inside; -0.4 is 40 % darker. The same in every channel.
        softness_mm: width of the border over which the change rises from nothing to full; below twice the voxel size
            there is next to none.
        texture: deviation of the change from place to place, as a fraction of it.
        seed: with a subject's id, decides its lesion.
        splits: where lesions go.
        healthy_fraction: share of the healthy subjects of each of these splits that stay healthy.
        min_voxels: a mask that has fewer voxels in a subject's brain is put back and another one is drawn.
    """

    contrast: float = Field(-0.4, ge=-1, le=3)
    softness_mm: float = Field(6.0, ge=0, le=50)
    texture: float = Field(0.2, ge=0, le=1)
    seed: int = 0
    splits: tuple[str, ...] = ("validation", "gate", "test")
    healthy_fraction: float = Field(1 / 3, ge=0, lt=1)
    min_voxels: int = Field(50, ge=1)


class LesionReport(Settings):
    """What was done.

    Attributes:
        store: the new store's folder.
        planted: file name of the mask by id, for every subject that got a lesion.
        healthy: ids of the held-out subjects that stayed healthy, sorted.
        copied: ids of all others: training subjects, and those that had a lesion of their own.
        digest: of the new store.
    """

    store: str
    planted: dict[str, str]
    healthy: tuple[str, ...]
    copied: tuple[str, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A lesion mask on a subject's grid, before it is cut at the brain."""

    file_name: str
    sha256: str
    mask: NDArray[np.bool_]


def plant_lesions(
    store: CohortStore,
    out: Place | str,
    masks: Path,
    *,
    contrast: float = -0.4,
    softness_mm: float = 6.0,
    texture: float = 0.2,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "gate", "test"),
    healthy_fraction: float = 1 / 3,
    min_voxels: int = 50,
    progress: Progress = silent,
) -> LesionReport:
    """Write a store that is ``store`` with lesions in its held-out healthy subjects.

    Every subject is there again under its id and split; those without a new lesion are the same voxel by voxel. A
    subject's lesion is a function of (seed, its id, the masks), whatever else the store holds. What was planted is
    recorded under ``notes["planted_lesion"]``, and in the labels ``anomalous``, ``lesion_type``, ``lesion_left``,
    ``lesion_right``.

    Args:
        store: prepared subjects in MNI space.
        out: the new store, by folder or URL; made when absent. Written already by the same call, it is completed.
        masks: folder of lesion masks (.nii, .nii.gz; above 0.5 is lesion) in MNI space.
        contrast: see :class:`PlantingSettings`, as for the others.
        softness_mm: width of the border.
        texture: unevenness inside.
        seed: decides the lesions.
        splits: where lesions go.
        healthy_fraction: share of each of these splits that stays healthy.
        min_voxels: smallest lesion.
        progress: called with subjects done, subjects in all and the last one's id.

    Raises:
        SettingError: a setting is out of range, or ``masks`` is no folder with NIfTI files.
        CohortError: no healthy subject in ``splits``, or no mask lies in a subject's brain.
        VolumeError: a mask file cannot be read, or a subject's intensities are not positive.
        StoreError: ``out`` is no store, ``store`` itself, or holds other subjects by these ids.
        DiskSpaceError: there is no room; ``out`` shows nothing half-written.
    """
    settings = validate(
        PlantingSettings,
        {
            "contrast": contrast,
            "softness_mm": softness_mm,
            "texture": texture,
            "seed": seed,
            "splits": tuple(splits),
            "healthy_fraction": healthy_fraction,
            "min_voxels": min_voxels,
        },
        "synthetic lesions",
    )
    files = _mask_files(masks)
    out = place_of(out)
    if out.resolve() == store.path.resolve():
        raise StoreError(f"{out} is the store that the lesions are for: give another folder for the result")
    chosen, healthy = _choose(store, settings)
    records = store.subjects()
    # Whatever can be wrong with masks or subjects is found before anything is written.
    plans = {record.subject_id: _draw(store, record, files, settings).file_name for record in chosen}
    by_name = {file.name: file for file in files}
    target = CohortStore.create(out, recipe=store.recipe, channels=store.channels, name=store.name)
    written = []
    with target.lock():
        for done, record in enumerate(records):
            progress(done, len(records), record.subject_id)
            arrays = _arrays(store, record)
            if record.subject_id in plans:
                shape = _read_shape(by_name[plans[record.subject_id]], record)
                record, arrays = _plant(record, arrays, shape, settings)
            written.append(target.write(record.model_copy(update={"arrays": {}}), arrays))
        target.commit(written)
    progress(len(records), len(records), "")
    changed = {*plans, *healthy}
    return LesionReport(
        store=str(out),
        planted=plans,
        healthy=tuple(sorted(healthy)),
        copied=tuple(record.subject_id for record in records if record.subject_id not in changed),
        digest=target.digest,
    )


_HARD_MM = 1e-6
"""A border narrower than this is none: distances divided by it would leave the numbers that there are."""


def lesion_profile(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float], softness_mm: float
) -> NDArray[np.float32]:
    """Return (D, H, W) in [0, 1]: 1 inside ``mask``, 0 outside, linear over ``softness_mm`` around its surface.

    It is at least 0.5 exactly where ``mask`` is true. The surface lies half a voxel from the voxels on either side.
    """
    from scipy import ndimage

    if softness_mm < _HARD_MM:
        return mask.astype(np.float32)
    half = min(spacing_mm) / 2
    inner = ndimage.distance_transform_edt(mask, sampling=spacing_mm) - half
    outer = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) - half
    depth = np.where(mask, inner, -outer) / softness_mm
    return np.asarray(np.clip(0.5 + depth, 0, 1), np.float32)


def _mask_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise SettingError(f"masks: {folder} is not a folder: give one with lesion masks as .nii or .nii.gz")
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise SettingError(f"masks: {folder} holds no .nii or .nii.gz file: give a folder with lesion masks")
    return files


def _choose(store: CohortStore, settings: PlantingSettings) -> tuple[list[SubjectRecord], list[str]]:
    """Return the subjects that get a lesion and the ids of those that stay healthy, split by split."""
    chosen: list[SubjectRecord] = []
    healthy: list[str] = []
    for split in settings.splits:
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


def _draw(store: CohortStore, record: SubjectRecord, files: Sequence[Path], settings: PlantingSettings) -> _Shape:
    """Draw masks in the subject's own random order until one lies in its brain."""
    brain = store.brain(record.subject_id)
    image = store.image(record.subject_id)
    inside = image[:, brain]
    if np.count_nonzero(inside < 0) > _MOST_NEGATIVE * inside.size:
        raise VolumeError(
            f"{record.subject_id} has negative intensities in the brain, where a relative contrast has no meaning: "
            "prepare the store with scale, or with clip_minimum 0"
        )
    for index in stream(settings.seed, f"mask {record.subject_id}").permutation(len(files)):
        shape = _read_shape(files[index], record)
        if (shape.mask & brain).sum() >= settings.min_voxels:
            return shape
    raise CohortError(
        f"none of the {len(files)} masks has {settings.min_voxels} voxels in the brain of {record.subject_id}: "
        "are the store and the masks both in MNI space?"
    )


def _read_shape(file: Path, record: SubjectRecord) -> _Shape:
    volume = read_nifti(file)
    values = resample((volume.array > 0.5).astype(np.float32), volume.affine, record.shape, record.affine, order=0)
    return _Shape(file_name=file.name, sha256=volume.sha256, mask=values > 0.5)


def _arrays(store: CohortStore, record: SubjectRecord) -> SubjectArrays:
    subject_id = record.subject_id
    return SubjectArrays(
        image=store.image(subject_id),
        brain=store.brain(subject_id),
        head=store.mask(subject_id, "head"),
        lesion=store.mask(subject_id, "lesion"),
        structures=store.structures(subject_id),
    )


def _plant(
    record: SubjectRecord, arrays: SubjectArrays, shape: _Shape, settings: PlantingSettings
) -> tuple[SubjectRecord, SubjectArrays]:
    lesion = shape.mask & arrays.brain
    # The border follows the shape before it is cut: at the brain's rim a lesion stays as strong as within.
    profile = lesion_profile(shape.mask, record.spacing_mm, settings.softness_mm) * arrays.brain
    change = np.float32(settings.contrast) * profile * _texture(record, settings)
    image = np.array(arrays.image)
    touched = profile > 0
    for channel in image:
        before = channel[touched]
        # Brighter lesions end at the subject's own brightest voxel: beyond it a threshold alone would find them.
        brightest = channel[arrays.brain].max()
        channel[touched] = np.minimum(before * np.maximum(1 + change[touched], 0), np.maximum(before, brightest))
    left = _is_left(record)
    num_voxels = int(lesion.sum())
    notes: dict[str, Any] = {
        "mask": shape.file_name,
        "mask_sha256": shape.sha256,
        "contrast": settings.contrast,
        "softness_mm": settings.softness_mm,
        "texture": settings.texture,
        "seed": settings.seed,
        "num_voxels": num_voxels,
        "volume_mm3": num_voxels * float(np.prod(record.spacing_mm)),
    }
    labels = {
        **record.labels,
        "anomalous": True,
        "lesion_type": "synthetic",
        "lesion_left": bool((lesion & left).any()),
        "lesion_right": bool((lesion & ~left).any()),
    }
    changed = record.model_copy(update={"labels": labels, "notes": {**record.notes, "planted_lesion": notes}})
    return changed, SubjectArrays(
        image=image, brain=arrays.brain, head=arrays.head, lesion=lesion, structures=arrays.structures
    )


def _texture(record: SubjectRecord, settings: PlantingSettings) -> NDArray[np.float32]:
    """Smooth noise of mean 1, in millimetres of the grid, at least 0 so that a lesion never changes sign."""
    size = [num * step for num, step in zip(record.shape, record.spacing_mm, strict=True)]
    lattice = Lattice(low_mm=(0.0, 0.0, 0.0), high_mm=(size[0], size[1], size[2]), spacing_mm=TEXTURE_SCALE_MM / 2)
    noise = smooth_noise(stream(settings.seed, f"texture {record.subject_id}"), lattice, TEXTURE_SCALE_MM)
    x, y, z = (
        (np.arange(num) * step).astype(np.float32) for num, step in zip(record.shape, record.spacing_mm, strict=True)
    )
    factor = 1 + np.float32(settings.texture) * lattice.read(noise, (x, y, z))
    return np.asarray(np.maximum(factor, np.float32(0)))


def _is_left(record: SubjectRecord) -> NDArray[np.bool_]:
    """(D, H, W): world x below 0."""
    row = np.asarray(record.affine)[0]
    i, j, k = (step * np.arange(num) for step, num in zip(row[:3], record.shape, strict=True))
    return np.asarray(i[:, None, None] + j[None, :, None] + k[None, None, :] + row[3] < 0)
