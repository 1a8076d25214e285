"""A run and its tracking server, which may be away."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vesalius.platform import tracking
from vesalius.platform.errors import UnansweredError

if TYPE_CHECKING:
    from vesalius.platform.runs import RunFolder, RunSpec

_LOG = logging.getLogger(__name__)


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


def resume_tracked(run: RunFolder) -> None:
    """Go on with the tracked run of a run, if it has one.

    Raises:
        RunError: the tracked run is gone, or its server is away and the run has no checkpoint yet: one that has goes on
            without its server, which is told later.
    """
    tracked = tracked_as(run.spec)
    if tracked is None:
        return
    try:
        tracking.resume_run(*tracked)
    except UnansweredError as error:
        if not run.has_checkpointed:
            raise
        _LOG.warning("%s; training goes on, and it is told later", error)
