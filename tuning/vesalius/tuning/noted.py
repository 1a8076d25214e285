"""What is noted of a trial in a study's storage, and how it is read again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.contracts import Choice
from vesalius.tuning.spec import COUNTED, Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

    from vesalius.tuning.dimension import Dimension
    from vesalius.tuning.spec import Learnt, StudySpec

DRIVER = "driver"
START = "start"
RECORD = "record"
BLOCKS = "blocks"
GIVEN_UP = "given_up"
FROM = "from"
HEARD = "heard"
PARENT = "parent"
SILENT_SECONDS = 600.0
"""Time without a word of a trial's driver, after which it does not count as under way to others."""


@dataclass(frozen=True)
class Elsewhere:
    """Trials that other drivers of a shared study have under way.

    Attributes:
        alive: how many whose drivers were heard of lately.
        silent: how many whose drivers were not.
        seconds: since one of the silent ones was last heard of; 0 where there is none.
    """

    alive: int = 0
    silent: int = 0
    seconds: float = 0.0


@dataclass
class Begun:
    """A trial that is under way.

    Attributes:
        number: of the trial in its study.
        values: what it sets, by dotted key.
        is_start: whether it is the settings that the study starts from.
        outside: whether these lie outside of the spaces.
        given_up: hundredths of its training at which the pruner gave it up, where a driver was killed upon that.
        passed: its last validation pass, where there is one.
        parent: the trial whose run its own goes on from, where it is of a later generation.
    """

    number: int
    values: dict[str, Any]
    is_start: bool
    outside: bool
    given_up: float | None = None
    passed: float | None = None
    parent: Record | None = None


def distribution(one: Dimension) -> BaseDistribution:
    """Return a dimension as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(one.space, Choice):
        return CategoricalDistribution(one.space.values)
    if one.whole:
        return IntDistribution(int(one.space.low), int(one.space.high), log=one.space.log)
    return FloatDistribution(one.space.low, one.space.high, log=one.space.log)


def finished(one: Learnt, spec: StudySpec) -> FrozenTrial:
    """Return an earlier study's trial, of which it is known what it came to, as Optuna takes it."""
    from optuna.trial import TrialState, create_trial

    spaces = {dimension.key: dimension for dimension in spec.searched}
    passes = {} if one.passed is None else {int(one.percent): one.passed}
    return create_trial(
        state=TrialState.PRUNED if passes else TrialState.COMPLETE,
        values=None if passes else objective_values(spec.objectives, one.figures),
        params=one.values,
        distributions={key: distribution(spaces[key]) for key in one.values},
        user_attrs={FROM: one.source},
        intermediate_values=passes,
    )


def objective_values(names: tuple[str, ...], figures: Mapping[str, float]) -> list[float] | None:
    """Return a trial's objectives in order, or None where it lacks one."""
    values = [figures.get(name) for name in names]
    return None if any(value is None for value in values) else [float(value) for value in values if value is not None]


def record_of(trial: FrozenTrial) -> Record | None:
    """Return what was noted of a trial, or None where it is under way."""
    noted = trial.user_attrs.get(RECORD)
    return None if noted is None else Record.model_validate(noted)


def noted_parent(parent: Record) -> dict[str, Any]:
    """Return what is noted of the trial whose run a trial's goes on from; see :func:`parent_of`."""
    return {"number": parent.number, "weights_sha256": parent.weights_sha256}


def parent_of(trial: FrozenTrial) -> tuple[int, str] | None:
    """Return the number of the trial whose run a trial's goes on from, and the SHA-256 of its weights there."""
    noted = trial.user_attrs.get(PARENT)
    return None if noted is None else (int(noted["number"]), str(noted["weights_sha256"]))


def silence(trial: FrozenTrial, now: float) -> float:
    """Return the seconds since the driver of a trial that is under way was last heard of, by the drivers' clocks."""
    begun = 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
    return max(0.0, now - float(trial.user_attrs.get(HEARD, begun)))


def source_of(trial: FrozenTrial) -> str:
    """Return the earlier study's trial whose values a trial has, or whose figures it is; empty of any other."""
    return str(trial.user_attrs.get(FROM, ""))


def put_back(trials: Sequence[FrozenTrial]) -> int:
    """Return how many of the last draws were no new trial."""
    records = map(record_of, reversed(trials))
    return sum(1 for _ in itertools.takewhile(lambda one: one is not None and one.ending not in COUNTED, records))


def is_unsigned(trial: FrozenTrial) -> bool:
    """Say whether a trial is drawn and no driver has signed it: one is about to, or has never heard of it."""
    from optuna.trial import TrialState

    return trial.state == TrialState.RUNNING and DRIVER not in trial.user_attrs


def is_start(trial: FrozenTrial | Trial) -> bool:
    """Say whether a trial is the settings that the study starts from."""
    return bool(trial.user_attrs.get(START))
