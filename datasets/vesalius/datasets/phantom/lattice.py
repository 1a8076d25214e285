"""Smooth functions of space, kept on a lattice in millimetres and read off on any grid.

Whatever is drawn is drawn on a lattice that does not depend on the grid asked for: so a subject is the same
subject at any size, and a grid only samples it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Axes = tuple[Array, Array, Array]
Triple = tuple[float, float, float]
Kernel = Literal["interpolate", "spline"]

SPLINE_DEVIATION = (
    0.479**1.5
)  # variance left of white noise after a cubic B-spline along three axes, mean over positions


def stream(seed: int, name: str) -> np.random.Generator:
    """Return a generator that is a pure function of (seed, name): what one part draws moves no other part."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """A regular lattice along x, y, z in RAS+ millimetres."""

    low_mm: Triple
    high_mm: Triple
    spacing_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Points along x, y, z."""
        x, y, z = (
            round((high - low) / self.spacing_mm) + 1 for low, high in zip(self.low_mm, self.high_mm, strict=True)
        )
        return (x, y, z)

    @property
    def axes(self) -> Axes:
        """Millimetres of the points along each axis."""
        x, y, z = (
            (low + self.spacing_mm * np.arange(num)).astype(np.float32)
            for low, num in zip(self.low_mm, self.shape, strict=True)
        )
        return (x, y, z)

    def read(self, values: Array, axes: Axes, kernel: Kernel = "interpolate") -> Array:
        """Return ``values`` of this lattice on the grid spanned by ``axes`` (mm); beyond the edge the edge goes on.

        ``interpolate`` passes through the values (Keys' cubic convolution, 1981); ``spline`` is the smoother
        uniform cubic B-spline, which does not.
        """
        for axis, positions in enumerate(axes):
            values = _read_axis(values, (positions - self.low_mm[axis]) / self.spacing_mm, axis, kernel)
        return values


def _read_axis(values: Array, index: Array, axis: int, kernel: Kernel) -> Array:
    num = values.shape[axis]
    index = np.clip(index, 0, num - 1)
    first = np.minimum(index.astype(np.int64), max(num - 2, 0))
    t = (index - first).astype(np.float32)
    if kernel == "spline":
        weights = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]
    else:
        weights = [
            (-(t**3) + 2 * t**2 - t) / 2,
            (3 * t**3 - 5 * t**2 + 2) / 2,
            (-3 * t**3 + 4 * t**2 + t) / 2,
            (t**3 - t**2) / 2,
        ]
    shape = [1, 1, 1]
    shape[axis] = -1
    result: Array | None = None
    for offset, weight in zip(range(-1, 3), weights, strict=True):
        taken = np.take(values, np.clip(first + offset, 0, num - 1), axis=axis)
        taken *= weight.astype(np.float32).reshape(shape)
        result = taken if result is None else np.add(result, taken, out=result)
    assert result is not None
    return result


def smooth_noise(rng: np.random.Generator, lattice: Lattice, scale_mm: float) -> Array:
    """Draw a smooth field of unit deviation on ``lattice``, which varies on a scale of ``scale_mm``."""
    coarse = Lattice(
        low_mm=tuple(low - scale_mm for low in lattice.low_mm),  # type: ignore[arg-type]  # three entries, as before
        high_mm=tuple(high + 2 * scale_mm for high in lattice.high_mm),  # type: ignore[arg-type]  # three entries, as before
        spacing_mm=scale_mm,
    )
    values = rng.standard_normal(coarse.shape, dtype=np.float32) / np.float32(SPLINE_DEVIATION)
    return coarse.read(values, lattice.axes, kernel="spline")
