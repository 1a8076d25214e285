"""A rank's share of a global batch, and randomness that belongs to a thing and not to a process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vesalius.platform.contracts.augmentation import Drawn


def generator(*key: object) -> torch.Generator:
    """Return a CPU generator that is a pure function of ``key`` (any values with a stable ``repr``)."""
    text = "\x1f".join(repr(part) for part in key)
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's share of the global batch of one step.

    The global batch is a pure function of (seed, stage, step); the number of workers changes who computes, not
    what. Fields by view:

    ============ ==================== =================== ===============
    view         image                brain               position
    ============ ==================== =================== ===============
    Points       (B, K, C, N)         (B, K)              (B, K, 3)
    Patches      (B, C, s, s, s)      (B, s, s, s)        (B, 3)
    Slices       (B, C, h, w)         (B, h, w)           (B, 1)
    WholeVolumes (B, C, D, H, W)      (B, D, H, W)        (B, 0)
    ============ ==================== =================== ===============

    Attributes:
        stage: name of the stage.
        step: step of the stage, from 0.
        num_steps: steps of the stage.
        seed: the run's seed.
        items: (B,) int64, each item's place in the global batch: the key of its noise.
        global_size: items of the global batch over all ranks, before any was discarded.
        subjects: (B,) int64, index into the ordered subjects of the stage's split
            (for the training split: ``CohortFacts.subjects``).
        image: float32 intensities as the recipe left them.
        brain: bool, inside the brain.
        position: normalised coordinates in [-1, 1] of the cohort's physical box (see :func:`grid_positions`);
            for slices the coordinate along the sliced axis.
        drawn: augmentation still to be applied; the platform applies it before a stage's ``step`` sees the batch.
    """

    stage: str
    step: int
    num_steps: int
    seed: int
    items: Tensor
    global_size: int
    subjects: Tensor
    image: Tensor
    brain: Tensor
    position: Tensor
    drawn: Drawn | None = None

    def __len__(self) -> int:
        return int(self.items.shape[0])

    def select(self, start: int, stop: int) -> Batch:
        """Return items ``start`` to ``stop`` (exclusive) as a batch of their own; their noise stays theirs."""
        return self._of(lambda tensor: tensor[start:stop])

    def take(self, rows: Tensor) -> Batch:
        """Return the items at ``rows`` (int64) as a batch of their own; their noise stays theirs."""
        return self._of(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return self._of(lambda tensor: tensor.to(device, non_blocking=True))

    def _of(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            items=change(self.items),
            subjects=change(self.subjects),
            image=change(self.image),
            brain=change(self.brain),
            position=change(self.position),
            drawn=self.drawn.of(change) if self.drawn is not None else None,
        )

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal noise (B, *shape), per item a function of (seed, stage, step, name, item)."""
        return self._noise(torch.randn, name, shape)

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform noise in [0, 1) of shape (B, *shape), keyed as :meth:`normal` is."""
        return self._noise(torch.rand, name, shape)

    def _noise(self, draw: Callable[..., Tensor], name: str, shape: Sequence[int]) -> Tensor:
        keys = ((self.seed, self.stage, self.step, name, int(item)) for item in self.items.tolist())
        drawn = [draw(*shape, generator=generator(*key)) for key in keys]
        # A rank without items still meets the others with an empty batch of the right shape.
        noise = torch.stack(drawn) if drawn else torch.empty(0, *shape)
        return noise.to(self.image.device)
