"""What tissues look like: intensities by modality, relative to white matter; CT in Hounsfield units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vesalius.datasets.phantom.anatomy import BRAIN, CEREBRUM, HEAD, MIDDLE
from vesalius.datasets.phantom.lattice import smooth_noise, stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.datasets.phantom.lattice import Array, Axes
    from vesalius.datasets.phantom.settings import Modality, PhantomSettings

TISSUES: Final = (
    ("csf", 0.20, 2.40, 0.25, 8.0),
    ("grey", 0.66, 1.35, 1.20, 38.0),
    ("white", 1.00, 1.00, 1.00, 29.0),
    ("thalamus", 0.82, 1.15, 1.08, 36.0),
    ("caudate", 0.74, 1.25, 1.18, 37.0),
    ("lentiform", 0.79, 1.05, 1.05, 37.0),
    ("hippocampus", 0.70, 1.40, 1.25, 37.0),
    ("cerebellar_grey", 0.76, 1.40, 1.20, 38.0),
    ("bone", 0.12, 0.15, 0.12, 1100.0),
    ("marrow", 0.55, 0.90, 0.80, 350.0),
    ("fat", 1.25, 1.20, 1.30, -80.0),
    ("muscle", 0.55, 0.75, 0.65, 50.0),
    ("air", 0.0, 0.0, 0.0, -1000.0),
    # Only in findings; at the end, so that what is drawn for the others stays. Blood is fresh.
    ("blood", 0.75, 0.60, 0.85, 66.0),
    ("catheter", 0.30, 0.30, 0.30, 500.0),
    # Only in healthy heads with what is dense in them. Venous blood flows: it gives no signal in spin echoes.
    ("calcium", 0.35, 0.20, 0.30, 300.0),
    ("venous_blood", 0.30, 0.15, 0.20, 58.0),
)

INTENSITIES: Final[Mapping[Modality, Mapping[str, float]]] = {
    "T1w": {name: value for name, value, _, _, _ in TISSUES},
    "T2w": {name: value for name, _, value, _, _ in TISSUES},
    "FLAIR": {name: value for name, _, _, value, _ in TISSUES},
    "CT": {name: value for name, _, _, _, value in TISSUES},
}
"""T1w from the real cohort of docs/decisions/0003-phantom.md; the others from textbook orders of tissues."""

NOISE: Final[Mapping[Modality, float]] = {"T1w": 1.0, "T2w": 1.3, "FLAIR": 1.2, "CT": 150.0}
"""Noise of a modality in its own unit for each unit of ``VariabilitySettings.noise``; 0.02 is 3 HU in CT."""

LESION_RESPONSE: Final[Mapping[Modality, float]] = {"T1w": 1.0, "T2w": -1.0, "FLAIR": -1.0, "CT": 30.0}
"""Change for each unit of a lesion's contrast: relative, but Hounsfield units in CT."""


def draw_image(
    seed: int,
    settings: PhantomSettings,
    modality: Modality,
    shares: Mapping[str, Array],
    change: Array | None,
    axes: Axes,
) -> Array:
    """Return (D, H, W): tissues, their texture, lesions, bias and noise, in one modality.

    Args:
        seed: the subject.
        settings: its grid and look.
        modality: keys what is drawn, so that a channel is the same whichever others are made.
        shares: share of each voxel by tissue.
        change: of the lesions, in units of their contrast; None without lesions.
        axes: of the grid, in mm.
    """
    v = settings.variability
    rng = stream(seed, f"contrast {modality}")
    spread = np.exp(v.contrast_spread * rng.standard_normal(len(TISSUES)))
    level = {
        name: INTENSITIES[modality][name] * float(s) for name, s in zip(INTENSITIES[modality], spread, strict=True)
    }
    image = np.zeros(settings.shape, np.float32)
    for name, share in shares.items():
        image += share * np.float32(level[name])
    ct = modality == "CT"
    if not ct:
        texture = smooth_noise(stream(seed, "texture"), BRAIN, 18)
        image *= 1 + np.float32(v.texture) * BRAIN.read(texture, axes)
    if change is not None:
        response = np.float32(LESION_RESPONSE[modality])
        image = image + response * change if ct else image * np.maximum(1 + response * change, 0)
    noise = np.float32(v.noise * NOISE[modality])
    rng = stream(seed, f"noise {modality}")
    if ct:
        return image + noise * rng.standard_normal(settings.shape, dtype=np.float32)
    bias = smooth_noise(stream(seed, f"bias {modality}"), HEAD, 90)
    image *= np.exp(np.float32(v.bias) * HEAD.read(bias, axes))
    image *= _coil(axes)
    real = image + noise * rng.standard_normal(settings.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(settings.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary))


def _coil(axes: Axes) -> Array:
    """Sensitivity that all subjects share: the middle of the head is brighter than its rim."""
    squared = sum(
        np.square((axis - np.float32(m)) / np.float32(r))
        for axis, m, r in zip(np.meshgrid(*axes, indexing="ij", sparse=True), MIDDLE, CEREBRUM, strict=True)
    )
    return np.asarray(np.float32(0.92) + np.float32(0.28) * np.exp(squared * np.float32(-1 / 0.35)), np.float32)
