"""Where the f-AnoGAN of volumes parts from its paper, and from the code that the paper builds on."""

from __future__ import annotations

from vesalius.platform.contracts import Deviation

SHARED: tuple[Deviation, ...] = (
    Deviation(
        paper="Eq. 2 without lambda; how often the critic is updated is not said",
        here="lambda = 10, five updates of the critic to one of the generator (game.penalty_weight, game.critic_steps)",
        why="Gulrajani et al. 2017 and f-AnoGAN's code; Kwon's has 10, and five of the generator to one of "
        "the critic in its WGAN notebook, one to one in its Alpha-WGAN notebook",
    ),
    Deviation(
        paper="Eq. 2: the norm of the critic's gradient; Kwon's WGAN notebook takes it over the channels, voxel by "
        "voxel, its Alpha-WGAN notebook over all values",
        here="over all values of an item",
        why="so the equation and Gulrajani et al. 2017; a critic of slope one would have to have it in every voxel",
    ),
    Deviation(
        paper="Kwon's critic has batch normalisation",
        here="layer normalisation over channels and voxels (network.critic_norm)",
        why="of a batch's statistics an item's gradient is not its own; f-AnoGAN's code has it so",
    ),
    Deviation(
        paper="optimisers and learning rates are not given",
        here="Adam 1e-4 with moments 0 and .9 for the game, RMSProp 5e-5 for what follows (game, encoder, fine_tuning)",
        why="f-AnoGAN's code; Kwon's has Adam 2e-4 with moments .9 and .999; fine-tuning as the encoder, since nothing "
        "is said of it",
    ),
    Deviation(
        paper="RMSProp's average is not given",
        here="a decay of 0.9; it begins at zero, so that the first twenty steps or so are longer than TensorFlow's, "
        "which begins at one",
        why="TensorFlow's decay, which f-AnoGAN's code leaves as it is, and PyTorch's optimiser",
    ),
    Deviation(
        paper="kappa and the layer of f are not given (Eq. 5; Figure 3 marks it)",
        here="1; the critic's last block before its score, after its activation (feature_weight, feature_block)",
        why="f-AnoGAN's code, which has no activation there; the paper says activation",
    ),
    Deviation(
        paper="what batch statistics are taken over is not said",
        here="over groups of fixed size that no worker parts (group_size)",
        why="the result must not depend on the number of workers",
    ),
    Deviation(
        paper="Kwon's convolutions over the whole coarsest grid",
        here="linear layers; no bias where a batch's or an instance's normalisation follows, nor in the critic's score",
        why="the same sums; such a bias has a gradient of rounding alone, which Adam makes steps of",
    ),
    Deviation(
        paper="generator and critic keep still while the encoder learns (Figure 2)",
        here="and normalise with the statistics that they have when scoring",
        why="the encoder learns to invert what it will meet",
    ),
    Deviation(
        paper="one difference a voxel (section 3)",
        here="its absolute value, of several channels the largest",
        why="a score is higher where it is more anomalous; how several modalities would be used is not said",
    ),
    Deviation(
        paper="a fixed number of training steps",
        here="of encoder and fine-tuning the best of the run's validation passes is kept",
        why="the platform's rule for selectable stages; the game has none, since nothing can be restored yet",
    ),
)
"""Of volumes and slices alike."""

DEVIATIONS: tuple[Deviation, ...] = (
    *SHARED,
    Deviation(
        paper="the length of the training and the batch size are not given",
        here="200,000 batches of four for the game, 50,000 each for encoder and fine-tuning, over the paper's 532 "
        "volumes (game.epochs, encoder.epochs, fine_tuning.epochs, batch_size)",
        why="Kwon's code has 200,000 iterations, of which each updates the critic once and the generator five times; "
        "here the critic has as many updates and the generator a fifth of them. f-AnoGAN's code for the encoder; "
        "fine-tuning as the encoder",
    ),
    Deviation(
        paper="64 x 64 x 64 voxels, for want of memory (section 4)",
        here="any grid, padded to what the halvings divide; 128 by a fifth block at the fine end (network.stages)",
        why="larger volumes are what the paper wishes for",
    ),
)
