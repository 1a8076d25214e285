"""One optimiser step on the global batch: see :class:`vesalius.platform.contracts.Update`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vesalius.platform.contracts import bfloat16_pays
from vesalius.platform.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vesalius.platform.contracts import Batch, Collective, Stage
    from vesalius.platform.training.settings import TrainingSettings


class Updater:
    """The platform's :class:`~vesalius.platform.contracts.Update` for one stage.

    Gradients are summed after backward, in one flat vector and therefore in one fixed order. That is safe for
    double backward and needs no wrapper around the modules.
    """

    def __init__(self, stage: Stage, collective: Collective, settings: TrainingSettings, device: torch.device) -> None:
        self._stage = stage
        self._collective = collective
        self._settings = settings
        self._device = device
        self._bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bfloat16_pays(device))
        self._parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in stage.optimizers.items()
        }

    def __call__(self, optimizer: str, loss: Callable[[Batch], tuple[Tensor, Tensor | float]], batch: Batch) -> float:
        """Step ``optimizer``; see the contract."""
        parameters = self._parameters[optimizer]
        for parameter in parameters:
            parameter.grad = None
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        for start, stop in self._micro_batches(len(batch)):
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                loss_sum, count = loss(batch.select(start, stop))
            if loss_sum.requires_grad:
                torch.autograd.backward(loss_sum, inputs=parameters)
            totals[0] += loss_sum.detach()
            totals[1] += count
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        if self._collective.world_size > 1:
            flat = self._collective.sum(torch.cat([g.reshape(-1) for g in gradients]))
            totals = self._collective.sum(totals)
            sizes = [g.numel() for g in gradients]
            gradients = [part.view_as(g) for part, g in zip(torch.split(flat, sizes), gradients, strict=True)]
        loss_total, count_total = totals.tolist()
        if count_total == 0:  # every item was discarded (patches of background only): nothing to learn from
            return 0.0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.div_(count_total)
        # One number that is not finite as soon as any gradient is not.
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        mean = loss_total / count_total
        if not (torch.isfinite(norm) and torch.isfinite(torch.tensor(mean))):
            what = "loss" if not torch.isfinite(torch.tensor(mean)) else "gradient"
            raise DivergenceError(
                f"the {what} of '{optimizer}' is not finite at step {batch.step} of stage '{self._stage.name}': "
                "lower the learning rate, clip with training.clip_norm, or look at the volumes of this batch"
            )
        if self._settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._settings.clip_norm, norm)
        self._stage.optimizers[optimizer].step()
        return float(mean)

    def _micro_batches(self, num: int) -> list[tuple[int, int]]:
        group = self._stage.group_size
        size = self._settings.micro_batch_size or max(num, 1)
        size = max(size // group, 1) * group
        return [(start, min(start + size, num)) for start in range(0, num, size)]
