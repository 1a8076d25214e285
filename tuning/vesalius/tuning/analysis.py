"""What a study has found: its trials, the best of them, which settings matter, the front of several objectives."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.errors import StudyError
from vesalius.tuning.noted import is_start, is_unsigned, objective_values, parent_of, record_of, source_of
from vesalius.tuning.objectives import OBJECTIVES
from vesalius.tuning.spec import COUNTED
from vesalius.tuning.storage import Patience, close_storage, open_storage, whole_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from vesalius.tuning.folder import StudyFolder
    from vesalius.tuning.spec import Population

_FEWEST = 4
"""Complete trials below which nothing is said of a setting's importance."""
_PATIENCE_SECONDS = 10.0


class TrialRow(Settings):
    """One trial.

    Attributes:
        number: in the study.
        state: ``running``, or how it ended: ``complete``, ``paused``, ``pruned``, ``failed``.
        is_start: whether it is the settings that the study started from.
        values: what it set, by dotted key.
        figures: by name; of a pruned trial none.
        curve: hundredths of the training done, and the validation criterion there.
        percent: how far its training came.
        reason: why it failed.
        run: its run.
        source: the earlier study's trial whose values it runs again, as ``STUDY/NUMBER``; else empty.
        seconds: from its draw to its end, waiting included; None while it runs.
        generation: of its population, where the study has one.
        parent: number of the trial whose run its own goes on from.
        parent_sha256: of that run's weights where it does.
    """

    number: int
    state: str
    is_start: bool = False
    values: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, float] = Field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    percent: float | None = None
    reason: str = ""
    run: str = ""
    source: str = ""
    seconds: float | None = None
    generation: int | None = None
    parent: int | None = None
    parent_sha256: str = ""


class Analysis(Settings):
    """A study as it stands.

    Attributes:
        study: its name.
        method: searched.
        store: judged on.
        objectives: names, with the direction in which each is better.
        criterion: of the curves.
        wanted: trials that it is to have.
        counts: trials by state; ``repeated`` and ``refused`` draws too, which are no rows.
        learnt: trials of earlier studies that its sampler has learnt from, by study; they are no rows.
        trials: rows, oldest first.
        best: number of the best trial; of several objectives None.
        start: number of the trial with the settings that the study started from, once it is complete.
        importance: share of each setting in the objective's variance over the spaces (fANOVA, Hutter et al. 2014), by
            objective, over complete trials and those that were learnt from; what few trials cannot tell is left out.
        front: numbers of the trials that no other is better than in every objective, best first by the first one.
    """

    study: str
    method: str
    store: str
    objectives: dict[str, str]
    criterion: str | None
    wanted: int
    counts: dict[str, int]
    learnt: dict[str, int] = Field(default_factory=dict)
    trials: tuple[TrialRow, ...]
    best: int | None
    start: int | None
    importance: dict[str, dict[str, float]]
    front: tuple[int, ...]


def analyse(folder: StudyFolder) -> Analysis:
    """Return what a study has found so far; it may be under way.

    Raises:
        StudyError: it has not begun, or its storage does not answer.
    """
    spec = folder.spec
    with _loaded(folder) as study:
        trials = study.get_trials(deepcopy=False)
        rows: list[TrialRow] = []
        counts: dict[str, int] = {}
        for trial in trials:
            row = _row(trial, spec.population)
            if row is not None:
                counts[row.state] = counts.get(row.state, 0) + 1
                if row.state in (*COUNTED, "running"):
                    rows.append(row)
        names = spec.objectives
        complete = [row for row in rows if row.state == "complete" and objective_values(names, row.figures) is not None]
        front = pareto_front(complete, names)
        return Analysis(
            study=spec.name,
            method=spec.method,
            store=spec.store,
            objectives={name: OBJECTIVES[name].direction for name in names},
            criterion=spec.criterion,
            wanted=spec.trials,
            counts=counts,
            learnt=_learnt(trials),
            trials=tuple(rows),
            best=front[0] if front and len(names) == 1 else None,
            start=next((row.number for row in complete if row.is_start), None),
            # What a member of a population was trained with changed on its way.
            importance={} if spec.population else {name: importance(study, index) for index, name in enumerate(names)},
            front=tuple(front),
        )


@contextlib.contextmanager
def _loaded(folder: StudyFolder) -> Iterator[Study]:
    import optuna

    spec = folder.spec
    patience = Patience(spec.storage, _PATIENCE_SECONDS)
    storage = open_storage(whole_address(spec.storage), patience)
    try:
        try:
            study = patience(optuna.load_study, study_name=spec.name, storage=storage)
        except KeyError:
            raise StudyError(
                f"study '{spec.name}' has not begun: start it with `vesalius tune --resume {spec.name}`"
            ) from None
        yield study
    finally:
        close_storage(storage)


def _row(trial: FrozenTrial, population: Population | None) -> TrialRow | None:
    from optuna.trial import TrialState

    if trial.state == TrialState.WAITING or is_unsigned(trial):
        return None
    record = record_of(trial)
    if record is None and trial.state != TrialState.RUNNING:
        return None
    parent, parent_sha256 = parent_of(trial) or (None, "")
    curve = tuple(sorted(trial.intermediate_values.items()))
    return TrialRow(
        number=trial.number,
        state="running" if record is None else record.ending,
        is_start=is_start(trial),
        values=dict(trial.params),
        figures={} if record is None else record.figures,
        curve=curve,
        percent=(curve[-1][0] if curve else None) if record is None else record.percent,
        reason="" if record is None else record.reason,
        run="" if record is None else record.run_id,
        source=source_of(trial),
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
        generation=None if population is None else population.place(trial.number)[0],
        parent=parent,
        parent_sha256=parent_sha256,
    )


def _learnt(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Return how many trials of earlier studies a study knows the figures of, by study."""
    known = [trial for trial in trials if trial.state.is_finished() and record_of(trial) is None]
    return dict(Counter(source_of(trial).rpartition("/")[0] for trial in known if source_of(trial)))


def pareto_front(rows: Sequence[TrialRow], names: Sequence[str]) -> list[int]:
    """Return the numbers of rows that no other row is at least as good as in all objectives and better in one.

    Of rows that are equal in all objectives the first alone is there. The first objective orders them, best first; of
    one objective it is the best row alone.
    """
    signs = [1.0 if OBJECTIVES[name].direction == "maximize" else -1.0 for name in names]
    points = {row.number: [sign * row.figures[name] for sign, name in zip(signs, names, strict=True)] for row in rows}

    def beaten(number: int) -> bool:
        own = points[number]
        return any(
            all(a >= b for a, b in zip(other, own, strict=True)) and (other != own or (other == own and rival < number))
            for rival, other in points.items()
            if rival != number
        )

    return sorted((number for number in points if not beaten(number)), key=lambda number: points[number], reverse=True)


def importance(study: Study, index: int = 0) -> dict[str, float]:
    """Return each setting's share in the variance of an objective over the spaces, largest first (fANOVA).

    A setting that is searched in some trials only (a condition) is left out. Empty where too few trials are complete or
    all have the same value.

    Args:
        study: of Optuna.
        index: of the objective.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.values[index] for trial in complete}
    if len(complete) < _FEWEST or len(values) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: float(trial.values[index])
        )
    return {name: float(value) for name, value in found.items()}
