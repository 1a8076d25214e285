"""Healthy heads with believable variation, in several contrasts, with lesions whose masks are exact."""

from vesalius.datasets.phantom.cohort import PhantomCase, phantom_cohort
from vesalius.datasets.phantom.settings import LesionSettings, Modality, PhantomSettings, VariabilitySettings
from vesalius.datasets.phantom.subject import STRUCTURES, PhantomSubject, make_phantom

__all__ = [
    "STRUCTURES",
    "LesionSettings",
    "Modality",
    "PhantomCase",
    "PhantomSettings",
    "PhantomSubject",
    "VariabilitySettings",
    "make_phantom",
    "phantom_cohort",
]
