"""A tracking server that is away while a study goes on: its trials wait to begin, and what has begun goes on."""

from __future__ import annotations

import logging
import resource
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.pipeline import tracked, training, trials
from vesalius.infra.pipeline.tracked import resume_tracked
from vesalius.infra.pipeline.trials import TrialTrainer
from vesalius.platform import cluster, tracking
from vesalius.platform.errors import RunError, UnansweredError
from vesalius.platform.runs import RunFolder, create_run
from vesalius.platform.testing.made_up import made_up_spec
from vesalius.platform.tracking import Outbox
from vesalius.platform.training import TrainingSettings

if TYPE_CHECKING:
    from pathlib import Path


class _Server:
    """Begins runs once it has been asked in vain for some times."""

    def __init__(self, away: int, error: type[RunError] = UnansweredError) -> None:
        self.away = away
        self.asked = 0
        self._error = error

    def start_run(self, *_: Any, **options: Any) -> str:
        self.asked += 1
        if self.asked <= self.away:
            raise self._error("no tracking server answers")
        return str(options["name"])


def _start(home: Path, server: _Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    settings = SimpleNamespace(
        method=SimpleNamespace(model_dump=lambda mode: {}), training=TrainingSettings(device="cpu")
    )
    spec = SimpleNamespace(
        name="study",
        method="vq_vae",
        store="/store",
        preset="tiny",
        training=settings.training,
        num_workers=1,
        start=None,
        source_digest="",
        population=None,
        experiment="vesalius",
        run_id=lambda number, seed: f"study-{number:04d}",
    )
    monkeypatch.setattr(trials, "base_of", lambda spec: settings)
    monkeypatch.setattr(trials, "override", lambda base, values: base)
    monkeypatch.setattr(trials, "start_run", server.start_run)
    told: Any = spec
    return TrialTrainer(home).start(told, 3, {})


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(trials, "PATIENCE_SECONDS", 1.0)


def test_a_trial_begins_once_its_server_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = _Server(away=3)
    with caplog.at_level(logging.WARNING):
        assert _start(tmp_path, server, monkeypatch) == "study-0003"
    assert server.asked == 4
    assert [record.getMessage() for record in caplog.records] == ["no tracking server answers; waiting for it"]


def test_a_server_that_stays_away_ends_the_study_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UnansweredError, match=r"waited 1 s for it; nothing is lost: go on with `vesalius tune --resume"
    ):
        _start(tmp_path, _Server(away=10_000), monkeypatch)


def test_what_is_wrong_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server(away=10_000, error=RunError)
    with pytest.raises(RunError):
        _start(tmp_path, server, monkeypatch)
    assert server.asked == 1


def test_the_end_of_a_training_that_found_no_room_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_id = tracking.start_run(uri, "vesalius", "run", {})
    run = create_run(tmp_path, made_up_spec(uri, run_id))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    card: Any = object()

    def train(run: RunFolder, *_: Any, **__: Any) -> None:
        run.set_state("finished")

    def write_model(run: RunFolder) -> Any:
        run.model.mkdir()
        (run.model / "model.json").touch()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # a full disk says much the same
        return card

    monkeypatch.setattr(cluster, "train", train)
    monkeypatch.setattr(training, "_write_model", write_model)
    monkeypatch.setattr(training, "read_card", lambda _: card)
    try:
        assert training.advance(run) is card
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tracking.is_running(uri, run_id)
    assert training.advance(run) is card
    assert not tracking.is_running(uri, run_id)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the disk or quota is full" in caplog.text
    assert "`vesalius train --resume run`" in caplog.text
    monkeypatch.setattr(tracking, "is_running", None)  # once is enough
    assert training.advance(run) is card


def test_a_finished_run_asks_for_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asked: list[str] = []

    def is_running(uri: str, run_id: str) -> bool:
        asked.append(run_id)
        raise UnansweredError("no tracking server answers")

    monkeypatch.setattr(tracking, "is_running", is_running)
    monkeypatch.setattr(tracking, "resume_run", lambda *_: None)
    run = create_run(tmp_path, made_up_spec("http://127.0.0.1:1", "0"))
    run.set_state("finished")
    run.model.mkdir()
    (run.model / "model.json").touch()
    card: Any = object()
    monkeypatch.setattr(training, "read_card", lambda _: card)
    assert training.advance(run) is card
    assert asked == [], "one that accepts connections and never answers is waited for"
    resume_tracked(run)  # a process that was killed before it could tell the end
    assert training.advance(run) is card
    assert training.advance(run) is card
    assert asked == ["0", "0"]


def test_a_trial_that_has_begun_goes_on_without_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise UnansweredError("no tracking server answers")

    monkeypatch.setattr(tracking, "resume_run", away)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = create_run(tmp_path, made_up_spec("http://127.0.0.1:1", "0"))
    with pytest.raises(UnansweredError):
        resume_tracked(run)
    resume_tracked(run, is_trial=True)
    run.note_checkpoint()
    resume_tracked(run)


@pytest.mark.parametrize("is_job", [True, False])
def test_a_job_that_goes_on_with_a_run_waits_for_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_job: bool
) -> None:
    """A later attempt of a job, whose run was created and has no checkpoint yet."""
    asked: list[str] = []

    def resume_run(uri: str, run_id: str) -> None:
        asked.append(run_id)
        raise UnansweredError("no tracking server answers") if len(asked) == 1 else RunError("it was asked twice")

    monkeypatch.setattr(tracking, "resume_run", resume_run)
    for name in ("MLFLOW_TRACKING_URI", "VESALIUS_JOB"):
        monkeypatch.delenv(name, raising=False)
    if is_job:
        monkeypatch.setenv("VESALIUS_JOB", "brain")
    run = create_run(tmp_path, made_up_spec("http://127.0.0.1:1", "0"))
    with pytest.raises(RunError, match="it was asked twice" if is_job else "no tracking server answers"):
        training.advance(run)
    assert len(asked) == 1 + is_job


def test_a_training_whose_tracked_run_is_gone_is_not_to_be_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ended(*_: Any) -> None:
        raise RunError("there is no tracked run 0")

    monkeypatch.setattr(Outbox, "ended", ended)
    run = create_run(tmp_path, made_up_spec("http://127.0.0.1:1", "0"))
    tracked.tell_end(run, Outbox(run.path, "http://127.0.0.1:1", "0"), "FINISHED")
    assert caplog.messages == ["there is no tracked run 0 (the training is complete)"]
