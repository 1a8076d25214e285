"""A healthy head as smooth functions of space: drawn once per seed, read off on any grid.

The template is made of implicit bodies in millimetres of MNI space. A subject is the template seen through a
smooth random displacement, with folds that are partly its own, and with its own widths of sulci, cortex and
ventricles. Everything is kept on one lattice, so the grid asked for changes the sampling and nothing else.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.phantom.folding import draw_folds, read_folds, read_leaves
from vesalius.datasets.phantom.lattice import Lattice, smooth_noise, stream
from vesalius.datasets.phantom.shapes import capsule, ellipsoid, intersection, union

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.datasets.phantom.lattice import Array, Axes
    from vesalius.datasets.phantom.settings import VariabilitySettings

BRAIN = Lattice(low_mm=(-87, -120, -81), high_mm=(87, 84, 93), spacing_mm=3)  # the brain and a rim of 5 mm and more
DEEP = Lattice(low_mm=(-48, -84, -57), high_mm=(48, 48, 42), spacing_mm=3)  # the part of BRAIN that holds the nuclei
HEAD = Lattice(low_mm=(-112, -144, -152), high_mm=(112, 128, 120), spacing_mm=8)
SULCUS_DEPTH_MM = 20.0
GAP_MM = 5.0  # between the brain's outline and the skull

# Fitted to the mean outline of the 40 registered brains of docs/decisions/0003-phantom.md, a little shorter
# so that the poles stay within the default grid.
MIDDLE = (0.0, -18.5, 2.3)
CEREBRUM = (76.4, 88.0, 83.2)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One subject, before any grid.

    Attributes:
        fields: smooth functions on :data:`BRAIN`, in millimetres (depths are positive inside); with ``ridge`` where
            bone rises into the brain's outline.
        deep: depths inside ventricles and nuclei, on :data:`DEEP`.
        head: depths inside the head and the cavity of the skull, on :data:`HEAD`.
        sulcus_mm: half the width of a sulcus.
        thickness_mm: thickness of the cortex.
    """

    fields: dict[str, Array]
    deep: dict[str, Array]
    head: dict[str, Array]
    sulcus_mm: float
    thickness_mm: float


def draw_anatomy(seed: int, variability: VariabilitySettings, *, wider: float = 1.0) -> Anatomy:
    """Draw the subject ``seed``: all randomness of its shape; its ventricles are ``wider`` times as wide."""
    v = variability
    rng = stream(seed, "shape")
    widths = np.exp(rng.standard_normal(3) * [v.sulcus_spread, v.thickness_spread, v.ventricle_spread])
    scale = 1 + v.scale * rng.standard_normal(3)
    turn = np.deg2rad(v.rotation_degrees) * rng.standard_normal(3)
    shift = v.translation_mm * rng.standard_normal(3)
    linear = _rotation(turn) @ np.diag(scale)
    warp = [_displacement(seed, axis, v) for axis in range(3)]

    def template(lattice: Lattice) -> Axes:
        x, y, z = np.meshgrid(*lattice.axes, indexing="ij", sparse=True)
        x, y, z = x - np.float32(MIDDLE[0]), y - np.float32(MIDDLE[1]), z - np.float32(MIDDLE[2])
        u, v, w = (
            np.float32(row[0]) * x
            + np.float32(row[1]) * y
            + np.float32(row[2]) * z
            + np.float32(middle + move)
            + HEAD.read(field, lattice.axes)
            for row, middle, move, field in zip(linear, MIDDLE, shift, warp, strict=True)
        )
        return (u, v, w)

    at = template(BRAIN)
    reach = np.float32(SULCUS_DEPTH_MM) * np.exp(np.float32(0.3) * smooth_noise(rng, BRAIN, 30))
    fields = _brain_fields(at, draw_folds(seed, v.shared_folding), reach)
    ragged = np.float32(v.outline_mm) * smooth_noise(rng, BRAIN, 15)
    fields["outline"] += np.minimum(ragged, np.float32(GAP_MM - 1))  # never into the skull
    fields["mouth"] = np.exp(np.float32(v.sulcus_region_spread) * smooth_noise(rng, BRAIN, 25))
    return Anatomy(
        fields=fields,
        deep=_deep_fields(at, float(widths[2]) * wider),
        head=_head_fields(template(HEAD)),
        sulcus_mm=v.sulcus_mm / 2 * float(widths[0]),
        thickness_mm=v.thickness_mm * float(widths[1]),
    )


