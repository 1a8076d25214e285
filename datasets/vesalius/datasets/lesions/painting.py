"""A lesion set into a volume: its border, its texture, its record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.phantom.lattice import Lattice, smooth_noise, stream
from vesalius.platform.store import SubjectArrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.datasets.lesions.choosing import Shape
    from vesalius.datasets.lesions.settings import PlantingSettings
    from vesalius.platform.store import SubjectRecord

TEXTURE_SCALE_MM = 6.0
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


def plant(
    record: SubjectRecord, arrays: SubjectArrays, shape: Shape, settings: PlantingSettings
) -> tuple[SubjectRecord, SubjectArrays]:
    """Return a subject with the lesion in its image, and a record that says so."""
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
