"""What a job came to, read from the last line of its log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vesalius.infra.console import INTERRUPTED
from vesalius.infra.jobs.driver import OUTCOME
from vesalius.infra.jobs.records import JobBook, describe, settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.infra.jobs.cluster import Cluster
    from vesalius.infra.jobs.records import JobRecord


def follow(record: JobRecord, cluster: Cluster, home: Path, write: Callable[[str], None]) -> dict[str, Any]:
    """Hand on a job's log until it has ended, keep how it ended, and return what it came to.

    Raises:
        JobError: the cluster does not answer any more, or has forgotten the job.
    """
    found = cluster.follow(record.last.submission, _without_outcome(write))
    record = settle(record, {record.last.submission: found})
    JobBook(home).update(record.job, record.last)
    return came_to(record, cluster)


def came_to(record: JobRecord, cluster: Cluster) -> dict[str, Any]:
    """Return what a job that has ended came to: its record, and the run that it tracked.

    Raises:
        JobError: the cluster does not answer.
    """
    lines = cluster.log(record.last.submission).splitlines()
    said: dict[str, Any] = {}
    for line in reversed(lines):
        if line.startswith(OUTCOME):
            said = json.loads(line.removeprefix(OUTCOME))
            break
    tracked = {key: said.get(key) for key in ("mlflow_run_id", "mlflow_tracking_uri")}
    return {**describe(record), **tracked}


def exit_code(document: dict[str, Any]) -> int:
    """Return the code that whoever waits for a job ends with: the verb's own where it ended by itself."""
    if document["exit_code"] is not None:
        return int(document["exit_code"])
    return {"SUCCEEDED": 0, "STOPPED": INTERRUPTED}.get(document["status"], 1)


def _without_outcome(write: Callable[[str], None]) -> Callable[[str], None]:
    """Return a writer that holds a line back until it is whole, and leaves the outcome out: it is for programs."""
    rest = ""

    def written(text: str) -> None:
        nonlocal rest
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if not line.startswith(OUTCOME):
                write(f"{line}\n")

    return written
