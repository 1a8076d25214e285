"""How much memory a method takes to train: what can be counted is counted, what autograd keeps is measured.

Parameters, buffers, gradients and optimiser state follow from the networks and their optimisers. What autograd keeps
between forward and backward depends on the code, so each loss of a stage is run on made-up data, on the CPU unless
another device is named, and the bytes of the tensors it keeps are counted. Where batch statistics are taken over groups
of items, the groups pass one after the other, and one group is what is run. Otherwise the whole batch passes at once,
or as much of it as ``training.micro_batch_size`` lets, and what it keeps is on the line through one and two items; that
of many points is on the line through 256 and 512, so that what is kept once, such as normalised weights, counts once.
With ``training.checkpoint_activations`` it is what stays between forward and backward, and what backward computes again
of the largest segment.

It is what training needs on any device in float32, on one worker. Not counted: temporary tensors within an operation,
the workspaces of libraries, cached volumes, and what scoring takes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vesalius.platform.config import Settings
from vesalius.platform.contracts import Batch, CohortFacts, Patches, Points, Slices, Stage, segments_by
from vesalius.platform.geometry import as_matrix, grid_affine
from vesalius.platform.training import TrainingSettings
from vesalius.platform.training.memory import recomputed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.optim import Optimizer

    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.contracts.stage import LossSum

DEFAULT_GRID = (64, 64, 64)
NUM_SUBJECTS = 40
_PROBE_POINTS = (256, 512)
"""Points of an item that a loss is run on, where the stage takes more."""

_PROBE_STEPS = 32
"""Within which each optimiser of a stage steps once; the probe ends with the last one's."""


class StageFootprint(Settings):
    """What one stage takes while it trains.

    Attributes:
        stage: its name.
        batch_size: items of its global batch.
        gradient_bytes: gradients of the parameters that its optimisers step.
        optimizer_bytes: state of its optimisers after a step.
        activation_bytes: what autograd keeps for the update that keeps most, of the items that pass at once: a group
            where batch statistics are of groups, else a micro-batch or the whole batch; without the parameters
            themselves.
    """

    stage: str
    batch_size: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int


class Footprint(Settings):
    """Memory that training a method takes, in bytes.

    Attributes:
        grid: of the volumes.
        num_parameters: trainable numbers of the method.
        parameter_bytes: parameters and buffers.
        stages: those that learn by gradients, in order.
        peak_bytes: parameters and what the largest stage adds.
    """

    grid: tuple[int, int, int]
    num_parameters: int
    parameter_bytes: int
    stages: tuple[StageFootprint, ...]
    peak_bytes: int


def footprint(
    kind: type[Method],
    settings: MethodSettings,
    grid: tuple[int, int, int] = DEFAULT_GRID,
    num_subjects: int = NUM_SUBJECTS,
) -> Footprint:
    """Return what training takes on volumes of one channel, with the loop's own defaults.

    Args:
        kind: the method.
        settings: its settings.
        grid: voxels of the prepared volumes.
        num_subjects: training subjects: an auto-decoder has a code for each.

    Raises:
        SettingError: the method's networks do not fit such a grid.
    """
    return footprint_on(kind, settings, made_up_cohort(grid, num_subjects))


def footprint_on(
    kind: type[Method],
    settings: MethodSettings,
    cohort: CohortFacts,
    training: TrainingSettings | None = None,
    device: torch.device | None = None,
) -> Footprint:
    """Return what training takes on a cohort.

    Args:
        kind: the method.
        settings: its settings.
        cohort: what it is trained on; of it the facts alone are looked at.
        training: the loop's settings: what of a batch passes at once, and what of that is kept.
        device: where the losses are run; the CPU where none is named.

    Raises:
        SettingError: the method's networks do not fit the cohort.
    """
    training = training or TrainingSettings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = kind(settings, cohort).to(device or torch.device("cpu"))
        stages = [_of_stage(method, stage, training) for stage in method.stages() if stage.optimizers]
    held = sum(value.numel() * value.element_size() for value in method.state_dict().values())
    added = [one.gradient_bytes + one.optimizer_bytes + one.activation_bytes for one in stages]
    return Footprint(
        grid=cohort.grid,
        num_parameters=sum(parameter.numel() for parameter in method.parameters()),
        parameter_bytes=held,
        stages=tuple(stages),
        peak_bytes=held + max(added, default=0),
    )


def made_up_cohort(grid: tuple[int, int, int], num_subjects: int) -> CohortFacts:
    """Return facts of a cohort of one channel, 1 mm and intensities in [0, 1] that no store holds."""
    return CohortFacts(
        subjects=tuple(f"subject-{number:04d}" for number in range(num_subjects)),
        grid=grid,
        spacing_mm=(1.0, 1.0, 1.0),
        affine=as_matrix(grid_affine(grid, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))),
        channels=("T1w",),
        digest="",
        ceiling=1.0,
    )


