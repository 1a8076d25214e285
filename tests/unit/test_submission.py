"""Submitting, stopping and looking side by side, on a cluster that is played: a job is never trained twice."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.jobs import environment, outcome, submission
from vesalius.infra.jobs.command import Command
from vesalius.infra.jobs.records import Attempt, JobBook, JobRecord, was_lost
from vesalius.infra.jobs.wheel import Wheel
from vesalius.infra.services.state import ServicesFolder
from vesalius.platform.errors import ClusterGoneError, JobError, JobRefusedError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TRAIN = Command(verb="train", values={}, words=("train", "m", "s", "--name=brain"), run="brain")


def details(status: str, code: int | None = None) -> Any:
    """Return what Ray says of a job."""
    return SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=code, message="")


class Played:
    """A cluster that knows what it was told to know."""

    def __init__(self, address: str = "http://c") -> None:
        self.address = address
        self.session = "one"
        self.known: dict[str, Any] = {}
        self.submitting: Callable[[], None] = lambda: None
        self.heard: Callable[[], None] = lambda: None

    def jobs(self) -> dict[str, Any]:
        return dict(self.known)

    def job(self, submitted: str) -> Any:
        return self.known.get(submitted)

    def submit(self, submitted: str, entrypoint: str, **_: Any) -> None:
        self.submitting()
        self.known[submitted] = details("RUNNING")
        self.heard()

    def stop(self, submitted: str) -> None:
        self.known[submitted] = details("STOPPED")

    def log(self, submitted: str) -> str:
        return ""

    def follow(self, submitted: str, write: Any) -> Any:
        return self.known[submitted]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Played:
    played = Played()
    wheel = Wheel(tmp_path / "x.whl", "0")
    monkeypatch.setattr(submission, "reach", lambda *_, **__: played)
    monkeypatch.setattr(submission, "_checked", lambda *_: ({}, None))
    monkeypatch.setattr(submission, "current_wheel", lambda folder: wheel)
    monkeypatch.setattr(submission, "kept_wheel", lambda *_: wheel)
    monkeypatch.setattr(environment, "report", lambda *_, **__: None)
    monkeypatch.setattr(environment, "check_versions", lambda *_: {})
    return played


def _submit(home: Path) -> JobRecord:
    return submission.submit(_TRAIN, home=home, address=None, remote_home=None, restarts=3, say=lambda _: None)


def _retry(home: Path, **options: Any) -> JobRecord:
    given = {"address": None, "rebuild": False, "say": lambda _: None, **options}
    return submission.retry("brain", home=home, **given)


def _look(home: Path) -> Attempt:
    (found,), silent = submission.refresh(home)
    assert silent == []
    return found.last


def test_a_look_beside_a_submission_does_not_take_the_job_for_lost(cluster: Played, tmp_path: Path) -> None:
    begun, seen = threading.Event(), threading.Event()

    def slowly() -> None:
        begun.set()
        assert seen.wait(30)

    cluster.submitting = slowly
    thread = threading.Thread(target=_submit, args=[tmp_path])
    thread.start()
    assert begun.wait(30)
    try:
        assert _look(tmp_path).status == "PENDING"
        with pytest.raises(JobError, match="is being submitted or stopped by another process"):
            _retry(tmp_path)
        with pytest.raises(JobError, match="is being submitted or stopped by another process"):
            submission.stop("brain", home=tmp_path)
    finally:
        seen.set()
        thread.join()
    assert _look(tmp_path).status == "RUNNING"
    assert len(cluster.known) == 1


def test_a_submission_that_is_over_before_the_cluster_is_asked_is_known_to_it(
    cluster: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that began while the job was being submitted, and comes to ask after that."""
    asked: list[bool] = []
    real = JobBook.is_held

    def is_held(book: JobBook, job: str) -> bool:
        asked.append(real(book, job))
        return asked[-1]

    monkeypatch.setattr(JobBook, "is_held", is_held)
    thread = threading.Thread(target=_submit, args=[tmp_path])
    cluster.submitting = lambda: time.sleep(0.5)
    thread.start()
    while thread.is_alive():
        records, _ = submission.refresh(tmp_path)
        assert all(one.last.status in ("PENDING", "RUNNING") for one in records)
    thread.join()
    assert any(asked), "no look fell into the submission"


