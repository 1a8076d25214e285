"""One phantom subject: images, masks and labels on the grid asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.phantom.anatomy import draw_anatomy
from vesalius.datasets.phantom.contrast import INTENSITIES, draw_image
from vesalius.datasets.phantom.planting import PlantedLesion, plant
from vesalius.datasets.phantom.settings import PhantomSettings
from vesalius.datasets.phantom.tissues import STRUCTURES, read_tissues

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.phantom.lattice import Axes, Triple
    from vesalius.datasets.phantom.settings import LesionSettings, Modality


@dataclass(frozen=True, kw_only=True)
class PhantomSubject:
    """What :func:`make_phantom` makes.

    Attributes:
        seed: the subject.
        settings: grid and look.
        image: (C, D, H, W) float32, channels as ``settings.modalities``; MR relative to white matter, CT in HU.
        brain: (D, H, W) bool, closed over the sulci as skull-stripping leaves it.
        head: (D, H, W) bool.
        lesion: (D, H, W) bool, where the change is at least half its full depth; empty in a healthy subject.
        structures: (D, H, W) uint8, labels of :data:`STRUCTURES` (the healthy anatomy).
        affine: (4, 4) voxel indices to RAS+ millimetres.
        planted: the lesions, in order.
        structure_names: :data:`STRUCTURES`.
    """

    seed: int
    settings: PhantomSettings
    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    head: NDArray[np.bool_]
    lesion: NDArray[np.bool_]
    structures: NDArray[np.uint8]
    affine: NDArray[np.float64]
    planted: tuple[PlantedLesion, ...] = ()
    structure_names: dict[str, int] = field(default_factory=lambda: dict(STRUCTURES))

    @property
    def channels(self) -> tuple[Modality, ...]:
        """Modality of each channel."""
        return self.settings.modalities

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size along i, j, k."""
        return self.settings.spacing_mm

    def channel(self, modality: str) -> NDArray[np.float32]:
        """Return (D, H, W), the image of one modality."""
        channel: NDArray[np.float32] = self.image[list[str](self.channels).index(modality)]
        return channel


def make_phantom(
    seed: int, settings: PhantomSettings | None = None, *, lesions: Sequence[LesionSettings] = ()
) -> PhantomSubject:
    """Make the subject ``seed``.

    Its anatomy and noise are the same with and without lesions, and its anatomy is the same on every grid.

    Args:
        seed: the subject; any whole number.
        settings: grid and look; the default is a skull-stripped T1w of 64 x 64 x 64 voxels of 3 mm.
        lesions: what to plant, in order; the mask is their union.
    """
    settings = settings or PhantomSettings()
    anatomy = draw_anatomy(seed, settings.variability)
    axes = _axes(settings)
    tissues = read_tissues(anatomy, axes, settings.spacing_mm, skull_stripped=settings.skull_stripped)
    change, lesion, planted = plant(seed, anatomy, lesions, axes, settings.spacing_mm, tissues.brain)
    image = np.empty((len(settings.modalities), *settings.shape), np.float32)
    for channel, modality in enumerate(settings.modalities):
        image[channel] = draw_image(seed, settings, modality, tissues.shares, change, axes)
        if settings.skull_stripped:
            image[channel][~tissues.brain] = INTENSITIES[modality]["air"]
    return PhantomSubject(
        seed=seed,
        settings=settings,
        image=image,
        brain=tissues.brain,
        head=tissues.head,
        lesion=lesion,
        structures=tissues.structures,
        affine=_affine(settings),
        planted=planted,
    )


def _axes(settings: PhantomSettings) -> Axes:
    x, y, z = (
        (center + spacing * (np.arange(num) - (num - 1) / 2)).astype(np.float32)
        for num, spacing, center in zip(settings.shape, settings.spacing_mm, settings.center_mm, strict=True)
    )
    return (x, y, z)


def _affine(settings: PhantomSettings) -> NDArray[np.float64]:
    affine = np.diag([*settings.spacing_mm, 1.0])
    half = (np.array(settings.shape) - 1) / 2
    affine[:3, 3] = np.array(settings.center_mm) - half * np.array(settings.spacing_mm)
    return affine
