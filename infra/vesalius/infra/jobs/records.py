"""What is kept of a job on this side: enough to submit it again when the cluster has forgotten it.

::

    HOME/jobs/
      <job>.json    a record; replaced as a whole
      <job>.lock    held while the job is submitted or stopped
      .lock         held for the moment in which a record is altered
      wheels/       the code that jobs were submitted with, by its digest
      clusters/     what clusters said of themselves
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import re
import time
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import Field

from vesalius.infra.services.credentials import keep
from vesalius.platform.config import Settings, validate
from vesalius.platform.errors import JobError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "REFUSED", "LOST", "UNKNOWN"]
"""Ray's words for a job; REFUSED where the cluster would not have it, LOST where a restarted one has forgotten a
job that had not ended, UNKNOWN where the cluster does not answer."""

ENDED: tuple[Status, ...] = ("SUCCEEDED", "FAILED", "STOPPED", "REFUSED")
_BUSY_SECONDS, _BETWEEN_SECONDS = 1.0, 0.05
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Attempt(Settings):
    """One submission of a job.

    Attributes:
        submission: Ray's id for it.
        session: of the cluster; another one later means that it was restarted.
        wheel: file name of the code.
        wheel_sha256: its digest.
        submitted: UTC, ISO 8601.
        status: as last heard.
        exit_code: of the verb, once it has ended by itself.
        message: Ray's, where it says why there is no exit code.
        restart: whether the supervisor has submitted it.
    """

    submission: str
    session: str
    wheel: str
    wheel_sha256: str
    submitted: str
    status: Status = "PENDING"
    exit_code: int | None = None
    message: str = ""
    restart: bool = False


class JobRecord(Settings):
    """A job.

    Attributes:
        job: its name.
        command: the verb and its arguments, complete, paths absolute; nothing in it is secret.
        address: of the cluster's Jobs API.
        home: of runs on the cluster.
        folder: that the command was typed in, or None where the cluster does not see it.
        run: name of the run that it trains, or None.
        study: of the study that it drives, or None.
        cpus: cores reserved for the verb itself, which computes where it has no workers.
        gpus: GPUs likewise.
        environment: variables that travel.
        packages: versions that the cluster was found to have.
        restarts: times that the supervisor may submit it again where its cluster or machine has ended it.
        attempts: submissions, the last one last.
    """

    job: str
    command: tuple[str, ...]
    address: str
    home: str
    folder: str | None = None
    run: str | None = None
    study: str | None = None
    cpus: float = 0
    gpus: float = 0
    environment: dict[str, str]
    packages: dict[str, str]
    restarts: int = Field(3, ge=0)
    attempts: tuple[Attempt, ...] = ()

    @property
    def last(self) -> Attempt:
        """The last attempt."""
        return self.attempts[-1]

    def changed(self, **changes: Any) -> JobRecord:
        """Return the record with its last attempt changed."""
        return self.model_copy(update={"attempts": (*self.attempts[:-1], self.last.model_copy(update=changes))})


class JobBook:
    """``HOME/jobs``."""

    def __init__(self, home: Path) -> None:
        self.path = home / "jobs"
        self.wheels = self.path / "wheels"
        self.clusters = self.path / "clusters"

    def make(self) -> None:
        """Make the folders that are not there."""
        for folder in (self.wheels, self.clusters):
            folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Return the names of all jobs."""
        return sorted(path.stem for path in self.path.glob("*.json") if _JOB.fullmatch(path.stem))

    def read_all(self) -> tuple[list[JobRecord], list[str]]:
        """Return all records, and a sentence for each file that is none: one of them is no reason to see no others."""
        records = []
        problems = [
            f"{path} has a name that no job can have, so nobody looks after it: remove it"
            for path in sorted(self.path.glob("*.json"))
            if not _JOB.fullmatch(path.stem)
        ]
        for name in self.names():
            try:
                records.append(self.read(name))
            except JobError as error:
                problems.append(str(error))
        return records, problems

    def read(self, job: str) -> JobRecord:
        """Return a job's record.

        Raises:
            JobError: there is none of that name (the nearest one is named), or it is damaged.
        """
        path = self.path / f"{job}.json"
        try:
            if not _JOB.fullmatch(job):
                raise FileNotFoundError
            record = validate(JobRecord, json.loads(path.read_text()), str(path))
            if not record.attempts:
                raise ValueError("a job was submitted at least once")
        except FileNotFoundError:
            near = difflib.get_close_matches(job, self.names(), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "see `vesalius jobs`"
            raise JobError(f"there is no job '{job}' in {self.path}: {hint}") from None
        except (OSError, ValueError, SettingError):
            raise JobError(f"{path} is damaged: remove it, and submit the job anew") from None
        return record

    def write(self, record: JobRecord) -> None:
        """Replace a job's record, whatever others have written: for one that is new."""
        keep(self.path / f"{record.job}.json", record.model_dump_json(indent=1))

    def change(self, job: str, how: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Alter a record as it is now, and return it: others write too, and what was read a while ago is old.

        Raises:
            JobError: there is none of that name, or it is damaged.
        """
        with (self.path / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            record = how(self.read(job))
            self.write(record)
        return record

    def update(self, job: str, heard: Attempt) -> JobRecord:
        """Keep what was heard of an attempt and return the record, which may have another one since.

        What has ended stays as it ended: who says otherwise has asked before.

        Raises:
            JobError: there is no such job, or its record is damaged.
        """

        def with_it(record: JobRecord) -> JobRecord:
            attempts = tuple(
                heard if one.submission == heard.submission and one.status not in ENDED else one
                for one in record.attempts
            )
            return record.model_copy(update={"attempts": attempts})

        return self.change(job, with_it)

    @contextlib.contextmanager
    def alone(self, job: str) -> Iterator[None]:
        """Hold a job while it is submitted or stopped.

        Raises:
            JobError: another process does that.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        with (self.path / f"{job}.lock").open("a") as file:
            while not _taken(file, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise JobError(f"job '{job}' is being submitted or stopped by another process: see `vesalius jobs`")
                time.sleep(_BETWEEN_SECONDS)
            yield

    def is_held(self, job: str) -> bool:
        """Return whether a job is being submitted or stopped."""
        try:
            with (self.path / f"{job}.lock").open() as file:
                return not _taken(file, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False


def _taken(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def settle(record: JobRecord, known: Mapping[str, Any] | None) -> JobRecord:
    """Return a record with what its cluster says of the last attempt.

    Args:
        record: as kept.
        known: Ray's details by submission, or None where the cluster does not answer.
    """
    last = record.last
    if last.status in ENDED:
        return record
    if known is None:
        return record.changed(status="UNKNOWN")
    found = known.get(last.submission)
    if found is None:
        return record.changed(status="LOST")
    status, code = str(found.status.value), found.driver_exit_code
    says_why = status == "FAILED" and code is None  # else the log does, at length
    message = " ".join((found.message or "").split())[:300] if says_why else ""
    return record.changed(status=status, exit_code=code, message=message)


def was_lost(attempt: Attempt) -> bool:
    """Return whether its cluster or its machine has ended an attempt, and neither it itself nor anybody else.

    A verb that has come to an end of its own, good or bad, would come to the same again.
    """
    killed = attempt.exit_code is None or attempt.exit_code < 0 or attempt.exit_code > 128
    return attempt.status == "LOST" or (attempt.status == "FAILED" and killed)


def restarts_left(record: JobRecord) -> int:
    """Return how often the supervisor may still submit a job; what was submitted by hand does not count."""
    return record.restarts - sum(one.restart for one in record.attempts)


def describe(record: JobRecord) -> dict[str, Any]:
    """Return what ``vesalius jobs`` says of a job."""
    last = record.last
    return {
        "job": record.job,
        "status": last.status,
        "exit_code": last.exit_code,
        "attempt": len(record.attempts),
        "submitted": last.submitted,
        "command": list(record.command),
        "run": record.run,
        "study": record.study,
        "address": record.address,
        "submission": last.submission,
        "wheel": last.wheel,
        "message": last.message,
    }


def newest_first(records: Sequence[JobRecord]) -> list[JobRecord]:
    """Return jobs, the one submitted last at the head."""
    return sorted(records, key=lambda one: one.last.submitted, reverse=True)
