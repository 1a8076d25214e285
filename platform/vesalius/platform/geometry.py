"""Affines, spacing in millimetres, canonical orientation, resampling, and the way back to the source's own grid.

An affine takes voxel indices (i, j, k, 1) to millimetres in RAS+ world space, as NIfTI and nibabel have it. A voxel's
index is its centre: voxel i of a row covers indices i - 0.5 to i + 0.5.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike

    from vesalius.platform.config import Matrix4
    from vesalius.platform.store.records import SourceFacts

Affine = NDArray[np.float64]
Shape3 = tuple[int, int, int]
Order = Literal[0, 1, 3]

# Voxels fall on voxels when their centres agree to a thousandth of a voxel. NIfTI keeps affines as float32 and
# rotations as quaternions: one grid written by two programs differs by some 1e-4 of a voxel at the far end of a row.
_SAME_VOXEL = 1e-3


def check_affine(affine: ArrayLike, name: str) -> Affine:
    """Return ``affine`` as (4, 4) float64 after checking that it can be inverted.

    Args:
        affine: anything NumPy reads as a matrix.
        name: what it belongs to, such as a file's name; stands at the head of the message.

    Raises:
        VolumeError: it is not 4x4, not finite, singular, or its last row is not 0 0 0 1.
    """
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError):
        raise VolumeError(f"{name}: its affine is not a matrix of numbers: expected 4x4") from None
    if matrix.shape != (4, 4):
        raise VolumeError(f"{name}: its affine has shape {matrix.shape}, expected 4x4")
    if not np.isfinite(matrix).all():
        raise VolumeError(f"{name}: its affine holds NaN or infinite numbers: repair the file's header")
    if not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0)):
        raise VolumeError(f"{name}: the last row of its affine is {matrix[3].tolist()}, expected 0 0 0 1")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # The determinant of the unit axes is free of scale: a 0.01 mm grid is as regular as a 10 mm one.
    if not (lengths > 0).all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise VolumeError(f"{name}: its affine is singular (two axes fall together): repair the file's header")
    return matrix


def as_matrix(affine: ArrayLike) -> Matrix4:
    """Return an affine as nested tuples of floats, the form that records and settings keep."""
    a, b, c, d = (
        (float(row[0]), float(row[1]), float(row[2]), float(row[3])) for row in np.asarray(affine, dtype=np.float64)
    )
    return (a, b, c, d)


def spacing_of(affine: ArrayLike) -> tuple[float, float, float]:
    """Return the voxel size in mm along the three array axes: the lengths of the affine's columns."""
    lengths = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return (float(lengths[0]), float(lengths[1]), float(lengths[2]))


def grid_affine(shape: Shape3, spacing_mm: tuple[float, float, float], center_mm: tuple[float, float, float]) -> Affine:
    """Return the (4, 4) affine of an RAS+ grid whose physical centre lies at ``center_mm``.

    The centre of n voxels is index (n - 1) / 2, so grids of different resolution over one box share it.
    """
    affine = np.diag([*(float(step) for step in spacing_mm), 1.0])
    half = (np.asarray(shape, dtype=np.float64) - 1) / 2
    affine[:3, 3] = np.asarray(center_mm, dtype=np.float64) - half * affine.diagonal()[:3]
    return affine


