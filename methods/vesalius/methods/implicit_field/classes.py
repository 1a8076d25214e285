"""Intensity classes: exact one-dimensional k-means, the class of a voxel, and mode pooling.

The paper replaces intensities by k classes found with k-means on 2 million sampled voxels (section 2, Fig. 2), and
smooths class volumes by taking the commonest class of a sliding cube.

In one dimension k-means has an exact solution: the best partition of sorted values into k runs, by dynamic
programming. It needs no seed and no restarts, and does not depend on the order in which workers gave their samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.platform.errors import SettingError

_NUM_EDGES = 1024
_MIN_ATOMS = 256  # never fewer atoms than there can be classes
_MAX_LLOYD_STEPS = 1000


def fit_centres(samples: Tensor, num_classes: int) -> Tensor:
    """Return (num_classes,) float32 centres in rising order that minimise the squared distance of samples to them.

    Exact where there are at most some thousand distinct samples. Beyond that neighbours are first merged into about
    2,000 atoms, cut both at equal widths and at equal counts (the first resolve a long tail, the second the bulk); the
    partition of the atoms is exact, and Lloyd's iteration on all samples then moves its borders within the atoms.

    Args:
        samples: sampled intensities, of any shape.
        num_classes: k.

    Raises:
        SettingError: there are fewer than ``num_classes`` distinct samples.
    """
    values: Tensor
    counts: Tensor
    values, counts = torch.unique(samples.flatten().cpu().double(), return_counts=True)
    if values.numel() < num_classes:
        raise SettingError(
            f"num_classes: {num_classes} intensity classes need as many distinct intensities, but the "
            f"{samples.numel():,} sampled training voxels hold {values.numel()}: "
            f"set num_classes to {values.numel()} or fewer"
        )
    offset = values.mean()
    # Distances do not change with the origin; near the mean the sums of squares cancel least.
    values = values - offset
    counts = counts.double()
    weight, first = _prefix(counts), _prefix(counts * values)
    starts = _best_partition(_prefix_at_atoms(values, counts), num_classes)
    centres = _means(weight, first, starts)
    for _ in range(_MAX_LLOYD_STEPS):
        borders = torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2, right=True)
        moved = torch.cat([starts.new_zeros(1), borders, starts.new_tensor([values.numel()])])
        if torch.equal(moved, starts) or bool((moved.diff() == 0).any()):
            break
        starts = moved
        centres = _means(weight, first, starts)
    return (centres + offset).float()


def assign_classes(image: Tensor, centres: Tensor) -> Tensor:
    """Return the class of each intensity, uint8 of the image's shape: the nearest centre, the lower one on a tie."""
    return torch.bucketize(image.contiguous(), (centres[1:] + centres[:-1]) / 2, out_int32=True).to(torch.uint8)


def mode_of_points(labels: Tensor, num_classes: int) -> Tensor:
    """Return the commonest class of each point's neighbourhood: (..., N) uint8 -> (...).

    Ties go to the lowest class.
    """
    if labels.shape[-1] == 1:
        return labels[..., 0]
    neighbours = labels.movedim(-1, 0).contiguous()
    best = torch.zeros_like(neighbours[0])
    most = torch.zeros_like(best, dtype=torch.int16)
    for label in range(num_classes):
        count = (neighbours == label).sum(0, dtype=torch.int16)
        best = torch.where(count > most, label, best)
        most = torch.maximum(most, count)
    return best


def mode_pool(labels_DHW: Tensor, size: int, num_classes: int, *, planar: bool = False) -> Tensor:
    """Return the commonest class in a cube of ``size`` voxels around each voxel, (D, H, W) uint8.

    With ``planar`` the first axis counts slices, and the neighbourhood is a square of each. Ties go to the lowest
    class. Beyond the grid the edge voxel repeats; an even cube reaches from the voxel towards higher indices: the same
    neighbourhood that the ``Points`` view gives.

    One class at a time is counted, by running sums along the axes: seven arrays of the volume's size at most.
    """
    if size == 1:
        return labels_DHW
    low, high = (size - 1) // 2, size // 2
    # Replicating is done on whole numbers that padding supports; classes are below 256, exact as float.
    axes = (1, 2) if planar else (0, 1, 2)
    padding = (low, high) * len(axes) + (0, 0) * (3 - len(axes))
    padded = F.pad(labels_DHW[None, None].float(), padding, mode="replicate")[0, 0].to(torch.uint8)
    # A cube of 6^3 = 216 voxels still counts in a byte.
    best = torch.zeros_like(labels_DHW)
    most = torch.zeros_like(labels_DHW)
    for label in range(num_classes):
        count = (padded == label).to(torch.uint8)
        for axis in axes:
            num = count.shape[axis] - size + 1
            count = sum((count.narrow(axis, start, num) for start in range(1, size)), count.narrow(axis, 0, num))
        best = torch.where(count > most, label, best)
        most = torch.maximum(most, count)
    return best


def _prefix(values: Tensor) -> Tensor:
    return F.pad(values.cumsum(0), (1, 0))


def _means(weight: Tensor, first: Tensor, starts: Tensor) -> Tensor:
    """Mean of each run ``starts[i]:starts[i + 1]`` from prefix sums of weights and weighted values."""
    return first[starts].diff() / weight[starts].diff()


def _prefix_at_atoms(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return atoms' borders as indices into ``values``, and prefix sums of 1, x and x^2 taken there."""
    num = values.numel()
    if num <= 2 * _NUM_EDGES:
        borders = torch.arange(num + 1)
    else:
        fractions = torch.arange(1, _NUM_EDGES, dtype=torch.float64) / _NUM_EDGES
        by_width = torch.searchsorted(values, values[0] + fractions * (values[-1] - values[0]))
        cumulative = counts.cumsum(0)
        by_count = torch.searchsorted(cumulative, fractions * cumulative[-1])
        by_rank = torch.linspace(0, num, _MIN_ATOMS + 1, dtype=torch.float64).round().long()
        borders = torch.unique(torch.cat([by_width, by_count, by_rank]))
    sums = [_prefix(counts * values**power)[borders] for power in range(3)]
    return borders, sums[0], sums[1], sums[2]


def _best_partition(atoms: tuple[Tensor, Tensor, Tensor, Tensor], num_classes: int) -> Tensor:
    """Return (num_classes + 1,) borders, as indices into the values, of the best runs of atoms."""
    borders, weight, first, second = atoms
    num = borders.numel() - 1
    # cost[i, j]: squared distance of atoms i..j-1 to their mean; infinite unless i < j.
    total = weight[None, :] - weight[:, None]
    cost = (second[None, :] - second[:, None]) - (first[None, :] - first[:, None]).square() / total.clamp(min=1)
    cost.masked_fill_(torch.ones_like(cost, dtype=torch.bool).tril(), float("inf"))
    best = cost[0]
    cuts = []
    for _ in range(num_classes - 1):
        best, cut = (best[:, None] + cost).min(dim=0)
        cuts.append(cut)
    place = num
    path = [num]
    for cut in reversed(cuts):
        place = int(cut[place])
        path.append(place)
    path.append(0)
    return borders[torch.tensor(path[::-1])]
