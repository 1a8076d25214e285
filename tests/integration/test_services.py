"""Local services for real: PostgreSQL, MLflow on it, a Ray head, optuna-dashboard."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from vesalius.infra.services import processes
from vesalius.infra.services.addresses import is_loopback
from vesalius.infra.services.ports import is_free
from vesalius.infra.services.state import Running, ServicesFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import ServedHome

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

_USE = """
import mlflow, os, pathlib, sys, tempfile
from pathlib import Path
from vesalius.infra import services
home = Path(sys.argv[1])
services.join(home)
client = mlflow.MlflowClient()
experiment = client.create_experiment(sys.argv[2])
run = client.create_run(experiment).info.run_id
client.log_metric(run, "loss", 0.5)
file = Path(tempfile.mkdtemp()) / "note.txt"
file.write_text("kept")
client.log_artifact(run, str(file))
assert client.get_run(run).data.metrics == {"loss": 0.5}
assert client.get_experiment(experiment).artifact_location.startswith("mlflow-artifacts:"), "files go by the server"
assert Path(client.download_artifacts(run, "note.txt")).read_text() == "kept"
import optuna
study = optuna.create_study(storage=services.study_storage(home), study_name=sys.argv[2])
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
print(run)
"""
_INTRUDE = """
import os, sys
os.environ["RAY_AUTH_MODE"] = sys.argv[2]
os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
import ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except Exception as error:
    print("refused", type(error).__name__)
else:
    print("let in")
