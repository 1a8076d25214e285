"""Train any method, stage by stage: plain PyTorch that names no method and needs no cluster."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vesalius.platform.contracts import generator
from vesalius.platform.errors import DivergenceError, RunError
from vesalius.platform.loading import augmented
from vesalius.platform.training.checkpoint import Best, Checkpoints, State, checkpoint_name
from vesalius.platform.training.collective import Alone
from vesalius.platform.training.devices import choose_device, computing_as
from vesalius.platform.training.memory import lay_out
from vesalius.platform.training.pausing import Pause, Paused, is_judged, pause_at
from vesalius.platform.training.plan import Plan
from vesalius.platform.training.selection import validate, validation_interval
from vesalius.platform.training.update import Updater
from vesalius.platform.training.watching import Unwatched, Watcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.platform.contracts import Collective, Method, Stage
    from vesalius.platform.store import CohortStore
    from vesalius.platform.training.pausing import Forerunner
    from vesalius.platform.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What came out.

    Attributes:
        state: the final state of the run.
        num_steps: steps over all stages.
        paused: where it paused, unless that is its end.
    """

    state: State
    num_steps: int
    paused: Paused | None = None


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
    shared_from: tuple[Checkpoints, str] | None = None,
    forerunner: tuple[Checkpoints, Forerunner] | None = None,
    until: float = 1.0,
) -> TrainingResult:
    """Train ``method`` to its end, going on from the last checkpoint in ``folder`` where there is one.

    A resumed run equals an unbroken one bit for bit (same number of workers and threads; CPU, or CUDA with
    ``deterministic``), whatever the moment it was broken off. So does one that pauses and goes on as another run with
    the same settings.

    Args:
        method: built from its settings and the store's facts; on return it holds the trained weights, those of
            the best validation pass where a stage was selectable.
        store: the prepared cohort.
        settings: the loop's settings.
        folder: where checkpoints go; shared by all workers.
        collective: the other ranks.
        device: where to compute; all ranks of the same kind.
        watcher: who is told.
        start_from: checkpoints of another run and a stage that it finished, to start after; after the last one nothing
            is trained.
        shared_from: the same, tried before it: where that cannot be read on every rank, it is passed over.
        forerunner: checkpoints of another run, and the one of them to go on from where it stands, under settings that
            may be others.
        until: the share of all steps after which it pauses, with a checkpoint and a validation pass of its own.

    Raises:
        DivergenceError: a loss or gradient is not finite; names the stage and step.
        RunError: a checkpoint does not fit.
        CohortError: a stage's split is empty, or holds a subject of another grid where the stage cannot take one.
    """
    collective = collective or Alone()
    device = device or choose_device(settings.device)
    watcher = watcher or Unwatched()
    lay_out(method, settings, device)
    with computing_as(settings, device):
        run = _Run(method, store, settings, Checkpoints(folder), collective, device, watcher, until)
        return run.to_the_end(start_from, shared_from, forerunner)


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
        until: float = 1.0,
    ) -> None:
        self.method = method
        self.store = store
        self.settings = settings
        self.checkpoints = checkpoints
        self.collective = collective
        self.device = device
        self.watcher = watcher
        self.plan = Plan(method, store, settings, collective, device)
        self.pause = pause_at(until, self.plan.stages, self.plan.steps)
        self.state = State(stage=self.plan.names[0])
        self._built = {name: _fingerprint(value) for name, value in method.state_dict().items()}

    def to_the_end(
        self,
        start_from: tuple[Checkpoints, str] | None,
        shared_from: tuple[Checkpoints, str] | None,
        forerunner: tuple[Checkpoints, Forerunner] | None,
    ) -> TrainingResult:
        last = self._agree_on_last(forerunner)
        if last is not None:
            self.state = self.checkpoints.state(last)
            self.checkpoints.load_weights(last, self.method)
        else:
            is_shared = shared_from is not None and self._share(*shared_from)
            if start_from is not None and not is_shared:
                self._take_over(*self._read(*start_from))
        self.watcher.begun(self.plan.before(self.state.stage_index) + self.state.step, self.plan.total)
        while self._now < self.pause:
            self._train_stage(self.plan.stages[self.state.stage_index], last)
            last = None
        self.method.eval().requires_grad_(False)
        paused = self._paused() if self.state.stage_index < len(self.plan.stages) else None
        return TrainingResult(state=self.state, num_steps=self.plan.total, paused=paused)

    @property
    def _now(self) -> Pause:
        return Pause(self.state.stage_index, self.state.step)

    def _paused(self) -> Paused:
        """Return what the run is where it pauses. The pass made here is no candidate for the best."""
        done = self.plan.before(self.state.stage_index) + self.state.step
        name = checkpoint_name(self.state.stage_index, self.state.step)
        figure = None
        if is_judged(self._now, self.plan.stages):
            with torch.no_grad():
                number = self.settings.validate_subjects
                figure = validate(self.method, self.store, number, self.collective, self.device)
        if figure is not None:
            self.watcher.metrics(done, dict([figure]))
        criterion, value = figure or (None, None)
        return Paused(
            checkpoint=name,
            weights_sha256=self.checkpoints.weights_digest(name),
            percent=100 * done / self.plan.total,
            criterion=criterion,
            value=value,
        )

    def _agree_on_last(self, forerunner: tuple[Checkpoints, Forerunner] | None = None) -> str | None:
        """Return the checkpoint to go on from as rank 0 sees it: it may write the first while others still look."""
        found = torch.zeros(3, dtype=torch.int64, device=self.device)
        if self.collective.rank == 0:
            self.checkpoints.sweep()
            if forerunner is not None:
                other, chosen = forerunner
                self.checkpoints.adopt(other, chosen.checkpoint, chosen.weights_sha256)
        if self.collective.rank == 0 and (last := self.checkpoints.last()) is not None:
            found = torch.tensor([1, *map(int, last.split("-"))], device=self.device)
        is_there, stage_index, step = self.collective.sum(found).tolist()
        return checkpoint_name(stage_index, step) if is_there else None

    def _share(self, other: Checkpoints, stage: str) -> bool:
        """Start after another run's stage if every rank can read it, and say whether that is so."""
        found = None
        with contextlib.suppress(RunError):
            found = self._read(other, stage)
        readable = self.collective.sum(torch.tensor([float(found is not None)], device=self.device))
        if found is None or int(readable) < self.collective.world_size:
            return False
        self._take_over(*found)
        return True

    def _read(self, other: Checkpoints, stage: str) -> tuple[State, dict[str, torch.Tensor]]:
        end = other.begin_after(stage, self.plan.names)
        return other.state(end), other.learnt(end, self.method)

    def _take_over(self, theirs: State, learnt: Mapping[str, torch.Tensor]) -> None:
        self.method.load_state_dict({**self.method.state_dict(), **learnt})
        names, index = self.plan.names, len(theirs.finished_stages)
        self.state = State(
            stage_index=index,
            stage=names[index] if index < len(names) else "",
            finished_stages=theirs.finished_stages,
            steps=theirs.steps,
            seconds=theirs.seconds,
            learnt=theirs.learnt,
            inherited=theirs.finished_stages,
        )
        self._save({})

    def _train_stage(self, stage: Stage, resumed: str | None) -> None:
        index = self.state.stage_index
        before, num_steps = self.plan.before(index), self.plan.steps[index]
        stop = self.pause.step if index == self.pause.stage_index else num_steps
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
        clock = time.monotonic()
        spent = self.state.seconds.get(stage.name, 0.0)
        window: list[Mapping[str, float | torch.Tensor]] = []
        for batch in self.plan.batches(index, start, stop):
            step = batch.step
            torch.manual_seed(_dropout_seed(self.settings.seed, stage.name, step, self.collective.rank))
            for name, optimizer in stage.optimizers.items():
                for group, lr in zip(optimizer.param_groups, base_lrs[name], strict=True):
                    group["lr"] = lr * stage.lr(step / num_steps)
            window.append(stage.step(augmented(batch.to(self.device)), update))
            stage.after_update()
            self.watcher.trained(stage.name, len(batch))
            done = step + 1
            last_step = done == num_steps
            self.state = self._moved(stage, index, done, spent + time.monotonic() - clock)
            self.watcher.step(stage.name, done, num_steps, before + done, self.plan.total)
            if done % self.settings.log_every == 0 or done == stop:
                self.watcher.metrics(before + done, _means(stage.name, window))
                window = []
            self._validate(stage, index, before, done, last_step)
            if done % self.settings.checkpoint_every == 0 or done == stop:
                self._save(stage.optimizers)
        if stop < num_steps:
            return
        best = self.state.best
        if best is not None and best.stage == stage.name:
            # Later stages, and the model, build on the best of this one and not on its last step.
            self.checkpoints.load_weights(best.checkpoint, self.method)
        stage.finish(self.collective)
        self._leave(stage, index, before, spent + time.monotonic() - clock)

    def _moved(self, stage: Stage, index: int, step: int, seconds: float) -> State:
        return self.state.model_copy(
            update={
                "stage_index": index,
                "stage": stage.name,
                "step": step,
                "seconds": {**self.state.seconds, stage.name: seconds},
                "learnt": None,
            }
        )

    def _enter(self, stage: Stage) -> None:
        self.method.eval().requires_grad_(False)
        for module in stage.trains:
            module.train().requires_grad_(True)

    def _validate(self, stage: Stage, index: int, before: int, done: int, last_step: bool) -> None:
        every = validation_interval(self.plan.steps[index], self.settings)
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
        best = before_it = self.state.best
        if best is None or best.stage != stage.name or value > best.value:
            name = checkpoint_name(index, done)
            best = Best(checkpoint=name, criterion=criterion, value=value, stage=stage.name, step=done)
            self.state = self.state.model_copy(update={"best": best})
        # Before it is saved: a run that is broken off in between makes this pass again, and tells it again.
        self.watcher.milestone(before + done, {criterion: value, f"best_{criterion}": best.value})
        if best is not before_it:
            self._save(stage.optimizers)

    def _leave(self, stage: Stage, index: int, before: int, seconds: float) -> None:
        num_steps = self.plan.steps[index]
        weights = self.method.state_dict()
        for name, value in weights.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise DivergenceError(
                    f"'{name}' is not finite after step {num_steps} of stage '{stage.name}': "
                    "run `vesalius check` on the store, or lower the learning rate"
                )
        following = self.plan.names[index + 1] if index + 1 < len(self.plan.names) else ""
        best = self.state.best
        best_step = best.step if best is not None and best.stage == stage.name else None
        self.state = self._moved(stage, index, num_steps, seconds).model_copy(
            update={
                "stage_index": index + 1,
                "stage": following,
                "step": 0,
                "finished_stages": (*self.state.finished_stages, stage.name),
                "steps": {**self.state.steps, stage.name: best_step or num_steps},
                "learnt": tuple(name for name, value in weights.items() if _fingerprint(value) != self._built[name]),
            }
        )
        overall = before + num_steps
        figures = {f"{stage.name}/seconds": seconds}
        # Told before it is saved: a run that is broken off in between tells it again, and never comes back later.
        self.watcher.metrics(overall, figures)
        self._save({})
        # What the stage's optimisers remember and its last gradients would lie on the device until the run ends.
        for optimizer in stage.optimizers.values():
            optimizer.state.clear()
        for parameter in self.method.parameters():
            parameter.grad = None
        self.watcher.milestone(overall, figures)

    def _save(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        if self.collective.rank == 0:
            begin = time.monotonic()
            name = self.checkpoints.save(self.state, self.method, optimizers)
            self.watcher.saved(name, time.monotonic() - begin)
        # The others wait: a rank that ran ahead and failed could otherwise leave a checkpoint no one can trust.
        self.collective.sum(torch.zeros(1, device=self.device))


def _dropout_seed(seed: int, stage: str, step: int, rank: int) -> int:
    return generator("dropout", seed, stage, step, rank).initial_seed()


def _fingerprint(value: torch.Tensor) -> str:
    """Return a digest of a tensor's bits."""
    bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(bits.numpy().data).hexdigest()


def _means(stage: str, window: Sequence[Mapping[str, float | torch.Tensor]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for metrics in window:
        for name, value in metrics.items():
            sums.setdefault(name, []).append(float(value))
    return {f"{stage}/{name}": sum(values) / len(values) for name, values in sums.items()}
