"""What tissues look like: intensities by modality, relative to white matter; CT in Hounsfield units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.datasets.phantom.settings import Modality

TISSUES: Final = (
    "csf",
    "grey",
    "white",
    "thalamus",
    "caudate",
    "lentiform",
    "cerebellar_grey",
    "bone",
    "marrow",
    "fat",
    "muscle",
    "air",
)

INTENSITIES: Final[Mapping[Modality, Mapping[str, float]]] = {
    "T1w": dict(zip(TISSUES, (0.30, 0.68, 1.00, 0.86, 0.72, 0.80, 0.68, 0.12, 0.55, 1.25, 0.55, 0.0), strict=True)),
    "T2w": dict(zip(TISSUES, (2.40, 1.35, 1.00, 1.15, 1.25, 1.05, 1.40, 0.15, 0.90, 1.20, 0.75, 0.0), strict=True)),
    "FLAIR": dict(zip(TISSUES, (0.25, 1.20, 1.00, 1.08, 1.18, 1.05, 1.20, 0.12, 0.80, 1.30, 0.65, 0.0), strict=True)),
    "CT": dict(zip(TISSUES, (8.0, 38.0, 29.0, 36.0, 37.0, 37.0, 38.0, 1100.0, 350.0, -80.0, 50.0, -1000.0), strict=True)),
}  # fmt: skip
"""T1w from the real cohort of docs/decisions/0003-phantom.md; the others from textbook orders of tissues."""

NOISE: Final[Mapping[Modality, float]] = {"T1w": 1.0, "T2w": 1.3, "FLAIR": 1.2, "CT": 150.0}
"""Noise of a modality in its own unit for each unit of ``VariabilitySettings.noise``; 0.02 is 3 HU in CT."""

LESION_RESPONSE: Final[Mapping[Modality, float]] = {"T1w": 1.0, "T2w": -1.0, "FLAIR": -1.0, "CT": 30.0}
"""Change for each unit of a lesion's contrast: relative, but Hounsfield units in CT."""
