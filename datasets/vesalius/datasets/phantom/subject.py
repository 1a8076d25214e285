"""One phantom subject: images, masks and labels on the grid asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.phantom.artefacts import mover, spoilt
from vesalius.datasets.phantom.contrast import INTENSITIES, draw_image
from vesalius.datasets.phantom.findings import Scene, set_in, wide_ventricles
from vesalius.datasets.phantom.hyperdense import with_base, with_bright, with_ridges
from vesalius.datasets.phantom.planting import PlantedLesion, plant
from vesalius.datasets.phantom.settings import NEED_SKULL, PhantomSettings
from vesalius.datasets.phantom.tissues import STRUCTURES, read_tissues
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.phantom.lattice import Axes, Triple
    from vesalius.datasets.phantom.settings import FindingSettings, LesionSettings, Modality


@dataclass(frozen=True, kw_only=True)
class PhantomSubject:
    """What :func:`make_phantom` makes.

    Attributes:
        seed: the subject.
        settings: grid and look.
        image: (C, D, H, W) float32, channels as ``settings.modalities``; MR relative to white matter, CT in HU.
        brain: (D, H, W) bool, closed over the sulci as skull-stripping leaves it.
        head: (D, H, W) bool.
        lesion: (D, H, W) bool, where the change is at least half its full depth; empty in a healthy subject, and
            where a finding has no place of its own.
        structures: (D, H, W) uint8, labels of :data:`STRUCTURES` (the anatomy without lesions).
        affine: (4, 4) voxel indices to RAS+ millimetres.
        planted: the lesions, in order.
        finding: what else is in it.
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
    finding: FindingSettings | None = None
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
    seed: int,
    settings: PhantomSettings | None = None,
    *,
    lesions: Sequence[LesionSettings] = (),
    finding: FindingSettings | None = None,
) -> PhantomSubject:
    """Make the subject ``seed``.

    Its anatomy and noise are the same with and without lesions, and its anatomy is the same on every grid.

    Args:
        seed: the subject; any whole number.
        settings: grid and look; the default is a skull-stripped T1w of 64 x 64 x 64 voxels of 3 mm.
        lesions: what to plant, in order; the mask is their union.
        finding: what else to set in. One that has a place adds it to the mask; one that moves the image moves the
            masks with it, and the affine says nothing of it.

    Raises:
        SettingError: the finding lies in the skull, which is stripped; or a lesion does not fit.
    """
    settings = settings or PhantomSettings()
    if finding is not None and finding.kind in NEED_SKULL and settings.skull_stripped:
        raise SettingError(f"a {finding.kind} lies in the skull: set skull_stripped to false")
    anatomy = wide_ventricles(seed, settings.variability, finding)
    if settings.hyperdense:
        anatomy = with_ridges(seed, anatomy)
    axes = _axes(settings)
    tissues = read_tissues(anatomy, axes, settings.spacing_mm, skull_stripped=settings.skull_stripped)
    if settings.hyperdense:
        tissues = with_bright(seed, anatomy, tissues, axes, settings.spacing_mm)
    change, lesion, planted = plant(seed, anatomy, lesions, axes, settings.spacing_mm, tissues.brain)
    if finding is not None:
        scene = Scene(
            seed=seed,
            anatomy=anatomy,
            variability=settings.variability,
            tissues=tissues,
            axes=axes,
            spacing_mm=settings.spacing_mm,
            finding=finding,
        )
        tissues, found = set_in(scene)
        # A catheter runs through the skull; of a stripped head the image shows its part in the brain alone.
        lesion |= found & tissues.brain if settings.skull_stripped else found
    if settings.hyperdense:
        # After the findings: what is laid against the brain's outline does not see the ridges within it.
        outline, tissues = tissues.brain, with_base(anatomy, tissues, axes, settings.spacing_mm)
        lesion &= tissues.brain | ~outline
    image = np.empty((len(settings.modalities), *settings.shape), np.float32)
    for channel, modality in enumerate(settings.modalities):
        image[channel] = draw_image(seed, settings, modality, tissues.shares, change, axes)
        if finding is not None:
            image[channel] = spoilt(seed, finding, image[channel], modality, axes, tissues.head)
        if settings.skull_stripped:
            image[channel][~tissues.brain] = INTENSITIES[modality]["air"]
    subject = PhantomSubject(
        seed=seed,
        settings=settings,
        image=image,
        brain=tissues.brain,
        head=tissues.head,
        lesion=lesion,
        structures=tissues.structures,
        affine=_affine(settings),
        planted=planted,
        finding=finding,
    )
    return subject if finding is None else _moved(subject, finding, axes)


def _moved(subject: PhantomSubject, finding: FindingSettings, axes: Axes) -> PhantomSubject:
    """Move image and masks as the finding has it; the affine goes on saying that nothing was moved."""
    move = mover(subject.seed, finding, subject.affine, axes)
    if move is None:
        return subject

    def moved(mask: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(move(mask.astype(np.float32), 0, 0.0).round().astype(mask.dtype))

    channels = [
        move(image, 1, INTENSITIES[modality]["air"])
        for image, modality in zip(subject.image, subject.channels, strict=True)
    ]
    return replace(
        subject,
        image=np.stack(channels).astype(np.float32),
        brain=moved(subject.brain),
        head=moved(subject.head),
        lesion=moved(subject.lesion),
        structures=moved(subject.structures),
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
