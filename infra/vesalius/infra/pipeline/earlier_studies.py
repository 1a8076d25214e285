"""Earlier studies to learn from: as MLflow has them, which a team shares, or as this home does."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from vesalius.infra.pipeline.tracked_study import FIGURES, KEY, PASSED, PERCENT
from vesalius.infra.pipeline.trials import base_of
from vesalius.platform import tracking
from vesalius.platform.errors import StudyError
from vesalius.tuning import PastStudy, PastTrial, find_study, past_study

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.tracking import TrackedRun

_RUN_ID = re.compile(r"[0-9a-f]{32}")


def earlier_study(name: str, *, method: str, home: Path) -> PastStudy:
    """Return a study to learn from: from MLflow, or from this home where tracking is off or knows nothing of it.

    Args:
        name: of the study, or the id of its tracked run.
        method: that it must have searched.
        home: of runs and studies.

    Raises:
        StudyError: there is none, there are several of that name, or it is of another method or a population.
        RunError: nothing answers where runs are tracked.
    """
    found = None if tracking.is_tracking_off() else _tracked(name, tracking.tracking_uri(home))
    if found is None:
        folder = find_study(home, name)
        _check_method(name, folder.spec.method, method)
        _refuse_population(name, is_one=folder.spec.population is not None)
        return past_study(folder, base_of(folder.spec))
    _check_method(name, found.method, method)
    return found


def _check_method(name: str, found: str, method: str) -> None:
    if found != method:
        raise StudyError(f"study '{name}' is of {found}, and {method} learns from studies of its own: leave it out")


def _refuse_population(name: str, *, is_one: bool) -> None:
    if is_one:
        raise StudyError(
            f"study '{name}' is a population, whose members came to their figures by settings that changed on the way: "
            "they say nothing of single settings, leave it out"
        )


def _tracked(name: str, uri: str) -> PastStudy | None:
    """Return a study as MLflow has it, or None where it has none of that name."""
    if _RUN_ID.fullmatch(name):
        name, wanted = tracking.tags_of(uri, name).get("vesalius_study", name), name
    else:
        wanted = None
    if "'" in name:  # no study has such a name
        return None
    runs = list(tracking.find_runs(uri, name, {"vesalius_study": name}))
    parents = [run for run in runs if KEY in run.tags and wanted in (None, run.run_id)]
    if not parents:
        return None
    if len(parents) > 1:
        ids = ", ".join(run.run_id for run in parents)
        raise StudyError(
            f"{len(parents)} studies '{name}' are tracked at {tracking.shown(uri)}: name one by its run, {ids}"
        )
    (parent,) = parents
    _refuse_population(name, is_one="generations" in parent.params)
    trials: dict[int, PastTrial] = {}
    for run in runs:
        if run.tags.get("mlflow.parentRunId") == parent.run_id and "vesalius_seed" not in run.tags:
            trial = _trial(run)
            if trial is not None:
                trials[trial.number] = trial
    params = parent.params
    return PastStudy(
        name=name if wanted is None else f"{name}@{wanted[:8]}",
        method=parent.tags["method"],
        cohort_digest=parent.tags["cohort_digest"],
        objectives=tuple(json.loads(params["objectives"])),
        criterion=_text_or_none(params.get("criterion", "null")),
        num_workers=int(params["num_workers"]),
        # Of a study that was tracked before digests were, nobody knows which weights it started from.
        start_sha256=params.get("start_sha256", params.get("start_from", "")),
        trials=tuple(trials[number] for number in sorted(trials)),
    )


def _text_or_none(param: str) -> str | None:
    return None if param == "null" else param


def _trial(run: TrackedRun) -> PastTrial | None:
    """Return a trial as its tracked run has it, or None where it has not come to an end that teaches anything."""
    own = {key.removeprefix(FIGURES): value for key, value in run.metrics.items() if key.startswith(FIGURES)}
    stop: dict[str, Any] = {}
    if PERCENT in run.metrics and PASSED in run.metrics:
        stop = {"percent": run.metrics[PERCENT], "passed": run.metrics[PASSED]}
    figures = {key: value for key, value in own.items() if f"{FIGURES}{key}" not in (PERCENT, PASSED)}
    if not figures and not stop:
        return None
    settings = {key: value for key, value in run.params.items() if key.startswith(("method.", "training."))}
    return PastTrial(number=int(run.tags["vesalius_trial"]), settings=settings, figures=figures, **stop)