def test_what_was_heard_of_one_attempt_does_not_undo_another(cluster: Played, tmp_path: Path) -> None:
    old = _submit(tmp_path)
    cluster.known.clear()
    assert _look(tmp_path).status == "LOST"
    new = _retry(tmp_path)
    cluster.known[old.last.submission] = details("STOPPED")
    told = outcome.follow(old, cluster, tmp_path, print)  # type: ignore[arg-type]  # a stand-in
    assert (told["submission"], told["status"]) == (old.last.submission, "STOPPED")
    kept = JobBook(tmp_path).read("brain")
    assert [one.status for one in kept.attempts] == ["STOPPED", "PENDING"]
    assert kept.last.submission == new.last.submission
    late = old.last.model_copy(update={"status": "RUNNING"})
    assert JobBook(tmp_path).update("brain", late).attempts[0].status == "STOPPED", "what has ended stays so"


def test_a_refusal_is_the_end_of_it(cluster: Played, tmp_path: Path) -> None:
    def refuse() -> None:
        raise JobRefusedError("it will not")

    cluster.submitting = refuse
    with pytest.raises(JobError, match=r"^it will not$"):
        _submit(tmp_path)
    last = _look(tmp_path)
    assert (last.status, last.message) == ("REFUSED", "it will not")
    assert not was_lost(last)
    cluster.submitting = lambda: None
    assert _retry(tmp_path).last.status == "PENDING"


def test_a_broken_connection_leaves_it_open_until_the_cluster_says(cluster: Played, tmp_path: Path) -> None:
    def break_off() -> None:
        raise JobError("it closed the connection")

    cluster.heard = break_off
    assert _submit(tmp_path).last.status == "PENDING", "it has arrived, and the answer was lost"
    assert _look(tmp_path).status == "RUNNING"
    cluster.known.clear()
    cluster.heard, cluster.submitting = (lambda: None), break_off
    with pytest.raises(JobError, match=r"closed the connection; whether job 'brain' has arrived there is not known"):
        _retry(tmp_path)
    kept = JobBook(tmp_path).read("brain").last
    assert kept.status == "PENDING"
    cluster.known[kept.submission] = details("RUNNING")  # it came late
    assert _look(tmp_path).status == "RUNNING"
    assert submission.stop("brain", home=tmp_path).last.status == "STOPPED"


@pytest.mark.parametrize("ended", [None, details("FAILED", -9), details("FAILED")])
def test_a_lost_job_that_is_stopped_is_lost_no_more(cluster: Played, tmp_path: Path, ended: Any) -> None:
    submitted = _submit(tmp_path).last.submission
    cluster.known = {} if ended is None else {submitted: ended}
    assert was_lost(_look(tmp_path))
    assert submission.stop("brain", home=tmp_path).last.status == "STOPPED"
    assert _look(tmp_path).status == "STOPPED"
    assert _retry(tmp_path, only_lost=True).last.submission == submitted, "it was stopped since"


