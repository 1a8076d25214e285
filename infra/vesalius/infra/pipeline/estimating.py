"""What training would take on this machine: a few real steps of each stage and one scoring, timed and measured."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from typing import TYPE_CHECKING

import torch

from vesalius.infra.pipeline.training import method_type
from vesalius.platform.cluster import available_cores
from vesalius.platform.config import Settings
from vesalius.platform.loading import augmented
from vesalius.platform.scoring import score_volume, volume_of
from vesalius.platform.training import Alone, Updater, choose_device, computing_as
from vesalius.platform.training.memory import PeakMemory, lay_out
from vesalius.platform.training.plan import Plan
from vesalius.platform.training.selection import num_validations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vesalius.platform.contracts import Batch, Method, MethodSettings, Stage
    from vesalius.platform.contracts.stage import LossSum
    from vesalius.platform.store import CohortStore, SubjectRecord
    from vesalius.platform.training import TrainingSettings

_STEPS = 16
_ENOUGH_SECONDS = 5.0
"""A stage is probed for up to 16 steps, more than are loaded ahead, or this long and a step of each optimiser."""


class Estimate(Settings):
    """What training and scoring take, as far as a probe can tell.

    Attributes:
        steps: of each stage.
        step_seconds: of one step of each stage that was reached; a stage without optimisers includes its end.
        quick_seconds: scoring one volume with the reduced settings, as validation passes do.
        volume_seconds: scoring one volume.
        num_volumes: volumes to score.
        passes: volumes scored with the reduced settings while training.
        fixed: stages without optimisers, which take as long whatever the epochs.
        peak_bytes: the most that was held in the steps of each stage that was reached, cached volumes among it; see
            :class:`vesalius.platform.training.memory.PeakMemory`.
        scoring_peak_bytes: the same of scoring one volume.
        complete: whether every stage and the scoring were reached before the limit was passed.
    """

    steps: dict[str, int]
    step_seconds: dict[str, float]
    quick_seconds: float
    volume_seconds: float
    num_volumes: int
    passes: int
    fixed: tuple[str, ...]
    peak_bytes: dict[str, int]
    scoring_peak_bytes: int
    complete: bool

    @property
    def training_seconds(self) -> float:
        """Of the steps that were reached."""
        return sum(self.steps[name] * seconds for name, seconds in self.step_seconds.items())

    @property
    def fixed_seconds(self) -> float:
        """Of these, those of the stages without optimisers."""
        return sum(self.steps[name] * self.step_seconds.get(name, 0.0) for name in self.fixed)

    @property
    def learning_steps(self) -> int:
        """Steps of the stages with optimisers."""
        return sum(num for name, num in self.steps.items() if name not in self.fixed)

    @property
    def scoring_seconds(self) -> float:
        """Of the volumes, and of the validation passes."""
        return self.num_volumes * self.volume_seconds + self.passes * self.quick_seconds

    @property
    def total_seconds(self) -> float:
        """Training and scoring; a lower bound where the estimate is not complete."""
        return self.training_seconds + self.scoring_seconds


def estimate(
    name: str,
    settings: MethodSettings,
    training: TrainingSettings,
    store: CohortStore,
    splits: Sequence[str],
    limit_seconds: float,
    *,
    num_volumes: int | None = None,
    scoring_limit_seconds: float = math.inf,
    training_alone: bool = False,
) -> Estimate:
    """Time a method with these settings; stop as soon as it is seen to take longer than a limit.

    The probe trains a method of its own, in this process alone (what several workers or other processes take is not in
    it), and leaves nothing behind. Scoring comes last, with the reduced settings and in full where those leave room: a
    restoration of hundreds of steps is not begun to find out that training alone is too long. A stage over the
    validation split may itself restore at every step, so that the reduced scoring comes before it.

    Args:
        name: of the method.
        settings: of the method.
        training: the loop's.
        store: the cohort.
        splits: those to be scored.
        limit_seconds: for training and scoring together.
        num_volumes: to be scored; all of the splits where None.
        scoring_limit_seconds: for scoring alone; where the reduced settings pass it, the full ones are not tried.
        training_alone: score nothing; the estimate is then not complete.

    Raises:
        SettingError: the method does not fit the cohort.
        DivergenceError: it already failed in its first steps.
    """
    device = choose_device(training.device)
    limits = (limit_seconds, scoring_limit_seconds)
    with _undisturbed(training.threads or available_cores(), device):
        kind = method_type(name)
        method = kind(settings, store.facts(any_grid=kind.any_grid))
        return _probe(method, training, store, splits, limits, num_volumes, device, training_alone=training_alone)


def _probe(
    method: Method,
    training: TrainingSettings,
    store: CohortStore,
    splits: Sequence[str],
    limits: tuple[float, float],
    num_volumes: int | None,
    device: torch.device,
    *,
    training_alone: bool,
) -> Estimate:
    limit_seconds, scoring_limit_seconds = limits
    peak = PeakMemory(device)
    lay_out(method, training, device)
    plan = Plan(method, store, training, Alone(), device)
    volumes = [record for split in splits for record in store.subjects(split)]
    # Where there is none to score, what scoring would take is still worth knowing.
    sample = (volumes or store.subjects("train"))[0]
    held = min(training.validate_subjects, len(store.subjects("validation")))
    selectable = [num for stage, num in zip(plan.stages, plan.steps, strict=True) if stage.selectable]
    found = Estimate(
        steps=dict(zip(plan.names, plan.steps, strict=True)),
        step_seconds={},
        quick_seconds=0.0,
        volume_seconds=0.0,
        num_volumes=len(volumes) if num_volumes is None else num_volumes,
        passes=held * sum(num_validations(num, training) for num in selectable),
        fixed=tuple(stage.name for stage in plan.stages if not stage.optimizers),
        peak_bytes={},
        scoring_peak_bytes=0,
        complete=False,
    )
    # Scoring stands before the first stage over the validation split, or where there is none at the end.
    order: list[int | None] = list(range(len(plan.stages)))
    stage_splits = [stage.split for stage in plan.stages]
    order.insert(stage_splits.index("validation") if "validation" in stage_splits else len(stage_splits), None)
    # Validation passes, too, compute as training does; what is scored after it does not.
    with computing_as(training, device):
        for index in order:
            if index is None and training_alone:
                continue
            if index is None:
                quick = _score_seconds(method, store, sample, device, quick=True)
                found = found.model_copy(update={"quick_seconds": quick, "volume_seconds": quick})
            else:
                stage = plan.stages[index]
                peak.begin()
                seconds = _stage_seconds(method, plan, index, training, device, limit_seconds)
                found = found.model_copy(
                    update={
                        "step_seconds": {**found.step_seconds, stage.name: seconds},
                        "peak_bytes": {**found.peak_bytes, stage.name: peak.read()},
                    }
                )
            if found.total_seconds > limit_seconds or found.scoring_seconds > scoring_limit_seconds:
                return found
    if training_alone:
        return found
    peak.begin()
    full = _score_seconds(method, store, sample, device, quick=False)
    return found.model_copy(update={"volume_seconds": full, "scoring_peak_bytes": peak.read(), "complete": True})


class _Noting(Updater):
    """An update that notes which optimisers have stepped: some do in every n-th step of their stage alone.

    Attributes:
        waiting: those that have not yet.
        stepped: those of the step in progress, in order.
    """

    def __init__(self, stage: Stage, training: TrainingSettings, device: torch.device) -> None:
        super().__init__(stage, Alone(), training, device)
        self.waiting = set(stage.optimizers)
        self.stepped: list[str] = []

    def __call__(self, optimizer: str, loss: Callable[[Batch], LossSum], batch: Batch) -> float:
        self.waiting.discard(optimizer)
        self.stepped.append(optimizer)
        return super().__call__(optimizer, loss, batch)


def _stage_seconds(
    method: Method, plan: Plan, index: int, training: TrainingSettings, device: torch.device, limit_seconds: float
) -> float:
    """Return the seconds of a step, 0 where there is none."""
    stage = plan.stages[index]
    method.eval().requires_grad_(False)
    for module in stage.trains:
        module.train().requires_grad_(True)
    update = _Noting(stage, training, device)
    stage.begin()
    spent: list[float] = []
    kinds: list[tuple[str, ...]] = []
    round_length = 1
    start = begun = time.perf_counter()
    # What is solved at the end of a stage over training subjects may need more than one batch: a deviation has none of
    # a single subject. A step of a stage over the validation split may be thousands of passes, and one has to do.
    least = 2 if not stage.optimizers and stage.split == "train" else 1
    with contextlib.ExitStack() as stack:
        batches = iter(plan.batches(index, 0))
        # Broken off, its readers stop here and not when it is forgotten.
        stack.callback(getattr(batches, "close", lambda: None))
        for batch in batches:
            waited, update.stepped = bool(update.waiting), []
            stage.step(augmented(batch.to(device)), update)
            stage.after_update()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            spent.append(now - start)
            kinds.append(tuple(update.stepped))
            if waited and not update.waiting:
                round_length = len(spent)
            start = now
            # One optimiser's step may be the dear one; not waited for where it is too long without it already.
            known = not update.waiting or sum(spent) / len(spent) * plan.steps[index] > limit_seconds
            if len(spent) == _STEPS or (len(spent) >= least and known and now - begun > _ENOUGH_SECONDS):
                break
        start = time.perf_counter()
    if not spent:
        # An optional stage whose split holds no subject for it: in earnest, too, its end comes without a step.
        stage.finish(Alone())
        return 0.0
    mean = mean_step(spent, kinds, round_length)
    if stage.optimizers:
        return mean
    # What is fitted at the stage's end is fitted to a few steps here, and to all of them in earnest.
    stage.finish(Alone())
    return mean + (time.perf_counter() - start) / len(spent)


def mean_step(spent: Sequence[float], kinds: Sequence[tuple[str, ...]], round_length: int) -> float:
    """Return the mean seconds of a step, over whole rounds.

    The first step warms up: its time stands for itself only where no other was of its kind.

    Args:
        spent: seconds of each step.
        kinds: the optimisers that stepped in it.
        round_length: steps until each optimiser has stepped once: one of the generator to five of the critic.
    """
    of_kind = {
        kind: statistics.fmean(
            [seconds for seconds, other in zip(spent[1:], kinds[1:], strict=True) if other == kind] or [spent[0]]
        )
        for kind in set(kinds)
    }
    whole = len(kinds) - len(kinds) % round_length
    return statistics.fmean(of_kind[kind] for kind in kinds[-whole:])


def _score_seconds(
    method: Method, store: CohortStore, record: SubjectRecord, device: torch.device, *, quick: bool
) -> float:
    volume = volume_of(store, record)
    _, seconds = score_volume(method, volume, device, effort="quick" if quick else "full")
    return seconds


@contextlib.contextmanager
def _undisturbed(num_threads: int, device: torch.device) -> Iterator[None]:
    """Compute with as many threads as training will, and leave torch's generators and threads as they were.

    What a stage would log of its result is held back: after a few steps it has none.
    """
    before, silenced = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(num_threads)
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        logging.disable(silenced)
        torch.set_num_threads(before)
