"""Submit a job, stop it, submit it again."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import shlex
import time
from typing import TYPE_CHECKING, Any

from vesalius.infra import services
from vesalius.infra.jobs import environment
from vesalius.infra.jobs.cluster import ANSWER_SECONDS, Cluster
from vesalius.infra.jobs.records import ENDED, Attempt, JobBook, JobRecord, restarts_left, settle, was_lost
from vesalius.infra.jobs.wheel import Wheel, current_wheel, kept_wheel
from vesalius.platform.errors import ClusterGoneError, JobError, JobRefusedError, ServiceError
from vesalius.platform.tracking import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vesalius.infra.jobs.command import Command

TRACKED_AT = "VESALIUS_JOB_TRACKED_AT"
"""Tells a job where its runs are to be tracked where the address has a password, which does not travel."""

_STOP_SECONDS = 60.0
_LOOK_SECONDS = 20.0
"""How long a look waits for each cluster: it is one of many looks, and what it does not hear now it hears later."""


def reach(given: str | None, home: Path, *, check_version: bool = True, seconds: float = ANSWER_SECONDS) -> Cluster:
    """Return the cluster that was given, else that of ``RAY_API_SERVER_ADDRESS``, else the home's own services.

    Args:
        given: its address.
        home: of the services.
        check_version: refuse another Ray than ours.
        seconds: that it may send nothing while it is asked something.

    Raises:
        ClusterGoneError: nothing takes connections there, or the head of the home's own services has ended.
        JobError: there is none, it does not answer, or it is of another version.
        ServiceError: the home's services are damaged, on another machine, or have no head yet.
    """
    asked = given or os.environ.get("RAY_API_SERVER_ADDRESS") or None
    own = services.jobs_access(home, asked)
    if own is not None:
        try:
            return Cluster(own[0], headers=own[1], check_version=check_version, seconds=seconds)
        except ClusterGoneError as error:  # its dashboard only: the head's process lives, and so may its jobs
            raise JobError(str(error)) from None
    if asked is None:
        raise JobError(
            "there is no cluster to submit to: `vesalius up` starts one on this machine, --address http://HOST:8265 "
            "names one that runs"
        )
    return Cluster(asked, check_version=check_version, seconds=seconds)


def submit(
    command: Command,
    *,
    home: Path,
    address: str | None,
    remote_home: str | None,
    restarts: int,
    say: Callable[[str], None],
) -> JobRecord:
    """Submit a command as a new job, after a check that the cluster can run it and sees what it reads.

    Args:
        command: read and checked.
        home: of runs on this side; the job's record is kept there.
        address: of the cluster; None is that of the home's own services.
        remote_home: of runs on the cluster; None where it sees ``home`` itself.
        restarts: times that the supervisor may submit it again where its cluster or machine has ended it.
        say: told what is done.

    Raises:
        JobError: the cluster does not answer, has other versions, or does not see a path; or another process submits
            a job of the same name.
    """
    book = JobBook(home)
    book.make()
    cluster = reach(address, home)
    say(f"asking the cluster at {cluster.address} what it has")
    packages, folder = _checked(cluster, book, command, home, remote_home)
    job = (command.run or command.study or f"{command.verb}-{_stamp()}")[:85].rstrip("-._")
    if (book.path / f"{job}.json").exists():
        job = f"{job}-{secrets.token_hex(2)}"
    record = JobRecord(
        job=job,
        command=command.words,
        address=cluster.address,
        home=str(home) if remote_home is None else remote_home,
        folder=folder,
        run=command.run,
        study=command.study,
        cpus=command.cpus,
        gpus=command.gpus,
        environment=_travelling(),
        packages=packages,
        restarts=restarts,
    )
    wheel = current_wheel(book.wheels)
    with book.alone(job):
        if (book.path / f"{job}.json").exists():
            raise JobError(f"job '{job}' has just been submitted by another process: see `vesalius jobs`")
        return _submit(record, cluster, book, wheel, restart=False)


def retry(
    job: str,
    *,
    home: Path,
    address: str | None,
    rebuild: bool,
    say: Callable[[str], None],
    only_lost: bool = False,
) -> JobRecord:
    """Submit a job's command again; what it trains or drives goes on from its checkpoints.

    The cluster may have been restarted, or be another one: all that is needed is kept on this side.

    Args:
        job: its name.
        home: of runs on this side.
        address: of the cluster; None is the job's own.
        rebuild: take today's code instead of that of the last attempt.
        say: told what is done.
        only_lost: leave it alone unless it was lost and may still be restarted, and count it as a restart.

    Raises:
        JobError: there is no such job, it still runs (or nobody says so) or has come to its end, or the cluster cannot
            run it.
    """
    book = JobBook(home)
    record = book.read(job)
    with book.alone(job):
        record = book.read(job)
        cluster = reach(address or record.address, home)
        record = _as_its_own_cluster_says(record, cluster, home)
        book.update(job, record.last)
        if only_lost and not (was_lost(record.last) and restarts_left(record) > 0):
            return record
        status = record.last.status
        if status in ("PENDING", "RUNNING"):
            raise JobError(
                f"job '{job}' is {status.lower()}: look with `vesalius logs {job} --follow`, or stop it first"
            )
        if status == "SUCCEEDED":
            raise JobError(f"job '{job}' has come to its end: submit a new one")
        found = environment.report(cluster, book.clusters, [], home=home)
        packages = environment.check_versions(found, cluster.address)
        record = record.model_copy(update={"address": cluster.address, "packages": packages})
        wheel = None if rebuild else kept_wheel(book.wheels, record.last.wheel, record.last.wheel_sha256)
        if wheel is None:
            if not rebuild:
                say(f"the code of the last attempt ({record.last.wheel}) is gone: taking today's")
            wheel = current_wheel(book.wheels)
        return _submit(record, cluster, book, wheel, restart=only_lost)


def stop(job: str, *, home: Path) -> JobRecord:
    """Stop a job and return its record once it has ended; what it trains keeps its checkpoints.

    One that was lost is stopped too: it is not submitted again by itself.

    Raises:
        JobError: there is no such job, its cluster does not answer, or it does not end.
    """
    book = JobBook(home)
    book.read(job)
    with book.alone(job):
        record = book.read(job)
        cluster = reach(record.address, home)
        record = settle(record, cluster.jobs())
        if record.last.status in ("PENDING", "RUNNING"):
            cluster.stop(record.last.submission)
            deadline = time.monotonic() + _STOP_SECONDS
            while record.last.status in ("PENDING", "RUNNING") and time.monotonic() < deadline:
                time.sleep(0.3)
                found = cluster.job(record.last.submission)
                record = settle(record, {} if found is None else {record.last.submission: found})
            if record.last.status in ("PENDING", "RUNNING"):
                raise JobError(f"job '{job}' has not ended {_STOP_SECONDS:.0f} s after it was asked to: ask again")
        if was_lost(record.last):
            return book.change(job, lambda now: now.changed(status="STOPPED"))
        return book.update(job, record.last)


def refresh(home: Path) -> tuple[list[JobRecord], list[str]]:
    """Return all jobs with what their clusters say of them now, and a sentence for each that does not answer.

    What is being submitted or stopped is left to whoever does that. A record that cannot be read is a sentence too.
    """
    book = JobBook(home)
    records, silent = book.read_all()
    # After the records and before the clusters: a job whose submission is over by then is one that its cluster knows.
    left = {record.job for record in records if record.last.status in ENDED or book.is_held(record.job)}
    known: dict[str, Mapping[str, Any] | None] = {}
    settled = []
    for record in records:
        if record.job in left:
            settled.append(record)
            continue
        if record.address not in known:
            try:
                cluster = reach(record.address, home, check_version=False, seconds=_LOOK_SECONDS)
                known[record.address] = cluster.jobs()
            except (JobError, ServiceError) as error:
                silent.append(str(error))
                known[record.address] = None
        found = known[record.address]
        fresh = settle(record, found)
        if found is not None and fresh != record:  # UNKNOWN is of this moment: it is not kept
            fresh = book.update(record.job, fresh.last)
        settled.append(fresh)
    return settled, silent


def _as_its_own_cluster_says(record: JobRecord, cluster: Cluster, home: Path) -> JobRecord:
    """Return a record as the cluster says that has the last attempt; of another one's silence nothing follows.

    Raises:
        JobError: that cluster is there and does not say; what is not known to have ended is begun nowhere else.
    """
    if record.last.status in ENDED:
        return record
    if cluster.address != record.address:
        try:
            try:
                cluster = reach(record.address, home, check_version=False, seconds=_LOOK_SECONDS)
            except ClusterGoneError:
                return record.changed(status="LOST")  # whoever names another cluster knows that this one is gone
            return settle(record, cluster.jobs())  # where it falls silent now, it was there a moment ago
        except (JobError, ServiceError) as error:
            raise JobError(
                f"whether job '{record.job}' still runs where it was submitted is not known: {error}"
            ) from None
    return settle(record, cluster.jobs())


def _checked(
    cluster: Cluster, book: JobBook, command: Command, home: Path, remote_home: str | None
) -> tuple[dict[str, str], str | None]:
    """Return the cluster's versions and the folder that the command was typed in, where it sees that."""
    folder = os.getcwd()
    found = environment.report(cluster, book.clusters, [*command.paths, folder], home=home)
    packages = environment.check_versions(found, cluster.address)
    if remote_home is None and not found.sees_home:
        raise JobError(
            f"the cluster at {cluster.address} does not see {home}, where runs are kept: give --home a folder that "
            "both see, or --remote-home one that all of the cluster's machines see"
        )
    for path in command.paths:
        if not found.paths.get(path):
            raise JobError(
                f"the cluster at {cluster.address} does not see {path}: put it where all of its machines see it under "
                "that path, or give a URL (s3://...)"
            )
    return packages, folder if found.sees_home and found.paths.get(folder) else None


