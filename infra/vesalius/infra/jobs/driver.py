"""What runs on the cluster: the verb itself, by the command line's own program, and a last line of what it came to.

``python -m vesalius.infra.jobs.driver --attempt 2 --run NAME --folder WHERE -- train ...``
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OUTCOME = "vesalius-outcome "
"""Begins the last line of a job's log, which is JSON: exit code, run, tracked run and where it is tracked."""


def main(words: Sequence[str]) -> int:
    """Run a verb as a job and return its exit code."""
    parser = argparse.ArgumentParser(prog="vesalius-job")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--run")
    parser.add_argument("--study")
    parser.add_argument("--folder")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(words)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    signal.signal(signal.SIGTERM, _interrupt)  # how Ray stops a job: to the verb it is Ctrl-C
    if given.folder is not None and os.path.isdir(given.folder):
        os.chdir(given.folder)
    from vesalius.platform.home import home

    folder = home()
    problem = _untracked()
    if problem is not None:
        print(f"error {problem}", file=sys.stderr)
        code = 2
    else:
        if given.attempt > 1:
            command = resumed(command, folder, run=given.run, study=given.study)
        code = _call(command)
    sys.stderr.flush()
    print(OUTCOME + json.dumps({"exit_code": code, **_tracked(folder, given.run, given.study)}), flush=True)
    return code


def resumed(command: list[str], home: Path, *, run: str | None, study: str | None) -> list[str]:
    """Return a command that goes on with what an earlier attempt has begun, or the same where it came to nothing.

    Args:
        command: the verb and its arguments.
        home: of runs and studies.
        run: that it trains, or None.
        study: that it drives, or None.
    """
    if run is not None and (home / "runs" / run / "run.json").is_file():
        return ["train", "--resume", run]
    if study is not None and (home / "studies" / study / "study.json").is_file():
        budget = [word for word in command if word.startswith("--budget=")]
        return ["tune", "--resume", study, *budget]
    return command


def _call(command: Sequence[str]) -> int:
    from vesalius.infra.cli import main as verb

    sys.argv = ["vesalius", *command]
    try:
        verb()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception:  # a defect: its traceback belongs into the log, and the outcome after it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the run is being put down
    raise KeyboardInterrupt


def _untracked() -> str | None:
    """Return why runs would be tracked elsewhere than where the job was submitted from, or None."""
    from vesalius.infra.jobs.submission import TRACKED_AT
    from vesalius.platform.tracking import shown

    wanted = os.environ.get(TRACKED_AT)
    if wanted is None or shown(os.environ.get("MLFLOW_TRACKING_URI", "").strip()) == wanted:
        return None
    return (
        f"runs are to be tracked at {wanted}, and its password does not travel with a job: set MLFLOW_TRACKING_URI to "
        "the whole address in the cluster's environment"
    )


def _tracked(home: Path, run: str | None, study: str | None) -> dict[str, Any]:
    from vesalius.platform.errors import VesaliusError
    from vesalius.platform.runs import RunFolder

    said: dict[str, Any] = {"run": run, "study": study, "mlflow_run_id": None, "mlflow_tracking_uri": None}
    if run is not None:
        try:
            spec = RunFolder(home / "runs" / run).spec
        except VesaliusError:  # it was refused before it began
            return said
        said |= {"mlflow_run_id": spec.mlflow_run_id, "mlflow_tracking_uri": spec.mlflow_tracking_uri}
    return said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
