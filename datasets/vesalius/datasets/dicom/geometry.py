"""Where a series' slices lie: their common axes, their places along the normal, and how far each is shifted sideways.

A gantry that is tilted while the table moves along the floor gives slices whose planes are parallel and whose origins
drift within the plane: a sheared stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.dicom.headers import SliceHeader

    Floats = NDArray[np.float64]

MIN_SLICES = 3
"""Fewer make no volume: two are a pair of scouts more often than a head."""

MAX_POSITION_MM = 10_000.0
"""No scanner's table reaches as far: a position beyond it is a damaged tag."""

SAME_DIRECTION = 1e-3
"""Direction cosines that differ by less are one orientation: 0.06 degrees, as rounding in the tags leaves."""

SAME_PLACE_MM = 0.05
"""Slices closer along the normal lie at one place."""

ROUNDING_MM = 0.05
"""Positions are written to a tenth of a millimetre by some scanners: each may be off by half of that."""

EVEN_MM = 2 * ROUNDING_MM
"""What rounding explains is no uneven gap: a slice is off, and so are both ends, which it is compared with."""

EVEN_SHARE = 0.02
"""Nor is a deviation of this share of the spacing."""

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


def axes_of(header: SliceHeader) -> tuple[Floats, Floats, Floats]:
    """Return the unit vectors along a row, along a column, and their normal, RAS.

    Raises:
        VolumeError: the orientation is missing, or its vectors are not perpendicular unit vectors.
    """
    if header.orientation is None:
        raise VolumeError(f"{header.path.name} has no usable ImageOrientationPatient: export it again")
    row, column = (_TO_RAS * np.array(part) for part in (header.orientation[:3], header.orientation[3:]))
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 1e-2 or abs(row @ column) > 1e-3:
        raise VolumeError(
            f"{header.path.name}: its orientation {[round(part, 4) for part in header.orientation]} is not two "
            "perpendicular unit vectors: export it again"
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
            raise VolumeError(f"{header.path.name} has no usable ImagePositionPatient: export it again")
        if max(map(abs, header.position)) > MAX_POSITION_MM:
            raise VolumeError(
                f"{header.path.name} lies {max(map(abs, header.position)):g} mm away by its position: export it again"
            )
    spacing = headers[0].pixel_spacing
    if spacing is None or not all(1e-3 <= step <= 100 for step in spacing):
        raise VolumeError(f"{headers[0].path.name} has no usable PixelSpacing: export it again")
    if not headers[0].rows or not headers[0].columns or min(headers[0].rows, headers[0].columns) < 2:
        raise VolumeError(f"{headers[0].path.name} has {headers[0].rows} rows and {headers[0].columns} columns")
    points = _TO_RAS * np.array([header.position for header in headers])
    order = np.argsort(points @ normal, kind="stable")
    points = points[order]
    thickness = [header.thickness for header in headers]
    # Thinner than a micrometre is no slice, and gaps counted in such thicknesses pass every bound.
    known = [value for value in thickness if value is not None and 1e-3 <= value < 1000]
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


def _is_even(offsets_mm: Floats) -> bool:
    spacing = offsets_mm[-1] / (len(offsets_mm) - 1)
    expected = np.arange(len(offsets_mm)) * spacing
    return bool(np.abs(offsets_mm - expected).max() <= max(EVEN_MM, EVEN_SHARE * spacing) + 1e-6)


def same_numbers(one: tuple[float, ...] | None, other: tuple[float, ...] | None, tolerance: float) -> bool:
    """Return whether two tags hold the same numbers to a tolerance, or neither holds any."""
    if one is None or other is None:
        return one is other
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= tolerance