def brain_mask(at: dict[str, Array], axes: Axes) -> NDArray[np.bool_]:
    """Return (D, H, W) what skull-stripping leaves of the fields read on a grid: it dips into the mouths of sulci."""
    dip = np.float32(2.5) * np.exp(-np.square(at["sheet"] * np.float32(0.4))) * (at["excess"] < 0)
    dip *= np.clip((axes[2] + np.float32(25)) / 10, 0, 1)  # the base has no such mouths
    return np.asarray(at["outline"] > dip)


def _displacement(seed: int, axis: int, v: VariabilitySettings) -> Array:
    rng = stream(seed, f"warp {axis}")
    total = np.zeros(HEAD.shape, np.float32)
    for deviation, scale_mm in ((v.warp_large_mm, 60.0), (v.warp_small_mm, 25.0)):
        even = smooth_noise(rng, HEAD, scale_mm)
        own = smooth_noise(rng, HEAD, scale_mm)
        mirrored = even[::-1] if axis else -even[::-1]
        even = (even + mirrored) * np.float32(np.sqrt(0.5))
        total += np.float32(deviation) * (
            np.float32(np.sqrt(1 - v.asymmetry)) * even + np.float32(np.sqrt(v.asymmetry)) * own
        )
    return total


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    (a, b, c), one, nil = angles, 1.0, 0.0
    about_x = np.array([[one, nil, nil], [nil, np.cos(a), -np.sin(a)], [nil, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), nil, np.sin(b)], [nil, one, nil], [-np.sin(b), nil, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), nil], [np.sin(c), np.cos(c), nil], [nil, nil, one]])
    return np.asarray(about_x @ about_y @ about_z)


def _outlines(at: Axes) -> tuple[Array, Array, Array]:
    """Depths inside the outlines of cerebrum, cerebellum and brainstem; the first two overlap, see :func:`_parts`."""
    x, y, z = at
    side: Axes = (np.abs(x), y, z)
    floor = z + np.float32(32.2) - np.float32(0.04) * (y + np.float32(20))
    cerebrum = intersection(ellipsoid(at, MIDDLE, CEREBRUM), floor, 15)
    cerebrum = union(cerebrum, ellipsoid(side, (36.8, 2.6, -32.5), (27.4, 26.1, 22.4)), 8)
    cerebellum = ellipsoid(side, (16, -61, -31), (43.5, 34.8, 37))
    stem = union(
        capsule(at, (0, -22, -8), (0, -26, -34), (11, 16)), capsule(at, (0, -26, -34), (0, -42, -64), (11, 8)), 6
    )
    return cerebrum, cerebellum, stem


def _parts(at: Axes, cerebrum: Array, cerebellum: Array) -> tuple[Array, Array]:
    """Return the depths of cerebrum and cerebellum, parted by the tentorium."""
    x, y, z = at
    roof = np.float32(-10) - np.float32(0.32) * np.abs(x) - np.float32(0.2) * (y + np.float32(55)) - z
    front = np.asarray(np.float32(-36) - y + np.float32(0.25) * np.abs(x), np.float32)
    below = intersection(roof, front, 10)
    below = intersection(below, cerebellum, 6)
    return intersection(cerebrum, -below, 6), below


