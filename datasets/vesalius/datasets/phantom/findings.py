"""What a head CT may show, set into a phantom: bleeds, a fracture, wide ventricles, what an operation leaves.

Each finding is a body in millimetres, drawn from (seed, its kind), that takes its share of every voxel from the tissues
beneath; so it is the same on every grid. Nothing is pushed aside: a bleed lies where brain was, without mass effect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vesalius.datasets.phantom.anatomy import DEEP, HEAD, MIDDLE, draw_anatomy
from vesalius.datasets.phantom.lattice import stream
from vesalius.datasets.phantom.planting import LesionBody
from vesalius.datasets.phantom.settings import LesionSettings
from vesalius.datasets.phantom.shapes import capsule
from vesalius.datasets.phantom.tissues import SKULL_MM, inside, replaced, seen_mm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from vesalius.datasets.phantom.anatomy import Anatomy
    from vesalius.datasets.phantom.lattice import Array, Axes, Triple
    from vesalius.datasets.phantom.settings import FindingSettings, VariabilitySettings
    from vesalius.datasets.phantom.tissues import Tissues

VENTRICLE_FACTOR: Final = (1.7, 2.6)
"""How much wider the ventricles of a hydrocephalus are, from the least to the greatest severity."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A subject on a grid, before its finding.

    Attributes:
        seed: the subject.
        anatomy: it in millimetres.
        variability: what it was drawn with.
        tissues: it on the grid.
        axes: of the grid, in mm.
        spacing_mm: of the grid.
        finding: what is to be set in.
    """

    seed: int
    anatomy: Anatomy
    variability: VariabilitySettings
    tissues: Tissues
    axes: Axes
    spacing_mm: Triple
    finding: FindingSettings

    @property
    def rng(self) -> np.random.Generator:
        """The finding's own stream: what it draws moves nothing else."""
        return stream(self.seed, f"finding {self.finding.kind}")

    @property
    def side(self) -> int:
        """-1 for the left, 1 for the right."""
        return -1 if self.finding.hemisphere == "left" else 1

    @property
    def width(self) -> float:
        """Millimetres that a voxel sees: its own edge and the image's blur."""
        return seen_mm(self.spacing_mm)

    @property
    def cavity(self) -> Array:
        """(D, H, W) depth inside the skull, in mm."""
        return HEAD.read(self.anatomy.head["cavity"], self.axes)

    def scaled(self, least: float, greatest: float) -> np.float32:
        """Return what lies between two sizes at the finding's severity."""
        return np.float32(least + (greatest - least) * self.finding.severity)

    def offsets(self, point: NDArray[np.float32]) -> list[Array]:
        """Return the grid's coordinates from a point, along x, y, z; they broadcast to (D, H, W)."""
        return [
            axis - value for axis, value in zip(np.meshgrid(*self.axes, indexing="ij", sparse=True), point, strict=True)
        ]


def wide_ventricles(seed: int, variability: VariabilitySettings, finding: FindingSettings | None) -> Anatomy:
    """Return the subject's anatomy; that of a hydrocephalus has wider ventricles and is else the same.

    What is calcified in a ventricle lies where it is deepest, and so elsewhere in a wider one.
    """
    if finding is None or finding.kind != "hydrocephalus":
        return draw_anatomy(seed, variability)
    least, greatest = VENTRICLE_FACTOR
    return draw_anatomy(seed, variability, wider=least + (greatest - least) * finding.severity)


