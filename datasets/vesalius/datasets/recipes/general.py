"""Recipes of no paper: a box around the MNI brain, with and without registration, and nothing at all."""

from __future__ import annotations

from vesalius.datasets.recipes.settings import TEMPLATE_BOX_MM, TEMPLATE_CENTER_MM, Recipe


def mni_affine(spacing: float = 2.0) -> Recipe:
    """Affine registration to MNI152 and a 160 x 192 x 160 mm box: native scans of any head position."""
    return Recipe(
        registration="affine",
        spacing_mm=(spacing, spacing, spacing),
        box_mm=TEMPLATE_BOX_MM,
        center_mm=TEMPLATE_CENTER_MM,
    )


def mni_stripped(spacing: float = 2.0) -> Recipe:
    """The same for whole MR heads, which are stripped first where no brain mask is given."""
    return mni_affine(spacing).model_copy(update={"brain": "mr"})


def mni_space(spacing: float = 2.0) -> Recipe:
    """The same box without registration: volumes that already lie in MNI space."""
    return mni_affine(spacing).model_copy(update={"registration": "none"})


def mni_positive(spacing: float = 2.0) -> Recipe:
    """The same with negative intensities raised to 0: what an interpolation in MNI space rang to (open_ms)."""
    return mni_space(spacing).model_copy(update={"clip_minimum": 0.0})


def centered(spacing: float = 2.0) -> Recipe:
    """The same box around each brain's own centre, without registration."""
    return mni_affine(spacing).model_copy(update={"registration": "none", "center_mm": None})


def as_is() -> Recipe:
    """Grid and intensities left alone: volumes that are prepared already, such as the phantom's."""
    return Recipe(max_spacing_ratio=None, scale="none", background="keep", antialias=False)
