"""What the supervisor takes for lost, and that it tells what has waited."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra import supervisor
from vesalius.infra.jobs import submission
from vesalius.infra.jobs.records import Attempt, JobBook, JobRecord, restarts_left, was_lost
from vesalius.infra.services import inspection
from vesalius.infra.services.state import ServicesFolder
from vesalius.platform.errors import JobError, ServiceError, UnansweredError
from vesalius.platform.testing.made_up import made_up_spec

if TYPE_CHECKING:
    from pathlib import Path


def _record(
    job: str, status: str, *, exit_code: int | None = None, attempt: int = 1, by_hand: int = 0, restarts: int = 3
) -> JobRecord:
    """Return a job whose last attempt is this one; the ones before it were submitted by hand or by the supervisor."""
    plain = {"wheel": "w", "wheel_sha256": "0", "submitted": "2026-01-01T00:00:00+00:00"}
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
    assert said.count("job 'new': no cluster answers") == 1


def test_each_time_that_a_cluster_is_away_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = "nothing answers at http://c"
    problems: list[str] = []
    said: list[str] = []
    watching = supervisor.Supervisor(home, said.append)
    monkeypatch.setattr(submission, "refresh", lambda home: ([], problems))
    for now in ([away], [away], [], [away], [away]):
        problems[:] = now
        watching.look()
    assert said == [away, away]


def test_one_refused_job_keeps_no_other_from_being_saved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retried: list[str] = []

    def retry(job: str, **_: Any) -> None:
        retried.append(job)
        if job == "a":
            raise JobError("the cluster has another Ray")

    said: list[str] = []
    seconds = [0.0]
    watching = supervisor.Supervisor(home, said.append, clock=lambda: seconds[-1])
    monkeypatch.setattr(submission, "refresh", lambda home: ([_record("a", "LOST"), _record("b", "LOST")], []))
    monkeypatch.setattr(submission, "retry", retry)
    for _ in range(100):
        watching.look()
        seconds.append(seconds[-1] + 3)
    assert retried[:2] == ["a", "b"]
    assert retried.count("b") == 100, "which is still said to be lost here"
    assert 5 <= retried.count("a") <= 10, "each time after a longer while"
    assert len([sentence for sentence in said if "'a'" in sentence]) == 2, said


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), subprocess.TimeoutExpired(["up"], 600.0)])
def test_no_error_ends_the_watching(home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(home: Path) -> list[Any]:
        raise error

    retried: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(submission, "refresh", lambda home: ([_record("a", "LOST")], []))
    monkeypatch.setattr(submission, "retry", lambda job, **_: retried.append(job))
    watching = supervisor.Supervisor(home, said.append)
    monkeypatch.setattr(inspection, "status", fail)
    watching.look()
    watching.look()
    assert retried == ["a", "a"]
    assert [sentence for sentence in said if type(error).__name__ in sentence] == [said[0]]


def test_a_full_disk_under_its_own_log_ends_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    is_full = [True]

    def say(sentence: str) -> None:
        if is_full[0]:
            raise OSError(28, "No space left on device")
        said.append(sentence)

    def damaged(home: Path) -> list[Any]:
        raise ServiceError("state.json is damaged")

    retried: list[str] = []
    seconds = [0.0]
    watching = supervisor.Supervisor(home, say, clock=lambda: seconds[0])
    monkeypatch.setattr(inspection, "status", damaged)
    monkeypatch.setattr(submission, "refresh", lambda home: ([_record("a", "LOST")], []))
    monkeypatch.setattr(submission, "retry", lambda job, **_: retried.append(job))
    watching.look()
    assert retried == ["a"]
    is_full[0], seconds[0] = False, 60.0
    watching.look()
    assert "services: state.json is damaged" in said, "it could not be said before"


def test_services_that_do_not_come_up_are_tried_again_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        tried.append(seconds[-1])
        return subprocess.CompletedProcess(command, 2, "", "error port 5000 is taken")

    said: list[str] = []
    seconds = [0.0]
    dead = {"service": "mlflow", "state": "dead", "problem": "its process is gone"}
    monkeypatch.setattr(inspection, "status", lambda home: [dead])
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(submission, "refresh", lambda home: ([], []))
    watching = supervisor.Supervisor(home, said.append, clock=lambda: seconds[-1])
    for _ in range(40):
        watching.look()
        seconds.append(seconds[-1] + 3)
    assert tried[:4] == [0, 6, 18, 42]
    assert said.count("services: error port 5000 is taken") == 1


def test_a_damaged_record_is_named_once_and_hides_no_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = JobBook(home)
    book.make()
    never = _record("none", "LOST").model_copy(update={"attempts": ()}).model_dump_json()
    for name, text in (("half", '{"job": "ha'), ("empty", "{}"), ("none", never)):
        (book.path / f"{name}.json").write_text(text)
    (book.path / "folder.json").mkdir()
    said: list[str] = []
    watching = supervisor.Supervisor(home, said.append)
    retried: list[str] = []
    monkeypatch.setattr(submission, "retry", lambda job, **_: retried.append(job))
    lost = _record("good", "FAILED", exit_code=-9)
    book.write(lost)
    watching.look()
    watching.look()
    assert retried == ["good", "good"]
    damaged = sorted(sentence for sentence in said if "is damaged: remove it" in sentence)
    assert [sentence.partition(" is")[0].rpartition("/")[2] for sentence in damaged] == [
        "empty.json",
        "folder.json",
        "half.json",
        "none.json",
    ]


def test_a_run_whose_messages_cannot_be_read_keeps_none_from_being_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Box:
        def __init__(self, name: str) -> None:
            self._name = name
            self.uri = "http://away" if name.startswith("b") else "http://there"

        def deliver(self) -> None:
            asked.append(self._name)
            if self._name == "a":
                raise ValueError("not JSON")
            if self.uri == "http://away":
                raise UnansweredError("its server is away")
            told.append(self._name)

    asked: list[str] = []
    for name in ("a", "b", "b-2", "c"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "untold.jsonl").write_text("something")
    monkeypatch.setattr("vesalius.infra.pipeline.tracked.outbox_of", lambda run: Box(run.run_id))
    monkeypatch.setattr(submission, "refresh", lambda home: ([], []))
    said: list[str] = []
    watching = supervisor.Supervisor(home, said.append)
    watching.look()
    assert asked == ["a", "b", "c"], "to wait for one server once a look is enough"
    watching.look()
    assert told == ["c", "c"]
    assert said.count("run 'a': ValueError: not JSON") == 1
    assert not [sentence for sentence in said if "away" in sentence], "that is what it waits for"
    assert asked == ["a", "b", "c", "c"], "the other run of that server waits as long before it is asked for again"


def test_what_a_run_had_to_tell_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.platform import tracking
    from vesalius.platform.runs import create_run

    uri = tracking.tracking_uri(home)
    monkeypatch.setattr(submission, "refresh", lambda home: ([], []))
    tracked = tracking.start_run(uri, "vesalius", "run", {})
    run = create_run(home, made_up_spec(uri, tracked))
    messages = [{"metrics": {"test/auroc": 0.75}, "timestamp": 1000}, {"status": "FINISHED", "timestamp": 2000}]
    (run.path / "untold.jsonl").write_text("".join(json.dumps(one) + "\n" for one in messages))
    supervisor.Supervisor(home, print).look()
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=uri).get_run(tracked)
    assert found.data.metrics["test/auroc"] == 0.75
    assert (found.info.status, found.info.end_time) == ("FINISHED", 2000)
    assert not (run.path / "untold.jsonl").read_text()


def test_each_step_of_a_look_is_a_sign_of_life(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they may take longer than the supervisor may be silent before it is ended."""
    beat = ServicesFolder(home).beat
    seen: dict[str, bool] = {}

    def step(name: str, found: Any = None) -> Any:
        seen[name] = beat.stat().st_mtime > 0
        os.utime(beat, (0, 0))
        return found

    for name in ("run-a", "run-b"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "untold.jsonl").write_text("something")
    monkeypatch.setattr(inspection, "status", lambda home: step("services", []))
    lost = [_record("a", "LOST"), _record("b", "LOST")]
    monkeypatch.setattr(submission, "refresh", lambda home: step("jobs", (lost, [])))
    monkeypatch.setattr(submission, "retry", lambda job, **_: step(job))
    monkeypatch.setattr("vesalius.infra.pipeline.tracked.outbox_of", lambda run: step(run.run_id))
    supervisor.Supervisor(home, print).look()
    assert seen == dict.fromkeys(["services", "jobs", "a", "b", "run-a", "run-b"], True)
