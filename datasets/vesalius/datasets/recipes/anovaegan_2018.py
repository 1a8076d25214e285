"""Baur et al. 2018, "Deep autoencoding models for unsupervised anomaly segmentation in brain MR images"."""

from __future__ import annotations

from vesalius.datasets.recipes.settings import PaperStep, Recipe

NUM_SLICES = 20

_SECTION = "section 3, datasets"

STEPS = (
    PaperStep(
        paper="rigidly co-registered to the SRI24 atlas",
        section=_SECTION,
        ours="registration=rigid to the MNI152 brain; --set recipe.reference=FILE takes the SRI24 T1 you have",
        deviation="SRI24 does not come with the package; its brain is about a tenth smaller than MNI152's, which a "
        "rigid registration does not change",
    ),
    PaperStep(
        paper="skull stripped with ROBEX",
        section=_SECTION,
        ours="brain=mr: the mask given, else what is stripped already, else threshold, opening and the atlas' mask",
        deviation="ROBEX is a trained model; ours is classical and coarser (see the decision record): give a mask "
        "where you have one",
    ),
    PaperStep(
        paper="denoised using CurvatureFlow",
        section=_SECTION,
        ours="denoise=curvature_flow on the grid, 5 iterations of step 0.05; as if on the whole volume, not the slab",
        deviation="the paper gives no parameters; these are the library's (ITK) own defaults",
    ),
    PaperStep(
        paper="normalized into the range [0, 1]",
        section=_SECTION,
        ours="minimum and maximum over the brain's voxels of the slab to [0, 1]; outside the brain 0",
        deviation="minimum and maximum are our reading; --set recipe.percentile_high=98 clips bright vessels. Over the "
        "slab and not the whole brain, since the slab is all that is kept",
    ),
    PaperStep(
        paper="20 consecutive axial slices of resolution 256 x 256 around the midline",
        section=_SECTION,
        ours="a grid of 256 x 256 x 20 voxels of 1 mm around the reference brain's middle (MNI z -4.5 to 14.5 mm)",
        deviation="the slices' distance is not given; SRI24's is 1 mm. One slab in mm for all, so that maps return to "
        "the reference grid; outside it they have no value",
    ),
)


def anovaegan_2018() -> Recipe:
    """Return the recipe of section 3: 256 x 256 x 20 voxels of 1 mm."""
    return Recipe(
        max_spacing_ratio=8.0,
        brain="mr",
        registration="rigid",
        spacing_mm=(1.0, 1.0, 1.0),
        grid=(256, 256, NUM_SLICES),
        denoise="curvature_flow",
        percentile_low=0.0,
        percentile_high=100.0,
    )
