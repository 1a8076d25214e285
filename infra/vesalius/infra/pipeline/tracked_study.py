"""A study in MLflow: a run of its own, of which the runs of its trials are children."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal

from vesalius.infra.pipeline.tracked import outbox_of, tracked_as
from vesalius.platform import tracking
from vesalius.platform.config import digest
from vesalius.platform.errors import VesaliusError
from vesalius.platform.runs import find_run
from vesalius.tuning import COUNTED, analyse, compare_seeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vesalius.platform.runs import RunFolder
    from vesalius.tuning import Analysis, Record, StudyFolder, StudySpec

KEY = "vesalius_study_key"
FIGURES = "trial/"
PERCENT, PASSED = f"{FIGURES}percent", f"{FIGURES}passed"
_BEST = "vesalius_best"


@contextlib.contextmanager
def tracked_study(study: StudyFolder, home: Path) -> Iterator[str | None]:
    """Keep a study's tracked run open while it is driven, and say at the end what it has come to.

    The run is found again when the study goes on; drivers that share a study and a tracking store share it too. Its
    children are the runs of trials; the best one has the tag ``vesalius_best``.

    Yields:
        The run's id in MLflow, or None where tracking is off.

    Raises:
        RunError: nothing answers where runs are tracked.
    """
    if tracking.is_tracking_off():
        yield None
        return
    uri = tracking.tracking_uri(home)
    parent = _begin(uri, study.spec)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield parent
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # The error on its way says more; and where there is none, whoever shows the study comes to this one too.
        with contextlib.suppress(Exception):
            found = analyse(study)
            _note(uri, parent, study, found, home)
            if status == "FINISHED" and _ended(found) < found.wanted:
                status = "KILLED"  # its time was over
        with contextlib.suppress(VesaliusError):
            tracking.end_run(uri, parent, status)


def trial_tags(
    spec: StudySpec, number: int, seed: int | None, parent: str | None, after: Record | None = None
) -> dict[str, str]:
    """Return the tags of a trial's tracked run.

    Args:
        spec: of the study.
        number: of the trial.
        seed: that it is trained again with, or None.
        parent: the study's tracked run, or None.
        after: the trial whose run this one's goes on from, or None.
    """
    tags = {"vesalius_study": spec.name, "vesalius_trial": str(number)}
    if seed is not None:
        tags["vesalius_seed"] = str(seed)
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    if after is not None:
        tags["vesalius_parent_trial"] = str(after.number)
        tags["vesalius_parent_weights"] = after.weights_sha256
    return tags


def track_trial(run: RunFolder, figures: Mapping[str, float]) -> None:
    """Log what a trial came to and what it took, under ``trial/``.

    Raises:
        RunError: its tracked run is gone.
    """
    outbox = outbox_of(run)
    if outbox is not None:
        outbox.log_metrics({f"{FIGURES}{name}": value for name, value in figures.items()})


def track_stop(run: RunFolder, record: Record) -> None:
    """Log where a trial was stopped: hundredths of its training, and the criterion's best pass.

    Raises:
        RunError: its tracked run is gone.
    """
    outbox = outbox_of(run)
    if outbox is not None:
        outbox.log_metrics({PERCENT: record.percent, PASSED: record.passed})


def _begin(uri: str, spec: StudySpec) -> str:
    # Drivers that share a study agree on its terms, and each has a token of its own.
    key = digest(spec.terms()) if spec.shared else spec.token
    found = tracking.find_run(uri, spec.experiment, {KEY: key})
    if found is not None:
        tracking.resume_run(uri, found)
        return found
    settings: dict[str, Any] = {
        **{name: getattr(spec, name) for name in ("method", "preset", "sampler", "pruner", "seed", "trials")},
        **{name: getattr(spec, name) for name in ("concurrent", "num_workers", "cpus", "gpus", "storage")},
        **{name: list(getattr(spec, name)) for name in ("objectives", "learn_from")},
        "criterion": spec.criterion,
        "start_from": "" if spec.start is None else spec.start.text,
        "start_sha256": spec.start_sha256,
        **({} if spec.population is None else spec.population.model_dump()),
        **{f"space.{one.key}": one.text() for one in spec.searched},
    }
    tags = {KEY: key, "vesalius_study": spec.name, "method": spec.method, "cohort_digest": spec.cohort_digest}
    return tracking.start_run(uri, spec.experiment, spec.name, settings, tags)


def _ended(found: Analysis) -> int:
    return sum(found.counts.get(state, 0) for state in COUNTED)


def _note(uri: str, parent: str, study: StudyFolder, found: Analysis, home: Path) -> None:
    """Log counts, the best beside the start, and which trials are the best."""
    rows = {row.number: row for row in found.trials}
    numbers: dict[str, float] = {f"trials/{state}": float(count) for state, count in found.counts.items()}
    for word, number in (("best", found.best), ("start", found.start)):
        if number is not None:
            numbers |= {f"{word}/{name}": value for name, value in rows[number].figures.items()}
    seeds = compare_seeds(study, found)
    if seeds is not None and seeds.mean is not None:
        numbers["seeds/difference"] = seeds.mean
        if seeds.interval is not None:
            numbers["seeds/low"], numbers["seeds/high"] = seeds.interval
    tracking.log_metrics(uri, parent, numbers, step=_ended(found))
    before = tracking.tags_of(uri, parent).get(_BEST, "")
    now = ",".join(map(str, found.front))
    if before == now:
        return
    for number in {*found.front, *(int(one) for one in before.split(",") if one.isdigit())}:
        if number in rows:
            _mark(rows[number].run, home, number in found.front)
    tracking.tag_run(uri, parent, {_BEST: now, "vesalius_best_runs": ",".join(rows[one].run for one in found.front)})


def _mark(run_id: str, home: Path, is_best: bool) -> None:
    with contextlib.suppress(VesaliusError):  # a run of another driver lies in another home
        tracked = tracked_as(find_run(home, run_id).spec)
        if tracked is not None:
            tracking.tag_run(*tracked, {_BEST: str(is_best).lower()})
