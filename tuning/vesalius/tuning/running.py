"""Drive a study: Ray Tune runs the trials, the ledger says which."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.cluster import session
from vesalius.platform.errors import StudyError, VesaliusError
from vesalius.platform.progress import silent
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.objectives import OBJECTIVES
from vesalius.tuning.resources import alive_nodes, check_resources, trial_resources
from vesalius.tuning.samplers import check_sampler
from vesalius.tuning.storage import PATIENCE_SECONDS, Patience, whole_address
from vesalius.tuning.trial import work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunSettings
    from vesalius.tuning.folder import StudyFolder
    from vesalius.tuning.noted import Elsewhere
    from vesalius.tuning.spec import StudySpec
    from vesalius.tuning.trial import Trainer

_QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the caller's to explain
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nobody reads what they write
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # how many are under way the searcher says
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, kw_only=True)
class Driven:
    """How a call ended.

    Attributes:
        is_finished: whether the study has all the trials that it was to have.
        is_exhausted: whether its spaces hold nothing new.
        is_over: whether the time that was given is over.
        is_copy: whether the folder was found to be a copy, and signs its trials with a token of its own since.
        elsewhere: what other drivers of a shared study have under way.
        seconds: the call took.
    """

    is_finished: bool
    is_exhausted: bool
    is_over: bool
    is_copy: bool
    elsewhere: Elsewhere
    seconds: float


def drive(
    study: StudyFolder,
    base: RunSettings,
    trainer: Trainer,
    *,
    budget_seconds: float | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: Progress = silent,
) -> Driven:
    """Run a study to its end from where it stands, in this process and the workers of Ray.

    Whatever broke it off before (the driver's end, a worker's, the storage's), no finished trial is run again and none
    is lost: a trial that was half-way goes on from its run's last checkpoint.

    Args:
        study: the folder.
        base: the settings that trials start from; those of the study's specification.
        trainer: how a trial is trained and judged.
        budget_seconds: after this time the call ends; trials that are under way are left for the next call.
        patience_seconds: how long a storage that is down is waited for.
        progress: called with trials ended, trials in all and a note.

    Raises:
        StudyError: another process drives the study from here, its storage does not answer or holds another study of
            this name, every trial fails, or Ray does.
        SettingError: its trials do not fit the cluster, or the package of its sampler is missing.
        VesaliusError: whatever is wrong for all trials.
    """
    begun = time.monotonic()
    asked = study.spec
    # A study may go on where a package is missing that was there when it began.
    check_sampler(asked.sampler, shared=asked.shared, num_objectives=len(asked.objectives))
    with study.alone(), session(), contextlib.ExitStack() as stack:
        import ray
        from ray.tune import RunConfig, TuneConfig, Tuner, with_resources

        is_copy = study.claim()
        spec = study.spec
        from vesalius.tuning.searcher import LedgerScheduler, LedgerSearch, LostTrials, StudyStopper

        check_resources(
            ray.cluster_resources(),
            concurrent=spec.concurrent,
            num_workers=spec.num_workers,
            cpus=spec.cpus,
            gpus=spec.gpus,
            nodes=alive_nodes(),
        )
        seen = _Last(progress)
        patience = Patience(spec.storage, patience_seconds, waiting=lambda said: seen(seen.ended, spec.trials, said))
        ledger = Ledger(spec, base, whole_address(spec.storage), patience, has_ended=study.has_ended)
        stack.callback(ledger.close)
        ledger.start_again()
        search = LedgerSearch(
            ledger,
            spec,
            study,
            deadline=None if budget_seconds is None else begun + budget_seconds,
            progress=seen,
            abandon=lambda record: trainer.abandon(spec, record),
        )
        shutil.rmtree(study.ray, ignore_errors=True)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own
            tuner = Tuner(
                with_resources(functools.partial(work, folder=study.path, trainer=trainer), trial_resources(spec)),
                tune_config=TuneConfig(
                    search_alg=search,
                    scheduler=LedgerScheduler(search),
                    num_samples=-1,
                    reuse_actors=keeps_workers(spec),
                ),
                run_config=RunConfig(
                    name=f"attempt-{secrets.token_hex(4)}",
                    storage_path=str(study.ray),
                    stop=StudyStopper(search),
                    callbacks=[LostTrials(search)],
                    verbose=0,
                    failure_config=failures(spec),
                ),
            )
            fit(tuner, study, lambda: search.error, f"vesalius tune --resume {spec.name}")
        ended, running = ledger.counts()
        return Driven(
            is_finished=ended >= spec.trials or (search.is_exhausted and not running),
            is_exhausted=search.is_exhausted,
            is_over=search.is_over(),
            is_copy=is_copy,
            elsewhere=ledger.elsewhere(),
            seconds=time.monotonic() - begun,
        )


class _Last:
    """Remembers how many trials had ended when that was last said: a storage that is down cannot tell."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.ended = 0

    def __call__(self, done: int, total: int, note: str) -> None:
        self.ended = done
        self._progress(done, total, note)


def fit(tuner: Any, study: StudyFolder, error: Callable[[], VesaliusError | None], resume: str) -> None:
    """Let Tune do its work, and remove what it writes.

    Args:
        tuner: of Ray.
        study: whose folder it writes in.
        error: returns what has ended it, where something is known to have.
        resume: the command that goes on.

    Raises:
        StudyError: Ray itself has failed.
        VesaliusError: what ``error`` returns.
    """
    from ray.exceptions import RayError
    from ray.tune import TuneError

    failed: Exception | None = None
    try:
        tuner.fit()
    except (TuneError, RayError, ConnectionError) as cause:
        failed = cause
    finally:
        shutil.rmtree(study.ray, ignore_errors=True)
    known = error()
    if known is not None:
        raise known from failed
    if failed is not None:
        lines = [line.strip() for line in str(failed.__cause__ or failed).splitlines() if line.strip()]
        said = (lines[-1] if lines else type(failed).__name__)[:300].rstrip(".:")
        raise StudyError(
            f"Ray broke off study '{study.path.name}' ({said}): nothing is lost; once the cluster is up again, go on "
            f"with `{resume}`"
        ) from failed


def keeps_workers(spec: StudySpec) -> bool:
    """Say whether the process of a trial takes on the next one."""
    # One that waits for workers of Ray Train does not hear that its trial was stopped: it ends.
    return spec.num_workers == 1 and not any(OBJECTIVES[name].of_process for name in spec.objectives)


def failures(spec: StudySpec) -> Any:
    """Return how often Tune replaces the worker of a trial that dies."""
    from ray.tune import FailureConfig

    # A worker that dies is replaced as often as one of a run is; the new one goes on from the last checkpoint.
    return FailureConfig(max_failures=spec.training.max_failures)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Set what Tune reads from the environment, and let it keep its advice to itself."""
    before = {name: os.environ.get(name) for name in _QUIET}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_QUIET)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
