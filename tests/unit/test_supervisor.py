"""What the supervisor takes for lost, and that it tells what has waited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra import supervisor
from vesalius.infra.jobs import submission
from vesalius.infra.jobs.records import Attempt, JobBook, JobRecord, restarts_left, was_lost
from vesalius.infra.services import inspection
from vesalius.platform.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path


def _record(
    job: str, status: str, *, exit_code: int | None = None, attempt: int = 1, by_hand: int = 0, restarts: int = 3
) -> JobRecord:
    """Return a job whose last attempt is this one; the ones before it were submitted by hand or by the supervisor."""
    plain = {"session": "s", "wheel": "w", "wheel_sha256": "0", "submitted": "2026-01-01T00:00:00+00:00"}
    attempts = [
        Attempt(submission=f"{job}-{number}", restart=number > by_hand + 1, **plain) for number in range(1, attempt + 1)
    ]
    last = attempts[-1].model_copy(update={"status": status, "exit_code": exit_code})
    return JobRecord(
        job=job,
        command=("train", "vq_vae", "/store"),
        address="http://127.0.0.1:1",
        home="/home",
        environment={},
        packages={},
        restarts=restarts,
        attempts=(*attempts[:-1], last),
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "lost"),
    [
        ("LOST", None, True),
        ("FAILED", None, True),
        ("FAILED", -9, True),
        ("FAILED", 137, True),
        ("FAILED", 1, False),
        ("FAILED", 2, False),
        ("STOPPED", None, False),
        ("REFUSED", None, False),
        ("SUCCEEDED", 0, False),
        ("RUNNING", None, False),
        ("UNKNOWN", None, False),
    ],
)
def test_lost_is_what_did_not_end_by_itself(status: str, exit_code: int | None, lost: bool) -> None:
    assert was_lost(_record("a", status, exit_code=exit_code).last) is lost


def test_what_was_submitted_by_hand_is_no_restart() -> None:
    assert restarts_left(_record("a", "LOST", attempt=4)) == 0
    assert restarts_left(_record("a", "LOST", attempt=4, by_hand=2)) == 2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "services").mkdir()
    monkeypatch.setattr(inspection, "status", lambda home: [])
    return tmp_path


class _Watched:
    """A home with one job, whose clusters say of it what is told, and what the supervisor does then."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, record: JobRecord) -> None:
        self.retried: list[str] = []
        self.said: list[str] = []
        book = JobBook(home)
        book.make()
        book.write(record)
        self.record = record
        monkeypatch.setattr(submission, "retry", lambda job, **_: self.retried.append(self.record.last.submission))
        monkeypatch.setattr(submission, "refresh", lambda home: ([self.record], []))
        self.supervisor = supervisor.Supervisor(home, self.said.append)

    def hears(self, *records: JobRecord) -> list[str]:
        """Look once for each record; return which submissions were taken for lost and submitted again."""
        for record in records:
            self.record = record
            self.supervisor.look()
        return self.retried


def test_a_job_lost_under_its_eyes_is_submitted_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched(home, monkeypatch, _record("a", "RUNNING"))
    assert watched.hears(_record("a", "UNKNOWN"), _record("a", "RUNNING"), _record("a", "LOST")) == ["a-1"]
    assert watched.said == ["job 'a' was lost: submitting it again, 2 more such times are left"]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "LOST"])
def test_a_job_lost_before_it_watched_is_left_to_its_owner(
    home: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The record says what was heard last, before the services were stopped; the head of today knows no job."""
    watched = _Watched(home, monkeypatch, _record("a", status))
    assert watched.hears(_record("a", "UNKNOWN"), _record("a", "LOST"), _record("a", "LOST")) == []
    by_hand = [_record("a", "RUNNING", attempt=2, by_hand=1), _record("a", "LOST", attempt=2, by_hand=1)]
    assert watched.hears(*by_hand) == ["a-2"], "what its owner has submitted since is watched"


def test_a_job_without_restarts_left_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched(home, monkeypatch, _record("a", "RUNNING", attempt=4))
    assert watched.hears(_record("a", "RUNNING", attempt=4), _record("a", "LOST", attempt=4)) == []


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
