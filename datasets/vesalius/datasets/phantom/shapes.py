"""Signed distances of simple bodies, in millimetres, positive inside. Arrays (X, Y, Z) of float32 coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vesalius.datasets.phantom.lattice import Array, Axes

Point = tuple[float, float, float]


def ellipsoid(at: Axes, center: Point, radii: Point) -> Array:
    """Depth inside an ellipsoid, exact to first order at its surface."""
    k0: Array = np.zeros(1, np.float32)
    k1: Array = np.zeros(1, np.float32)
    for axis, middle, radius in zip(at, center, radii, strict=True):
        ratio = (axis - np.float32(middle)) * np.float32(1 / radius)
        squared = ratio * ratio
        k0 = k0 + squared
        k1 = np.asarray(k1 + squared * np.float32(1 / radius**2), np.float32)
    np.sqrt(k0, out=k0)
    np.sqrt(k1, out=k1)
    k1 += np.float32(1e-6)
    # The quotient is 0 / 0 at the very centre, whose depth is known.
    return np.asarray((1 - k0) * k0 / k1 + np.float32(min(radii)) * (k0 < 1e-3), np.float32)


def capsule(at: Axes, start: Point, end: Point, radii: tuple[float, float]) -> Array:
    """Depth inside a round cone from ``start`` to ``end`` whose radius goes from ``radii[0]`` to ``radii[1]``."""
    way = np.subtract(end, start, dtype=np.float32)
    offset = [axis - np.float32(value) for axis, value in zip(at, start, strict=True)]
    along = sum(o * np.float32(w) for o, w in zip(offset, way, strict=True)) / np.float32(way @ way)
    along = np.clip(along, 0, 1)
    squared = sum((o - along * np.float32(w)) ** 2 for o, w in zip(offset, way, strict=True))
    radius = np.float32(radii[0]) + along * np.float32(radii[1] - radii[0])
    return (radius - np.sqrt(squared)).astype(np.float32)


def union(first: Array, second: Array, blend_mm: float) -> Array:
    """Depth inside either of two bodies, rounded over ``blend_mm`` where they meet (polynomial smooth maximum)."""
    width = np.float32(blend_mm)
    overlap = np.maximum(width - np.abs(first - second), 0) / width
    return np.asarray(np.maximum(first, second) + overlap * overlap * (width * np.float32(0.25)), np.float32)


def intersection(first: Array, second: Array, blend_mm: float) -> Array:
    """Depth inside both of two bodies, rounded over ``blend_mm``."""
    return -union(-first, -second, blend_mm)
