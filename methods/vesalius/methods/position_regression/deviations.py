"""Where position regression here parts from Bieder et al. 2022; decision 18 says more of the network."""

from __future__ import annotations

from vesalius.methods.blocks.variational import SELECTED
from vesalius.platform.contracts import Deviation

DEVIATIONS = (
    Deviation(
        paper="the order and sizes of the network's layers are in figure 2, which the text at hand lacks",
        here="a reconstruction from the blocks that section 2.1 names; the table is in decision 18",
        why="there is no public code",
    ),
    Deviation(
        paper="whether convolutions pad is not said (section 2.1)",
        here="none does; a first kernel of 4 makes every pooling come out even",
        why="a patch's place is then the same whether it comes alone or in a volume, so that scoring shares the layers",
    ),
    Deviation(
        paper="activations, and a normalisation beside the spectral one, are not said (section 2.1)",
        here="ReLU, and none",
        why="what residual networks have; statistics of a batch would tie a patch's place to its company",
    ),
    Deviation(
        paper="spectral normalisation; how often its estimate moves is not said (section 2.1)",
        here="one power iteration after each update, and the estimate stands still in between",
        why="the norm then depends neither on micro-batches nor on the number of workers, and fits what is saved",
    ),
    Deviation(
        paper="equalised intensities; what they are scaled to is not said (section 3.3)",
        here="the recipe's [0, 1] is taken to [-1, 1]",
        why="layers of norm one pass on the mean more than what tells places apart: it learns faster (decision 18)",
    ),
    Deviation(
        paper="coordinates 0 to N - 1 normalised to [0, 1] (section 2)",
        here="voxel centres as fractions of the box: (i + 1/2) / N; along each axis its own edge",
        why="the platform has one convention for all methods; at N = 256 they are 0.002 apart at most",
    ),
    Deviation(
        paper="what surrounds the volume, for patches at its faces, is not said (section 2)",
        here="the cohort's background",
        why="E has the size of I, so that there are patches that reach beyond it",
    ),
    Deviation(
        paper="patches of background only are left out in training; of testing nothing is said (section 3.1)",
        here="their error is zero: without a voxel of the brain (foreground = brain) or of the head (head)",
        why="the network has never seen them, so that its answer says nothing",
    ),
    Deviation(
        paper="the error is judged within skull and hemispheres, by its maximum (section 4)",
        here="the volume's number is the maximum within the brain; structures are judged by the evaluation",
        why="a method is given the masks of brain and head and no structure",
    ),
    Deviation(
        paper="1.5 minutes a volume 'at the highest resolution' (section 4.2); how lower ones are filled is not said",
        here="every voxel by default; with scoring.stride the error is interpolated linearly between centres",
        why="at m = 16 and s_p = 31 the dense map costs less than patches at a stride of 4",
    ),
    SELECTED,
)
