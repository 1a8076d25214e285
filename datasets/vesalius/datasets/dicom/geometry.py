"""Where a series' slices lie, whether one is missing, and the rectangular grid that a tilted or uneven one becomes.

A gantry that is tilted while the table moves along the floor gives slices whose planes are parallel and whose origins
drift within the plane: a sheared stack. A slice is brought onto the rectangular grid by moving it within its own plane,
which blurs nothing across slices. Gaps that differ are filled by linear interpolation along the normal. Both reproduce
any intensity that is linear in world coordinates exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.dicom.headers import SliceHeader

    Floats = NDArray[np.float64]

MIN_SLICES = 3
"""Fewer make no volume: two are a pair of scouts more often than a head."""

MAX_VOXELS = 1 << 29
"""Of a series as it is read and as it is resampled: 2 GiB as float32, five times a thin whole-head CT."""

MAX_POSITION_MM = 10_000.0
"""No scanner's table reaches as far: a position beyond it is a damaged tag."""

SAME_DIRECTION = 1e-3
"""Direction cosines that differ by less are one orientation: 0.06 degrees, as rounding in the tags leaves."""

SAME_PLACE_MM = 0.05
"""Slices closer along the normal lie at one place."""

EVEN_MM = 0.05
"""Positions are written to a tenth of a millimetre by some scanners: what rounding explains is no uneven gap."""

EVEN_SHARE = 0.02
"""Nor is a deviation of this share of the spacing."""

HOLE = 1.4
"""A gap of this many times the expected one holds a missing slice. A slice missing from an even series makes it 2;
where slices of double the thickness follow at double the gap, the gap between both is 4/3 of it at most."""

TOUCHING = 1.1
"""Slices touch where their centres lie at most this many mean thicknesses apart."""

RUN_LENGTH = 3
"""So many equal gaps in a row were planned."""

_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Parallel slices in order of position.

    Attributes:
        order: index into the headers it was made of, from the lowest along the normal to the highest.
        row: unit vector along a row (to the next column), RAS.
        column: unit vector along a column (to the next row), RAS.
        normal: their cross product.
        origin_mm: first pixel's centre of the first slice, RAS.
        offsets_mm: (N,) along the normal from the first slice, rising.
        shifts_mm: (N, 2) along row and column from the first slice.
        pixel_mm: between neighbours along a row, and along a column.
        thickness_mm: (N,) nominal; None where any slice does not say.
        size: columns, rows.
    """

    order: tuple[int, ...]
    row: Floats
    column: Floats
    normal: Floats
    origin_mm: Floats
    offsets_mm: Floats
    shifts_mm: Floats
    pixel_mm: tuple[float, float]
    thickness_mm: Floats | None
    size: tuple[int, int]

    @property
    def gaps_mm(self) -> Floats:
        """(N - 1,) along the normal."""
        return np.diff(self.offsets_mm)

    @property
    def tilt_degrees(self) -> float:
        """Angle between the normal and the line through the slices' first pixels; 0 for a rectangular stack."""
        drift = float(np.hypot(*(self.shifts_mm[-1] - self.shifts_mm[0])))
        return float(np.degrees(np.arctan2(drift, self.offsets_mm[-1] - self.offsets_mm[0])))

    @property
    def is_sheared(self) -> bool:
        """Whether some slice lies more than a tenth of a pixel off the place above the first one."""
        return bool((np.abs(self.shifts_mm) > 0.1 * np.array(self.pixel_mm)).any())

    @property
    def is_even(self) -> bool:
        """Whether the slices lie where an equal spacing would have them, to what rounding of the tags leaves."""
        return _is_even(self.offsets_mm)


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


