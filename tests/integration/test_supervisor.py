"""Services and jobs that die under a supervisor: it brings them back, and nothing of a training is lost."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.services.state import NAMES
from vesalius.platform.runs import RunFolder
from vesalius.platform.testing.training_runs import logged_steps
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import ServedHome

    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]


def _wait(condition: Callable[[], object], home: ServedHome, what: str, seconds: float = 400.0) -> float:
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + seconds:
            log = (home.home / "services" / "logs" / "supervisor.log").read_text()[-3000:]
            raise AssertionError(f"{what} did not come in {seconds:.0f} s; the supervisor said: {log}")
        time.sleep(0.5)
    return time.monotonic() - begun


def _all_up(home: ServedHome) -> bool:
    return {row["state"] for row in home.services().values()} == {"up"}


def _job(home: ServedHome) -> dict[str, Any]:
    row: dict[str, Any] = home.ask("jobs")["jobs"][0]
    return row


def test_a_training_outlives_the_head_its_server_and_its_database(
    served_homes: Callable[[], ServedHome], toy_store: CohortStore, capsys: pytest.CaptureFixture[str]
) -> None:
    home = served_homes()
    home.up("--supervisor")
    assert {row["service"] for row in home.services().values()} == set(NAMES)
    assert _all_up(home)
    words = ["train", "implicit_field", str(toy_store.path), "--preset", "tiny", "--name", "long"]
    # A minute of one free core: long enough for three deaths.
    slowly = ["method.epochs=500", "method.points=1000", "method.width=128", "training.checkpoint_every=10"]
    words += [part for one in slowly for part in ("--set", one)]
    home.call("submit", "--workers", 1, "--", *words)
    run = RunFolder(home.home / "runs" / "long")
    checkpoints = Checkpoints(run.checkpoints)
    _wait(lambda: run.checkpoints.is_dir() and checkpoints.last(), home, "a checkpoint")
    seconds = {}
    for victim in ("mlflow", "postgres", "ray"):
        stood = checkpoints.last()
        os.kill(home.services()[victim]["pid"], signal.SIGKILL)
        seconds[victim] = _wait(lambda: _all_up(home), home, f"{victim} again")
        if victim == "ray":
            _wait(lambda: _job(home)["attempt"] == 2, home, "a second attempt")
        _wait(lambda stood=stood: checkpoints.last() != stood, home, "a later checkpoint")  # type: ignore[misc]
    _wait(lambda: _job(home)["status"] not in ("PENDING", "RUNNING", "UNKNOWN"), home, "an end", 1500)
    row = _job(home)
    assert (row["status"], row["exit_code"], row["attempt"]) == ("SUCCEEDED", 0, 2)
    assert run.state == "finished"
    with capsys.disabled():
        print("\nkilled and up again: " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    _wait(lambda: not (run.path / "untold.jsonl").read_text(), home, "what it had to tell, told")
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{home.ports['mlflow']}")
    tracked = str(run.spec.mlflow_run_id)
    assert client.get_run(tracked).info.status == "FINISHED"
    steps = [one.step for one in client.get_metric_history(tracked, "decoder/loss")]
    assert steps == logged_steps(run), "metrics are missing, out of order or there twice"
    stopped = home.ask("down")["stopped"]
    assert stopped == ["supervisor", "studies", "ray", "mlflow", "postgres"], "who would start them again goes first"
