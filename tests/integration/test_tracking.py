"""Tracked runs against a real SQLite store, and one against a real server."""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vesalius.platform.errors import RunError
from vesalius.platform.tracking import (
    RunLogger,
    artifact_name,
    client,
    end_run,
    environment,
    log_metrics,
    metric_key,
    resume_run,
    shown,
    start_run,
    tracking_uri,
    with_password,
)


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('home')}/mlflow.db"


@pytest.fixture
def run_id(uri: str) -> str:
    return start_run(uri, "toys", "a run", {"method.width": 3})


def _history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client(uri).get_metric_history(run_id, key))


def test_the_address_is_a_file_at_home_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri(tmp_path) == "http://host:5000"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    # A worker in another folder must find the same file.
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/here.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(RunError, match=r"MLFLOW_TRACKING_URI is './mlruns': expected a server"):
        tracking_uri(tmp_path)


def test_a_run_keeps_settings_environment_and_digest(uri: str) -> None:
    params = {"method.width": 3, "method.levels": (0.1, 0.5), "training.clip_norm": None, "long": "x" * 9000, "a(b)": 1}
    params |= {f"many.{index}": index for index in range(150)}
    run_id = start_run(uri, "toys", "named", params, {"cohort_digest": "abc"})
    run = client(uri).get_run(run_id)
    assert run.info.run_name == "named"
    assert run.info.status == "RUNNING"
    assert run.data.params["method.width"] == "3"
    assert json.loads(run.data.params["method.levels"]) == [0.1, 0.5]
    assert run.data.params["training.clip_norm"] == "null"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["many.149"] == "149"
    assert len(run.data.params) == len(params)
    assert run.data.tags["cohort_digest"] == "abc"
    assert run.data.tags["env.python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(environment()) >= {"torch", "mlflow", "ray", "platform", "cpu_count"}


@pytest.mark.parametrize(
    ("whole", "kept"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("https://me:s3cr@t@host:5000", "https://me:***@host:5000"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("postgresql://me:se/cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&a=b", "postgresql://host/db?user=me&password=***&a=b"),
    ],
)
def test_a_password_is_kept_in_the_environment_alone(whole: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(whole) == kept
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert with_password(kept) == whole
    assert with_password(whole) == whole, "a run of an earlier version kept it whole"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if whole == kept:
        assert with_password(kept) == whole
    else:
        with pytest.raises(RunError, match="set MLFLOW_TRACKING_URI to the whole address"):
            with_password(kept)


def test_the_environment_tells_no_path_of_this_machine() -> None:
    assert not any(str(Path.home()) in value or sys.prefix in value for value in environment().values())


def test_files_of_runs_lie_beside_the_database(uri: str, run_id: str) -> None:
    with RunLogger(uri, run_id) as logger:
        logger.text("hello", "notes/hello.txt")
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert (folder / run_id / "artifacts" / "notes" / "hello.txt").read_text() == "hello"


def test_two_runs_share_an_experiment(uri: str, run_id: str) -> None:
    other = start_run(uri, "toys", "another", {})
    mlflow = client(uri)
    assert mlflow.get_run(run_id).info.experiment_id == mlflow.get_run(other).info.experiment_id


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_told_and_may_go_on(uri: str, run_id: str, status: Any) -> None:
    end_run(uri, run_id, status)
    assert client(uri).get_run(run_id).info.status == status
    resume_run(uri, run_id)
    assert client(uri).get_run(run_id).info.status == "RUNNING"


def test_every_metric_arrives_by_step(uri: str, run_id: str) -> None:
    with RunLogger(uri, run_id) as logger:
        for step in range(2500):  # more than MLflow takes in one batch
            logger.metrics(step, {"fit/loss": 1 / (step + 1)})
    assert _history(uri, run_id, "fit/loss") == [(step, 1 / (step + 1)) for step in range(2500)]


def test_a_resumed_run_goes_on_in_the_same_run_without_doubles(uri: str, run_id: str) -> None:
    with RunLogger(uri, run_id) as logger:
        for step in range(6):
            logger.metrics(step, {"loss": 1.0 / (step + 1), "undefined": math.nan})
    end_run(uri, run_id, "FAILED")
    resume_run(uri, run_id)
    with RunLogger(uri, run_id) as logger:
        for step in range(4, 10):  # from the last checkpoint on: steps 4 and 5 come again
            logger.metrics(step, {"loss": 1.0 / (step + 1), "undefined": math.nan})
            logger.metrics(step, {"loss": 1.0 / (step + 1)})
    assert _history(uri, run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(10)]
    assert [step for step, _ in _history(uri, run_id, "undefined")] == list(range(10))


def test_metrics_are_sent_while_training_goes_on(uri: str, run_id: str) -> None:
    with RunLogger(uri, run_id, flush_seconds=0.05) as logger:
        logger.metrics(1, {"loss": 0.5})
        deadline = time.monotonic() + 20
        while not _history(uri, run_id, "loss") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _history(uri, run_id, "loss") == [(1, 0.5)]


def test_a_closed_logger_takes_nothing_more(uri: str, run_id: str) -> None:
    logger = RunLogger(uri, run_id)
    logger.close()
    logger.close()
    with pytest.raises(RunError, match="is closed and takes no metrics of step 3"):
        logger.metrics(3, {"loss": 1.0})


def test_a_store_that_is_away_for_a_while_loses_nothing(
    uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    real, away = MlflowClient.log_batch, [True]

    def log_batch(self: Any, *args: Any, **options: Any) -> Any:
        if away:
            raise ConnectionError("connection refused")
        return real(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    logger = RunLogger(uri, run_id, flush_seconds=0.02)
    logger.metrics(1, {"loss": 0.5})
    deadline = time.monotonic() + 20
    while "connection refused" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "metrics are kept and sent later" in caplog.text
    away.clear()
    logger.close()
    assert _history(uri, run_id, "loss") == [(1, 0.5)]


def test_metrics_that_cannot_be_sent_are_never_lost_in_silence(
    uri: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        logger = RunLogger(uri, run_id)
        logger.metrics(1, {"loss": 0.5, "other": 0.25})
        with pytest.raises(RunError, match=f"2 metrics of tracked run {run_id} are lost: .*connection refused"):
            logger.close()
        kept = RunLogger(uri, run_id, unsent=tmp_path / "unsent.json")
        kept.metrics(2, {"loss": 0.4})
        kept.close()
    assert _history(uri, run_id, "loss") == []
    RunLogger(uri, run_id, unsent=tmp_path / "unsent.json").close()
    assert _history(uri, run_id, "loss") == [(2, 0.4)]
    assert (tmp_path / "unsent.json").read_text() == ""


_KILLED = """
import os, signal, sys
from pathlib import Path
from vesalius.platform.tracking import RunLogger
logger = RunLogger(sys.argv[1], sys.argv[2], unsent=Path(sys.argv[3]), flush_seconds=1000)
for step in range(5):
    logger.metrics(step, {"loss": float(step)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_metric(uri: str, run_id: str, tmp_path: Path) -> None:
    unsent = tmp_path / "unsent.json"
    killed = subprocess.run([sys.executable, "-c", _KILLED, uri, run_id, str(unsent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert _history(uri, run_id, "loss") == []
    with unsent.open("a") as file:
        file.write('{"key": "loss", "val')  # the line that was being written
    RunLogger(uri, run_id, unsent=unsent).close()
    assert _history(uri, run_id, "loss") == [(step, float(step)) for step in range(5)]


_LATE = """
import sys, time
from pathlib import Path
from vesalius.platform.tracking import RunLogger
logger = RunLogger(sys.argv[1], sys.argv[2], unsent=Path(sys.argv[3]), system_metrics=True, flush_seconds=0.05)
time.sleep(1.0)
assert "mlflow" not in sys.modules
logger.metrics(1, {"loss": 0.5})
while logger._monitor is None:
    time.sleep(0.05)
logger.metrics(2, {"loss": 0.25})
logger.close()
"""


def test_a_training_begins_before_mlflow_is_imported(uri: str, run_id: str, tmp_path: Path) -> None:
    code = [sys.executable, "-c", _LATE, uri, run_id, str(tmp_path / "unsent.json")]
    assert subprocess.run(code, check=False, timeout=120).returncode == 0
    assert _history(uri, run_id, "loss") == [(1, 0.5), (2, 0.25)]
    assert _history(uri, run_id, "system/cpu_utilization_percentage")


def test_a_run_that_is_gone_ends_no_training_and_its_metrics_are_kept(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = RunLogger(uri, "0" * 32, unsent=tmp_path / "unsent.json", flush_seconds=0.05)
    logger.metrics(1, {"loss": 0.5})
    while not caplog.messages:
        time.sleep(0.05)
    assert "there is no tracked run" in caplog.messages[0]
    assert caplog.messages[0].endswith("(metrics are kept and sent once that is mended)")
    logger.metrics(2, {"loss": 0.25})
    logger.close()
    assert len((tmp_path / "unsent.json").read_text().splitlines()) == 2


_DELIVERED = """
import os, sys
for name in ("PYTEST_CURRENT_TEST", "CI"):  # either of them switches MLflow's reports off
    os.environ.pop(name, None)
from pathlib import Path
from vesalius.platform.tracking import RunLogger
with RunLogger(sys.argv[1], sys.argv[2], unsent=Path(sys.argv[3])) as logger:
    logger.flush()
import mlflow.telemetry
sys.exit(mlflow.telemetry.get_telemetry_client() is not None)
"""


def test_what_waited_is_sent_without_reports_of_mlflows_own(uri: str, run_id: str, tmp_path: Path) -> None:
    unsent = tmp_path / "unsent.json"
    subprocess.run([sys.executable, "-c", _KILLED, uri, run_id, str(unsent)], check=False)
    code = [sys.executable, "-c", _DELIVERED, uri, run_id, str(unsent)]
    assert subprocess.run(code, check=False, timeout=120).returncode == 0
    assert len(_history(uri, run_id, "loss")) == 5


@pytest.mark.parametrize("journaled", [False, True])
def test_a_short_run_says_something_about_its_machine(uri: str, run_id: str, tmp_path: Path, journaled: bool) -> None:
    def run(step: int) -> None:
        unsent = tmp_path / "unsent.json" if journaled else None
        logger = RunLogger(uri, run_id, system_metrics=True, unsent=unsent, flush_seconds=1000)
        logger.metrics(step, {"loss": 0.5})
        busy_until = time.monotonic() + 0.3
        while time.monotonic() < busy_until:
            pass
        logger.close()

    for step in range(2):
        # As on Ray, where no main thread trains: of each thread psutil's first answer is nothing.
        thread = threading.Thread(target=run, args=(step,))
        thread.start()
        thread.join()
    cpu = _history(uri, run_id, "system/cpu_utilization_percentage")
    assert [step for step, _ in cpu] == [0, 1]
    assert all(value > 0 for _, value in cpu)
    assert all(value > 0 for _, value in _history(uri, run_id, "system/system_memory_usage_megabytes"))


def test_figures_texts_and_data_become_files(uri: str, run_id: str, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.savefig(tmp_path / "drawn.png")
    with RunLogger(uri, run_id) as logger:
        logger.figure(figure, "figures/live.png")
        logger.figure(tmp_path / "drawn.png", "figures/kept.png")
        logger.dict({"a": [1, None]}, "facts.json")
    root = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / run_id / "artifacts"
    assert (root / "figures" / "live.png").read_bytes()[:4] == b"\x89PNG"
    assert (root / "figures" / "kept.png").read_bytes() == (tmp_path / "drawn.png").read_bytes()
    assert json.loads((root / "facts.json").read_text()) == {"a": [1, None]}


def test_a_handful_of_figures_leaves_out_the_undefined(uri: str, run_id: str) -> None:
    log_metrics(uri, run_id, {"test/auroc": 0.75, "test/image_auroc": None})
    assert client(uri).get_run(run_id).data.metrics == {"test/auroc": 0.75}


@pytest.mark.parametrize(
    "name", ["loss", "fit/loss", "AP@0.5", "a//b", "/a", "../a", "a/./b", "Dice (all)", "µ", "x" * 400, "..", "", "%"]
)
def test_any_metric_name_is_made_safe(uri: str, run_id: str, name: str) -> None:
    log_metrics(uri, run_id, {metric_key(name): 1.0})  # what is safe stays as it is
    assert metric_key(metric_key(name)) == metric_key(name)
    assert list(client(uri).get_run(run_id).data.metrics) == [metric_key(name)]


def test_different_names_stay_different() -> None:
    names = ["a(b)", "a[b]", "a_b_", "a//b", "a/b", "/a/b", "x" * 300, "x" * 301, "", "..", "."]
    assert len({metric_key(name) for name in names}) == len(names)
    assert metric_key("fit/loss 1.5:a-b_c") == "fit/loss 1.5:a-b_c"


@pytest.mark.parametrize("name", ["../x.txt", "/etc/x", "a/../../x", "", "a\\..\\x", "a/..", "a\x00b"])
def test_no_file_of_a_run_leads_out_of_it(uri: str, run_id: str, name: str) -> None:
    with pytest.raises(RunError, match="cannot name a file of a run"):
        artifact_name(name)
    with RunLogger(uri, run_id) as logger, pytest.raises(RunError, match="cannot name a file of a run"):
        logger.text("x", name)


def test_a_missing_run_is_named(uri: str) -> None:
    gone = "0" * 32
    for call in (lambda: RunLogger(uri, gone), lambda: end_run(uri, gone, "FINISHED"), lambda: resume_run(uri, "?")):
        with pytest.raises(RunError, match=r"there is no tracked run '.*' at sqlite"):
            call()


def test_a_deleted_run_is_not_written_to(uri: str, run_id: str) -> None:
    client(uri).delete_run(run_id)
    with pytest.raises(RunError, match="has been deleted"):
        RunLogger(uri, run_id)


def test_a_deleted_experiment_is_named(uri: str) -> None:
    run_id = start_run(uri, "doomed", "a", {})
    mlflow = client(uri)
    mlflow.delete_experiment(mlflow.get_run(run_id).info.experiment_id)
    with pytest.raises(RunError, match="experiment 'doomed' has been deleted"):
        start_run(uri, "doomed", "b", {})


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(RunError, match=rf"no tracking server answers at http://user:\*\*\*@.*:{port} .*: start it"):
        start_run(f"http://user:secret@127.0.0.1:{port}", "toys", "a", {})
    assert time.monotonic() - start < 10


def test_a_file_that_is_no_database_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    with pytest.raises(RunError, match="cannot use it at sqlite") as caught:
        start_run(f"sqlite:///{tmp_path}/mlflow.db", "toys", "a", {})
    assert "\n" not in str(caught.value)


_START = "import sys; from vesalius.platform.tracking import start_run; print(start_run(sys.argv[1], 'race', 'a', {}))"


@pytest.mark.long
def test_two_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/home/mlflow.db"
    command = [sys.executable, "-c", _START, uri]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len({client(uri).get_run(run_id).info.experiment_id for run_id in ids}) == 1


def test_tracking_is_imported_without_mlflow() -> None:
    code = "import sys, vesalius.platform.tracking, vesalius.platform.registry; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.long
def test_a_run_on_a_server(tmp_path: Path, tracking_server: str) -> None:
    uri = tracking_server
    run_id = start_run(uri, "toys", "remote", {"width": 3}, {"cohort_digest": "abc"})
    with RunLogger(uri, run_id, system_metrics=True) as logger:
        for step in range(1200):
            logger.metrics(step, {"loss": 1 / (step + 1)})
        logger.text("hello", "notes/hello.txt")
    with RunLogger(uri, run_id) as logger:
        logger.metrics(1199, {"loss": 1 / 1200})
    end_run(uri, run_id, "FINISHED")
    assert _history(uri, run_id, "loss") == [(step, 1 / (step + 1)) for step in range(1200)]
    assert client(uri).get_run(run_id).info.status == "FINISHED"
    assert next((tmp_path / "files").rglob("hello.txt")).read_text() == "hello"
    with pytest.raises(RunError, match="there is no tracked run"):
        end_run(uri, "0" * 32, "FINISHED")
