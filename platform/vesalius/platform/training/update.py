"""One optimiser step on the global batch: see :class:`vesalius.platform.contracts.Update`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from vesalius.platform.contracts import segments_by, trains_in_bfloat16
from vesalius.platform.errors import DivergenceError, SettingError
from vesalius.platform.training.memory import recomputed, with_channels_last

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vesalius.platform.contracts import Batch, Collective, Stage
    from vesalius.platform.contracts.stage import LossSum
    from vesalius.platform.training.settings import TrainingSettings


BatchNorm = nn.modules.batchnorm._BatchNorm


def has_batch_norm(roots: Sequence[nn.Module]) -> bool:
    """Return whether any of the modules holds batch normalisation."""
    return any(isinstance(module, BatchNorm) for root in roots for module in root.modules())


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
        self._bf16 = trains_in_bfloat16(settings.precision, device, stage.trains)
        self._parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in stage.optimizers.items()
        }
        self.observed: Mapping[str, float] = {}

    def __call__(self, optimizer: str, loss: Callable[[Batch], LossSum], batch: Batch) -> float:
        """Step ``optimizer``; see the contract."""
        parameters = self._parameters[optimizer]
        for parameter in parameters:
            parameter.grad = None
        # Loss and count; then a sum and a count for whatever else the stage observes. The names are the stage's, not
        # the loss's, so that a rank without items sends as many numbers as the others.
        totals = torch.zeros(2 + 2 * len(self._stage.observes), dtype=torch.float64, device=self._device)
        parts = self._micro_batches(len(batch))
        # One group on one worker: what its layers arrive at stands as it is, unless backward visits them again.
        alone = len(parts) == 1 and self._collective.world_size == 1 and not self._settings.checkpoint_activations
        statistics = _Statistics(() if alone else self._stage.trains, self._collective)
        for start, stop in parts:
            statistics.start_group()
            part = batch.select(start, stop)
            if self._settings.channels_last:
                part = with_channels_last(part, self._stage.view)
            with (
                torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
                segments_by(recomputed if self._settings.checkpoint_activations else None),
            ):
                loss_sum, count, *beside = loss(part)
            # Before backward, in which segments that are computed again would move the statistics a second time.
            statistics.end_group()
            if loss_sum.requires_grad:
                torch.autograd.backward(loss_sum, inputs=parameters)
            totals[0] += loss_sum.detach()
            totals[1] += count
            for name, value in beside[0].items() if beside else ():
                place = self._place(name)
                totals[place] += value.detach()
                totals[place + 1] += count
        statistics.settle()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        if self._collective.world_size > 1:
            flat = self._collective.sum(torch.cat([g.reshape(-1) for g in gradients]))
            totals = self._collective.sum(totals)
            sizes = [g.numel() for g in gradients]
            gradients = [part.view_as(g) for part, g in zip(torch.split(flat, sizes), gradients, strict=True)]
        # Divided on the device, so that a step waits for it once and not three times. Without a single item all
        # gradients are zero, whatever they are divided by.
        divisor = torch.where(totals[1] == 0, 1.0, totals[1])
        gradients = [gradient.div_(divisor) for gradient in gradients]
        # One number that is not finite as soon as any gradient is not.
        norm = nn.utils.get_total_norm(gradients)
        loss_total, count_total, *observed, norm_value = torch.cat([totals, norm.to(totals).reshape(1)]).tolist()
        self.observed = {
            name: total / count
            for name, total, count in zip(self._stage.observes, observed[::2], observed[1::2], strict=True)
            if count
        }
        if count_total == 0:  # every item was discarded (patches of background only): nothing to learn from
            return 0.0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        mean = loss_total / count_total
        if not (math.isfinite(norm_value) and math.isfinite(mean)):
            what = "loss" if not math.isfinite(mean) else "gradient"
            raise DivergenceError(
                f"the {what} of '{optimizer}' is not finite at step {batch.step} of stage '{self._stage.name}': "
                "lower the learning rate, clip with training.clip_norm, or look at the volumes of this batch"
            )
        if self._settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._settings.clip_norm, norm)
        self._stage.optimizers[optimizer].step()
        return float(mean)

    def _place(self, name: str) -> int:
        if name not in self._stage.observes:
            raise SettingError(
                f"a loss of stage '{self._stage.name}' reports '{name}', which the stage does not name in observes"
            )
        return 2 + 2 * list(self._stage.observes).index(name)

    def _micro_batches(self, num: int) -> list[tuple[int, int]]:
        # Batch statistics see one group at a time, however many of them this worker has.
        group = self._stage.group_size
        size = group if group > 1 else self._settings.micro_batch_size or max(num, 1)
        return [(start, min(start + size, num)) for start in range(0, num, size)]


class _Statistics:
    """Running statistics of batch normalisation, the same whatever the number of workers.

    Every group starts from the statistics that the update began with; what the groups of all ranks arrive at is
    averaged. (One after the other, as a single process would, the last group would weigh most.)
    """

    def __init__(self, roots: Sequence[nn.Module], collective: Collective) -> None:
        layers = [m for root in roots for m in root.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
        self._buffers = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
        self._counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._collective = collective
        self._begin = [buffer.clone() for buffer in self._buffers]
        self._counted = [counter.clone() for counter in self._counters]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]
        self._groups = 0

    def start_group(self) -> None:
        for buffer, begin in zip(self._buffers, self._begin, strict=True):
            buffer.copy_(begin)

    def end_group(self) -> None:
        self._groups += 1
        for total, buffer in zip(self._sums, self._buffers, strict=True):
            total += buffer

    def settle(self) -> None:
        if not self._buffers:
            return
        groups = self._collective.sum(self._sums[0].new_tensor([float(self._groups)]))
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            buffer.copy_(self._collective.sum(total) / groups)
        for counter, counted in zip(self._counters, self._counted, strict=True):
            counter.copy_(counted + 1)
