"""Views: how a stage looks at the cohort. Data, not code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Foreground = Literal["brain", "head"]
"""A mask of the store; a view that asks for the head is refused where the recipe found none."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Voxel centres drawn uniformly, by default over the whole grid, background included. An item is one volume.

    Attributes:
        per_volume: K, points of one volume in one item.
        neighbourhood: edge n of the cube of voxels given with each point (N = n^3; 1 is the voxel alone). An
            even cube reaches from the voxel towards higher indices; beyond the grid the edge voxel repeats.
        within: the whole grid, or the voxels of a mask.
    """

    per_volume: int
    neighbourhood: int = 1
    within: Literal["grid", "brain", "head"] = "grid"


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Cubes cut at drawn centres. An item is one patch; neighbours in a batch share a volume.

    A patch is drawn by one of these rules:

    - ``uniform``: its centre uniformly over the grid;
    - ``discard``: the same, then left out of the batch where it holds no foreground voxel (Bieder et al. 2022,
      section 2). A batch then has fewer items than were drawn; ``Update`` weights by what a loss counts;
    - ``centre``: its centre uniformly over the foreground voxels;
    - ``touching``: its centre uniformly over those whose patch holds a foreground voxel: ``discard`` without the loss
      of items.

    Attributes:
        size: edge of the cube in voxels (odd); the volume is padded with ``background`` by (size - 1) / 2.
        per_volume: patches cut from one volume before the next volume's turn; an epoch visits every volume once.
        background: value outside the grid; None for the cohort's own (:class:`CohortFacts`).
        sampling: the rule.
        foreground: the mask that the rule looks at.
    """

    size: int
    per_volume: int
    background: float | None = None
    sampling: Literal["uniform", "discard", "centre", "touching"] = "uniform"
    foreground: Foreground = "brain"


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Whole slices across one axis. An item is one slice.

    Attributes:
        axis: 0 sagittal, 1 coronal, 2 axial.
        every: take each n-th slice.
        extent: first and last slice as fractions of the axis, so that it holds on any grid.
        discard_background: leave slices without a foreground voxel out of the batch, as ``Patches`` does.
        foreground: the mask that this looks at.
    """

    axis: int = 2
    every: int = 1
    extent: tuple[float, float] = (0.0, 1.0)
    discard_background: bool = False
    foreground: Foreground = "brain"


@dataclass(frozen=True, kw_only=True)
class WholeVolumes:
    """The whole grid at once. An item is one volume."""


View = Points | Patches | Slices | WholeVolumes


def slice_indices(view: Slices, shape: tuple[int, int, int]) -> list[int]:
    """Return the indices that ``view`` takes of a grid of ``shape``; the same rule at training and scoring."""
    count = shape[view.axis]
    first, last = (round(fraction * count) for fraction in view.extent)
    return list(range(first, last, view.every))
