"""What the supervisor takes for lost, and that it tells what has waited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra import supervisor
from vesalius.infra.jobs import submission
from vesalius.infra.jobs.records import Attempt, JobBook, JobRecord
from vesalius.infra.services import inspection
from vesalius.platform.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path


def _record(job: str, status: str, *, exit_code: int | None = None, attempts: int = 1, restarts: int = 3) -> JobRecord:
    one = Attempt(submission=job, session="s", wheel="w", wheel_sha256="0", submitted="2026-01-01T00:00:00+00:00")
    last = one.model_copy(update={"status": status, "exit_code": exit_code})
    return JobRecord(
        job=job,
        command=("train", "vq_vae", "/store"),
        address="http://127.0.0.1:1",
        home="/home",
        environment={},
        packages={},
        restarts=restarts,
        attempts=(*[one] * (attempts - 1), last),
    )


@pytest.mark.parametrize(
    ("record", "lost"),
    [
        (_record("a", "LOST"), True),
        (_record("a", "FAILED"), True),
        (_record("a", "FAILED", exit_code=-9), True),
        (_record("a", "FAILED", exit_code=137), True),
        (_record("a", "FAILED", exit_code=1), False),
        (_record("a", "FAILED", exit_code=2), False),
        (_record("a", "STOPPED"), False),
        (_record("a", "SUCCEEDED", exit_code=0), False),
        (_record("a", "RUNNING"), False),
        (_record("a", "UNKNOWN"), False),
        (_record("a", "LOST", attempts=3), True),
        (_record("a", "LOST", attempts=4), False),
        (_record("a", "LOST", restarts=0), False),
    ],
)
def test_lost_is_what_did_not_end_by_itself(record: JobRecord, lost: bool) -> None:
    assert supervisor.is_lost(record) is lost


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "services").mkdir()
    monkeypatch.setattr(inspection, "status", lambda home: [])
    return tmp_path


def test_a_job_lost_under_its_eyes_is_submitted_again_and_an_old_one_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = JobBook(home)
    book.make()
    book.write(_record("old", "LOST"))
    book.write(_record("new", "RUNNING"))
    retried: list[str] = []
    monkeypatch.setattr(submission, "retry", lambda job, **_: retried.append(job))
    said: list[str] = []
    watching = supervisor.Supervisor(home, said.append)
    found = {"old": _record("old", "LOST"), "new": _record("new", "LOST")}
    monkeypatch.setattr(submission, "refresh", lambda home: (list(found.values()), []))
    watching.look()
    assert retried == ["new"]
    assert said == ["job 'new' was lost: submitting it again, 2 more such times are left"]


def test_a_cluster_that_is_not_there_yet_is_said_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def retry(job: str, **_: Any) -> None:
        raise JobError("no cluster answers")

    said: list[str] = []
    watching = supervisor.Supervisor(home, said.append)
    monkeypatch.setattr(submission, "refresh", lambda home: ([_record("new", "LOST")], []))
    monkeypatch.setattr(submission, "retry", retry)
    watching.look()
    watching.look()
    assert said.count("no cluster answers") == 1


def test_what_a_run_had_to_tell_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.platform import tracking
    from vesalius.platform.runs import RunSpec, create_run

    uri = tracking.tracking_uri(home)
    monkeypatch.setattr(submission, "refresh", lambda home: ([], []))
    tracked = tracking.start_run(uri, "vesalius", "run", {})
    spec = RunSpec(
        run_id="run",
        method="vq_vae",
        settings={},
        store="/store",
        cohort_digest="0",
        created="2026-01-01T00:00:00Z",
        mlflow_tracking_uri=uri,
        mlflow_run_id=tracked,
    )
    run = create_run(home, spec)
    messages = [{"metrics": {"test/auroc": 0.75}, "timestamp": 1000}, {"status": "FINISHED", "timestamp": 2000}]
    (run.path / "untold.json").write_text("".join(json.dumps(one) + "\n" for one in messages))
    supervisor.Supervisor(home, print).look()
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=uri).get_run(tracked)
    assert found.data.metrics["test/auroc"] == 0.75
    assert (found.info.status, found.info.end_time) == ("FINISHED", 2000)
    assert not (run.path / "untold.json").read_text()
