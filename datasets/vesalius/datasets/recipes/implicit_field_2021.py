"""Naval Marimont & Tarroni 2021, "Implicit field learning for unsupervised anomaly detection in medical images"."""

from __future__ import annotations

from vesalius.datasets.recipes.settings import PaperStep, Recipe

BOX_MM = (210.0, 210.0, 210.0)
"""300 voxels of 0.7 mm: the cube that the paper's full-resolution training volumes (HCP) fill."""

_SECTION = "section 3, datasets and data pre-processing"

STEPS = (
    PaperStep(
        paper="skull-stripped T2-weighted images as HCP and BraTS publish them",
        section=_SECTION,
        ours="brain=auto: the mask given, else what differs from the constant background; --modality chooses T2",
    ),
    PaperStep(
        paper="no registration: both data sets come aligned to an atlas' axes",
        section=_SECTION,
        ours="registration=none; each brain's bounding box is centred in the grid",
        deviation="scans in native space are not aligned: --set recipe.registration=affine (or rigid) for them",
    ),
    PaperStep(
        paper="downsampled to 160 x 160 x 160; in one experiment 300 voxels (HCP) and 240 (BraTS) instead",
        section=_SECTION,
        ours="160 x 160 x 160 voxels of 1.3125 mm, or 300 x 300 x 300 of 0.7 mm, over one box of 210 mm; linear, "
        "after a Gaussian against aliasing",
        deviation="the paper's voxels differ in mm between its data sets; here one box in mm holds for all. BraTS at "
        "its own resolution: --set recipe.spacing_mm=1 of the full recipe, 210 voxels over the same box",
    ),
    PaperStep(
        paper="intensities clipped to the percentile 98",
        section=_SECTION,
        ours="percentile_low=0, percentile_high=98, over the brain's voxels on the grid",
        deviation="the public code clips at 2 and 98 of the voxels that are not zero: --set recipe.percentile_low=2",
    ),
    PaperStep(
        paper="normalised to the range [0, 1]",
        section=_SECTION,
        ours="output_range=[0, 1]; outside the brain 0",
    ),
)


def implicit_field_2021(*, full_resolution: bool = False) -> Recipe:
    """Return the recipe of section 3; with ``full_resolution`` that of its one experiment at 300 voxels."""
    spacing = BOX_MM[0] / (300 if full_resolution else 160)
    return Recipe(
        max_spacing_ratio=4.0,
        brain="auto",
        spacing_mm=(spacing, spacing, spacing),
        box_mm=BOX_MM,
        percentile_low=0.0,
        percentile_high=98.0,
    )


def implicit_field_2021_full() -> Recipe:
    """Return :func:`implicit_field_2021` at full resolution, under a name of its own."""
    return implicit_field_2021(full_resolution=True)
