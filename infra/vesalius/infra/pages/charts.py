"""Charts as plain numbers for the study page's template to draw as SVG: scales, ticks, marks, filled contours."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 10.0, 42.0
_CELLS = 140
_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to places between 0 and 1.

    Attributes:
        low: at 0.
        high: at 1.
        is_log: in powers of ten.
        names: of a choice's values, as ``str`` has them, one beside the other; ``low`` and ``high`` then say nothing.
    """

    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def over(cls, values: Sequence[float], *, is_log: bool = False, margin: float = 0.05) -> Scale:
        """Return a scale that holds all values, with some room beside them; of none it is from 0 to 1."""
        if not values:
            return cls()
        low, high = min(values), max(values)
        if is_log and low > 0:
            room = margin * (math.log10(high / low) or 1.0)
            return cls(low=low / 10**room, high=high * 10**room, is_log=True)
        room = margin * ((high - low) or abs(high) or 1.0)
        return cls(low=low - room, high=high + room)

    def place(self, value: Any) -> float | None:
        """Return a value's place, or None where it has none here."""
        if self.names:
            text = str(value)
            return (self.names.index(text) + 0.5) / len(self.names) if text in self.names else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else None
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Return places and texts of round values."""
        if self.names:
            return [((index + 0.5) / len(self.names), name) for index, name in enumerate(self.names)]
        values, digits = _powers(self.low, self.high) if self.is_log else [], 6
        if len(values) < 2:
            values, digits = _round_values(self.low, self.high, most)
        found = [(self.place(value), f"{value:.{digits}g}") for value in values]
        return [(place, text) for place, text in found if place is not None and -1e-9 <= place <= 1 + 1e-9]


def as_text(value: Any) -> str:
    """Return a value as it is shown."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def _round_values(low: float, high: float, most: int) -> tuple[list[float], int]:
    """Return round values, and how many digits tell them apart."""
    power = math.floor(math.log10((high - low) / most))
    factor = next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * 10.0**power) <= most)
    step = factor * 10.0**power
    values = [round(number * step, -power) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    largest = max((abs(value) for value in values), default=0.0)
    return values, max(6, math.floor(math.log10(largest)) - power + 1 if largest else 0)


def _powers(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = math.log10(high / low)
    factors = (1, 2, 5) if span < 2.5 else (1,)
    step = max(1, round(span / 6))
    values = [factor * 10.0**power for power in decades if power % step == 0 for factor in factors]
    return [value for value in values if low <= value <= high]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A trial's place.

    Attributes:
        x: from the left.
        y: from the top.
        kind: ``best``, ``start``, ``front``, ``plain`` or ``stopped``.
        label: said where one points at it.
        number: of the trial, whose row it leads to.
    """

    x: float
    y: float
    kind: str
    label: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points.

    Attributes:
        path: SVG.
        kind: as of :class:`Mark`; ``record`` for the best so far, ``zero`` for none.
        label: said where one points at it.
        strength: how strongly it is drawn, 0 to 1.
    """

    path: str
    kind: str
    label: str = ""
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        title: what is shown; read out in its place.
        width: in pixels.
        height: in pixels.
        across: what the horizontal axis is.
        up: what the vertical axis is.
        x: its scale.
        y: its scale.
        marks: the most important last, on top.
        lines: below the marks.
        areas: filled paths below all, with how strongly each is filled.
        uprights: axes of parallel coordinates: places, names and ticks (height, text).
    """

    title: str
    width: float = 420.0
    height: float = 270.0
    across: str = ""
    up: str = ""
    x: Scale = field(default_factory=Scale)
    y: Scale = field(default_factory=Scale)
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    areas: tuple[tuple[str, float], ...] = ()
    uprights: tuple[dict[str, Any], ...] = ()

    @property
    def frame(self) -> dict[str, float]:
        """The four sides of what is drawn in, in pixels."""
        return {"left": _LEFT, "right": self.width - _RIGHT, "top": _TOP, "bottom": self.height - _BOTTOM}

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Pixels from the left, and texts."""
        room = self.width - _LEFT - _RIGHT
        # Texts of some seven pixels a letter that would run into one another are left out.
        ticks = self.x.ticks(max(4, int(room / 50)))
        longest = max((len(text) for _, text in ticks), default=1)
        every = max(1, math.ceil(len(ticks) * (6.5 * longest + 8) / room))
        return [(_LEFT + place * room, text) for place, text in ticks[::every]]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Pixels from the top, and texts."""
        bottom = self.height - _BOTTOM
        return [(bottom - place * (bottom - _TOP), text) for place, text in self.y.ticks()]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Where values lie on a chart of some size, in pixels."""

    x: Scale
    y: Scale
    width: float = 420.0
    height: float = 270.0

    def at(self, x: Any, y: Any) -> tuple[float, float] | None:
        """Return pixels from the left and the top, or None where a value has no place."""
        across, up = self.x.place(x), self.y.place(y)
        return None if across is None or up is None else self.pixels(across, up)

    def pixels(self, across: float, up: float) -> tuple[float, float]:
        """Return pixels of places between 0 and 1."""
        bottom = self.height - _BOTTOM
        left = _LEFT + across * (self.width - _LEFT - _RIGHT)
        return round(left, 1), round(bottom - up * (bottom - _TOP), 1)

    def path(self, points: Sequence[tuple[Any, Any]]) -> str:
        """Return the SVG path through points; one without a place breaks it."""
        found, pen = [], "M"
        for x, y in points:
            at = self.at(x, y)
            if at is not None:
                found.append(f"{pen}{at[0]:g} {at[1]:g}")
            pen = "M" if at is None else "L"
        return "".join(found)


def filled_contours(canvas: Canvas, points: Sequence[tuple[Any, Any, float]]) -> tuple[list[tuple[str, float]], Scale]:
    """Return areas between levels of values that are interpolated linearly between points, and the values' scale.

    Nothing is said outside of the points' hull, and nothing where they lie on a line.

    Args:
        canvas: whose scales are numbers.
        points: x, y, value.
    """
    from contourpy import FillType, contour_generator
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import QhullError

    known: dict[tuple[float, float], list[float]] = {}
    for x, y, value in points:
        across, up = canvas.x.place(x), canvas.y.place(y)
        if across is not None and up is not None:
            known.setdefault((across, up), []).append(value)
    values = [float(np.mean(several)) for several in known.values()]
    scale = Scale.over(values, margin=0.0)
    if len(known) < 4 or max(values) == min(values):
        return [], scale
    try:
        between = LinearNDInterpolator(np.array(list(known)), np.array(values))
    except QhullError:
        return [], scale
    line = np.linspace(0, 1, _CELLS)
    columns, rows = np.meshgrid(line, line)
    grid = np.ma.masked_invalid(between(columns, rows))
    generator = contour_generator(line, line, grid, fill_type=FillType.OuterOffset)
    levels = np.linspace(min(values), max(values), _LEVELS + 1)
    areas = []
    for index in range(_LEVELS):
        # The last area holds its own upper level.
        upper = float(levels[index + 1]) if index < _LEVELS - 1 else float("inf")
        paths: list[str] = []
        filled: Any = generator.filled(float(levels[index]), upper)  # of a shape that the fill type decides
        outlines, offsets = filled
        for outline, offset in zip(outlines, offsets, strict=True):
            for start, end in itertools.pairwise(offset):
                ring = [canvas.pixels(float(one), float(other)) for one, other in outline[start:end]]
                paths.append("M" + "L".join(f"{one:g} {other:g}" for one, other in ring) + "Z")
        if paths:
            areas.append(("".join(paths), (index + 0.5) / _LEVELS))
    return areas, scale
