"""``vesalius submit``, ``jobs``, ``logs``, ``stop`` and ``retry``: verbs that run on a cluster."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, home_folder
from vesalius.infra.console import INTERRUPTED, Terminal

if TYPE_CHECKING:
    from vesalius.infra.jobs.records import JobRecord

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="See `vesalius jobs`.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Of a Ray dashboard, http://HOST:8265 (default: $RAY_API_SERVER_ADDRESS, else that of `vesalius up`)"
    ),
]
OtherAddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Of another Ray dashboard, http://HOST:8265 (default: the job's own cluster)"),
]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Show the log until the job ends, and end with its exit code.")
]


def submit(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- VERB ...", help="train, tune, ingest, score or evaluate, as it is called here."),
    ] = None,
    address: AddressOption = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs of each worker; of score and evaluate, of the verb itself.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Workers of train, tune, ingest or score.")] = None,
    follow: FollowOption = False,
    remote_home: Annotated[
        str | None,
        typer.Option(help="Folder of runs that all of the cluster's machines see, where it is not --home itself."),
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(min=0, help="Times that `vesalius up` submits it again if its cluster or machine ended it."),
    ] = 3,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a verb on a Ray cluster, with the code that is installed here.

    What is wrong with the command is said here, in the verb's own words, before anything is submitted; so is a cluster
    of another Python, Ray, torch or vesalius, and a store that it does not see. Ctrl-C leaves a job that is followed
    running and says how to come back to it.
    """
    with Terminal(as_json, resume_hint="vesalius jobs") as terminal:
        from vesalius.infra.jobs import command as commands
        from vesalius.infra.jobs import submission

        folder = home_folder(home, join=False)
        read = commands.read_command(command or [], workers=workers, gpus=gpus, home=folder)
        record = submission.submit(
            read, home=folder, address=address, remote_home=remote_home, restarts=restarts, say=terminal.say
        )
        _after_submission(terminal, record, folder, follow=follow)


