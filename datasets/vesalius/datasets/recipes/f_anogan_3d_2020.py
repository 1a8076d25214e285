"""Simarro Viana et al. 2020, "Unsupervised 3D brain anomaly detection" (f-AnoGAN in three dimensions)."""

from __future__ import annotations

from vesalius.datasets.recipes.settings import TEMPLATE_BRAIN_MM, TEMPLATE_CENTER_MM, PaperStep, Recipe

EDGE = 64

_SECTION = "section 2, preprocessing, step {}"

STEPS = (
    PaperStep(
        paper="registered to the MNI space with an affine transformation",
        section=_SECTION.format(1),
        ours="registration=affine to MNI152, by the brain: mutual information, SimpleITK",
        deviation="the brain is found first, in the scan's own space, since the template has no skull",
    ),
    PaperStep(
        paper="automatic quality control by icobrain; highly corrupted images are discarded",
        section=_SECTION.format(2),
        ours="refusals by name (no Hounsfield units, no brain, an impossible registration); warnings for the rest",
        deviation="icobrain is not public; what is only suspicious is named and left to you",
    ),
    PaperStep(
        paper="skull stripped by the same software",
        section=_SECTION.format(3),
        ours="brain=ct: the mask given, else what is stripped already, else 0..100 HU within the skull",
        deviation="classical, with the limits that the decision record states",
    ),
    PaperStep(
        paper="black boundaries caused by the brain mask are removed",
        section=_SECTION.format(4),
        ours="crop=brain: each brain's bounding box is stretched over the whole grid, and the map's way back knows it",
    ),
    PaperStep(
        paper="after a Gaussian smoothing, resized to 64 x 64 x 64 with linear interpolation",
        section=_SECTION.format(5),
        ours="grid=64 over the MNI brain's box (145 x 181 x 155 mm); the Gaussian that makes a source voxel as wide as "
        "the grid's, then one linear resampling",
        deviation="sigma is not given: --set recipe.antialias=false recipe.smoothing_mm=... for another",
    ),
    PaperStep(
        paper="soft tissue windowing [-20, 100] HU",
        section=_SECTION.format(6),
        ours="scale=window, window_hu=[-20, 100]; outside the brain -20 HU already when it is smoothed",
    ),
    PaperStep(
        paper="globally min-max normalised between -1 and 1",
        section=_SECTION.format(7),
        ours="output_range=[-1, 1]: -20 HU and the outside are -1, 100 HU is 1",
    ),
)


def f_anogan_3d_2020() -> Recipe:
    """Return the recipe of section 2: 64 x 64 x 64 voxels of the brain alone."""
    x, y, z = (edge / EDGE for edge in TEMPLATE_BRAIN_MM)
    return Recipe(
        hounsfield=True,
        clip_minimum=-1024.0,
        clip_maximum=3071.0,
        brain="ct",
        registration="affine",
        crop="brain",
        spacing_mm=(x, y, z),
        grid=(EDGE, EDGE, EDGE),
        center_mm=TEMPLATE_CENTER_MM,
        scale="window",
        window_hu=(-20.0, 100.0),
        output_range=(-1.0, 1.0),
    )
