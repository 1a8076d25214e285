"""Healthy heads with believable variation, in several contrasts; lesions with exact masks, findings of head CT."""

from vesalius.datasets.phantom.cohort import PhantomCase, phantom_cohort
from vesalius.datasets.phantom.settings import (
    CohortSettings,
    Finding,
    FindingSettings,
    LesionSettings,
    Modality,
    PhantomSettings,
    VariabilitySettings,
)
from vesalius.datasets.phantom.subject import PhantomSubject, make_phantom
from vesalius.datasets.phantom.tissues import STRUCTURES

__all__ = [
    "STRUCTURES",
    "CohortSettings",
    "Finding",
    "FindingSettings",
    "LesionSettings",
    "Modality",
    "PhantomCase",
    "PhantomSettings",
    "PhantomSubject",
    "VariabilitySettings",
    "make_phantom",
    "phantom_cohort",
]
