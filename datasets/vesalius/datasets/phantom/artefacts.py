"""What goes wrong with an image: metal, motion, noise, an orientation or a registration that is not what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vesalius.datasets.phantom.contrast import NOISE
from vesalius.datasets.phantom.lattice import stream
from vesalius.platform.geometry import resample

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vesalius.datasets.phantom.lattice import Array, Axes
    from vesalius.datasets.phantom.settings import FindingSettings, Modality
    from vesalius.platform.geometry import Order

MISPLACED: Final = ("motion", "wrong_orientation", "wrong_registration")
_METAL = 20.0  # of a modality's unit of noise: 3,000 HU in CT
_TURNS = (
    np.diag([1.0, 1.0, -1.0]),  # upside down
    np.diag([1.0, -1.0, 1.0]),  # front to back; left to right would hardly show
    np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),  # on the back
    np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),  # turned to a side
)


def spoilt(
    seed: int, finding: FindingSettings, image: Array, modality: Modality, axes: Axes, head: NDArray[np.bool_]
) -> Array:
    """Return an image (D, H, W) of one modality with noise or the streaks of a piece of metal; others as they are.

    Args:
        seed: the subject.
        finding: its kind and severity.
        image: before any skull-stripping.
        modality: its unit sets how strong the change is.
        axes: of the grid, in mm.
        head: (D, H, W); streaks end at its surface.
    """
    unit, severity = NOISE[modality], finding.severity
    if finding.kind == "noise":
        drawn = stream(seed, f"finding noise {modality}").standard_normal(image.shape, dtype=np.float32)
        return image + np.float32(unit * (0.05 + 0.15 * severity)) * drawn
    if finding.kind != "metal":
        return image
    rng = stream(seed, "finding metal")
    side = -1 if finding.hemisphere == "left" else 1
    place = np.array([side * rng.uniform(5, 45), rng.uniform(-50, 20), rng.uniform(-15, 35)], np.float32)
    x, y, z = (a - p for a, p in zip(np.meshgrid(*axes, indexing="ij", sparse=True), place, strict=True))
    radius = np.hypot(x, y)
    angle = np.arctan2(y, x)
    streaks = np.zeros_like(angle)
    for number in rng.integers(3, 14, 5):
        streaks += np.float32(rng.uniform(0.5, 1.0)) * np.cos(
            np.float32(number) * angle + np.float32(rng.uniform(0, 7))
        )
    strength = np.float32(unit * (0.3 + 0.6 * severity)) / (1 + radius / np.float32(25))
    change = strength * streaks * np.exp(-np.square(z / np.float32(14)))
    metal = np.sqrt(radius * radius + z * z) < 3 + 4 * severity
    return np.where(metal, np.float32(unit * _METAL), image + change * head)


def mover(seed: int, finding: FindingSettings, affine: NDArray[np.float64], axes: Axes) -> Callable[..., Array] | None:
    """Return what moves an array (D, H, W) as the finding has it, or None where nothing moves.

    It is called with the array, the order of interpolation (0 for masks) and the value of what comes in from outside.
    """
    if finding.kind not in MISPLACED:
        return None
    rng = stream(seed, f"finding {finding.kind}")
    if finding.kind == "motion":
        return _jerks(rng, finding, axes)
    if finding.kind == "wrong_orientation":
        matrix, shift = _TURNS[int(rng.integers(len(_TURNS)))], np.zeros(3)
    else:
        least, severity = np.array([8.0, 8.0, 8.0]), finding.severity
        shift = rng.choice((-1, 1), 3) * (least + 14 * severity * rng.random(3))
        angles = np.deg2rad(rng.choice((-1, 1), 3) * rng.uniform(4, 8 + 8 * severity, 3))
        scale = np.exp(rng.choice((-1, 1)) * rng.uniform(0.08, 0.1 + 0.1 * severity))
        matrix = _turned(angles) * scale
    middle = np.array([(float(axis[0]) + float(axis[-1])) / 2 for axis in axes])
    to_source = np.eye(4)
    to_source[:3, :3] = matrix
    to_source[:3, 3] = middle - matrix @ middle + shift

    def move(array: NDArray[np.float32], order: Order, fill: float) -> Array:
        return resample(array, affine, array.shape, affine, to_source=to_source, order=order, fill=fill)

    return move


def _jerks(rng: np.random.Generator, finding: FindingSettings, axes: Axes) -> Callable[..., Array]:
    """Slabs of a few slices, each moved within its plane against the others."""
    spacing = [abs(float(axis[1] - axis[0])) if len(axis) > 1 else 1.0 for axis in axes]
    reach = 5.0 + 9.0 * finding.severity
    # Slabs of 9 mm of space, so that the motion is the same on every grid.
    slab = np.floor(np.asarray(axes[2], np.float64) / 9.0).astype(int) + 64
    steps = rng.uniform(-reach, reach, (128, 2))

    def move(array: NDArray[np.float32], order: Order, fill: float) -> Array:
        from scipy.ndimage import shift

        moved = np.empty_like(array)
        for k, number in enumerate(np.clip(slab, 0, len(steps) - 1)):
            by = (steps[number] / spacing[:2]).tolist()
            shift(array[..., k], by, output=moved[..., k], order=order, mode="constant", cval=fill)
        return moved

    return move


def _turned(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", angles).as_matrix())