"""


@pytest.fixture(scope="module")
def home(served_homes: Callable[[], ServedHome]) -> ServedHome:
    made = served_homes()
    made.up()
    return made


def _python(code: str, *arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def _code(url: str, *, login: tuple[str, str] | None = None, host: str | None = None) -> int:
    request = urllib.request.Request(url)
    if login is not None:
        import base64

        request.add_header("Authorization", f"Basic {base64.b64encode(':'.join(login).encode()).decode()}")
    if host is not None:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_all_of_them_answer_and_a_second_call_changes_nothing(home: ServedHome) -> None:
    before = home.services()
    assert {name: row["state"] for name, row in before.items() if row["state"] != "up"} == {"supervisor": "down"}
    assert _code(before["mlflow"]["url"] + "/health") == 200
    assert _code(before["studies"]["url"] + "/api/studies") == 200
    home.call("up")
    assert home.services() == before
    assert (home.home / "services" / "logs" / "ray" / "gcs_server.out").exists()


def test_figures_files_and_studies_are_kept(home: ServedHome) -> None:
    done = _python(_USE, home.home, "first", environment=home.environment)
    assert done.returncode == 0, done.stderr
    assert (home.home / "services" / "artifacts").is_dir()
    with urllib.request.urlopen(f"http://127.0.0.1:{home.ports['studies']}/api/studies", timeout=30) as answer:
        assert "first" in answer.read().decode()
    assert not (home.home / "mlflow.db").exists()


def test_who_has_no_token_is_not_let_in(home: ServedHome) -> None:
    assert _code(f"http://127.0.0.1:{home.ports['ray_dashboard']}/api/jobs/") == 401
    # Ray opens these two on every interface, whatever address it is given.
    for address in (f"127.0.0.1:{home.ports['ray']}", f"ray://127.0.0.1:{home.ports['ray_client']}"):
        done = _python(_INTRUDE, address, "disabled", environment=home.environment)
        assert "refused" in done.stdout, done.stderr


def test_no_secret_is_shown(home: ServedHome) -> None:
    folder = home.home / "services"
    secrets = [path.read_text().strip() for path in (folder / "secrets").iterdir() if path.name != "pgpass"]
    assert len(secrets) >= 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder / "secrets").iterdir())
    said = json.dumps(home.ask("status")) + (folder / "state.json").read_text()
    said += "".join(path.read_text(errors="replace") for path in (folder / "logs").glob("*.log"))
    for process in psutil.process_iter(["cmdline"]):
        said += " ".join(process.info["cmdline"] or [])
    assert not [secret for secret in secrets if secret in said]


def test_nothing_but_rays_own_ports_is_open_to_others(home: ServedHome) -> None:
    owners = {pid: name for name, one in _running(home).items() for pid in (one.pid, *processes.leftovers(one))}
    listening = [
        (owners[row.pid], row.laddr.ip, row.laddr.port)
        for row in psutil.net_connections(kind="tcp")
        if row.status == psutil.CONN_LISTEN and row.pid in owners and row.laddr
    ]
    expected = {(name, home.ports[name]) for name in ("postgres", "mlflow", "studies", "ray")}
    expected.add(("ray", home.ports["ray_dashboard"]))
    assert expected <= {(name, port) for name, _, port in listening}, "what is to be looked at was not seen"
    closed = {home.ports["ray_dashboard"], *(port for name, _, port in listening if name != "ray")}
    assert [row for row in listening if row[2] in closed and not is_loopback(row[1])] == []


def test_a_port_that_is_taken_is_told_and_nothing_is_left(
    home: ServedHome, served_homes: Callable[[], ServedHome]
) -> None:
    other = served_homes()
    done = other.call("up", "--mlflow-port", home.ports["mlflow"], code=2)
    assert f"port {home.ports['mlflow']} (--mlflow-port) is held by process" in done.stderr
    assert {row["state"] for row in other.services().values()} == {"down"}


def test_a_killed_service_is_seen_and_comes_back(home: ServedHome) -> None:
    before = home.services()
    for name in _running(home):
        os.kill(before[name]["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while processes.is_alive(_running(home)[name]) and time.monotonic() < deadline:
            time.sleep(0.1)
        seen = home.ask("status", code=1)
        assert {row["service"]: row["state"] for row in seen["services"]}[name] == "dead"
        if name == "mlflow":  # where runs would else be tracked in a file, and nobody would find them
            refused = home.call("train", "healthy_atlas", home.home / "no-store", code=2)
            assert "MLflow of" in refused.stderr
            assert "ended without `vesalius down`" in refused.stderr
        after = {row["service"]: row for row in home.ask("up")["services"]}
        assert {row["state"] for row in after.values() if row["service"] != "supervisor"} == {"up"}
        assert after[name]["pid"] != before[name]["pid"]
        assert after[name]["url"] == before[name]["url"], "runs know it by this address"
        before = after


def test_what_does_not_answer_is_seen_and_started_again(home: ServedHome) -> None:
    pid = home.services()["studies"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    seen = home.services()["studies"]
    assert seen["state"] == "not answering"
    home.call("up")
    after = home.services()["studies"]
    assert after["state"] == "up"
    assert after["pid"] != pid
    assert not _runs(pid)


def test_down_leaves_nothing_running_and_loses_nothing(home: ServedHome) -> None:
    kept = _python(_USE, home.home, "kept", environment=home.environment)
    assert kept.returncode == 0, kept.stderr
    running = _running(home)
    pids = {pid for one in running.values() for pid in (one.pid, *processes.leftovers(one))}
    assert len(pids) > len(running), "some have children"
    done = home.ask("down")
    assert done["stopped"] == ["studies", "ray", "mlflow", "postgres"]
    assert [said for pid in pids if (said := _runs(pid))] == []
    assert all(is_free(port, "127.0.0.1") for port in home.ports.values())
    assert {row["state"] for row in home.services().values()} == {"down"}
    assert home.ask("down")["stopped"] == []
    home.call("up")
    with urllib.request.urlopen(f"http://127.0.0.1:{home.ports['studies']}/api/studies", timeout=30) as answer:
        assert "kept" in answer.read().decode()
    address = f"http://127.0.0.1:{home.ports['mlflow']}/api/2.0/mlflow/runs/get?run_id={kept.stdout.split()[-1]}"
    assert _code(address) == 200, "what was kept is there again"


def test_a_login_and_somebody_elses_database(home: ServedHome, served_homes: Callable[[], ServedHome]) -> None:
    """Beyond loopback, on a database that is not ours."""
    import psycopg

    password = (home.home / "services" / "secrets" / "postgres_password").read_text()
    server = {"host": "127.0.0.1", "port": home.ports["postgres"], "user": "vesalius", "password": password}
    with psycopg.connect(dbname="postgres", autocommit=True, **server) as connection:  # type: ignore[arg-type]
        connection.execute("CREATE DATABASE lab")
    other = served_homes()
    url = f"postgresql://vesalius:{password}@127.0.0.1:{home.ports['postgres']}/lab"
    other.environment["VESALIUS_DATABASE_URL"] = url
    refused = other.up("--host", "0.0.0.0", code=2)
    assert "add --auth" in refused.stderr
    other.up("--host", "0.0.0.0", "--auth", "--allowed-host", "lab.example.org")
    found = other.services()
    assert found["postgres"]["state"] == "down"
    assert found["mlflow"]["state"] == "up"
    login = ("admin", (other.home / "services" / "secrets" / "mlflow_password").read_text())
    address = f"http://127.0.0.1:{other.ports['mlflow']}"
    asked = f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert _code(asked) == 401
    assert _code(asked, login=("admin", "guessed")) == 401
    assert _code(asked, login=login) == 200
    assert _code(asked, login=login, host="lab.example.org") == 200
    assert _code(asked, login=login, host="evil.example.org") == 403
    assert _code(f"{found['ray']['url']}/api/jobs/") == 401
    with socket.socket() as probe:  # it has no login, so nobody else reaches it
        own = found["mlflow"]["url"].split("/")[2].split(":")[0]
        if own != "127.0.0.1":
            assert probe.connect_ex((own, other.ports["studies"])) != 0
    done = _python(_USE, other.home, "theirs", environment=other.environment)
    assert done.returncode == 0, done.stderr
    kept = "".join(path.read_text() for path in (other.home / "services").glob("*.json"))
    logs = "".join(path.read_text(errors="replace") for path in (other.home / "services" / "logs").glob("*.log"))
    assert password not in kept + logs
    assert login[1] not in kept + logs
    other.call("down")


def _runs(pid: int) -> str:
    """Return what a process is, or nothing where it has ended; one that nobody has waited for yet has ended."""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.status()} {process.cmdline()}"
    except psutil.NoSuchProcess:
        return ""


def _running(home: ServedHome) -> dict[str, Running]:
    state = ServicesFolder(Path(home.home)).read()
    assert state is not None
    return {str(name): one for name, one in state.running.items()}
