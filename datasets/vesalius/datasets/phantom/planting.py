"""Lesions of stated size, contrast and softness, planted into a phantom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.phantom.anatomy import BRAIN, DEEP, Anatomy, brain_mask
from vesalius.datasets.phantom.lattice import Lattice, smooth_noise, stream
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.phantom.lattice import Array, Axes, Triple
    from vesalius.datasets.phantom.settings import LesionSettings


@dataclass(frozen=True, kw_only=True)
class PlantedLesion:
    """What was planted.

    Attributes:
        settings: as asked for.
        center_mm: centre in RAS+ millimetres.
        hemisphere: ``left`` (x < 0) or ``right``, by the centre.
        num_voxels: voxels of its mask on this grid.
        volume_mm3: volume of its mask on this grid.
    """

    settings: LesionSettings
    center_mm: Triple
    hemisphere: str
    num_voxels: int
    volume_mm3: float


def plant(
    seed: int,
    anatomy: Anatomy,
    lesions: Sequence[LesionSettings],
    axes: Axes,
    spacing_mm: Triple,
    brain: NDArray[np.bool_],
) -> tuple[Array | None, NDArray[np.bool_], tuple[PlantedLesion, ...]]:
    """Plant lesions into a subject.

    A lesion is a wavy ellipsoid without ventricles and ridges of bone, cut at the brain's outline, of the volume asked
    for. Its change rises over ``softness_mm`` around its surface; the mask is where it is at least half, so the change
    reaches half the softness beyond the mask and is exactly 0 from there on.

    Args:
        seed: the subject; lesion number n of it is a function of (seed, n, its settings).
        anatomy: the subject.
        lesions: what to plant.
        axes: of the grid, in mm.
        spacing_mm: of the grid.
        brain: (D, H, W) bool; nothing changes outside.

    Returns:
        The change (D, H, W), the sum of contrast times profile (None without lesions); the mask (D, H, W); what was
        planted.

    Raises:
        SettingError: a lesion does not fit into the brain at the centre given.
    """
    mask = np.zeros(brain.shape, bool)
    if not lesions:
        return None, mask, ()
    change = np.zeros(brain.shape, np.float32)
    planted = []
    for number, lesion in enumerate(lesions):
        rng = stream(seed, f"lesion {number}")
        body = LesionBody(rng, anatomy, lesion)
        box, near = body.box(axes)
        profile = body.profile(near) * brain[box]
        own = profile >= 0.5
        mask[box] |= own
        change[box] += np.float32(lesion.contrast) * profile * body.texture(near)
        planted.append(
            PlantedLesion(
                settings=lesion,
                center_mm=body.center,
                hemisphere="left" if body.center[0] < 0 else "right",
                num_voxels=int(own.sum()),
                volume_mm3=float(own.sum() * np.prod(spacing_mm)),
            )
        )
    return change, mask, tuple(planted)


class LesionBody:
    """One lesion as a function of space, before any grid; all randomness is drawn when it is made.

    Attributes:
        center: in RAS+ millimetres.
    """

    def __init__(self, rng: np.random.Generator, anatomy: Anatomy, lesion: LesionSettings) -> None:
        self.lesion = lesion
        self.anatomy = anatomy
        self.center = _center(rng.random(), anatomy, lesion)
        self.radius = lesion.size_mm / 2
        stretch = np.exp(0.2 * rng.standard_normal(3))
        self.stretch = stretch / np.prod(stretch) ** (1 / 3)
        self.reach = self.radius * (2 + 2 * lesion.irregularity) + lesion.softness_mm
        x, y, z = self.center
        self.lattice = Lattice(
            low_mm=(x - self.reach, y - self.reach, z - self.reach),
            high_mm=(x + self.reach, y + self.reach, z + self.reach),
            spacing_mm=2 * self.reach / 40,
        )
        self.outline = smooth_noise(rng, self.lattice, self.radius * 0.7)
        self.inner = smooth_noise(rng, self.lattice, max(self.radius * 0.4, 4.0))
        self.offset = self._fitted_offset()

    def box(self, axes: Axes) -> tuple[tuple[slice, ...], Axes]:
        """Return the part of a grid that the lesion may reach, and its axes."""
        ends = [
            (int(np.searchsorted(axis, c - self.reach)), int(np.searchsorted(axis, c + self.reach, "right")))
            for axis, c in zip(axes, self.center, strict=True)
        ]
        box = tuple(slice(first, last) for first, last in ends)
        x, y, z = (axis[part] for axis, part in zip(axes, box, strict=True))
        return box, (x, y, z)

    def profile(self, axes: Axes) -> Array:
        """Share of the full change: 0 outside, 1 inside, 0.5 at the surface."""
        depth = np.minimum(self._blob(axes) + self.offset, self._solid(axes))
        if self.lesion.softness_mm < 1e-6:  # narrower than float32 can divide by
            return np.asarray(depth >= 0, np.float32)
        return np.asarray(np.clip(depth / np.float32(self.lesion.softness_mm) + np.float32(0.5), 0, 1))

    def texture(self, axes: Axes) -> Array:
        """Factor of the change from place to place, 1 on average."""
        return 1 + np.float32(self.lesion.texture) * self.lattice.read(self.inner, axes)

    def _blob(self, axes: Axes) -> Array:
        offsets = [
            (axis - np.float32(c)) / np.float32(s) for axis, c, s in zip(axes, self.center, self.stretch, strict=True)
        ]
        distance = np.sqrt(sum(np.square(o) for o in np.meshgrid(*offsets, indexing="ij", sparse=True)))
        wave = np.float32(self.lesion.irregularity * self.radius) * self.lattice.read(self.outline, axes)
        return np.asarray(np.float32(self.radius) - distance + wave, np.float32)

    def _solid(self, axes: Axes) -> Array:
        """Distance to the nearest ventricle or ridge of bone, positive outside."""
        depth = np.maximum(*(DEEP.read(self.anatomy.deep[name], axes) for name in ("ventricle", "midline_ventricle")))
        if "ridge" in self.anatomy.fields:
            np.maximum(depth, BRAIN.read(self.anatomy.fields["ridge"], axes), out=depth)
        return -depth

    def _fitted_offset(self) -> np.float32:
        """Depth to add so that the volume within the brain is the one asked for."""
        axes = self.lattice.axes
        at = {name: BRAIN.read(self.anatomy.fields[name], axes) for name in ("outline", "sheet", "excess")}
        depths = np.sort(self._blob(axes)[brain_mask(at, axes) & (self._solid(axes) >= 0)])[::-1]
        wanted = round(np.pi / 6 * self.lesion.size_mm**3 / self.lattice.spacing_mm**3)
        if wanted > len(depths):
            raise SettingError(
                f"a lesion of {self.lesion.size_mm:g} mm does not fit into the brain at {self.center} mm: "
                "make it smaller or move its center_mm"
            )
        return np.float32(-depths[wanted - 1])


def _center(pick: float, anatomy: Anatomy, lesion: LesionSettings) -> Triple:
    """Choose a point of the cerebrum outside ventricles and ridges of bone; ``pick`` in [0, 1) says which."""
    if lesion.center_mm is not None:
        return lesion.center_mm
    axes = BRAIN.axes
    candidate = anatomy.fields["cerebrum"] > min(lesion.size_mm / 4, 12.0)
    for name in ("ventricle", "midline_ventricle"):
        candidate &= DEEP.read(anatomy.deep[name], axes) < -4
    if "ridge" in anatomy.fields:
        candidate &= anatomy.fields["ridge"] < -4
    if lesion.hemisphere is not None:
        x = axes[0][:, None, None]
        candidate &= (x < -6) if lesion.hemisphere == "left" else (x > 6)
    indices = np.flatnonzero(candidate)
    i, j, k = np.unravel_index(indices[int(pick * len(indices))], candidate.shape)
    return (float(axes[0][i]), float(axes[1][j]), float(axes[2][k]))
