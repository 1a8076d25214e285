"""Masks are found at 2 mm on a grid along the world's axes: thick slices, tilts and thin ones then look alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.registration import single_thread
from vesalius.datasets.steps import bounding_box, smooth_for, solid, world_grid
from vesalius.platform.geometry import resample, spacing_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

COARSE_MM = 2.0


@dataclass(frozen=True, kw_only=True)
class Coarse:
    """A volume at 2 mm.

    Attributes:
        image: intensities.
        affine: (4, 4), diagonal but for the origin.
    """

    image: NDArray[np.float32]
    affine: NDArray[np.float64]


def coarse(image: NDArray[np.float32], affine: NDArray[np.float64], fill: float) -> Coarse:
    """Return a canonical volume at 2 mm; ``fill`` is what lies beyond it."""
    smooth = smooth_for(image, spacing_of(affine), (COARSE_MM, COARSE_MM, COARSE_MM))
    # Four voxels to spare, so that what touches the volume's edge can be dilated and closed like the rest.
    shape, grid = world_grid(image.shape, affine, COARSE_MM, margin=4)
    return Coarse(image=resample(smooth, affine, shape, grid, fill=fill), affine=grid)


def fine(
    mask: NDArray[np.bool_], grid: NDArray[np.float64], shape: tuple[int, ...], affine: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return a mask found at 2 mm on the volume's own voxels, its surface interpolated."""
    d, h, w = shape
    placed: NDArray[np.bool_] = resample(mask.astype(np.float32), grid, (d, h, w), affine) > 0.5
    return placed


def distance_mm(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance of every voxel at 2 mm to the nearest one of a mask, 0 inside (Maurer et al. 2003).

    ITK's is five times as fast as SciPy's, and exact as well.
    """
    with single_thread() as sitk:
        # The axes' order does not matter: voxels are cubes.
        image = sitk.GetImageFromArray(np.ascontiguousarray(mask, dtype=np.uint8))
        signed = sitk.SignedMaurerDistanceMap(image, False, False, False)
        values: NDArray[np.float32] = sitk.GetArrayFromImage(signed)
    return np.maximum(values, 0) * np.float32(COARSE_MM)


def dilated(mask: NDArray[np.bool_], mm: float) -> NDArray[np.bool_]:
    """Return the voxels within ``mm`` of a mask at 2 mm."""
    grown = np.zeros_like(mask)
    if mask.any():
        box = bounding_box(mask, margin=int(mm / COARSE_MM) + 1)
        grown[box] = distance_mm(mask[box]) <= mm
    return grown


def depth_mm(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how far inside a mask at 2 mm each voxel is, 0 outside; beyond the array nothing is inside."""
    depth = np.zeros(mask.shape, dtype=np.float32)
    if mask.any():
        box = bounding_box(mask)
        depth[box] = distance_mm(np.pad(~mask[box], 1, constant_values=True))[1:-1, 1:-1, 1:-1]
    return depth


def eroded(mask: NDArray[np.bool_], mm: float) -> NDArray[np.bool_]:
    """Return the voxels of a mask at 2 mm that are more than ``mm`` inside."""
    shrunk: NDArray[np.bool_] = depth_mm(mask) > mm
    return shrunk


def closed(mask: NDArray[np.bool_], mm: float) -> NDArray[np.bool_]:
    """Return a mask with its furrows narrower than twice ``mm`` closed and its holes filled."""
    width = int(np.ceil(mm / COARSE_MM)) + 1
    padded = np.pad(mask, width)
    inner = slice(width, -width)
    return solid(eroded(dilated(padded, mm), mm)[inner, inner, inner] | mask)


def litres(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> float:
    """Return a mask's volume."""
    return float(np.count_nonzero(mask)) * abs(float(np.linalg.det(affine[:3, :3]))) / 1e6
