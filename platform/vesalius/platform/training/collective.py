"""The other ranks, as a stage's ``finish`` and the gradient sum see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from vesalius.platform.contracts import Collective


class Alone:
    """One worker: every collective answers at once."""

    rank = 0
    world_size = 1

    def sum(self, value: Tensor) -> Tensor:
        """Return a copy of ``value``."""
        return value.clone()

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return ``[value]``."""
        return [value.clone()]


class Distributed:
    """The default process group of ``torch.distributed``, which must be initialised."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over ranks; every rank gets the same bits."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return every rank's tensor in rank order; the first dimensions may differ."""
        sizes = [torch.zeros(1, dtype=torch.int64, device=value.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([value.shape[0]], device=value.device))
        longest = max(int(size) for size in sizes)
        padded = value.new_zeros((longest, *value.shape[1:]))
        padded[: value.shape[0]] = value
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]


def backend_for(device_type: str) -> str:
    """Return the process group's backend: NCCL between CUDA devices, gloo between CPUs."""
    return "nccl" if device_type == "cuda" else "gloo"


def collective() -> Collective:
    """Return the running process group, or :class:`Alone` where there is none."""
    return Distributed() if dist.is_available() and dist.is_initialized() else Alone()
