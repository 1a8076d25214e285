"""What waits for a tracking server on a disk that is full: one sentence, nothing half-written, nothing hidden."""

from __future__ import annotations

import json
import resource
import time
from typing import TYPE_CHECKING

import pytest

from vesalius.platform import tracking
from vesalius.platform.errors import DiskSpaceError
from vesalius.platform.tracking import Outbox, RunLogger
from vesalius.platform.tracking.journal import Journal, Point, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POINT = Point("loss", 1.0, 0, 1)
LIMIT = 4096


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('home')}/mlflow.db"


@pytest.fixture
def run(uri: str) -> str:
    return tracking.start_run(uri, "vesalius", "run", {})


@pytest.fixture
def full() -> Iterator[Callable[[], None]]:
    """Return what lets no file grow beyond :data:`LIMIT` bytes from then on: a full disk says much the same."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_sentence_and_leaves_whole_lines(tmp_path: Path, full: Callable[[], None]) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    full()
    kept = 0

    def fill() -> None:
        nonlocal kept
        while kept < LIMIT:
            journal.add([Point("loss", 1.0, 0, kept)])
            kept += 1

    with pytest.raises(DiskSpaceError, match=rf"{path}: the disk or quota is full"):
        fill()
    assert kept > 10
    text = path.read_text()
    assert text.endswith("}\n"), "half a line would spoil the next one"
    assert len(text) > LIMIT - 100
    assert [point.step for point in read(path)] == list(range(kept))
    journal.clear()
    journal.add([POINT])  # there is room again
    journal.close()
    assert read(path) == [POINT]


def test_closing_after_a_full_disk_raises_nothing(tmp_path: Path, full: Callable[[], None]) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    full()
    with pytest.raises(DiskSpaceError):
        journal.add([POINT] * LIMIT)
    journal.close()
    assert read(journal.path) == []


def test_beginning_on_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path, full: Callable[[], None]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(vars(POINT)) + "\n" for _ in range(LIMIT)))
    full()
    with pytest.raises(DiskSpaceError, match=r"metrics\.jsonl: the disk or quota is full"):
        Journal(path)
    assert len(read(path)) == LIMIT
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_says_so_through_the_logger_and_hides_no_other_error(
    uri: str, run: str, tmp_path: Path, full: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(MlflowClient, "log_batch", _away)
    logger = RunLogger(uri, run, unsent=tmp_path / "run" / "metrics.jsonl", flush_seconds=0.01)
    full()

    def fill() -> None:
        for step in range(LIMIT):
            logger.metrics(step, {"loss": 1.0})

    try:
        with pytest.raises(DiskSpaceError, match=r"metrics\.jsonl: the disk or quota is full"):
            fill()
        with pytest.raises(DiskSpaceError):
            logger.metrics(LIMIT, {"loss": 1.0})
    finally:
        logger.close()  # raises nothing, or it would take the place of what is on its way here


def test_what_cannot_be_cleared_is_sent_again_to_no_harm(
    uri: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"

    def refuse(_: Journal) -> None:
        raise DiskSpaceError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "clear", refuse)
        logger = RunLogger(uri, run, unsent=path, flush_seconds=0.01)
        logger.metrics(1, {"loss": 1.0})
        while not tracking.client(uri).get_metric_history(run, "loss"):
            time.sleep(0.05)
        assert logger._thread.is_alive(), "what cannot be cleared must not end what sends"
        logger.metrics(2, {"loss": 2.0})
        logger.close()
    RunLogger(uri, run, unsent=path).close()
    assert [one.step for one in tracking.client(uri).get_metric_history(run, "loss")] == [1, 2]
    assert not path.read_text()


def test_an_outbox_on_a_full_disk_is_a_sentence(tmp_path: Path, full: Callable[[], None]) -> None:
    outbox = Outbox(tmp_path, "sqlite:////nowhere/mlflow.db", "0")
    full()
    with pytest.raises(DiskSpaceError, match="the disk or quota is full"):
        outbox.log_metrics({f"test/{number}": 1.0 for number in range(LIMIT)})
    assert not outbox.waits


def _away(*_: object, **__: object) -> None:
    raise ConnectionError("connection refused")
