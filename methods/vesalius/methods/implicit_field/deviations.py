"""Where the implicit field parts from its paper; the settings' sources say where paper and public code disagree."""

from __future__ import annotations

from vesalius.methods.blocks.variational import BORDERS, IMAGE_SCORE, SELECTED
from vesalius.platform.contracts import Deviation

DEVIATIONS = (
    Deviation(
        paper="eight fully connected layers (section 3)",
        here="eight hidden layers and a linear layer of outputs (hidden_layers)",
        why="so in the authors' public code; the paper counts the hidden ones",
    ),
    Deviation(
        paper="learning rates and their decay are not given (section 3)",
        here="5e-4 for the network and 1e-3 for the codes, halved between four equal periods (lr_factor, lr_periods)",
        why="the public code's values",
    ),
    Deviation(
        paper="the prior stands beside a sum over K points (Eq. 2)",
        here="the same objective as a mean over points, the prior divided by K as well",
        why="the platform divides by the count; the gradients are the same up to that factor, which Adam removes",
    ),
    Deviation(
        paper="mode pooling with 2 x 2 x 2 and 3 x 3 x 3 windows; where an even one lies is not said (section 2)",
        here="an even window reaches from the voxel towards higher indices; of equally common classes the lowest",
        why="some rule is needed, and this one needs no resampling",
    ),
    Deviation(
        paper="coordinates in [-1, 1] (section 2); the code has two conventions up to a voxel apart",
        here="voxel centres in the cohort's box of millimetres",
        why="so that grids of other resolutions land on the same places",
    ),
    Deviation(
        paper="restoration starts at random and keeps no best code (section 2)",
        here="as in the paper; the start is drawn from the volume's content",
        why="a volume scored twice, or beside others, gets the same map",
    ),
    Deviation(
        paper="the restoration's learning rate is not given (section 2)",
        here="Adam at 1e-3 (restoration.learning_rate)",
        why="the public code's value",
    ),
    Deviation(
        paper="classes by k-means (section 2)",
        here="the exact solution in one dimension",
        why="it depends on no seed, no restarts and no order of the samples",
    ),
    Deviation(
        paper="the restoration's arithmetic is not said",
        here="bfloat16 where the device has matrix units for it (restoration.precision = float32 takes none)",
        why="it is several times as fast; codes and cross-entropy stay float32",
    ),
    BORDERS,
    IMAGE_SCORE,
    SELECTED,
)
