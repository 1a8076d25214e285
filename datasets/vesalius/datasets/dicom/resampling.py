"""The rectangular grid that a tilted or uneven stack of slices becomes, and the way of the slices onto it.

A slice is brought onto the grid by moving it within its own plane, which blurs nothing across slices. Gaps that differ
are filled by linear interpolation along the normal. Both reproduce any intensity that is linear in world coordinates
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.gaps import pace_mm
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vesalius.datasets.dicom.geometry import Stack

    Floats = NDArray[np.float64]

MAX_VOXELS = 1 << 29
"""Of a series as it is read and as it is resampled: 2 GiB as float32, five times a thin whole-head CT."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A rectangular grid over a stack.

    Attributes:
        shape: columns, rows, planes.
        affine: (4, 4) of (column, row, plane) to mm, RAS.
        offsets_mm: of the planes, along the normal from the stack's first slice.
        corner_mm: along row and column, of the grid's first pixel from the first slice's.
    """

    shape: tuple[int, int, int]
    affine: Floats
    offsets_mm: Floats
    corner_mm: tuple[float, float]


def grid_of(stack: Stack) -> Grid:
    """Return the rectangular grid of a stack: the slices' own planes where they are even, else the finest pace.

    In the plane, pixels keep their size and the grid reaches as far as any slice. Along the normal, the first and the
    last slice lie on planes, and the planes between are as close as the finest run of equal gaps (stretched by less
    than half a plane over the whole, so that both ends meet).

    Raises:
        VolumeError: it would hold more than ``MAX_VOXELS`` voxels.
    """
    low, high = stack.shifts_mm.min(axis=0), stack.shifts_mm.max(axis=0)
    corner = low if stack.is_sheared else np.zeros(2)
    extra = (high - low) / np.array(stack.pixel_mm) if stack.is_sheared else np.zeros(2)
    columns, rows = (int(size + np.ceil(more - 1e-6)) for size, more in zip(stack.size, extra, strict=True))
    extent = float(stack.offsets_mm[-1])
    planes = len(stack.order) if stack.is_even else max(1, round(extent / pace_mm(stack.gaps_mm))) + 1
    if columns * rows * planes > MAX_VOXELS:
        raise VolumeError(
            f"a grid of {columns} x {rows} x {planes} voxels would be needed, more than {MAX_VOXELS:,}: crop it first"
        )
    step = extent / (planes - 1)
    offsets = np.arange(planes, dtype=np.float64) * step
    affine = np.eye(4)
    affine[:3, 0] = stack.row * stack.pixel_mm[0]
    affine[:3, 1] = stack.column * stack.pixel_mm[1]
    affine[:3, 2] = stack.normal * step
    affine[:3, 3] = stack.origin_mm + corner[0] * stack.row + corner[1] * stack.column
    return Grid(
        shape=(columns, rows, planes),
        affine=affine,
        offsets_mm=offsets,
        corner_mm=(float(corner[0]), float(corner[1])),
    )


def resample_stack(slices: NDArray[np.float32], stack: Stack, grid: Grid, fill: float) -> NDArray[np.float32]:
    """Bring a stack onto its rectangular grid.

    Args:
        slices: (N, rows, columns) in the stack's order.
        stack: where they lie.
        grid: of :func:`grid_of`.
        fill: value of what no slice covers.

    Returns:
        (planes, rows, columns) float32; ``slices`` itself where nothing had to be done.
    """
    columns, rows, planes = grid.shape
    if not stack.is_sheared and stack.is_even:
        return slices
    answer = np.empty((planes, rows, columns), np.float32)
    moved: dict[int, NDArray[np.float32]] = {}
    for plane, (below, weight) in enumerate(_between(stack.offsets_mm, grid.offsets_mm, even=stack.is_even)):
        moved = {index: values for index, values in moved.items() if index >= below}
        for index in (below, below + 1):
            if index not in moved and (index == below or weight > 0):
                moved[index] = _in_plane(slices[index], stack, grid, index, fill)
        answer[plane] = moved[below]
        if weight > 0:
            answer[plane] += np.float32(weight) * (moved[below + 1] - moved[below])
    return answer


def _between(offsets_mm: Floats, planes_mm: Floats, *, even: bool) -> Iterator[tuple[int, float]]:
    """Yield for each plane the slice below it and its share of the way to the next one."""
    if even:
        yield from ((index, 0.0) for index in range(len(offsets_mm)))
        return
    for place in planes_mm:
        below = int(np.clip(np.searchsorted(offsets_mm, place, side="right") - 1, 0, len(offsets_mm) - 2))
        weight = float(np.clip((place - offsets_mm[below]) / (offsets_mm[below + 1] - offsets_mm[below]), 0, 1))
        yield (below + 1, 0.0) if weight > 1 - 1e-6 else (below, weight if weight > 1e-6 else 0.0)


def _in_plane(image: NDArray[np.float32], stack: Stack, grid: Grid, index: int, fill: float) -> NDArray[np.float32]:
    if not stack.is_sheared:
        return image
    from scipy.ndimage import affine_transform

    offset = (np.array(grid.corner_mm) - stack.shifts_mm[index]) / np.array(stack.pixel_mm)
    columns, rows, _ = grid.shape
    # A hair below a whole pixel falls onto it, so that what lies on pixels is copied and the last row is not lost.
    offset = np.where(np.abs(offset - np.rint(offset)) < 1e-6, np.rint(offset), offset)
    moved: NDArray[np.float32] = affine_transform(
        image, np.ones(2), offset=offset[::-1], output_shape=(rows, columns), order=1, mode="constant", cval=fill
    )
    return moved