def axes_of(header: SliceHeader) -> tuple[Floats, Floats, Floats]:
    """Return the unit vectors along a row, along a column, and their normal, RAS.

    Raises:
        VolumeError: the orientation is missing, or its vectors are not perpendicular unit vectors.
    """
    if header.orientation is None:
        raise VolumeError(f"{header.path.name} has no usable ImageOrientationPatient")
    row, column = (_TO_RAS * np.array(part) for part in (header.orientation[:3], header.orientation[3:]))
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 1e-2 or abs(row @ column) > 1e-3:
        raise VolumeError(
            f"{header.path.name}: its orientation {[round(part, 4) for part in header.orientation]} is not two "
            "perpendicular unit vectors"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return row, column, np.cross(row, column)


def stack_of(headers: Sequence[SliceHeader]) -> Stack:
    """Return where slices of one orientation, size and pixel spacing lie (the first header's stands for all).

    Raises:
        VolumeError: a position, spacing or size is missing or no such thing.
    """
    row, column, normal = axes_of(headers[0])
    for header in headers:
        if header.position is None:
            raise VolumeError(f"{header.path.name} has no usable ImagePositionPatient")
        if max(map(abs, header.position)) > MAX_POSITION_MM:
            raise VolumeError(f"{header.path.name} lies {max(map(abs, header.position)):g} mm away by its position")
    spacing = headers[0].pixel_spacing
    if spacing is None or not all(1e-3 <= step <= 100 for step in spacing):
        raise VolumeError(f"{headers[0].path.name} has no usable PixelSpacing")
    if not headers[0].rows or not headers[0].columns or min(headers[0].rows, headers[0].columns) < 2:
        raise VolumeError(f"{headers[0].path.name} has {headers[0].rows} rows and {headers[0].columns} columns")
    points = _TO_RAS * np.array([header.position for header in headers])
    order = np.argsort(points @ normal, kind="stable")
    points = points[order]
    thickness = [header.thickness for header in headers]
    known = [value for value in thickness if value is not None and 0 < value < 1000]
    return Stack(
        order=tuple(int(index) for index in order),
        row=row,
        column=column,
        normal=normal,
        origin_mm=points[0],
        offsets_mm=(points - points[0]) @ normal,
        shifts_mm=(points - points[0]) @ np.stack([row, column], axis=1),
        pixel_mm=(spacing[1], spacing[0]),
        thickness_mm=np.array(known)[order] if len(known) == len(headers) else None,
        size=(headers[0].columns, headers[0].rows),
    )


def missing_slices(gaps_mm: Floats, thickness_mm: Floats | None) -> list[tuple[int, float]]:
    """Return the gaps that hold a missing slice: their index, and the gap that was to be expected there, in mm.

    A gap is expected to be as many mean thicknesses of its two slices as the series' gaps are at the median: 4 mm
    slices 4 mm apart through the base and 7 mm slices 7 mm apart above are both expected, and so is a shorter gap
    where the two blocks meet. Without thicknesses, the expected gap is the mean of the nearest runs of
    ``RUN_LENGTH`` equal gaps below and above. A gap of ``HOLE`` times the expected one holds a missing slice, unless
    it stands in such a run and its slices touch (or say nothing of their thickness).

    Its limits: a slice missing at either end leaves no gap; of three or more equal gaps in a row between slices
    without a thickness, or between slices that still touch, every second slice could be missing.
    """
    run = _in_runs(gaps_mm)
    if thickness_mm is None:
        expected = _by_runs(gaps_mm, run)
        planned = run
    else:
        reach = (thickness_mm[:-1] + thickness_mm[1:]) / 2
        expected = reach * float(np.median(gaps_mm / reach))
        planned = run & (gaps_mm <= TOUCHING * reach)
    holes = (gaps_mm >= HOLE * expected) & ~planned
    return [(int(index), float(expected[index])) for index in np.flatnonzero(holes)]


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
    planes = len(stack.order) if stack.is_even else max(1, round(extent / _pace(stack.gaps_mm))) + 1
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


def _is_even(offsets_mm: Floats) -> bool:
    spacing = offsets_mm[-1] / (len(offsets_mm) - 1)
    expected = np.arange(len(offsets_mm)) * spacing
    return bool(np.abs(offsets_mm - expected).max() <= max(EVEN_MM, EVEN_SHARE * spacing))


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= max(2 * EVEN_MM, 0.05 * max(a, b))


def _runs(gaps_mm: Floats) -> list[tuple[int, int]]:
    """Return start and stop of each run of gaps that equal its first one."""
    runs: list[tuple[int, int]] = []
    start = 0
    for index in range(1, len(gaps_mm) + 1):
        if index == len(gaps_mm) or not _equal(gaps_mm[index], gaps_mm[start]):
            runs.append((start, index))
            start = index
    return runs


def _in_runs(gaps_mm: Floats) -> NDArray[np.bool_]:
    inside = np.zeros(len(gaps_mm), bool)
    for start, stop in _runs(gaps_mm):
        inside[start:stop] = stop - start >= RUN_LENGTH
    return inside


def _by_runs(gaps_mm: Floats, run: NDArray[np.bool_]) -> Floats:
    if not run.any():
        return np.full(len(gaps_mm), float(np.median(gaps_mm)))
    places = np.flatnonzero(run)
    right = np.searchsorted(places, np.arange(len(gaps_mm))).clip(0, len(places) - 1)
    left = (np.searchsorted(places, np.arange(len(gaps_mm)), side="right") - 1).clip(0, len(places) - 1)
    answer: Floats = (gaps_mm[places[left]] + gaps_mm[places[right]]) / 2
    return answer


def _pace(gaps_mm: Floats) -> float:
    """Return the finest gap that comes twice in a row, or else the median gap."""
    paces = [float(np.mean(gaps_mm[start:stop])) for start, stop in _runs(gaps_mm) if stop - start >= 2]
    return min(paces) if paces else float(np.median(gaps_mm))
