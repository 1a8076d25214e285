"""Bieder et al. 2022, "Position regression for unsupervised anomaly detection"."""

from __future__ import annotations

from vesalius.datasets.recipes.settings import PaperStep, Recipe

_SECTION = "section 3.3"

STEPS = (
    PaperStep(
        paper="resampled to voxels of 1 x 1 x 1 mm with a total size of 256 x 256 x 256",
        section=_SECTION,
        ours="spacing_mm=1, grid=256; one linear resampling together with the registration",
        deviation="the paper resamples twice (before and after registration); once blurs less",
    ),
    PaperStep(
        paper="rigidly registered to a manually selected reference volume from the training set, using AirLab",
        section=_SECTION,
        ours="registration=rigid, by the brain, to MNI152; with a reference volume of yours: "
        "--set recipe.reference=FILE --set recipe.registration_of=head",
        deviation="no reference is published; SimpleITK's mutual information for AirLab",
    ),
    PaperStep(
        paper="histogram equalization",
        section=_SECTION,
        ours="scale=histogram: global, over the head, 4,096 bins of about 1 HU, to [0, 1]; what lies outside the head "
        "goes through the same curve",
        deviation="bins and voxels are not given; 256 bins would leave five for all of the brain",
    ),
    PaperStep(
        paper="the skull and the two brain hemispheres segmented, for the evaluation only",
        section=_SECTION,
        ours="structures=ct: skull above 300 HU, largest piece; the brain mask left and right of the atlas' midline",
        deviation="the paper does not say how",
    ),
    PaperStep(
        paper="foreground separated from background, to filter out irrelevant patches during training",
        section=_SECTION,
        ours="head=ct: above -300 HU, opened so that the table falls off, largest piece, filled; kept as the head mask",
        deviation="the paper does not say how",
    ),
)


def position_regression_2022() -> Recipe:
    """Return the recipe of section 3.3: 256 x 256 x 256 voxels of 1 mm, the whole head."""
    return Recipe(
        hounsfield=True,
        clip_minimum=-1024.0,
        clip_maximum=3071.0,
        brain="ct",
        head="ct",
        registration="rigid",
        spacing_mm=(1.0, 1.0, 1.0),
        grid=(256, 256, 256),
        scale="histogram",
        scale_over="head",
        background="keep",
        structures="ct",
    )
