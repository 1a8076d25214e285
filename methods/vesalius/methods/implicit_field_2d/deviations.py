"""Where the 2D implicit field parts from its paper: as the 3D one does, and where a slice asks for more."""

from __future__ import annotations

from vesalius.methods.blocks.variational import REPLICATED
from vesalius.methods.implicit_field.deviations import DEVIATIONS as OF_VOLUMES
from vesalius.platform.contracts import Deviation

DEVIATIONS = (
    *OF_VOLUMES,
    Deviation(
        paper="conditioned on the axial coordinate; how is not said (section 3)",
        here="a slice's point has three coordinates, the sliced one shared, all encoded alike",
        why="the network is then the 3D one",
    ),
    Deviation(
        paper="mode pooling in 3D windows (section 2)",
        here="squares of 2 x 2 and 3 x 3 voxels, at scoring too (mode_pool_training, mode_pool_scoring)",
        why="a slice is alone in training",
    ),
    Deviation(
        paper="16,200 points from each of 6 volumes; in 2D not said (section 3)",
        here="16,200 of each of six slices; a smaller plane gives each voxel once (points, batch_volumes)",
        why="it is the text's number",
    ),
    Deviation(
        paper="700 steps of 16,200 points in 55.4 s, which is too fast for 40 slices (section 2, Table 1)",
        here=(
            "16,200 of every slice, at most as many as the plane has voxels (restoration.points; 405 would fit the "
            "time)"
        ),
        why="it is the text's number",
    ),
    Deviation(
        paper="2,000 epochs; in 2D not said of what (section 3)",
        here="passes over all slices, forty times the steps of 3D (epochs = 50 for as many)",
        why="a slice is what has a code",
    ),
    REPLICATED,
)