def test_a_job_that_runs_is_not_begun_on_another_cluster(
    cluster: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _submit(tmp_path)
    other = Played("http://other")
    monkeypatch.setattr(submission, "reach", lambda given, *_, **__: other if given == "http://other" else cluster)
    with pytest.raises(JobError, match="job 'brain' is running"):
        _retry(tmp_path, address="http://other")

    why: list[Exception] = []

    def reach(given: str, *_: Any, **__: Any) -> Any:
        if given == "http://other":
            return other
        raise why[-1]

    monkeypatch.setattr(submission, "reach", reach)
    for error in (JobRefusedError("no token"), JobError("it answers 503"), ServiceError("state.json is damaged")):
        why.append(error)
        with pytest.raises(JobError, match=f"whether job 'brain' still runs .* is not known: {error}"):
            _retry(tmp_path, address="http://other")
        assert other.known == {}
    why.append(ClusterGoneError("nothing answers"))
    gone = Played()
    monkeypatch.setattr(gone, "jobs", lambda: reach("http://c"))
    monkeypatch.setattr(submission, "reach", lambda given, *_, **__: other if given == "http://other" else gone)
    with pytest.raises(JobError, match="not known: nothing answers"):
        _retry(tmp_path, address="http://other")  # it had just given its version
    monkeypatch.setattr(submission, "reach", reach)
    record = _retry(tmp_path, address="http://other")
    assert (record.address, [one.status for one in record.attempts]) == ("http://other", ["LOST", "PENDING"])


def test_a_file_that_is_no_record_hides_no_other(cluster: Played, tmp_path: Path) -> None:
    _submit(tmp_path)
    book = JobBook(tmp_path)
    (book.path / "my run.json").write_text("{}")
    (book.path / "broken.json").write_text("{")
    (found,), problems = submission.refresh(tmp_path)
    assert found.job == "brain"
    assert [one.partition(" has a name")[0].partition(" is damaged")[0] for one in problems] == [
        str(book.path / "my run.json"),
        str(book.path / "broken.json"),
    ]


def test_the_log_of_a_job_that_was_lost_is_shown(cluster: Played, tmp_path: Path) -> None:
    submitted = _submit(tmp_path).last.submission
    cluster.known.clear()
    words = ["logs", "brain", "--home", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "has forgotten job 'brain' and its log" in done.stderr
    kept = ServicesFolder(tmp_path).job_log(submitted)
    kept.parent.mkdir(parents=True)
    kept.write_text("why it was lost\n")
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (0, "why it was lost\n")
    assert "vesalius retry brain" in done.stderr


@pytest.mark.parametrize(("ended", "code", "retry"), [(None, 1, True), (details("SUCCEEDED", 0), 0, False)])
def test_whoever_follows_a_job_that_was_lost_is_told_so(
    cluster: Played, tmp_path: Path, ended: Any, code: int, retry: bool
) -> None:
    submitted = _submit(tmp_path).last.submission
    if ended is not None:
        cluster.known[submitted] = ended
        _look(tmp_path)
    cluster.known.clear()
    words = ["logs", "brain", "--follow", "--home", str(tmp_path)]
    forgotten = CliRunner().invoke(app, words)
    assert forgotten.exit_code == 2
    assert ("vesalius retry" in forgotten.stderr) is retry
    kept = ServicesFolder(tmp_path).job_log(submitted)
    kept.parent.mkdir(parents=True)
    kept.write_text("its end\n")
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (code, "its end\n"), "what follows a training on the command line asks"
    assert ("vesalius retry" in done.stderr) is retry


def test_the_log_of_an_attempt_that_another_one_has_followed_is_found(cluster: Played, tmp_path: Path) -> None:
    """With a supervisor there is another one within seconds."""
    submitted = _submit(tmp_path).last.submission
    cluster.known.clear()
    _look(tmp_path)
    _retry(tmp_path, only_lost=True)
    words = ["logs", "brain", "--home", str(tmp_path)]
    assert "attempt 1" not in CliRunner().invoke(app, words).stderr, "nothing is kept of it"
    kept = ServicesFolder(tmp_path).job_log(submitted)
    kept.parent.mkdir(parents=True)
    kept.write_text("why it was lost\n")
    assert "vesalius logs brain --attempt 1" in CliRunner().invoke(app, words).stderr
    done = CliRunner().invoke(app, [*words, "--attempt", "1", "--follow"])
    assert (done.exit_code, done.stdout) == (1, "why it was lost\n")
    assert "vesalius retry" not in done.stderr, "its next attempt is under way"
    done = CliRunner().invoke(app, [*words, "--attempt", "3"])
    assert done.exit_code == 2
    assert "job 'brain' has no attempt 3: its attempts are 1 to 2" in done.stderr


def test_an_earlier_attempt_is_looked_for_here_before_any_cluster_is_asked(
    cluster: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = _submit(tmp_path).last.submission
    cluster.known.clear()
    _look(tmp_path)
    _retry(tmp_path)
    words = ["logs", "brain", "--attempt", "1", "--home", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "does not know attempt 1 of job 'brain'" in done.stderr
    assert "restarted" not in done.stderr, "it may be another one, which never knew it"

    def reach(*_: Any, **__: Any) -> Any:
        raise JobError("nothing answers")

    monkeypatch.setattr(submission, "reach", reach)
    assert "nothing answers" in CliRunner().invoke(app, words).stderr
    kept = ServicesFolder(tmp_path).job_log(submitted)
    kept.parent.mkdir(parents=True)
    kept.write_text("why it was lost\n")
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (0, "why it was lost\n")
    assert "restarted" not in done.stderr
    assert "nothing answers" in CliRunner().invoke(app, ["logs", "brain", "--home", str(tmp_path)]).stderr


def test_whoever_follows_an_earlier_attempt_is_not_told_to_retry(cluster: Played, tmp_path: Path) -> None:
    cluster.known[_submit(tmp_path).last.submission] = details("FAILED", 3)
    words = ["logs", "brain", "--follow", "--home", str(tmp_path)]
    alone = CliRunner().invoke(app, words)
    assert alone.exit_code == 3
    assert "vesalius retry brain" in alone.stderr
    _retry(tmp_path)
    done = CliRunner().invoke(app, [*words, "--attempt", "1"])
    assert done.exit_code == 3
    assert "vesalius retry" not in done.stderr
