"""Train any method, stage by stage: plain PyTorch that names no method and needs no cluster."""

from __future__ import annotations

import hashlib
import math
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vesalius.platform.contracts import generator
from vesalius.platform.errors import DivergenceError, RunError, SettingError
from vesalius.platform.loading import VolumeCache, augmented, batches, budget_bytes, num_steps
from vesalius.platform.training.checkpoint import Best, Checkpoints, State, checkpoint_name
from vesalius.platform.training.collective import Alone
from vesalius.platform.training.selection import validate
from vesalius.platform.training.subjects import stage_subjects
from vesalius.platform.training.update import Updater, has_batch_norm
from vesalius.platform.training.watching import Unwatched, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from vesalius.platform.contracts import Batch, Collective, Method, Stage
    from vesalius.platform.store import CohortStore
    from vesalius.platform.training.settings import TrainingSettings


_DEFAULT_VALIDATIONS = 4
"""Validation passes of a selectable stage where no interval is set: enough for a best that is not just the last."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What came out.

    Attributes:
        state: the final state of the run.
        num_steps: steps over all stages.
    """

    state: State
    num_steps: int


def choose_device(name: str) -> torch.device:
    """Return the device that ``training.device`` asks for.

    Raises:
        SettingError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingError("training.device is 'cuda' and this machine has no usable CUDA device: use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def train(
    method: Method,
    store: CohortStore,
    settings: TrainingSettings,
    folder: Path,
    *,
    collective: Collective | None = None,
    device: torch.device | None = None,
    watcher: Watcher | None = None,
    start_from: tuple[Checkpoints, str] | None = None,
) -> TrainingResult:
    """Train ``method`` to its end, going on from the last checkpoint in ``folder`` where there is one.

    A resumed run equals an unbroken one bit for bit (same number of workers and threads; CPU, or CUDA with
    ``deterministic``), whatever the moment it was broken off.

    Args:
        method: built from its settings and the store's facts; on return it holds the trained weights, those of
            the best validation pass where a stage was selectable.
        store: the prepared cohort.
        settings: the loop's settings.
        folder: where checkpoints go; shared by all workers.
        collective: the other ranks.
        device: where to compute; all ranks of the same kind.
        watcher: who is told.
        start_from: checkpoints of another run and a stage that it finished, to start after.

    Raises:
        DivergenceError: a loss or gradient is not finite; names the stage and step.
        RunError: a checkpoint does not fit.
        CohortError: a stage's split is empty, or holds a subject of another grid where the stage cannot take one.
    """
    collective = collective or Alone()
    device = device or choose_device(settings.device)
    watcher = watcher or Unwatched()
    method.to(device)
    with _determinism(settings, device):
        run = _Run(method, store, settings, Checkpoints(folder), collective, device, watcher)
        return run.to_the_end(start_from)


class _determinism:  # noqa: N801 - a context manager used as a function
    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        self._wanted = settings.deterministic and device.type == "cuda"
        self._before = torch.are_deterministic_algorithms_enabled()

    def __enter__(self) -> None:
        if self._wanted:
            torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self._before)


class _Run:
    """The state of one call of :func:`train`."""

    def __init__(
        self,
        method: Method,
        store: CohortStore,
        settings: TrainingSettings,
        checkpoints: Checkpoints,
        collective: Collective,
        device: torch.device,
        watcher: Watcher,
    ) -> None:
        self.method = method
        self.store = store
        self.settings = settings
        self.checkpoints = checkpoints
        self.collective = collective
        self.device = device
        self.watcher = watcher
        self.stages = list(method.stages())
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise SettingError(f"two stages of {type(method).__name__} share a name: {', '.join(names)}")
        self.budget = budget_bytes(settings.cache_mib, _workers_here(collective, device))
        self.shared: dict[tuple[str, ...], VolumeCache] = {}
        self.caches = [self._cache(stage) for stage in self.stages]
        self.steps = [
            num_steps(stage, len(cache), method.cohort.grid)
            for stage, cache in zip(self.stages, self.caches, strict=True)
        ]
        self.total = sum(self.steps)
        self.state = State(stage=names[0])

    def to_the_end(self, start_from: tuple[Checkpoints, str] | None) -> TrainingResult:
        last = self._agree_on_last()
        if last is not None:
            self.state = self.checkpoints.state(last)
            self.checkpoints.load_weights(last, self.method)
        elif start_from is not None:
            self._start_after(*start_from)
        while self.state.stage_index < len(self.stages):
            self._train_stage(self.stages[self.state.stage_index], last)
            last = None
        self.method.eval().requires_grad_(False)
        return TrainingResult(state=self.state, num_steps=self.total)

    def _agree_on_last(self) -> str | None:
        """Return the checkpoint to go on from as rank 0 sees it: it may write the first while others still look."""
        found = torch.zeros(3, dtype=torch.int64, device=self.device)
        if self.collective.rank == 0 and (last := self.checkpoints.last()) is not None:
            found = torch.tensor([1, *map(int, last.split("-"))], device=self.device)
        is_there, stage_index, step = self.collective.sum(found).tolist()
        return checkpoint_name(stage_index, step) if is_there else None

    def _cache(self, stage: Stage) -> VolumeCache:
        records = stage_subjects(stage, self.store, self.method.cohort)
        if stage.group_size == 1 and has_batch_norm(stage.trains):
            raise SettingError(
                f"stage '{stage.name}' trains batch normalisation but states no group_size: its statistics would "
                "depend on the number of workers"
            )
        subjects = tuple(record.subject_id for record in records)
        if subjects not in self.shared:
            spacing_mm = [record.spacing_mm for record in records]
            self.shared[subjects] = VolumeCache(self.store, subjects, self.budget, spacing_mm=spacing_mm)
        return self.shared[subjects]

    def _start_after(self, other: Checkpoints, stage: str) -> None:
        names = [one.name for one in self.stages]
        if stage not in names:
            raise RunError(f"this method has no stage '{stage}': its stages are {', '.join(names)}")
        other_end = other.end_of(stage)
        other.load_weights(other_end, self.method)
        index = names.index(stage) + 1
        self.state = State(
            stage_index=index,
            stage=names[index] if index < len(names) else "",
            finished_stages=tuple(names[:index]),
        )
        self._save({})

    def _train_stage(self, stage: Stage, resumed: str | None) -> None:
        index = self.state.stage_index
        before = sum(self.steps[:index])
        start = self.state.step
        if start and not stage.optimizers:
            start = 0  # its accumulators are not in the checkpoint: it starts again at its own first step
        base_lrs = {name: [g["lr"] for g in o.param_groups] for name, o in stage.optimizers.items()}
        if start and resumed:
            self.checkpoints.load_optimizers(resumed, stage.optimizers)
        if not start:
            stage.begin()
        update = Updater(stage, self.collective, self.settings, self.device)
        self._enter(stage)
        for cache in self.shared.values():
            if cache is not self.caches[index]:
                cache.clear()  # the memory is one stage's at a time
        clock = time.monotonic()
        spent = self.state.seconds.get(stage.name, 0.0)
        window: list[Mapping[str, float | torch.Tensor]] = []
        for batch in self._batches(stage, index, start):
            step = batch.step
            torch.manual_seed(_dropout_seed(self.settings.seed, stage.name, step, self.collective.rank))
            for name, optimizer in stage.optimizers.items():
                for group, lr in zip(optimizer.param_groups, base_lrs[name], strict=True):
                    group["lr"] = lr * stage.lr(step / self.steps[index])
            window.append(stage.step(augmented(batch.to(self.device)), update))
            stage.after_update()
            done = step + 1
            last_step = done == self.steps[index]
            self.state = self._moved(stage, index, done, spent + time.monotonic() - clock)
            self.watcher.step(stage.name, done, self.steps[index], before + done, self.total)
            if done % self.settings.log_every == 0 or last_step:
                self.watcher.metrics(before + done, _means(stage.name, window))
                window = []
            self._validate(stage, index, before, done, last_step)
            if done % self.settings.checkpoint_every == 0 or last_step:
                self._save(stage.optimizers)
        best = self.state.best
        if best is not None and best.stage == stage.name:
            # Later stages, and the model, build on the best of this one and not on its last step.
            self.checkpoints.load_weights(best.checkpoint, self.method)
        stage.finish(self.collective)
        self._leave(stage, index, before, spent + time.monotonic() - clock)

    def _batches(self, stage: Stage, index: int, start: int) -> Iterable[Batch]:
        return batches(
            self.caches[index],
            stage,
            self.method.cohort,
            seed=self.settings.seed,
            start=start,
            stop=self.steps[index],
            rank=self.collective.rank,
            world_size=self.collective.world_size,
            ahead=self.settings.prefetch,
            num_readers=self.settings.readers,
            pin=self.device.type == "cuda",
        )

    def _moved(self, stage: Stage, index: int, step: int, seconds: float) -> State:
        return self.state.model_copy(
            update={
                "stage_index": index,
                "stage": stage.name,
                "step": step,
                "seconds": {**self.state.seconds, stage.name: seconds},
            }
        )

    def _enter(self, stage: Stage) -> None:
        self.method.eval().requires_grad_(False)
        for module in stage.trains:
            module.train().requires_grad_(True)

    def _validate(self, stage: Stage, index: int, before: int, done: int, last_step: bool) -> None:
        every = self.settings.validate_every or math.ceil(self.steps[index] / _DEFAULT_VALIDATIONS)
        if not stage.selectable or not (last_step or done % every == 0):
            return
        self.method.eval()
        with torch.no_grad():
            figure = validate(self.method, self.store, self.settings.validate_subjects, self.collective, self.device)
        self._enter(stage)
        if figure is None:
            return
        criterion, value = figure
        self.watcher.metrics(before + done, {criterion: value})
        best = self.state.best
        if best is None or best.stage != stage.name or value > best.value:
            name = checkpoint_name(index, done)
            best = Best(checkpoint=name, criterion=criterion, value=value, stage=stage.name, step=done)
            self.state = self.state.model_copy(update={"best": best})
            self._save(stage.optimizers)
        self.watcher.milestone(before + done, {criterion: value, f"best_{criterion}": best.value})

    def _leave(self, stage: Stage, index: int, before: int, seconds: float) -> None:
        for name, value in self.method.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise DivergenceError(
                    f"'{name}' is not finite after step {self.steps[index]} of stage '{stage.name}': "
                    "run `vesalius check` on the store, or lower the learning rate"
                )
        following = self.stages[index + 1].name if index + 1 < len(self.stages) else ""
        best = self.state.best
        best_step = best.step if best is not None and best.stage == stage.name else None
        self.state = self._moved(stage, index, self.steps[index], seconds).model_copy(
            update={
                "stage_index": index + 1,
                "stage": following,
                "step": 0,
                "finished_stages": (*self.state.finished_stages, stage.name),
                "steps": {**self.state.steps, stage.name: best_step or self.steps[index]},
            }
        )
        self._save({})
        overall = before + self.steps[index]
        figures = {f"{stage.name}/seconds": seconds}
        self.watcher.metrics(overall, figures)
        self.watcher.milestone(overall, figures)

    def _save(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        if self.collective.rank == 0:
            self.watcher.saved(self.checkpoints.save(self.state, self.method, optimizers))
        # The others wait: a rank that ran ahead and failed could otherwise leave a checkpoint no one can trust.
        self.collective.sum(torch.zeros(1, device=self.device))


def _workers_here(collective: Collective, device: torch.device) -> int:
    """Return how many of the ranks share this machine and so its memory."""
    name = int.from_bytes(hashlib.blake2b(socket.gethostname().encode(), digest_size=7).digest(), "little")
    names = collective.gather(torch.tensor([name], dtype=torch.int64, device=device))
    return sum(int(one) == name for one in names)


def _dropout_seed(seed: int, stage: str, step: int, rank: int) -> int:
    return generator("dropout", seed, stage, step, rank).initial_seed()


def _means(stage: str, window: Sequence[Mapping[str, float | torch.Tensor]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for metrics in window:
        for name, value in metrics.items():
            sums.setdefault(name, []).append(float(value))
    return {f"{stage}/{name}": sum(values) / len(values) for name, values in sums.items()}
