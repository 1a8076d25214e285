"""Lesions of stated size, contrast and softness, planted into a phantom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vesalius.datasets.phantom.anatomy import BRAIN, Anatomy, brain_mask
from vesalius.datasets.phantom.lattice import Lattice, smooth_noise, stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.phantom.lattice import Array, Axes
    from vesalius.datasets.phantom.settings import LesionSettings, Triple


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
    seed: int, anatomy: Anatomy, lesions: Sequence[LesionSettings], axes: Axes, brain: NDArray[np.bool_]
) -> tuple[Array | None, NDArray[np.bool_], tuple[PlantedLesion, ...]]:
    """Return the relative change (D, H, W) (None without lesions), the mask, and what was planted."""
    mask = np.zeros(brain.shape, bool)
    if not lesions:
        return None, mask, ()
    change = np.zeros(brain.shape, np.float32)
    planted = []
    voxel_mm3 = float(np.prod([abs(a[1] - a[0]) if len(a) > 1 else 1.0 for a in axes]))
    for number, lesion in enumerate(lesions):
        rng = stream(seed, f"lesion {number}")
        center = _center(rng, anatomy, lesion)
        body = _Body(rng, lesion, center)
        depth = body.depth(axes) + body.offset(anatomy)
        profile = np.clip(depth / np.float32(max(lesion.softness_mm, 1e-3)) + np.float32(0.5), 0, 1) * brain
        own = (profile >= 0.5) & brain
        mask |= own
        change += np.float32(lesion.contrast) * profile * (1 + np.float32(lesion.texture) * body.texture(axes))
        planted.append(
            PlantedLesion(
                settings=lesion,
                center_mm=center,
                hemisphere="left" if center[0] < 0 else "right",
                num_voxels=int(own.sum()),
                volume_mm3=float(own.sum() * voxel_mm3),
            )
        )
    return change, mask, tuple(planted)


def _center(rng: np.random.Generator, anatomy: Anatomy, lesion: LesionSettings) -> Triple:
    pick = rng.random()
    if lesion.center_mm is not None:
        return lesion.center_mm
    inside = anatomy.fields["cerebrum"] > min(lesion.size_mm / 4, 12.0)
    x = BRAIN.axes[0][:, None, None]
    if lesion.hemisphere is not None:
        inside = inside & ((x < -6) if lesion.hemisphere == "left" else (x > 6))
    candidates = np.flatnonzero(inside)
    index = np.unravel_index(candidates[int(pick * len(candidates))], inside.shape)
    a, b, c = (float(axis[i]) for axis, i in zip(BRAIN.axes, index, strict=True))
    return (a, b, c)


class _Body:
    """An ellipsoid with a wavy outline; all randomness is drawn when it is made."""

    def __init__(self, rng: np.random.Generator, lesion: LesionSettings, center: Triple) -> None:
        self.lesion = lesion
        self.center = center
        self.radius = lesion.size_mm / 2
        self.stretch = np.exp(0.2 * rng.standard_normal(3))
        self.stretch /= np.prod(self.stretch) ** (1 / 3)
        reach = 2.5 * self.radius + lesion.softness_mm
        low = tuple(c - reach for c in center)
        high = tuple(c + reach for c in center)
        self.lattice = Lattice(low_mm=low, high_mm=high, spacing_mm=2 * reach / 24)  # type: ignore[arg-type]
        self.outline = smooth_noise(rng, self.lattice, self.radius * 0.7)
        self.inner = smooth_noise(rng, self.lattice, max(self.radius * 0.4, 4.0))

    def depth(self, axes: Axes) -> Array:
        squared = sum(
            np.square(a)
            for a in np.meshgrid(
                *(
                    (axis - np.float32(c)) / np.float32(s)
                    for axis, c, s in zip(axes, self.center, self.stretch, strict=True)
                ),
                indexing="ij",
                sparse=True,
            )
        )
        wave = np.float32(self.lesion.irregularity * self.radius) * self.lattice.read(self.outline, axes)
        return np.asarray(np.float32(self.radius) - np.sqrt(squared) + wave, np.float32)

    def texture(self, axes: Axes) -> Array:
        return self.lattice.read(self.inner, axes)

    def offset(self, anatomy: Anatomy) -> np.float32:
        """Depth to add so that the volume inside the brain is the one asked for."""
        axes = self.lattice.axes
        depth = self.depth(axes)
        at = {name: BRAIN.read(anatomy.fields[name], axes) for name in ("outline", "sheet", "excess")}
        inside = np.sort(depth[brain_mask(at, axes)])[::-1]
        wanted = round(np.pi / 6 * self.lesion.size_mm**3 / self.lattice.spacing_mm**3)
        if len(inside) == 0:
            return np.float32(0)
        return np.float32(-inside[min(wanted, len(inside) - 1)])
