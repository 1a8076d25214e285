"""Where the methods of the 2018 comparison part from their papers alike; each method adds its own."""

from __future__ import annotations

from vesalius.platform.contracts import Deviation

TRUNK: tuple[Deviation, ...] = (
    Deviation(
        paper="the architecture of Larsen et al. with minor modifications of the latent space (section 3)",
        here="Larsen's conv5 stages, four halvings to 16 x 16 and five to 8 x 8, all beyond the third of 256 channels "
        "(trunk.stages, trunk.width)",
        why="Larsen's three stages are for 64 pixels; the paper has 256 and gives no layers",
    ),
    Deviation(
        paper="layers as Larsen's (section 3)",
        here="no bias in a convolution or linear layer that a normalisation follows",
        why="its gradient is rounding alone, which Adam makes steps of",
    ),
    Deviation(
        paper="batches of 8; what batch statistics are taken over is not said (section 3)",
        here="over groups of 8 slices (group_size)",
        why="the result must not depend on the number of workers",
    ),
    Deviation(
        paper="learning rates without an optimiser (section 3)",
        here="Adam",
        why="Radford et al. 2016 and Schlegl et al. 2017 use it",
    ),
)
"""Of what has the trunk, or half of it."""

SCORING: tuple[Deviation, ...] = (
    Deviation(
        paper="20 axial slices around the midline (section 3)",
        here="every axial slice of the store; the recipe anovaegan_2018 keeps 20 (slices.first, slices.last)",
        why="which slices exist is a matter of preparation",
    ),
    Deviation(
        paper="slightly eroded brain masks (section 3.1)",
        here="one voxel, 6 neighbours, none at the grid's edge (map.erosion)",
        why="no number is given",
    ),
    Deviation(
        paper="a median over 5 x 5 x 5 voxels (section 3.1)",
        here="windows clipped at the border, the lower median of an even number (map.median_pool)",
        why="no data are invented beyond 20 slices",
    ),
    Deviation(
        paper="the 98th percentile of the reconstruction errors on the training data; components of fewer than 6 "
        "voxels dropped (section 3.1)",
        here="the percentile of the finished maps, after median and mask, over the brain's voxels; 26 neighbours touch",
        why="the paper says neither over which voxels, nor whether before the median, nor what touches",
    ),
    Deviation(
        paper="one residual a pixel (section 3.1)",
        here="of several channels the largest",
        why="how several modalities would be used is not said",
    ),
    Deviation(
        paper="a fixed number of epochs (section 3)",
        here="the best of the run's validation passes is kept",
        why="the platform's rule for selectable stages",
    ),
)
"""Of what a residual becomes."""

CODE: tuple[Deviation, ...] = (
    Deviation(
        paper="Larsen's linear layer of 1,024 before the code",
        here="none: one layer to the code's mean and one back, without bias",
        why="the spatial rows cannot have it, and rows differ in the bottleneck alone",
    ),
    Deviation(
        paper="Larsen's tanh at the end",
        here="no last activation (trunk.output)",
        why="slices lie in [0, 1], mostly at 0, where the l1 loss alone keeps them",
    ),
    Deviation(
        paper="an l1 distance; sum or mean is not said (Eq. 1)",
        here="a mean over a slice's values",
        why="so the learning rate does not depend on the plane",
    ),
)
"""Of every autoencoder."""

DENSE: tuple[Deviation, ...] = (
    Deviation(
        paper="a dense latent space of 512; on which plane is not said (section 3.1)",
        here="one linear layer each way on the 16 x 16 plane, 33,554,432 weights each (bottleneck.kind, "
        "bottleneck.size)",
        why="the trunk stays that of the spatial rows",
    ),
)
"""Of those with a dense row."""

POSTERIOR: tuple[Deviation, ...] = (
    Deviation(
        paper="whether the code is drawn in testing is not said",
        here="the posterior's mean is decoded (samples)",
        why="one pass, and the same map every time",
    ),
)
"""Of those whose code has a posterior."""

DISCRIMINATOR: tuple[Deviation, ...] = (
    Deviation(
        paper="Larsen's discriminator, for 64 pixels",
        here="five halvings in place of three (adversary.stages), no normalisation in the linear layers",
        why="so that its linear layer sees 8 x 8; a last batch may hold one slice",
    ),
    Deviation(
        paper="Adam's moments are not given",
        here="beta1 = 0.5 for the discriminator, and for the AnoGAN's generator (adversary.beta1)",
        why="Radford et al. 2016, section 3",
    ),
    Deviation(
        paper="training goes on whatever the balance",
        here="a collapse stops the run, and for the AnoGAN a discriminator that has won (adversary.watch)",
        why="a sentence in place of useless pictures",
    ),
)
"""Of what is trained against a discriminator."""

ALTERNATION: tuple[Deviation, ...] = (
    Deviation(
        paper="0.001 for the reconstruction objective, 0.0001 for the adversarial training (section 3)",
        here="1e-3 for the autoencoder's whole loss, 1e-4 for the discriminator, which goes first (learning_rate, "
        "adversary.learning_rate)",
        why="read as the two objectives that alternate",
    ),
)
"""Of what has a reconstruction loss beside it."""
