"""What the error is in healthy heads, place by place, so that a score says how far it departs from that.

Not in the paper. A network that is not sure of a place errs there in every head, and the highest error of a structure
is then found at the same place with and without a lesion (decision 18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.methods.position_regression.dense import between
from vesalius.platform.contracts import grid_positions

if TYPE_CHECKING:
    from vesalius.platform.contracts import CohortFacts, Collective, Volume

FLOOR = 0.3
"""Least deviation, as a fraction of its mean where there is any: few subjects may agree by chance."""
_NONE = 1e-6
"""Deviations up to this are rounding. Air looks alike in every head: the more of it, the lower a mean would be."""


class Calibration(nn.Module):
    """Mean and deviation of the error over training subjects, on every ``stride``-th voxel of the cohort's grid.

    Until it is solved it leaves errors as they are.

    Attributes:
        mean: (d, h, w) of the error.
        deviation: (d, h, w) standard deviation (over N - 1), floored.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, cohort: CohortFacts, stride: int) -> None:
        super().__init__()
        self._cohort, self._stride = cohort, stride
        shape = [-(-num // stride) for num in cohort.grid]
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))
        self._moments = torch.zeros(0)

    def begin(self) -> None:
        """Forget what was added."""
        # In float64 the order of summing, and so the number of workers, does not show.
        self._moments = torch.zeros(2, *self.mean.shape, dtype=torch.float64, device=self.mean.device)

    def add(self, errors_DHW: Tensor) -> None:
        """Add a subject's errors (D, H, W) on the cohort's grid."""
        every = self._stride
        errors = errors_DHW[::every, ::every, ::every].double()
        self._moments[0] += errors
        self._moments[1] += errors.square()

    def solve(self, collective: Collective) -> None:
        """Take mean and deviation over the subjects of all ranks."""
        num = len(self._cohort.subjects)
        first, second = collective.sum(self._moments)
        mean = first / num
        deviation = ((second - first * mean) / (num - 1)).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        some = deviation[deviation > _NONE]
        # Subjects that agree everywhere give no scale of their own.
        floor = FLOOR * float(some.mean()) if len(some) else _NONE
        self.deviation.copy_(deviation.clamp(min=floor))
        self._moments = torch.zeros(0)

    def apply_to(self, errors_DHW: Tensor, volume: Volume) -> Tensor:
        """Return by how many deviations errors (D, H, W) of a volume exceed the mean; zero where they do not."""
        mean, deviation = (self._on_grid_of(volume, values) for values in (self.mean, self.deviation))
        return ((errors_DHW - mean) / deviation).clamp(min=0)

    def _on_grid_of(self, volume: Volume, values: Tensor) -> Tensor:
        """Return (D, H, W) values at a volume's voxels: linear, and outside the box the nearest voxel's."""
        full = between(values, self._stride, self._cohort.grid)
        if volume.shape == self._cohort.grid and volume.spacing_mm == self._cohort.spacing_mm:
            return full
        # Normalised positions are what grid_sample calls align_corners=False, but it wants W, H, D.
        positions = grid_positions(volume.shape, volume.spacing_mm, self._cohort.box_mm).flip(-1).to(full.device)
        sampled = F.grid_sample(
            full[None, None], positions[None], mode="bilinear", padding_mode="border", align_corners=False
        )
        return sampled[0, 0]