class _Kept:
    """An update that runs the losses, counts what autograd keeps, and steps nothing."""

    def __init__(self, method: Method, stage: Stage, *, checkpoints: bool = False) -> None:
        self._checkpoints = checkpoints
        self._own = {value.untyped_storage().data_ptr() for value in method.state_dict().values()}
        self.observed: Mapping[str, float] = dict.fromkeys(stage.observes, 0.5)
        self.most = 0
        self.waiting = set(stage.optimizers)

    def __call__(self, optimizer: str, loss: Callable[[Batch], LossSum], batch: Batch) -> float:
        self.waiting.discard(optimizer)
        largest = 0

        def again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
            nonlocal largest
            # Once to see what its backward will hold of it beside its inputs, and once as it will be run.
            held, _ = self._counted(function, *inputs)
            for value in inputs:
                held.pop(value.untyped_storage().data_ptr(), None)
            largest = max(largest, sum(held.values()))
            return recomputed(function, *inputs)

        with torch.enable_grad(), segments_by(again if self._checkpoints else None):
            held, found = self._counted(loss, batch)
        self.most = max(self.most, sum(held.values()) + largest)
        return float(found[0].detach())

    def _counted(self, function: Callable[..., Any], *inputs: Any) -> tuple[dict[int, int], Any]:
        """Return the storages that autograd keeps of a call, by address, and what the call gives."""
        storages: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in self._own:
                storages[storage.data_ptr()] = storage.nbytes()
            # Kept as it is, an operation's own output would hold the operation that holds it, and never be let go.
            return value.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            found = function(*inputs)
        return storages, found


def _of_stage(method: Method, stage: Stage, training: TrainingSettings) -> StageFootprint:
    method.eval().requires_grad_(False)
    for module in stage.trains:
        module.train().requires_grad_(True)
    parameters = {
        id(parameter): parameter
        for optimizer in stage.optimizers.values()
        for group_of in optimizer.param_groups
        for parameter in group_of["params"]
    }
    return StageFootprint(
        stage=stage.name,
        batch_size=stage.batch_size,
        gradient_bytes=sum(value.numel() * value.element_size() for value in parameters.values()),
        optimizer_bytes=sum(_state_bytes(optimizer) for optimizer in stage.optimizers.values()),
        activation_bytes=_activation_bytes(method, stage, training),
    )


def _activation_bytes(method: Method, stage: Stage, training: TrainingSettings) -> int:
    """Return the bytes that autograd keeps for a stage's largest update, on the lines that the module tells of."""
    view = stage.view
    if not isinstance(view, Points) or view.per_volume <= _PROBE_POINTS[-1]:
        return _of_items(method, stage, training)
    kept = [
        _of_items(method, replace(stage, view=replace(view, per_volume=num_points)), training)
        for num_points in _PROBE_POINTS
    ]
    return _on_the_line(_PROBE_POINTS, (kept[0], kept[1]), view.per_volume)


def _of_items(method: Method, stage: Stage, training: TrainingSettings) -> int:
    """Return the bytes for the items that pass at once: a group, a micro-batch or the whole batch."""
    checkpoints = training.checkpoint_activations
    if stage.group_size > 1:
        return _kept(method, stage, batch_of_noise(method, stage, stage.group_size), checkpoints=checkpoints)
    nums, at_once = (1, 2), min(stage.batch_size, training.micro_batch_size or stage.batch_size)
    kept = [_kept(method, stage, batch_of_noise(method, stage, num), checkpoints=checkpoints) for num in nums[:at_once]]
    return kept[0] if len(kept) == 1 else _on_the_line(nums, (kept[0], kept[1]), at_once)


def _on_the_line(places: tuple[int, int], values: tuple[int, int], wanted: int) -> int:
    """Return the value at ``wanted`` on the line through two places."""
    slope = (values[1] - values[0]) / (places[1] - places[0])
    return max(0, round(values[0] + slope * (wanted - places[0])))


def _kept(method: Method, stage: Stage, batch: Batch, *, checkpoints: bool) -> int:
    update = _Kept(method, stage, checkpoints=checkpoints)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    stage.begin()
    # An optimiser may step in every n-th step of its stage alone, and its update be the one that keeps most.
    for step in range(_PROBE_STEPS):
        stage.step(replace(batch, step=step, num_steps=_PROBE_STEPS).to(next(method.parameters()).device), update)
        if not update.waiting:
            break
    method.load_state_dict(before)
    return update.most


def batch_of_noise(method: Method, stage: Stage, num: int, step: int = 0) -> Batch:
    """Return ``num`` items of a stage's view, of noise in [0, 1).

    Args:
        method: that the stage is of.
        stage: that is to take the step.
        num: items.
        step: its number, which is the last's: some optimisers of a stage step in every n-th alone.
    """
    cohort = method.cohort
    image: tuple[int, ...]
    brain: tuple[int, ...]
    position: tuple[int, ...]
    num_channels = len(cohort.channels)
    view = stage.view
    if isinstance(view, Points):
        image = (view.per_volume, num_channels, view.neighbourhood**3)
        brain, position = (view.per_volume,), (view.per_volume, 3)
    elif isinstance(view, Patches):
        image, brain, position = (num_channels, *(view.size,) * 3), (view.size,) * 3, (3,)
    elif isinstance(view, Slices):
        plane = tuple(edge for axis, edge in enumerate(cohort.grid) if axis != view.axis)
        image, brain, position = (num_channels, *plane), plane, (1,)
    else:
        image, brain, position = (num_channels, *cohort.grid), cohort.grid, (0,)
    random = torch.Generator().manual_seed(0)
    return Batch(
        stage=stage.name,
        step=step,
        num_steps=step + 1,
        seed=0,
        items=torch.arange(num),
        global_size=num,
        subjects=torch.arange(num) % len(cohort.subjects),
        image=torch.rand(num, *image, generator=random),
        brain=torch.ones(num, *brain, dtype=torch.bool),
        position=2 * torch.rand(num, *position, generator=random) - 1,
    )


def _state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of an optimiser's state after a step; a copy takes it, with gradients of zero."""
    again = copy.deepcopy(optimizer)
    for group in again.param_groups:
        for value in group["params"]:
            value.grad = torch.zeros_like(value)
    again.step()
    return sum(
        value.numel() * value.element_size()
        for state in again.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
