"""Servers that die in mid-training: training goes on, and what they missed reaches them later, in order, once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from vesalius.platform.runs import find_run
from vesalius.platform.testing.servers import PostgreSQL, TrackingServer
from vesalius.platform.testing.training_runs import logged_steps
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def tracking(tmp_path: Path, postgresql: PostgreSQL) -> Iterator[TrackingServer]:
    (tmp_path / "mlflow").mkdir()
    server = TrackingServer(tmp_path / "mlflow", postgresql.address())
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _train(home: Path, tracking: TrackingServer, *more: str) -> subprocess.Popen[bytes]:
    with (home / "train.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", "from vesalius.infra.cli import main; main()", "train", *more, "--home", str(home)],
            env={**os.environ, "MLFLOW_TRACKING_URI": tracking.address},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _new(
    store: CohortStore, home: Path, tracking: TrackingServer, epochs: int, workers: int = 0
) -> subprocess.Popen[bytes]:
    settings = [f"method.epochs={epochs}", "training.checkpoint_every=50", "training.log_every=5", "training.threads=1"]
    changes = [part for one in settings for part in ("--set", one)]
    arguments = ["implicit_field", str(store.path), "--preset", "tiny", "--name", "run", *changes]
    return _train(home, tracking, *arguments, "--workers", str(workers))


def _end(driver: subprocess.Popen[bytes]) -> None:
    """Kill a driver and what it started: they share its session, which is nobody else's."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process.pid) == driver.pid:
                process.kill()
    driver.wait(30)


def _wait(condition: Callable[[], object], driver: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        said = (home / "train.log").read_text()[-3000:]
        assert driver.poll() is None, f"training ended before its time: {said}"
        assert time.monotonic() < deadline, f"nothing came of it in four minutes: {said}"
        time.sleep(0.1)


def _last(home: Path) -> str:
    if not (home / "runs" / "run" / "run.json").is_file():
        return ""
    return Checkpoints(find_run(home, "run").checkpoints).last() or ""


def _tracked(run: RunFolder) -> tuple[str, dict[str, list[int]]]:
    """Return a tracked run's status, and the steps of each of its training's metrics in the order of their arrival."""
    from mlflow import MlflowClient

    spec = run.spec
    client = MlflowClient(tracking_uri=spec.mlflow_tracking_uri)
    found = client.get_run(spec.mlflow_run_id)
    keys = [key for key in found.data.metrics if not key.startswith("system/")]
    histories = {key: client.get_metric_history(spec.mlflow_run_id, key) for key in keys}
    return found.info.status, {key: [one.step for one in history] for key, history in histories.items()}


def _assert_nothing_is_missing(run: RunFolder) -> None:
    status, steps = _tracked(run)
    assert status == "FINISHED"
    losses = [key for key in steps if key.startswith("decoder/") and key.endswith("loss")]
    assert losses, sorted(steps)
    for key in losses:
        assert steps[key] == sorted(set(steps[key])), f"{key} arrived out of order or twice"
        assert steps[key] == logged_steps(run)
    assert not (run.path / "unsent_metrics.jsonl").read_text()
    assert not (run.path / "untold.jsonl").read_text()


@pytest.mark.parametrize(
    ("victim", "workers"),
    [
        pytest.param("server", 0, id="server"),
        pytest.param("database", 0, id="database"),
        pytest.param("server", 1, id="server-of-a-worker"),
    ],
)
def test_a_tracking_server_that_dies_and_returns_has_missed_nothing(
    toy_store: CohortStore, tmp_path: Path, tracking: TrackingServer, postgresql: PostgreSQL, victim: str, workers: int
) -> None:
    driver = _new(toy_store, tmp_path, tracking, 4000, workers)
    try:
        _wait(lambda: _last(tmp_path), driver, tmp_path)
        if victim == "server":
            tracking.kill()
        else:
            postgresql.stop()
        stood = _last(tmp_path)
        _wait(lambda: _last(tmp_path) > stood, driver, tmp_path)
        time.sleep(3)
        if victim == "server":
            tracking.start()
        else:
            postgresql.start()
        assert driver.wait(600) == 0, (tmp_path / "train.log").read_text()[-3000:]
    finally:
        _end(driver)
    _assert_nothing_is_missing(find_run(tmp_path, "run"))


def test_a_run_that_ends_without_its_server_tells_it_later(
    toy_store: CohortStore, tmp_path: Path, tracking: TrackingServer
) -> None:
    driver = _new(toy_store, tmp_path, tracking, 2500)
    try:
        _wait(lambda: _last(tmp_path), driver, tmp_path)
        tracking.kill()
        # Killed too, and gone on with, while nothing answers.
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait(30)
        driver = _train(tmp_path, tracking, "--resume", "run")
        assert driver.wait(600) == 0, (tmp_path / "train.log").read_text()[-3000:]
    finally:
        _end(driver)
    run = find_run(tmp_path, "run")
    assert run.state == "finished"
    assert (run.path / "untold.jsonl").read_text(), "how it ended waits"
    assert "sent later" in (tmp_path / "train.log").read_text()
    ended = time.time()
    tracking.start()
    assert _train(tmp_path, tracking, "--resume", "run").wait(300) == 0
    _assert_nothing_is_missing(run)
    from mlflow import MlflowClient

    info = MlflowClient(tracking_uri=tracking.address).get_run(str(run.spec.mlflow_run_id)).info
    assert info.end_time / 1000 <= ended, "it ended when it did, not when the server was told"
