"""Whether a slice is missing from a series, or its gaps were planned so; and at which pace its slices were planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.geometry import ROUNDING_MM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

HOLE = 1.4
"""A gap of this many times the expected one holds a missing slice. A slice missing from an even series makes it 2;
where slices of double the thickness follow at double the gap, the gap between both is 4/3 of it at most."""

TOUCHING = 1.1
"""Slices touch where their centres lie at most this many mean thicknesses apart."""

RUN_LENGTH = 3
"""So many equal gaps in a row were planned."""


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


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= max(2 * ROUNDING_MM, 0.05 * max(a, b))


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


def pace_mm(gaps_mm: Floats) -> float:
    """Return the finest gap that comes twice in a row, or else the median gap."""
    paces = [float(np.mean(gaps_mm[start:stop])) for start, stop in _runs(gaps_mm) if stop - start >= 2]
    return min(paces) if paces else float(np.median(gaps_mm))