def set_in(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    """Return the tissues with the finding in them, and the voxels that it changed (none, if its kind has no mask)."""
    change = _CHANGES.get(scene.finding.kind)
    if change is None:
        return scene.tissues, np.zeros(scene.tissues.brain.shape, bool)
    return change(scene)


def _intraparenchymal(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    lesion = LesionSettings(
        size_mm=float(scene.scaled(18, 45)), softness_mm=2.0, irregularity=0.3, hemisphere=scene.finding.hemisphere
    )
    body = LesionBody(scene.rng, scene.anatomy, lesion)
    box, near = body.box(scene.axes)
    share = np.zeros(scene.tissues.brain.shape, np.float32)
    share[box] = body.profile(near)
    # It keeps to its hemisphere, which is what its label says.
    x = scene.axes[0][:, None, None] * scene.side
    share *= scene.tissues.brain * inside(np.asarray(x - scene.width / 2, np.float32), scene.width)
    return replaced(scene.tissues, share, "blood"), share >= 0.5


def _bleed_outside_the_brain(scene: Scene, depth: Array) -> tuple[Tissues, NDArray[np.bool_]]:
    """Fill a body between brain and skull with blood; what a stripping leaves of such a head holds it."""
    share = inside(np.minimum(depth, scene.cavity), scene.width)
    mask = share >= 0.5
    return replaced(scene.tissues, share * inside(scene.cavity, scene.width), "blood", mask), mask


def _subdural(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    """A crescent along the skull of one hemisphere, thickest in its middle."""
    rng = scene.rng
    toward = _direction(rng, scene.side)
    reach = np.deg2rad(rng.uniform(55, 75))
    x, y, z = scene.offsets(np.array(MIDDLE, np.float32))
    along = (x * toward[0] + y * toward[1] + z * toward[2]) / (np.sqrt(x * x + y * y + z * z) + np.float32(1e-3))
    angle = np.arccos(np.clip(along, -1, 1)) / np.float32(reach)
    thickness = scene.scaled(9, 20) * np.clip(1 - np.square(angle), 0, None)
    # Falx and tentorium hold it back.
    depth = np.minimum(thickness - scene.cavity, np.minimum(x * scene.side - np.float32(2), z + np.float32(35)))
    depth = np.where(angle < 1, depth, np.minimum(depth, np.float32(-scene.width)))
    return _bleed_outside_the_brain(scene, np.asarray(depth, np.float32))


def _epidural(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    """A lens on the inner table."""
    toward = _direction(scene.rng, scene.side)
    thick, wide = scene.scaled(11, 24), scene.scaled(24, 38)
    offsets = scene.offsets(_on_skull(scene.anatomy, toward, 0.0))
    along, across = _along_and_across(offsets, toward)
    depth = (1 - np.sqrt(np.square(along / thick) + np.square(across / wide))) * thick
    return _bleed_outside_the_brain(scene, np.asarray(depth, np.float32))


def _fracture(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    """A gap through the vault, slightly bent, filled with soft tissue."""
    rng = scene.rng
    toward = _direction(rng, scene.side)
    offsets = scene.offsets(_on_skull(scene.anatomy, toward, 0.0))
    first, second = _tangents(toward, rng.uniform(0, np.pi))
    gap, length = scene.scaled(2, 5), scene.scaled(60, 110)
    u, v, n = (sum(o * w for o, w in zip(offsets, way, strict=True)) for way in (first, second, toward))
    away = np.abs(u + np.float32(4) * np.sin(v * np.float32(0.08)))
    within = (np.abs(v) < length / 2) & (n > -30)
    skull = scene.tissues.shares["bone"] + scene.tissues.shares["marrow"]
    share = inside(gap / 2 - away, scene.width, thick=float(gap)) * within
    shares = dict(scene.tissues.shares)
    for name in ("bone", "marrow"):
        shares[name] = shares[name] * (1 - share)
    shares["muscle"] = shares["muscle"] + share * skull
    # However thin the gap, the voxels that it runs through are known.
    mask = (away <= max(float(gap), float(np.max(scene.spacing_mm))) / 2) & within & (skull >= 0.5)
    return replace(scene.tissues, shares=shares), np.asarray(mask)


def _hydrocephalus(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    """The anatomy has it already: what is ventricle here and was brain before."""
    before = draw_anatomy(scene.seed, scene.variability).deep
    mask = np.zeros(scene.tissues.brain.shape, bool)
    for name in ("ventricle", "midline_ventricle"):
        now = DEEP.read(scene.anatomy.deep[name], scene.axes) > 0
        mask |= now & (DEEP.read(before[name], scene.axes) <= 0)
    return scene.tissues, mask & scene.tissues.brain


def _craniectomy(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    """A round piece of the vault is missing, and the brain swells into the gap."""
    toward = _direction(scene.rng, scene.side)
    along, across = _along_and_across(scene.offsets(_on_skull(scene.anatomy, toward, 0.0)), toward)
    hole = np.minimum(scene.scaled(30, 48) - across, along + np.float32(40))
    depth = np.minimum(hole, scene.cavity + np.float32(SKULL_MM))
    share = inside(np.asarray(depth, np.float32), scene.width) * ~scene.tissues.brain
    mask = share >= 0.5
    return replaced(scene.tissues, share, "grey", mask), mask


def _shunt(scene: Scene) -> tuple[Tissues, NDArray[np.bool_]]:
    """A catheter from the skull to the lateral ventricle."""
    rng = scene.rng
    toward = np.array([0.55 * scene.side, rng.uniform(-0.6, 0.3), 1.0], np.float32)
    start = _on_skull(scene.anatomy, toward / np.linalg.norm(toward), 0.0)
    end = (8.0 * scene.side, -8.0 + rng.uniform(-8, 8), 22.0)
    x, y, z = np.meshgrid(*scene.axes, indexing="ij", sparse=True)
    radius = float(scene.scaled(2.0, 3.5))
    depth = capsule((x, y, z), (float(start[0]), float(start[1]), float(start[2])), end, (radius, radius))
    depth = np.minimum(depth, scene.cavity + np.float32(SKULL_MM))
    share = inside(depth, scene.width, thick=2 * radius)
    mask = depth >= radius - max(radius, float(np.max(scene.spacing_mm)) / 2)
    return replaced(scene.tissues, share, "catheter"), mask & (scene.tissues.brain | (share > 0))


_CHANGES: Final[Mapping[str, Callable[[Scene], tuple[Tissues, NDArray[np.bool_]]]]] = {
    "intraparenchymal": _intraparenchymal,
    "subdural": _subdural,
    "epidural": _epidural,
    "fracture": _fracture,
    "hydrocephalus": _hydrocephalus,
    "craniectomy": _craniectomy,
    "shunt": _shunt,
}


def _direction(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Draw a unit vector from the middle of the head to the vault of one side."""
    way = np.array([side, rng.uniform(-0.7, 0.7), rng.uniform(0.0, 0.8)], np.float32)
    return np.asarray(way / np.linalg.norm(way))


def _tangents(normal: NDArray[np.float32], turn: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two unit vectors at right angles to ``normal`` and to each other."""
    first = np.cross(normal, (0.0, 0.0, 1.0))
    first /= np.linalg.norm(first)
    second = np.cross(normal, first)
    turned = np.cos(turn) * first + np.sin(turn) * second
    return np.asarray(turned, np.float32), np.asarray(np.cross(normal, turned), np.float32)


def _along_and_across(offsets: list[Array], way: NDArray[np.float32]) -> tuple[Array, Array]:
    """Return the coordinate along a unit vector and the distance from its line."""
    along = sum(o * w for o, w in zip(offsets, way, strict=True))
    squared = sum(np.square(o) for o in offsets) - np.square(along)
    return np.asarray(along), np.sqrt(np.clip(squared, 0, None))


def _on_skull(anatomy: Anatomy, way: NDArray[np.float32], depth_mm: float) -> NDArray[np.float32]:
    """Return the point on a ray from the middle of the head that lies ``depth_mm`` inside the skull's inner table."""
    from scipy.ndimage import map_coordinates

    lengths = np.arange(0, 140, 0.5, dtype=np.float32)
    points = np.array(MIDDLE, np.float32)[:, None] + way[:, None] * lengths
    index = (points - np.array(HEAD.low_mm, np.float32)[:, None]) / np.float32(HEAD.spacing_mm)
    depths = map_coordinates(anatomy.head["cavity"], index, order=1, mode="nearest")
    first = int(np.argmax(depths <= depth_mm))
    return np.asarray(points[:, first], np.float32)
