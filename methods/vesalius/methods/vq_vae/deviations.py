"""Where the VQ-VAE parts from its paper; its reference 6 is Naval Marimont and Tarroni 2020, with their code."""

from __future__ import annotations

from vesalius.methods.blocks.variational import (
    AUGMENTED,
    BORDERS,
    GROUPS,
    REPLICATED,
    SELECTED,
)
from vesalius.platform.contracts import Deviation

DEVIATIONS = (
    AUGMENTED,
    GROUPS,
    REPLICATED,
    BORDERS,
    SELECTED,
    Deviation(
        paper=(
            "preprocessing from reference 6, whose code z-scores each volume's voxels that are not zero and leaves "
            "the background at 0"
        ),
        here="mean and deviation of all training brains' voxels; the background is shifted with them",
        why="a volume's score then depends on no statistic of its own lesion",
    ),
    Deviation(
        paper="the first convolution of reference 6's code has no padding, which its authors call an oversight",
        here="padded",
        why="the plane keeps its size",
    ),
    Deviation(
        paper="PixelSNAIL with two causal stacks, attention at half resolution and weight normalisation",
        here="one stack, one head of attention at full resolution, weights as they are",
        why="it can be evaluated a place at a time with what went before kept",
    ),
    Deviation(
        paper="codes are drawn at random where -log p exceeds 5",
        here="by the inverse of the distribution function, at numbers of the volume's content",
        why="the same codes every time",
    ),
    Deviation(
        paper="reference 6's code cuts the map at 1",
        here="not cut",
        why="a cut makes ties of the clearest anomalies",
    ),
    Deviation(
        paper="reference 6's image score: -log p above 7 summed, divided by 2,000, at most 1",
        here="the sum itself (image_score = map takes the map's)",
        why="the order is the same but for ties",
    ),
    Deviation(
        paper="20 x 20 codes of slices of 160 x 160 (Table 1)",
        here="an eighth of the slice's edge, whatever the grid (widths)",
        why="the plane of codes follows the cohort",
    ),
    Deviation(
        paper="reference 6's code gives the axial position from -0.5 to 0.5 of the volume",
        here="the slice's centre in the cohort's box of millimetres, halved",
        why="one convention for all methods",
    ),
    Deviation(
        paper="no map of uncertainty",
        here="the extra map spread: the restorations' weighted deviation",
        why="it comes for free",
    ),
)
