"""MLflow runs: where they are kept, started, logged to and ended. MLflow is imported when it is first needed."""

from vesalius.platform.tracking.connection import (
    LOGIN_FOR,
    answering,
    client,
    is_tracking_off,
    shown,
    tracking_uri,
    with_password,
)
from vesalius.platform.tracking.logger import RunLogger, artifact_name, metric_key
from vesalius.platform.tracking.outbox import Outbox, outboxes, training_journal
from vesalius.platform.tracking.runs import (
    TrackedRun,
    as_param,
    end_run,
    environment,
    find_run,
    find_runs,
    is_running,
    log_metrics,
    resume_run,
    start_run,
    tag_run,
    tags_of,
)

__all__ = [
    "LOGIN_FOR",
    "Outbox",
    "RunLogger",
    "TrackedRun",
    "answering",
    "artifact_name",
    "as_param",
    "client",
    "end_run",
    "environment",
    "find_run",
    "find_runs",
    "is_running",
    "is_tracking_off",
    "log_metrics",
    "metric_key",
    "outboxes",
    "resume_run",
    "shown",
    "start_run",
    "tag_run",
    "tags_of",
    "tracking_uri",
    "training_journal",
    "with_password",
]
