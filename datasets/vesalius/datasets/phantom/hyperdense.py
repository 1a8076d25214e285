"""What is bright in the CT of a healthy head: calcifications, venous sinuses, bone within the brain's outline.

Fresh blood has some 66 HU. Were it the brightest thing in a stripped head, a plain threshold would find every bleed,
which no reader's experience bears out. Places, sizes and frequencies are textbook values for adults, not measured ones
(docs/decisions/0003-phantom.md). All is drawn from (seed, its name) in millimetres: it is the same on every grid.
Choroid plexus, pallidum, falx and superior sagittal sinus follow the subject's own shape; the rest lies in MNI space,
which is the same to some millimetres unless subjects are turned by many degrees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vesalius.datasets.phantom.anatomy import BRAIN, DEEP, HEAD
from vesalius.datasets.phantom.lattice import stream
from vesalius.datasets.phantom.shapes import capsule, ellipsoid, intersection
from vesalius.datasets.phantom.tissues import inside, replaced, seen_mm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vesalius.datasets.phantom.anatomy import Anatomy
    from vesalius.datasets.phantom.lattice import Array, Axes, Triple
    from vesalius.datasets.phantom.shapes import Point
    from vesalius.datasets.phantom.tissues import Tissues

FREQUENCY: Final[Mapping[str, float]] = {"choroid": 0.7, "pineal": 0.7, "pallidum": 0.15, "falx": 0.1}
"""Share of heads in which a place is calcified; where choroid plexus or pallidum are, nearly always on both sides."""

RADIUS_MM: Final[Mapping[str, tuple[float, float]]] = {
    "choroid": (2.5, 6.0),
    "pineal": (1.5, 4.0),
    "pallidum": (3.0, 5.0),
}
"""Of the ball with a nodule's volume, least and greatest."""

DENSITY: Final = (0.3, 1.0)
"""Share of a calcified body that is calcium; the rest is what it lies in."""

_BOTH_SIDES: Final = 0.9
_RIDGES: Final[tuple[tuple[Point, Point, tuple[float, float]], ...]] = (
    ((14, -24, -37), (60, -32, -37), (5.0, 9.0)),  # petrous bone, between temporal lobe and cerebellum
    ((14, 8, -24), (62, 16, -19), (3.0, 5.0)),  # wing of the sphenoid, between frontal and temporal lobe
)
"""Of the right side: from, to, radii in mm."""


def with_ridges(seed: int, anatomy: Anatomy) -> Anatomy:
    """Return the anatomy with ``ridge`` among its fields: depth inside the bone that rises into the brain's outline.

    Lesions keep out of it, as they keep out of ventricles.
    """
    x, y, z = np.meshgrid(*BRAIN.axes, indexing="ij", sparse=True)
    # Beyond the inner table there is bone or air as it is.
    inner = HEAD.read(anatomy.head["cavity"], BRAIN.axes) + np.float32(2)
    depths = [intersection(capsule((x, y, z), *ridge), inner, 2) for ridge in _ridges(seed)]
    return replace(anatomy, fields={**anatomy.fields, "ridge": np.max(depths, axis=0)})


def with_bright(seed: int, anatomy: Anatomy, tissues: Tissues, axes: Axes, spacing_mm: Triple) -> Tissues:
    """Return the tissues with venous blood and calcifications in them.

    Args:
        seed: the subject.
        anatomy: it in millimetres.
        tissues: it on the grid.
        axes: of the grid, in mm.
        spacing_mm: of the grid.
    """
    width = seen_mm(spacing_mm)
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    at = (x, y, z)
    cavity = HEAD.read(anatomy.head["cavity"], axes)
    middle = np.abs(BRAIN.read(anatomy.fields["x"], axes))
    for depth, thick in _sinuses(at, middle, cavity):
        tissues = replaced(tissues, inside(np.minimum(depth, cavity), width, thick=thick), "venous_blood")
    for depth, radius, density in _nodules(seed, anatomy, at, axes):
        tissues = replaced(tissues, np.float32(density * _thinned(radius, width)) * inside(depth, width), "calcium")
    plate = _falx(seed, at, middle, cavity)
    if plate is not None:
        depth, thick, density = plate
        tissues = replaced(tissues, np.float32(density) * inside(depth, width, thick=thick), "calcium")
    return tissues


def with_base(anatomy: Anatomy, tissues: Tissues, axes: Axes, spacing_mm: Triple) -> Tissues:
    """Return the tissues with the ridges of :func:`with_ridges`, whatever lay there before.

    What is bone to one half and more no longer belongs to the brain, as a stripping by thresholds leaves it; the rim
    beside it does.
    """
    bone = inside(BRAIN.read(anatomy.fields["ridge"], axes), seen_mm(spacing_mm))
    brain = tissues.brain & (bone < 0.5)
    tissues = replaced(tissues, bone, "bone")
    return replace(tissues, brain=brain, structures=np.where(brain, tissues.structures, np.uint8(0)))