def _brain_fields(at: Axes, folds: Array, reach: Array) -> dict[str, Array]:
    x, y, z = at
    cerebrum, cerebellum, stem = _outlines(at)
    hull = union(union(cerebrum, cerebellum, 4), stem, 4)
    cerebrum, cerebellum = _parts(at, cerebrum, cerebellum)
    sheet = read_folds(folds, at, MIDDLE, CEREBRUM, BRAIN.spacing_mm)
    leaf = read_leaves(folds, at, BRAIN.spacing_mm)
    side: Axes = (np.abs(x), y, z)
    core = ellipsoid(at, (0, -8, 4), (60, 46, 27))
    # How far below the depth that sulci reach; they come in from the outer surface and from the medial wall, and
    # the middle of the base has none.
    medial = np.hypot(x, np.maximum(core, 0))
    middle = union(ellipsoid(at, (0, -14, -14), (26, 44, 34)), ellipsoid(side, (25, -18, 20), (10, 56, 16)), 8)
    callosum = core * np.float32(1.5) - np.maximum(side[0] - np.float32(25), 0)
    excess = np.maximum(np.minimum(cerebrum, medial) - reach, np.maximum(middle, callosum))
    slant = z + np.float32(0.4) * (y + np.float32(5)) + np.float32(0.3) * (side[0] - np.float32(48))
    valley = ellipsoid((side[0], y, np.zeros_like(z)), (57, -2, 0), (20, 28, 1000))
    insula = np.hypot(slant, np.maximum(-valley, 0))
    fields = {
        "outline": hull,
        "x": x,
        "cerebrum": cerebrum,
        "cerebellum": cerebellum,
        "stem": stem,
        "sheet": sheet,
        "leaf": leaf,
        "excess": excess,
        "core": core,
        "insula": insula,
    }
    return {name: np.asarray(field, np.float32) for name, field in fields.items()}


def _deep_fields(at: Axes, ventricle: float) -> dict[str, Array]:
    x, y, z = (a[_within(BRAIN, DEEP)] for a in at)
    side: Axes = (np.abs(x), y, z)
    at = (x, y, z)
    fields = {
        "ventricle": _lateral_ventricle(side, ventricle),
        "midline_ventricle": np.maximum(
            ellipsoid(at, (0, -12, -1), (2.2 * ventricle, 14, 10)), ellipsoid(at, (0, -44, -32), (6, 5 * ventricle, 10))
        ),
        "thalamus": ellipsoid(side, (11, -19, 8), (9, 14, 9)),
        "caudate": union(
            ellipsoid(side, (13, 14, 6), (5.5, 9, 9)), capsule(side, (14, 8, 14), (20, -22, 22), (4, 2.5)), 4
        ),
        "lentiform": ellipsoid((side[0] + np.float32(0.25) * (y - 2), y, z), (25, 2, 1), (7, 16, 10)),
        "hippocampus": capsule(side, (22, -6, -20), (28, -32, -10), (7.5, 4)),
    }
    return {name: np.asarray(field, np.float32) for name, field in fields.items()}


def _within(outer: Lattice, inner: Lattice) -> tuple[slice, ...]:
    starts = [round((b - a) / outer.spacing_mm) for a, b in zip(outer.low_mm, inner.low_mm, strict=True)]
    return tuple(slice(start, start + num) for start, num in zip(starts, inner.shape, strict=True))


def _lateral_ventricle(side: Axes, width: float) -> Array:
    way = [
        ((7, 32, 3), 3.5),
        ((7, 18, 13), 5.0),
        ((8, -8, 22), 5.0),
        ((17, -34, 19), 6.0),
        ((26, -44, 9), 5.0),
        ((33, -28, -10), 2.0),
        ((32, -10, -18), 2.5),
    ]
    depth: Array | None = None
    for (start, first), (end, second) in itertools.pairwise(way):
        part = capsule(side, start, end, (first * width, second * width))
        depth = part if depth is None else np.maximum(depth, part)
    horn = capsule(side, (26, -44, 9), (24, -72, 6), (4 * width, 1.5 * width))
    assert depth is not None
    return np.maximum(depth, horn)


def _head_fields(at: Axes) -> dict[str, Array]:
    cerebrum, cerebellum, stem = _outlines(at)
    hull = np.maximum(np.maximum(cerebrum, cerebellum), stem)
    vault = intersection(ellipsoid(at, (0, -18, 8), (72, 90, 74)), at[2] + np.float32(22), 14)
    cavity = union(vault, hull + np.float32(GAP_MM), 8)
    face = ellipsoid(at, (0, 38, -62), (54, 56, 62))
    neck = capsule(at, (0, -30, -50), (0, -38, -160), (58, 56))
    head = union(union(cavity + np.float32(14), face, 20), neck, 20)
    return {"cavity": cavity, "head": head}
