"""Synthetic lesions in real brains: real lesion shapes set into held-out healthy volumes, so that truth is exact.

The masks lie in MNI space, and so must the store (a recipe with registration, or sources in MNI space). Within the
brain a voxel's intensity x becomes x * (1 + contrast * profile * texture): the profile rises over ``softness_mm``
around the mask's surface, the texture is smooth noise with mean 1. The stored lesion mask is exact: it is where the
profile is at least 0.5, which is where the mask, read by nearest neighbour, lies in the brain.

::

    settings.py   how lesions are set, and what was done
    choosing.py   who gets which mask
    painting.py   border, texture, record
    store.py      the new store
"""

from __future__ import annotations

from vesalius.datasets.lesions.painting import lesion_profile
from vesalius.datasets.lesions.settings import LesionReport, PlantingSettings
from vesalius.datasets.lesions.store import plant_lesions

__all__ = ["LesionReport", "PlantingSettings", "lesion_profile", "plant_lesions"]