def canonical(array: NDArray[Any], affine: ArrayLike) -> tuple[NDArray[Any], Affine]:
    """Bring an array to the closest RAS+ orientation by flipping and permuting its axes; no voxel value changes.

    Equal to ``nibabel.as_closest_canonical``.

    Args:
        array: (D, H, W), or with further axes behind.
        affine: voxel indices of ``array`` to mm.

    Returns:
        A view of ``array`` and the affine that belongs to it.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    matrix = np.asarray(affine, dtype=np.float64)
    orientation = io_orientation(matrix)
    turned = apply_orientation(array, orientation)
    return turned, matrix @ inv_ornt_aff(orientation, array.shape[:3])


def resample(
    array_DHW: NDArray[Any],
    affine: ArrayLike,
    target_shape: Shape3,
    target_affine: ArrayLike,
    *,
    to_source: ArrayLike | None = None,
    order: Order = 1,
    fill: float = 0.0,
) -> NDArray[np.float32]:
    """Sample an array at the voxel centres of another grid.

    Where voxels fall on voxels (the same grid, turned, flipped or moved by whole voxels) values are copied exactly. A
    voxel reaches half a voxel beyond its centre: a target centre in a source's outermost voxel takes that voxel's
    value, one outside every voxel takes ``fill``.

    Args:
        array_DHW: (D, H, W) source values.
        affine: source voxel indices to source world mm.
        target_shape: (D, H, W) of the answer.
        target_affine: target voxel indices to target world mm.
        to_source: (4, 4) taking target world mm to source world mm; identity when None.
        order: 0 nearest neighbour (labels and masks), 1 linear, 3 cubic B-spline.
        fill: value outside the source.

    Returns:
        (D, H, W) float32.
    """
    from scipy.ndimage import affine_transform

    bridge = np.eye(4) if to_source is None else np.asarray(to_source, dtype=np.float64)
    mapping = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ bridge @ np.asarray(target_affine, dtype=np.float64)
    depth, height, width = (int(size) for size in target_shape)
    answer = np.full((depth, height, width), fill, dtype=np.float32)
    if _copied(array_DHW, answer, mapping):
        return answer
    affine_transform(
        np.asarray(array_DHW, dtype=np.float32),
        mapping[:3, :3],
        mapping[:3, 3],
        output_shape=answer.shape,
        output=answer,
        order=order,
        mode="nearest",
    )
    _fill_outside(answer, array_DHW.shape, mapping, fill)
    return answer


def to_native(
    map_DHW: NDArray[Any], affine: ArrayLike, source: SourceFacts, *, order: Order = 1, fill: float = 0.0
) -> NDArray[np.float32]:
    """Bring a map from a stored subject's grid back to the grid of the file it came from.

    Args:
        map_DHW: (D, H, W) on the stored grid.
        affine: the stored grid's affine.
        source: shape and affine of the source's first image, and the transform between the two worlds.
        order: 0 nearest, 1 linear, 3 cubic.
        fill: value where the stored grid does not reach.

    Returns:
        float32, of ``source.shape``; it belongs to ``source.affine``.
    """
    # resample() asks for target world -> source world. Here the file is the target and the store is the source.
    to_stored = np.linalg.inv(np.asarray(source.to_source, dtype=np.float64))
    return resample(map_DHW, affine, source.shape, source.affine, to_source=to_stored, order=order, fill=fill)


def write_nifti(path: Path, array: NDArray[Any], affine: ArrayLike) -> None:
    """Write a NIfTI file (.nii or .nii.gz) that is either complete or absent: written aside, then renamed.

    Args:
        path: where; its folder is made.
        array: (D, H, W); bool is written as uint8 and float16 as float32, which NIfTI lacks.
        affine: voxel indices to mm.

    Raises:
        DiskSpaceError: there is no room; what was there before is still there.
    """
    import nibabel

    from vesalius.platform.store.space import space_errors

    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    image = nibabel.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    aside = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    with space_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            nibabel.save(image, aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _copied(source: NDArray[Any], answer: NDArray[np.float32], mapping: Affine) -> bool:
    """Copy what two grids have in common if voxels fall on voxels; return whether they do.

    ``mapping`` takes indices of ``answer`` to indices of ``source``.
    """
    turn = np.rint(mapping[:3, :3]).astype(np.int64)
    offsets = np.rint(mapping[:3, 3]).astype(np.int64)
    is_signed_permutation = bool((np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all())
    corners = _corners(answer.shape)
    whole = turn @ corners[:3] + offsets[:, None]
    if not is_signed_permutation or np.abs(mapping[:3] @ corners - whole).max() > _SAME_VOXEL:
        return False
    # With the source's axes in the answer's order and direction, voxel i of one is voxel i + offset of the other.
    order = np.abs(turn).argmax(axis=0)
    here, there = [], []
    for axis, origin in enumerate(order):
        extent, size = source.shape[origin], answer.shape[axis]
        forwards = turn[origin, axis] > 0
        offset = int(offsets[origin] if forwards else extent - 1 - offsets[origin])
        start, stop = max(0, -offset), min(size, extent - offset)
        if start >= stop:
            return True
        here.append(slice(start, stop))
        there.append(slice(start + offset, stop + offset))
    flips = tuple(axis for axis, origin in enumerate(order) if turn[origin, axis] < 0)
    answer[tuple(here)] = np.flip(source.transpose(order), flips)[tuple(there)]
    return True


def _corners(shape: tuple[int, ...]) -> Affine:
    """Return the (4, 8) homogeneous indices of a grid's corner voxels."""
    ends = [(0.0, size - 1.0) for size in shape]
    return np.array([[i, j, k, 1.0] for i in ends[0] for j in ends[1] for k in ends[2]]).T


def _fill_outside(answer: NDArray[np.float32], source_shape: tuple[int, ...], mapping: Affine, fill: float) -> None:
    """Set target voxels whose centre lies outside every source voxel to ``fill``."""
    limits = np.asarray(source_shape, dtype=np.float64) - 0.5 + _SAME_VOXEL
    ends = mapping[:3] @ _corners(answer.shape)
    low = -0.5 - _SAME_VOXEL
    for axis in range(3):
        # An affine image of a box lies within its corners: most axes need no look at their voxels.
        if ends[axis].min() >= low and ends[axis].max() <= limits[axis]:
            continue
        i, j, k = (mapping[axis, step] * np.arange(size) for step, size in enumerate(answer.shape))
        plane = j[:, None] + k[None, :] + mapping[axis, 3]
        for index, start in enumerate(i):
            place = plane + start
            answer[index][(place < low) | (place > limits[axis])] = fill
