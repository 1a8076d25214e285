"""Jobs on a real cluster: what is trained there, how it comes back, how it is stopped, gone on with and refused."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.platform.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import ServedHome

    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

_LONG = ("--preset", "tiny", "--set", "training.checkpoint_every=20", "--set", "method.epochs=400")
_STEPS_OF_EPOCHS = 602


@pytest.fixture(scope="module")
def home(served_homes: Callable[[], ServedHome]) -> ServedHome:
    made = served_homes()
    made.up()
    return made


def _wait(condition: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def _tracked(home: ServedHome, run_id: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"http://127.0.0.1:{home.ports['mlflow']}").get_run(run_id)


def test_a_training_comes_back_whole(home: ServedHome, toy_store: CohortStore) -> None:
    words = ["train", "implicit_field", str(toy_store.path), "--preset", "tiny", "--name", "first"]
    done = home.call("submit", "--json", "--workers", "1", "--follow", "--", *words)
    said = json.loads(done.stdout)
    assert (said["job"], said["status"], said["exit_code"], said["run"]) == ("first", "SUCCEEDED", 0, "first")
    assert "training 32/32" in done.stderr, "the log was shown"
    assert "vesalius-outcome" not in done.stderr
    run = RunFolder(home.home / "runs" / "first")
    assert run.state == "finished"
    assert said["mlflow_run_id"] == run.spec.mlflow_run_id
    assert said["mlflow_tracking_uri"] == f"http://127.0.0.1:{home.ports['mlflow']}"
    tracked = _tracked(home, said["mlflow_run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics
    assert f"+{said['wheel'].split('+')[1].split('-')[0]}" in (run.model / "model.json").read_text()
    assert home.ask("jobs")["jobs"][0]["status"] == "SUCCEEDED"
    log = home.ask("logs", "first")["log"]
    assert "training 32/32" in log
    again = home.call("retry", "first", code=2)
    assert "has come to its end" in again.stderr


def test_a_job_that_fails_brings_its_code_and_its_sentence_back(home: ServedHome) -> None:
    done = home.call("submit", "--follow", "--", "evaluate", "no-such-run", code=2)
    assert "no-such-run" in done.stderr
    assert "FAILED" in done.stdout
    row = home.ask("jobs")["jobs"][0]
    assert (row["status"], row["exit_code"]) == ("FAILED", 2)
    assert row["job"].startswith("evaluate-")


def test_a_finished_run_is_evaluated_on_the_cluster(home: ServedHome) -> None:
    done = home.call("submit", "--follow", "--", "evaluate", "first", "--split", "test")
    assert " AP " in done.stderr, "the table of figures"
    assert list((home.home / "runs" / "first" / "scores" / "test").iterdir())


def test_detached_stopped_lost_with_the_head_and_gone_on_with(home: ServedHome, toy_store: CohortStore) -> None:
    words = ["train", "implicit_field", str(toy_store.path), *_LONG, "--name", "long"]
    command = home.command("submit", "--workers", 1, "--follow", "--", *words)
    run = RunFolder(home.home / "runs" / "long")
    follower = subprocess.Popen(
        command, env=home.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        _wait(lambda: run.progress.overall >= 30, "it trains")
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=60)
    finally:
        follower.kill()
        follower.wait(10)
    assert follower.returncode == 130
    assert "detached: job long goes on; to come back: vesalius logs long --follow" in said
    assert home.ask("jobs")["jobs"][0]["status"] == "RUNNING"
    refused = home.call("retry", "long", code=2)
    assert "is running" in refused.stderr

    stopped = home.ask("stop", "long")
    assert stopped["status"] == "STOPPED"
    assert run.state == "interrupted"
    tracked = str(run.spec.mlflow_run_id)
    assert _tracked(home, tracked).info.status == "KILLED"
    before = run.progress.overall
    assert before < _STEPS_OF_EPOCHS

    # The second attempt goes with its head.
    assert home.ask("retry", "long")["attempt"] == 2
    _wait(lambda: run.state == "training" and run.progress.overall > 0, "it trains again")
    os.kill(home.services()["ray"]["pid"], signal.SIGKILL)
    home.call("up")
    rows = {row["job"]: row for row in home.ask("jobs")["jobs"]}
    assert rows["long"]["status"] == "LOST"
    kept = home.call("logs", "long")
    assert "training " in kept.stdout
    assert "vesalius retry long" in kept.stderr
    assert home.call("logs", "long", "--follow", code=1).stdout == kept.stdout, "its end is no success"

    done = home.call("retry", "long", "--follow", "--json", seconds=900)
    said_last = json.loads(done.stdout)
    assert (said_last["status"], said_last["attempt"], said_last["exit_code"]) == ("SUCCEEDED", 3, 0)
    assert said_last["mlflow_run_id"] == tracked, "in the same tracked run"
    assert said_last["wheel"] == stopped["wheel"], "the code of the first attempt"
    assert _tracked(home, tracked).info.status == "FINISHED"
    assert home.call("logs", "long", "--attempt", 2).stdout == kept.stdout
    first = next(line for line in done.stderr.splitlines() if line.startswith("training "))
    assert int(first.split()[1].split("/")[0]) >= 20, "not from the beginning"


def test_a_cluster_with_other_versions_is_refused_before_anything_is_submitted(
    home: ServedHome, toy_store: CohortStore, tmp_path: Path
) -> None:
    """The cluster says what it has; what is installed on this side is another torch, as its own files say."""
    number = len(home.ask("jobs")["jobs"])
    words = ["train", "implicit_field", str(toy_store.path), "--preset", "tiny", "--name", "other"]
    other = tmp_path / "torch-1.0.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    before = home.environment.get("PYTHONPATH")
    path = os.pathsep.join([str(tmp_path), *([before] if before else [])])
    there = importlib.metadata.version("torch")
    for _ in range(2):  # an answer with differences is not taken a second time: it is asked again
        done = home.call("submit", "--", *words, code=2, PYTHONPATH=path)
        assert f"torch is {there} there and 1.0.0 here" in done.stderr
        assert "nothing was submitted" in done.stderr
    assert len(home.ask("jobs")["jobs"]) == number
    assert not (home.home / "jobs" / "other.json").exists()
    assert not (home.home / "runs" / "other").exists()


def test_what_the_cluster_does_not_see_and_whom_it_does_not_know(home: ServedHome, tmp_path: Path) -> None:
    number = len(home.ask("jobs")["jobs"])
    done = home.call("submit", "--", "train", "implicit_field", tmp_path / "elsewhere", "--preset", "tiny", code=2)
    assert f"does not see {tmp_path / 'elsewhere'}" in done.stderr
    address = f"http://127.0.0.1:{home.ports['ray_dashboard']}"
    words = ["--address", address, "--", "evaluate", "first"]
    stranger = home.call("submit", *words, code=2, VESALIUS_SERVICES="off")
    assert "lets nobody in without its token" in stranger.stderr
    token = str(home.home / "services" / "secrets" / "ray_token")
    home.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}  # as whoever has no services sets them
    try:
        words = ["--address", address, "--", "score", "first", str(tmp_path / "x.nii")]
        missing = home.call("submit", *words, code=2, VESALIUS_SERVICES="off")
    finally:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            del home.environment[name]
    assert f"does not see {tmp_path / 'x.nii'}" in missing.stderr
    assert len(home.ask("jobs")["jobs"]) == number


def test_a_study_runs_as_a_job_and_is_kept_with_the_services(home: ServedHome, toy_store: CohortStore) -> None:
    words = ["tune", "implicit_field", str(toy_store.path), "--preset", "tiny", "--set", "method.epochs=2"]
    words += ["--space", "latent_dim=4,8", "--trials", "2", "--pruner", "none", "--name", "sought"]
    done = home.call("submit", "--json", "--follow", "--", *words, seconds=900)
    said = json.loads(done.stdout)
    assert (said["status"], said["study"]) == ("SUCCEEDED", "sought")
    spec = json.loads((home.home / "studies" / "sought" / "study.json").read_text())
    assert "search_path%3Dstudies" in spec["storage"]
    assert "passfile" in spec["storage"]
    assert not (home.home / "studies" / "sought" / "optuna.db").exists()
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{home.ports['studies']}/api/studies", timeout=30) as answer:
        assert "sought" in answer.read().decode()


def test_no_secret_is_in_what_is_kept_or_told(home: ServedHome) -> None:
    secrets = [
        path.read_text().strip() for path in (home.home / "services" / "secrets").iterdir() if path.name != "pgpass"
    ]
    kept = "".join(path.read_text(errors="replace") for path in (home.home / "jobs").rglob("*.json"))
    kept += json.dumps(home.ask("jobs"))
    kept += "".join(home.ask("logs", row["job"], code=0)["log"] for row in home.ask("jobs")["jobs"][:1])
    kept += "".join(path.read_text(errors="replace") for path in (home.home / "runs").rglob("*.json"))
    assert not [secret for secret in secrets if secret in kept]


def test_a_verb_that_is_called_here_uses_the_services_by_itself(home: ServedHome, toy_store: CohortStore) -> None:
    home.call("train", "implicit_field", toy_store.path, "--preset", "tiny", "--name", "direct", seconds=600)
    run = RunFolder(home.home / "runs" / "direct")
    assert run.spec.mlflow_tracking_uri == f"http://127.0.0.1:{home.ports['mlflow']}"
    assert _tracked(home, str(run.spec.mlflow_run_id)).info.status == "FINISHED"
    assert not (home.home / "mlflow.db").exists()
    log = "".join(path.read_text(errors="replace") for path in (home.home / "services" / "logs" / "ray").glob("*.out"))
    assert log, "the head had a part in it"
