"""One phantom subject: images, masks and labels on the grid asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vesalius.datasets.phantom.anatomy import BRAIN, CEREBRUM, DEEP, HEAD, MIDDLE, Anatomy, brain_mask, draw_anatomy
from vesalius.datasets.phantom.contrast import INTENSITIES, LESION_RESPONSE, NOISE, TISSUES
from vesalius.datasets.phantom.lattice import smooth_noise, stream
from vesalius.datasets.phantom.lesions import PlantedLesion, plant
from vesalius.datasets.phantom.settings import PhantomSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.phantom.lattice import Array, Axes
    from vesalius.datasets.phantom.settings import LesionSettings, Modality, Triple

STRUCTURES: Final[dict[str, int]] = {
    "left_cerebral_cortex": 1,
    "right_cerebral_cortex": 2,
    "left_cerebral_white_matter": 3,
    "right_cerebral_white_matter": 4,
    "left_lateral_ventricle": 5,
    "right_lateral_ventricle": 6,
    "left_csf": 7,
    "right_csf": 8,
    "left_thalamus": 9,
    "right_thalamus": 10,
    "left_caudate": 11,
    "right_caudate": 12,
    "left_lentiform": 13,
    "right_lentiform": 14,
    "left_cerebellum": 15,
    "right_cerebellum": 16,
    "left_hippocampus": 17,
    "right_hippocampus": 18,
    "midline_ventricles": 19,
    "brainstem": 20,
}
"""Label of each structure in :attr:`PhantomSubject.structures`; 0 is outside the brain. Left is x < 0."""


MOUTH_MM = 6.0  # depth over which a sulcus narrows
BLUR_MM = 3.5  # of the image itself, beside the size of a voxel


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
        channel: NDArray[np.float32] = self.image[self.channels.index(modality)]  # type: ignore[arg-type]
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
    tissue, structures, brain, head = _tissues(anatomy, axes, settings)
    texture = smooth_noise(stream(seed, "texture"), BRAIN, 18)
    wobble = 1 + np.float32(settings.variability.texture) * BRAIN.read(texture, axes)
    profile, lesion, planted = plant(seed, anatomy, lesions, axes, brain)
    image = np.empty((len(settings.modalities), *settings.shape), np.float32)
    for channel, modality in enumerate(settings.modalities):
        image[channel] = _image(seed, settings, modality, tissue, wobble, profile, axes)
        if settings.skull_stripped:
            image[channel][~brain] = INTENSITIES[modality]["air"]
    return PhantomSubject(
        seed=seed,
        settings=settings,
        image=image,
        brain=brain,
        head=head,
        lesion=lesion,
        structures=structures,
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


def _inside(depth: Array, width: float) -> Array:
    """Share of a voxel of edge ``width`` that lies inside a surface ``depth`` below which its centre is."""
    share = depth * np.float32(1 / width)
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def _beyond(distance: Array, half: Array | float, width: float) -> Array:
    """Share of a voxel farther than ``half`` from a sheet that its centre is ``distance`` away from (either side)."""
    upper = np.clip(distance + np.float32(width / 2), -half, half)
    lower = np.clip(distance - np.float32(width / 2), -half, half)
    return 1 - (upper - lower) * np.float32(1 / width)


def _tissues(
    anatomy: Anatomy, axes: Axes, settings: PhantomSettings
) -> tuple[dict[str, Array], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    at = {name: BRAIN.read(values, axes) for name, values in anatomy.fields.items()}
    at |= {name: DEEP.read(values, axes) for name, values in anatomy.deep.items()}
    width = float(np.hypot(np.mean(settings.spacing_mm), BLUR_MM))
    thick = anatomy.thickness_mm
    brain = brain_mask(at, axes)
    # Cerebrum: pial surface and white surface, below the outline and away from folds, fissures and the insula.
    fold = np.hypot(at["sheet"], np.maximum(at["excess"], 0))
    middle = np.hypot(at["x"], np.maximum(at["core"], 0))
    depth = at["cerebrum"] - np.float32(0.8)
    pial = _inside(depth, width)
    white = _inside(depth - np.float32(thick), width)
    # A sulcus is a wedge: wide at its mouth, a mere contact of its banks below.
    mouth = np.float32(anatomy.sulcus_mm) * at["mouth"] * np.exp(-np.maximum(depth, 0) * np.float32(1 / MOUTH_MM))
    for distance, half in (
        (fold, mouth + np.float32(0.25)),
        (middle, mouth * np.float32(0.5) + np.float32(0.35)),
        (at["insula"], mouth + np.float32(0.6)),
    ):
        pial *= _beyond(distance, half, width)
        white *= _beyond(distance, half + np.float32(thick), width)
    # Below: cerebellum and stem fill what the cerebrum leaves.
    stem = _inside(at["stem"], width)
    depth = at["cerebellum"] - np.float32(0.8)
    cerebellum = _inside(depth, width) * _beyond(at["leaf"], 0.12, width) * (1 - stem)
    core = _inside(depth - np.float32(13), width)
    core = np.maximum(core, _inside(np.minimum(depth - np.float32(4), np.abs(at["leaf"]) - np.float32(2.5)), width))
    core *= cerebellum
    pial, white = pial * (1 - stem), white * (1 - stem)
    ventricle = _inside(at["ventricle"], width)
    midline = _inside(at["midline_ventricle"], width)
    fluid = np.maximum(ventricle, midline)
    solid = 1 - fluid
    tissue = {"cerebellar_grey": (cerebellum - core) * solid}
    left = solid
    nuclei = np.zeros_like(solid)
    for name in ("thalamus", "caudate", "lentiform", "hippocampus"):
        tissue[name] = _inside(at[name], width) * left * (1 - stem)
        left = left - tissue[name]
        nuclei += tissue[name]
    # The nuclei lie within the white matter; what they take, it loses.
    around = np.clip(solid - nuclei, 0, 1)
    tissue["grey"] = (pial - white) * around
    tissue["white"] = (white + stem) * around + core * solid
    tissue["csf"] = np.clip(1 - sum(tissue.values()), 0, 1)
    side = (np.array(axes[0]) >= 0).astype(np.uint8)[:, None, None]
    labels = {
        "cerebral_cortex": tissue["grey"],
        "cerebral_white_matter": white * around,
        "lateral_ventricle": ventricle,
        "csf": tissue["csf"] - np.maximum(ventricle, midline),
        "thalamus": tissue["thalamus"],
        "caudate": tissue["caudate"],
        "lentiform": tissue["lentiform"],
        "cerebellum": cerebellum * solid,
        "hippocampus": tissue["hippocampus"],
    }
    best = np.full(brain.shape, -1.0, np.float32)
    structures = np.zeros(brain.shape, np.uint8)
    for number, share in enumerate(labels.values()):
        better = share > best
        best = np.where(better, share, best)
        structures = np.where(better, np.uint8(1 + 2 * number) + side, structures)
    for name, share in (("midline_ventricles", midline), ("brainstem", stem * solid)):
        better = share > best
        best = np.where(better, share, best)
        structures[better] = STRUCTURES[name]
    structures[~brain] = 0
    cavity = HEAD.read(anatomy.head["cavity"], axes)
    outside = HEAD.read(anatomy.head["head"], axes)
    if not settings.skull_stripped:
        inner = _inside(cavity, width)
        bone = _inside(cavity + np.float32(6.5), width)
        marrow = _inside(cavity + np.float32(4.5), width) - _inside(cavity + np.float32(2), width)
        skin = _inside(outside, width)
        fat = _inside(cavity + np.float32(12.5), width)
        tissue = {name: share * inner for name, share in tissue.items()}
        tissue["marrow"] = marrow
        tissue["bone"] = bone - inner - marrow
        tissue["fat"] = (fat - bone) * skin
        tissue["muscle"] = (1 - fat) * skin
        tissue["air"] = (1 - bone) * (1 - skin)
    return tissue, structures, brain, (outside > 0) | brain


def _coil(axes: Axes) -> Array:
    """Sensitivity that all subjects share: the middle of the head is brighter than its rim."""
    squared = sum(
        np.square((axis - np.float32(m)) / np.float32(r))
        for axis, m, r in zip(np.meshgrid(*axes, indexing="ij", sparse=True), MIDDLE, CEREBRUM, strict=True)
    )
    return np.asarray(np.float32(0.92) + np.float32(0.28) * np.exp(squared * np.float32(-1 / 0.35)), np.float32)


def _image(
    seed: int,
    settings: PhantomSettings,
    modality: Modality,
    tissue: dict[str, Array],
    wobble: Array,
    profile: Array | None,
    axes: Axes,
) -> Array:
    v = settings.variability
    rng = stream(seed, f"contrast {modality}")
    spread = np.exp(v.contrast_spread * rng.standard_normal(len(TISSUES)))
    level = {
        name: INTENSITIES[modality][name] * float(s) for name, s in zip(INTENSITIES[modality], spread, strict=True)
    }
    image = np.zeros(settings.shape, np.float32)
    for name, share in tissue.items():
        image += share * np.float32(level[name])
    ct = modality == "CT"
    image *= wobble
    if profile is not None:
        response = np.float32(LESION_RESPONSE[modality])
        image = image + response * profile if ct else image * np.maximum(1 + response * profile, 0)
    noise = np.float32(v.noise * NOISE[modality])
    rng = stream(seed, f"noise {modality}")
    if ct:
        return image + noise * rng.standard_normal(settings.shape, dtype=np.float32)
    bias = smooth_noise(stream(seed, f"bias {modality}"), HEAD, 90)
    image *= np.exp(np.float32(v.bias) * HEAD.read(bias, axes))
    image *= _coil(axes)
    real = image + noise * rng.standard_normal(settings.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(settings.shape, dtype=np.float32)
    return np.hypot(real, imaginary)
