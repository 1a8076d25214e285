"""What tissues look like: intensities by modality, relative to white matter; CT in Hounsfield units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.datasets.phantom.settings import Modality

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
