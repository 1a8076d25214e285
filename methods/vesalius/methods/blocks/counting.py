"""Stages that only count: what is fitted to every training volume without a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vesalius.platform.contracts import Stage, WholeVolumes, vae_baselines_2021
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from vesalius.platform.contracts import Augmentation, Batch, Collective, Metrics, Update


def one_pass(
    name: str,
    begin: Callable[[], None],
    step: Callable[[Batch, Update], Metrics],
    finish: Callable[[Collective], None],
) -> Stage:
    """Return a stage without optimisers, in which every training volume is seen once, for methods that only count."""
    return Stage(name=name, view=WholeVolumes(), batch_size=1, epochs=1, begin=begin, step=step, finish=finish)


def brain_moments(method: str, module: nn.Module) -> Stage:
    """Return the stage ``moments``, which fills ``mean`` and ``deviation``, buffers (C,) of ``module``.

    They are taken over the voxels of all training brains together, channel by channel; the deviation divides by their
    number. The stage ends with a ``CohortError``, which names ``method``, where those voxels do not vary.
    """
    moments = _Moments(method, module)
    return one_pass("moments", moments.begin, moments.add, moments.solve)


def cohort_augmentation(module: nn.Module) -> Callable[[], Augmentation]:
    """Return the augmentation of the VAE baselines in the unit of a store whose moments ``module`` holds.

    Stages ask for it when they begin, after ``moments``: what is drawn is what z-scored slices would get. Of several
    channels the mean ones count, since an item's intensities change by one factor and one shift.
    """

    def augmentation() -> Augmentation:
        mean, deviation = module.get_buffer("mean"), module.get_buffer("deviation")
        return vae_baselines_2021(mean=float(mean.mean()), deviation=float(deviation.mean()))

    return augmentation


class _Moments:
    def __init__(self, method: str, module: nn.Module) -> None:
        self._method = method
        self._module = module
        self._sums = torch.zeros(0)

    def begin(self) -> None:
        # Count, sum and sum of squares a channel; float64 keeps the order of summing from showing in float32.
        mean = self._module.get_buffer("mean")
        self._sums = torch.zeros(3, len(mean), dtype=torch.float64, device=mean.device)

    def add(self, batch: Batch, update: Update) -> Metrics:
        inside = batch.image.movedim(1, 0)[:, batch.brain].double()
        count = inside.new_full((len(inside),), inside.shape[1])
        self._sums += torch.stack([count, inside.sum(1), inside.square().sum(1)]).to(self._sums.device)
        return {}

    def solve(self, collective: Collective) -> None:
        count, first, second = collective.sum(self._sums)
        if bool((count < 2).any()):
            raise CohortError(f"{self._method}: the training subjects' brain masks are empty: prepare them again")
        mean = first / count
        variance = (second / count - mean.square()).clamp(min=0)
        if bool((variance == 0).any()):
            raise CohortError(f"{self._method}: every brain voxel of the training subjects has the same intensity")
        self._module.get_buffer("mean").copy_(mean)
        self._module.get_buffer("deviation").copy_(variance.sqrt())
