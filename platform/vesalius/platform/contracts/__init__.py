"""What a method, a stage, a batch, a volume and a score are. Torch and pydantic, nothing else.

Shape suffixes used throughout:

====== =====================================================================
B      items of a batch (what an item is, the view says)
K      points of one volume
N      voxels of a point's neighbourhood
C      channels (modalities)
D H W  the voxel axes i, j, k of an array in canonical RAS+ orientation
       (left to right, posterior to anterior, inferior to superior)
====== =====================================================================

A method has settings, stages and a score, and nothing else. A stage is a first-class phase of training. All
state lives in parameters, buffers and the stages' optimisers, so that a checkpoint is complete by construction.
"""

from vesalius.platform.config import Matrix4
from vesalius.platform.contracts.augmentation import Augmentation, Drawn, vae_baselines_2021
from vesalius.platform.contracts.batch import Batch, generator
from vesalius.platform.contracts.method import Deviation, Effort, Method
from vesalius.platform.contracts.precision import bfloat16_pays, trains_in_bfloat16, whole_float32
from vesalius.platform.contracts.search import (
    SCORING,
    Choice,
    MethodSettings,
    Range,
    Space,
    mutables,
    read_after,
    read_since,
    setting,
    spaces,
)
from vesalius.platform.contracts.segments import segment, segmented, segments_by
from vesalius.platform.contracts.stage import Collective, Metrics, Stage, Update
from vesalius.platform.contracts.views import Patches, Points, Slices, View, WholeVolumes, slice_indices
from vesalius.platform.contracts.volumes import CohortFacts, Score, Volume, axis_positions, grid_positions
from vesalius.platform.tables import TableEntry

__all__ = [
    "SCORING",
    "Augmentation",
    "Batch",
    "Choice",
    "CohortFacts",
    "Collective",
    "Deviation",
    "Drawn",
    "Effort",
    "Matrix4",
    "Method",
    "MethodSettings",
    "Metrics",
    "Patches",
    "Points",
    "Range",
    "Score",
    "Slices",
    "Space",
    "Stage",
    "TableEntry",
    "Update",
    "View",
    "Volume",
    "WholeVolumes",
    "axis_positions",
    "bfloat16_pays",
    "generator",
    "grid_positions",
    "mutables",
    "read_after",
    "read_since",
    "segment",
    "segmented",
    "segments_by",
    "setting",
    "slice_indices",
    "spaces",
    "trains_in_bfloat16",
    "vae_baselines_2021",
    "whole_float32",
]
