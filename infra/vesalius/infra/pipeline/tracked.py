"""A run and its tracking server, which may be away."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from vesalius.infra.services import JOB, JOB_SECONDS
from vesalius.platform import tracking
from vesalius.platform.errors import DiskSpaceError, RunError, UnansweredError, VesaliusError
from vesalius.platform.store.space import space_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from tenacity import RetryCallState

    from vesalius.platform.runs import RunFolder, RunSpec
    from vesalius.platform.tracking.runs import RunStatus

    T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_END_UNTOLD = "end_untold"
"""In a run's folder while its tracking server takes it for running: there before training, since at its end the disk
may be full or the process killed."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0


def tracked_as(spec: RunSpec) -> tuple[str, str] | None:
    """Return where a run is tracked and as what, or None where it is not.

    Raises:
        RunError: the store needs a password, which the environment does not hold.
    """
    if spec.mlflow_tracking_uri is None or spec.mlflow_run_id is None or tracking.is_tracking_off():
        return None
    return tracking.with_password(spec.mlflow_tracking_uri), spec.mlflow_run_id


def outbox_of(run: RunFolder) -> tracking.Outbox | None:
    """Return what a run has to tell where it is tracked, or None where it is not tracked.

    Raises:
        RunError: the store needs a password, which the environment does not hold.
    """
    tracked = tracked_as(run.spec)
    return None if tracked is None else tracking.Outbox(run.path, *tracked)


def tell_end(run: RunFolder, outbox: tracking.Outbox, status: RunStatus) -> None:
    """Tell how a training has ended, which what is wrong with the telling does not alter.

    Args:
        run: that has ended.
        outbox: its.
        status: FINISHED, or another where an error is on its way, which says more than one of the telling.
    """
    marker = run.path / _END_UNTOLD
    try:
        outbox.ended(status)
        marker.unlink(missing_ok=True)
    except DiskSpaceError as error:  # what waits has to be written down first
        if status == "FINISHED":
            _LOG.warning(
                "%s (the training is complete, and its tracking server takes it for running: tell it with `vesalius "
                "train --resume %s`)",
                error,
                run.run_id,
            )
    except VesaliusError as error:
        marker.unlink(missing_ok=True)
        if status == "FINISHED":
            _LOG.warning("%s (the training is complete)", error)


def end_again(run: RunFolder, outbox: tracking.Outbox) -> None:
    """Tell the end of a training that is complete once more, where it could not be told and its server does not know.

    Args:
        run: trained to its end.
        outbox: its.
    """
    marker = run.path / _END_UNTOLD
    tracked = tracked_as(run.spec)
    if tracked is None or not marker.exists():
        return
    try:
        is_running = tracking.is_running(*tracked)
    except UnansweredError:  # whoever asks for a finished run need not hear it: the next one does the same
        return
    except RunError:  # it is gone
        is_running = False
    if is_running:
        tell_end(run, outbox, "FINISHED")
    else:
        marker.unlink(missing_ok=True)


def await_server(begin: Callable[[], T], seconds: float, advice: str) -> T:
    """Return what ``begin`` returns, called again while its tracking server is away.

    Args:
        begin: may have to be called several times.
        seconds: how long in all.
        advice: what to do when they are over.

    Raises:
        UnansweredError: the server did not answer for all that time.
    """
    tries = Retrying(
        retry=retry_if_exception_type(UnansweredError),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
        before_sleep=_say_that_it_waits,
        reraise=True,
    )
    try:
        return tries(begin)
    except UnansweredError as error:
        raise UnansweredError(f"{error} (waited {seconds:.0f} s for it; nothing is lost: {advice})") from error


def await_server_as_job(begin: Callable[[], T]) -> T:
    """Return what ``begin`` returns; in a job it is called again while its tracking server is away.

    Nobody is there to start a job again, and the server may be back in a minute.

    Raises:
        UnansweredError: the server did not answer for as long as a job waits.
    """
    job = os.environ.get(JOB)
    if job is None:
        return begin()
    return await_server(begin, JOB_SECONDS, f"`vesalius retry {job}` once it is back")


def _say_that_it_waits(state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        _LOG.warning("%s; waiting for it", state.outcome.exception())


def resume_tracked(run: RunFolder, *, is_trial: bool = False) -> None:
    """Go on with the tracked run of a run, if it has one.

    Args:
        run: to be trained.
        is_trial: of a study, which does not end for a server that is away.

    Raises:
        RunError: the tracked run is gone, or its server is away and the run, no trial, has no checkpoint yet: one that
            has goes on without its server, which is told later.
        DiskSpaceError: there is no room to note that its end is to be told.
    """
    tracked = tracked_as(run.spec)
    if tracked is None:
        return
    with space_errors(run.path):
        (run.path / _END_UNTOLD).touch()
    try:
        tracking.resume_run(*tracked)
    except UnansweredError as error:
        if not (is_trial or run.has_checkpointed):
            raise
        _LOG.warning("%s; training goes on, and it is told later", error)