def _thinned(radius: float, width: float) -> float:
    """Return by how much a ball's shares are to be taken down, so that together they are its volume.

    :func:`inside` rises from nothing to one over ``width`` about a surface. About a ball's that is the mean of balls
    with radii from radius - width / 2 to radius + width / 2, which is more than the ball, the smaller the more.
    """
    low, high = max(radius - width / 2, 0.0), radius + width / 2
    return radius**3 / ((high**4 - low**4) / (4 * width))


def _sinuses(at: Axes, middle: Array, cavity: Array) -> Iterator[tuple[Array, float]]:
    """Yield depth inside each venous sinus and its thickness, in mm: superior sagittal, transverse, straight.

    ``middle`` is the distance from the subject's own midline.
    """
    x, y, z = at
    # A wedge on the inner table, from the forehead over the vertex to the occiput.
    yield np.minimum(np.float32(4) - middle, np.minimum(np.float32(7) - cavity, z + np.float32(2))), 8.0
    roof = np.float32(-12) - np.float32(0.32) * np.abs(x) - np.float32(0.2) * (y + np.float32(55))
    transverse = np.minimum(np.float32(4) - np.abs(z - roof), np.float32(7) - cavity)
    yield np.minimum(transverse, np.float32(-40) - y), 8.0
    yield capsule(at, (0, -46, 6), (0, -84, -6), (2.5, 3.0)), 5.0


def _nodules(seed: int, anatomy: Anatomy, at: Axes, axes: Axes) -> Iterator[tuple[Array, float, float]]:
    """Yield depth inside each calcified nodule, the radius in mm of the ball of its volume, and its density."""
    for name, structure, place in (
        ("choroid", "ventricle", (25.0, -42.0, 11.0)),
        ("pallidum", "lentiform", (19.0, -3.0, 0.0)),
    ):
        rng = stream(seed, f"calcified {name}")
        present, both = rng.random() < FREQUENCY[name], rng.random() < _BOTH_SIDES
        only = int(rng.integers(2))
        if not present:
            continue
        within = DEEP.read(anatomy.deep[structure], axes)
        for number, side in enumerate((-1.0, 1.0)):
            radius, density, moved = rng.uniform(*RADIUS_MM[name]), rng.uniform(*DENSITY), rng.normal(0, 1.5, 3)
            if both or number == only:
                wanted = np.array([side * place[0], place[1], place[2]]) + moved
                x, y, z = _deepest(anatomy.deep[structure], wanted)
                # Longer than wide along the structure that it lies in, and not beyond it by more than a millimetre.
                body = ellipsoid(at, (x, y, z), (radius * 0.8, radius * 1.4, radius / 1.12))
                yield np.minimum(body, within + np.float32(1)), radius, density
    rng = stream(seed, "calcified pineal")
    radius, density = rng.uniform(*RADIUS_MM["pineal"]), rng.uniform(*DENSITY)
    y, z = rng.normal((-29.0, 3.0), 1.0)
    if rng.random() < FREQUENCY["pineal"]:
        yield ellipsoid(at, (0.0, float(y), float(z)), (radius,) * 3), radius, density


def _falx(seed: int, at: Axes, middle: Array, cavity: Array) -> tuple[Array, float, float] | None:
    """Return depth inside a calcified plate of the falx, its thickness in mm, its density; None where there is none."""
    rng = stream(seed, "calcified falx")
    angle, half, thick, density = rng.uniform(20, 160), rng.uniform(4, 12), rng.uniform(1.5, 4), rng.uniform(*DENSITY)
    if rng.random() >= FREQUENCY["falx"]:
        return None
    way = np.deg2rad(angle)
    body = ellipsoid(at, (0.0, float(-18 + 70 * np.cos(way)), float(8 + 52 * np.sin(way))), (40.0, half, half))
    sheet = np.float32(thick / 2) - middle
    return np.minimum(np.minimum(body, sheet), cavity - np.float32(2)), thick, density


def _ridges(seed: int) -> Iterator[tuple[Point, Point, tuple[float, float]]]:
    """Yield from where to where each ridge runs and its radii, in mm."""
    for number, (start, end, radii) in enumerate(_RIDGES):
        rng = stream(seed, f"ridge {number}")
        for side in (-1.0, 1.0):
            size = float(np.exp(0.15 * rng.standard_normal()))
            x, y, z = (float(value) for value in rng.normal(0, 1.5, 3))
            first, second = ((side * point[0] + x, point[1] + y, point[2] + z) for point in (start, end))
            yield first, second, (radii[0] * size, radii[1] * size)


def _deepest(depth: Array, near: np.ndarray) -> Point:
    """Return the point within 8 mm of ``near`` (RAS+ mm) that lies deepest in a structure of :data:`DEEP`."""
    points = np.meshgrid(*DEEP.axes, indexing="ij", sparse=True)
    away = sum(np.square(axis - np.float32(value)) for axis, value in zip(points, near, strict=True))
    best = np.unravel_index(int(np.argmax(np.where(away <= 64, depth, -np.inf))), depth.shape)
    x, y, z = (float(axis[index]) for axis, index in zip(DEEP.axes, best, strict=True))
    return (x, y, z)