def _submit(record: JobRecord, cluster: Cluster, book: JobBook, wheel: Wheel, *, restart: bool) -> JobRecord:
    """Submit a job that is held; what cannot be known of it then is left to the next look at the cluster."""
    number = len(record.attempts) + 1
    submission = (
        f"{record.job}-{secrets.token_hex(2)}" if number == 1 else f"{record.job}-{number}-{secrets.token_hex(2)}"
    )
    attempt = Attempt(
        submission=submission,
        wheel=wheel.path.name,
        wheel_sha256=wheel.sha256,
        submitted=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        restart=restart,
    )
    # Kept first: a job that runs and that nobody knows of would be worse than one that was never submitted.
    if record.attempts:
        changes = {"address": record.address, "packages": record.packages}
        record = book.change(
            record.job, lambda now: now.model_copy(update={**changes, "attempts": (*now.attempts, attempt)})
        )
    else:
        record = record.model_copy(update={"attempts": (attempt,)})
        book.write(record)
    names = [("--run", record.run), ("--study", record.study), ("--folder", record.folder)]
    words = [part for flag, value in names if value is not None for part in (flag, value)]
    words = ["python", "-m", "vesalius.infra.jobs.driver", "--attempt", str(number), *words, "--", *record.command]
    try:
        cluster.submit(
            submission,
            shlex.join(words),
            wheel=wheel.path,
            environment={**record.environment, "VESALIUS_HOME": record.home, services.JOB: record.job},
            metadata={"job": record.job, "attempt": str(number), "wheel": wheel.path.name},
            cpus=record.cpus,
            gpus=record.gpus,
        )
    except JobRefusedError as error:
        book.update(record.job, attempt.model_copy(update={"status": "REFUSED", "message": str(error)}))
        raise
    except JobError as error:
        with contextlib.suppress(JobError):
            if cluster.job(submission) is not None:  # it was the answer that was lost
                return record
        raise JobError(
            f"{error}; whether job '{record.job}' has arrived there is not known yet: `vesalius jobs` says so once the "
            f"cluster answers, and `vesalius retry {record.job}` submits it where it has not"
        ) from None
    return record


def _travelling() -> dict[str, str]:
    """Return the variables of this side that a job is to find, none of them secret."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return {}
    if shown(uri) != uri:
        return {TRACKED_AT: shown(uri)}
    return {"MLFLOW_TRACKING_URI": uri}


def _stamp() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
