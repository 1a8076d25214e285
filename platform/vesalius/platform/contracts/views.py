"""Views: how a stage looks at the cohort. Data, not code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Points:
    """Voxel centres drawn uniformly over the whole grid, background included. An item is one volume.

    Attributes:
        per_volume: K, points of one volume in one item.
        neighbourhood: edge n of the cube of voxels given with each point (N = n^3; 1 is the voxel alone). An
            even cube reaches from the voxel towards higher indices; beyond the grid the edge voxel repeats.
    """

    per_volume: int
    neighbourhood: int = 1


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Cubes cut at uniformly drawn centres. An item is one patch; neighbours in a batch share a volume.

    Attributes:
        size: edge of the cube in voxels (odd); the volume is padded with ``background`` by (size - 1) / 2.
        per_volume: patches cut from one volume before the next volume's turn; an epoch visits every volume once.
        background: value outside the grid.
    """

    size: int
    per_volume: int
    background: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Whole slices across one axis. An item is one slice.

    Attributes:
        axis: 0 sagittal, 1 coronal, 2 axial.
        every: take each n-th slice.
        extent: first and last slice as fractions of the axis, so that it holds on any grid.
    """

    axis: int = 2
    every: int = 1
    extent: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class WholeVolumes:
    """The whole grid at once. An item is one volume."""


View = Points | Patches | Slices | WholeVolumes


def slice_indices(view: Slices, shape: tuple[int, int, int]) -> list[int]:
    """Return the indices that ``view`` takes of a grid of ``shape``; the same rule at training and scoring."""
    count = shape[view.axis]
    first, last = (round(fraction * count) for fraction in view.extent)
    return list(range(first, last, view.every))