def jobs(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the jobs that were submitted from this home, with what their clusters say of them now."""
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.infra.jobs import records, submission

        folder = home_folder(home, join=False)
        found, silent = submission.refresh(folder)
        for sentence in silent:
            terminal.warn(sentence)
        rows = [records.describe(one) for one in records.newest_first(found)]
        shown = tables.jobs(rows) if rows else "no job was submitted from this home: vesalius submit -- train ..."
        notes = [f"{row['job']}: {row['message']}" for row in rows if row["message"]]
        lost = [
            f"lost with its cluster; to go on: vesalius retry {row['job']}" for row in rows if row["status"] == "LOST"
        ]
        terminal.result({"jobs": rows}, shown, *notes, *lost)


def logs(
    job: JobArgument,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Show what this attempt has written (default: the last one).")
    ] = None,
    follow: FollowOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a job has written.

    With --follow it goes on until the job ends, and ends with the job's exit code. Of attempts that were lost with
    their cluster, `vesalius up` keeps the end.
    """
    with Terminal(as_json, resume_hint=f"vesalius logs {job}") as terminal:
        from vesalius.infra.jobs import outcome, records, submission
        from vesalius.infra.services.state import ServicesFolder
        from vesalius.platform.errors import JobError

        folder = home_folder(home, join=False)
        record = records.JobBook(folder).read(job)
        number = len(record.attempts)
        job_log = ServicesFolder(folder).job_log
        if attempt is None:
            for earlier, one in enumerate(record.attempts[:-1], 1):
                if records.was_lost(one) and job_log(one.submission).is_file():
                    terminal.say(f"attempt {earlier} was lost; its end: vesalius logs {job} --attempt {earlier}")
        else:
            record = record.until(attempt)
        is_earlier = len(record.attempts) < number
        kept = job_log(record.last.submission)
        # The job may have gone on elsewhere since, and what is kept of an earlier attempt is all that there will be.
        cluster = None if is_earlier and kept.is_file() else submission.reach(record.address, folder)
        if cluster is not None and cluster.job(record.last.submission) is not None:
            if follow:
                _follow(terminal, record, folder, is_earlier=is_earlier)
                return
            text, code = cluster.log(record.last.submission), 0
        else:
            record = records.settle(record, {})
            if is_earlier:
                forgotten = f"the cluster at {record.address} does not know attempt {attempt} of job '{job}'"
                shown = f"this is what attempt {attempt} had written"
            else:
                forgotten = f"the cluster at {record.address} has forgotten job '{job}' and its log: it was restarted"
                shown = "the cluster was restarted, and this is what the job had written"
            is_over = is_earlier or record.last.status == "SUCCEEDED"
            advice = "" if is_over else f"; to go on: `vesalius retry {job}`"
            if not kept.is_file():
                raise JobError(forgotten + advice)
            terminal.warn(shown + advice)
            text = kept.read_text(errors="replace")
            code = outcome.exit_code(records.describe(record)) if follow else 0
        terminal.result({"job": job, "submission": record.last.submission, "log": text}, text.rstrip("\n"))
        if code:
            raise typer.Exit(code)


def stop(job: JobArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop a job. What it trains or drives keeps its checkpoints: `vesalius retry JOB` goes on from them."""
    with Terminal(as_json, resume_hint=f"vesalius stop {job}") as terminal:
        from vesalius.infra.jobs import records, submission

        record = submission.stop(job, home=home_folder(home, join=False))
        document = records.describe(record)
        hint = f"Next: vesalius retry {job}" if record.last.status != "SUCCEEDED" else "it had come to its end"
        terminal.result(document, f"{job}: {record.last.status}", hint)


def retry(
    job: JobArgument,
    address: OtherAddressOption = None,
    follow: FollowOption = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Take the code that is here now, not that of the last attempt.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a job again that failed, was stopped, or was lost with its cluster.

    A training goes on from its last checkpoint and a study where it was; what had not begun is begun.
    """
    with Terminal(as_json, resume_hint="vesalius jobs") as terminal:
        from vesalius.infra.jobs import submission

        folder = home_folder(home, join=False)
        record = submission.retry(job, home=folder, address=address, rebuild=rebuild, say=terminal.say)
        _after_submission(terminal, record, folder, follow=follow)


def _after_submission(terminal: Terminal, record: "JobRecord", home: Path, *, follow: bool) -> None:
    from vesalius.infra import tables
    from vesalius.infra.jobs import records

    if follow:
        terminal.say(f"job {record.job}, submitted to {record.address}")
        _follow(terminal, record, home)
        return
    document = records.describe(record)
    rows: list[tuple[str, object]] = [
        (key, document[key]) for key in ("job", "status", "attempt", "run", "study", "address", "wheel")
    ]
    terminal.result(
        document,
        tables.key_values([(key, value) for key, value in rows if value is not None]),
        f"\nNext: vesalius logs {record.job} --follow",
    )


def _follow(terminal: Terminal, record: "JobRecord", home: Path, *, is_earlier: bool = False) -> None:
    """Show a job's log until it ends, then what it came to; end with its exit code.

    Of an earlier attempt nothing follows for the job, which another one has gone on with.
    """
    from vesalius.infra import tables
    from vesalius.infra.jobs import outcome, submission

    cluster = submission.reach(record.address, home)
    try:
        document = outcome.follow(record, cluster, home, _write)
    except KeyboardInterrupt:
        terminal.warn(
            f"detached: job {record.job} goes on; to come back: vesalius logs {record.job} --follow, to stop it: "
            f"vesalius stop {record.job}"
        )
        raise typer.Exit(INTERRUPTED) from None
    rows: list[tuple[str, object]] = [
        (key, document[key])
        for key in ("job", "status", "exit_code", "run", "study", "mlflow_run_id", "mlflow_tracking_uri")
    ]
    if document["message"]:
        rows.append(("message", document["message"]))
    terminal.result(document, tables.key_values([(key, value) for key, value in rows if value is not None]))
    code = outcome.exit_code(document)
    if code:
        if not is_earlier:
            terminal.say(f"to go on: vesalius retry {record.job}")
        raise typer.Exit(code)


def _write(text: str) -> None:
    """Write a job's log to stderr: stdout holds the result alone."""
    sys.stderr.write(text)
    sys.stderr.flush()
