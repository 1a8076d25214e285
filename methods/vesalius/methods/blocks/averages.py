"""Moving averages by which a stage is watched, and the spread of generated images among them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


class MovingAverages(nn.Module):
    """Moving averages of what a stage observes.

    They are of means over the global batch, which are the same on every rank, so that all ranks judge alike; and they
    are kept in buffers, so that a resumed run judges as an unbroken one.

    Attributes:
        averages: of :attr:`NAMES`, not yet divided by ``weight``.
        weight: what the averages' weights add up to; below 1 while the window fills.
        seen: steps.
    """

    NAMES: ClassVar[tuple[str, ...]]
    averages: Tensor
    weight: Tensor
    seen: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("averages", torch.zeros(len(self.NAMES), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def begin(self) -> None:
        """Forget everything: a stage begins."""
        for buffer in (self.averages, self.weight, self.seen):
            buffer.zero_()

    def take(self, observed: Mapping[str, float]) -> list[float]:
        """Take in a step's means of :attr:`NAMES` and return the moving averages in that order."""
        decay = 1 - 1 / self.window
        values = torch.tensor([observed[name] for name in self.NAMES], dtype=torch.float64, device=self.averages.device)
        self.averages.mul_(decay).add_(values, alpha=1 - decay)
        self.weight.mul_(decay).add_(1 - decay)
        self.seen.add_(1)
        found: list[float] = (self.averages / self.weight).tolist()
        return found


def spread_of(real_variance: float, fake_variance: float) -> float:
    """Return how far generated images differ from each other, as a fraction of how far real ones do.

    Real ones that do not differ at all (a cohort of one slice) say nothing of the generator.
    """
    return math.sqrt(fake_variance / real_variance) if real_variance > 0 else 1.0
