"""Local services: what is kept of them, their ports, processes and secrets. The services themselves: integration."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from typer.testing import CliRunner

from vesalius.infra import services
from vesalius.infra.cli.app import app
from vesalius.infra.services import credentials, database, inspection, lifecycle, ports, processes
from vesalius.infra.services.addresses import clients_host, is_loopback
from vesalius.infra.services.kinds import Services, allowed_hosts
from vesalius.infra.services.state import NAMES, Running, ServiceSettings, ServicesFolder, ServicesState, this_boot
from vesalius.platform import tracking
from vesalius.platform.errors import ClusterGoneError, DiskSpaceError, ServiceError, SettingError
from vesalius.platform.registry.records import current_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.infra.services.state import Name

_VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *(
        "VESALIUS_LOGIN_FOR",
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "VESALIUS_SERVICES",
        "VESALIUS_USER",
        "VESALIUS_JOB",
    ),
)
_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Leave the environment as it was, and begin without what services set."""
    for name in _VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back whatever join() makes of it
        monkeypatch.delenv(name)
    monkeypatch.setattr(Services, "problem", lambda services, name: None)
    return monkeypatch


@pytest.fixture
def folder(tmp_path: Path) -> ServicesFolder:
    made = ServicesFolder(tmp_path)
    made.make()
    return made


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _free() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(condition: Any, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


# ---- state and secrets


def test_the_state_is_read_as_it_was_written(folder: ServicesFolder) -> None:
    assert folder.read() is None
    one = Running(pid=1, created=2.5, mark="m", url="http://127.0.0.1:1", since="now")
    state = ServicesState(settings=ServiceSettings(cpus=2), boot=this_boot(), running={"ray": one})
    folder.write(state)
    assert folder.read() == state
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".state")], "nothing half-written"


@pytest.mark.parametrize("text", ["", "{", '{"running": 3}', '{"unknown": 1}'])
def test_a_damaged_state_is_a_sentence(folder: ServicesFolder, text: str) -> None:
    (folder.path / "state.json").write_text(text)
    with pytest.raises(ServiceError, match=r"state\.json is damaged.*remove the file"):
        folder.read()


def test_secrets_are_their_owners_alone(folder: ServicesFolder) -> None:
    assert _mode(folder.secrets) == 0o700
    first = credentials.kept_or_made(folder.secrets / "token")
    assert len(first) >= 40
    assert credentials.kept_or_made(folder.secrets / "token") == first
    assert _mode(folder.secrets / "token") == 0o600
    (folder.secrets / "token").chmod(0o644)
    with pytest.raises(ServiceError, match="others may read it: chmod 600"):
        credentials.kept_or_made(folder.secrets / "token")


def test_a_line_of_a_password_file_is_read_as_it_is_meant() -> None:
    assert credentials.passfile_line("h", 1, "u", r"a:b\c") == "h:1:*:u:a\\:b\\\\c\n"


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_login_settings_are_read_by_mlflow_as_they_are_meant(
    folder: ServicesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="the login needs mlflow[auth]")
    from mlflow.server.auth.config import read_auth_config

    address = "postgresql+psycopg://u@h/d?options=-csearch_path%3Dmlflow_login"
    file = credentials.login_settings(folder.secrets, address)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(file))
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "from the environment")
    read = read_auth_config()
    assert (read.database_uri, read.admin_username) == (address, "admin")
    assert _mode(file) == 0o600
    assert "password" not in file.read_text()


def test_two_calls_at_once_are_told(folder: ServicesFolder) -> None:
    with folder.alone(), pytest.raises(ServiceError, match="another `vesalius up` or `down` is at work"):
        lifecycle.up(folder.home, {}, {})


# ---- ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


def test_a_port_that_was_asked_for_and_is_taken_is_told_with_its_holder(taken: int) -> None:
    with pytest.raises(ServiceError, match=rf"port {taken} \(--mlflow-port\) is held by process {os.getpid()} \("):
        ports.choose_ports({"mlflow": taken}, {}, "127.0.0.1")


def test_a_port_that_a_home_is_known_by_is_not_changed_in_silence(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_CLOSING_SECONDS", 0.2)
    with pytest.raises(ServiceError, match="this home's runs, studies and jobs know the service by it"):
        ports.choose_ports({}, {"mlflow": taken}, "127.0.0.1")


def test_a_port_that_whoever_was_ended_still_holds_is_waited_for() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = int(held.getsockname()[1])
        threading.Timer(0.5, held.close).start()
        assert ports.choose_ports({}, {"mlflow": port}, "127.0.0.1")["mlflow"] == port


def test_a_port_that_nobody_asked_for_is_another_where_it_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "PORTS", {"mlflow": taken, "studies": taken})
    chosen = ports.choose_ports({}, {}, "127.0.0.1")
    assert taken not in chosen.values()
    assert len(set(chosen.values())) == 2


def test_one_port_is_not_given_to_two_services() -> None:
    port = _free()
    with pytest.raises(ServiceError, match=f"port {port} is given to two services"):
        ports.choose_ports({"mlflow": port, "studies": port}, {}, "127.0.0.1")


def test_ports_of_rays_workers_are_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match=r"port 10500 \(--ray-port\) lies among those of Ray's workers"):
        ports.choose_ports({"ray": 10500}, {}, "127.0.0.1")
    monkeypatch.setattr(ports, "is_free", lambda port, host: port != 10001)
    assert ports.choose_ports({}, {}, "127.0.0.1")["ray_client"] == 20001


def test_addresses() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")
    assert clients_host("127.0.0.1") == "127.0.0.1"
    assert clients_host("0.0.0.0") not in ("", "0.0.0.0")


# ---- processes


def test_a_service_ends_with_all_it_has_started(tmp_path: Path) -> None:
    running = processes.start([sys.executable, "-c", _PARENT], os.environ, tmp_path / "log", url="")
    assert processes.is_alive(running)
    assert _wait_for(lambda: len(processes.leftovers(running)) == 1)
    child = processes.leftovers(running)[0]
    processes.stop(running)
    assert not processes.is_alive(running)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_what_outlives_a_killed_service_is_found_and_ended(tmp_path: Path) -> None:
    running = processes.start([sys.executable, "-c", _PARENT], os.environ, tmp_path / "log", url="")
    assert _wait_for(lambda: len(processes.leftovers(running)) == 1)
    os.kill(running.pid, 9)
    assert _wait_for(lambda: not processes.is_alive(running))
    assert len(processes.leftovers(running)) == 1
    processes.stop(running)
    assert processes.leftovers(running) == []


def test_what_a_killed_service_leaves_is_found_before_anybody_has_buried_it() -> None:
    # Its child shows no mark, as one of Ray's that writes its title over its environment.
    service = subprocess.Popen([sys.executable, "-c", _PARENT], env={}, start_new_session=True)
    created = psutil.Process(service.pid).create_time()
    running = Running(pid=service.pid, created=created, mark="unseen", url="", since="")
    try:
        assert _wait_for(lambda: len(processes.leftovers(running)) == 1)
        os.kill(service.pid, 9)
        assert _wait_for(lambda: psutil.Process(service.pid).status() == psutil.STATUS_ZOMBIE)
        assert len(processes.leftovers(running)) == 1
        processes.stop(running)
        assert processes.leftovers(running) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, 9)
        service.wait(10)


def test_a_process_that_was_given_the_same_number_is_left_alone() -> None:
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    try:
        created = psutil.Process(innocent.pid).create_time()
        earlier = Running(pid=innocent.pid, created=created - 3600, mark="another's", url="", since="")
        assert not processes.is_alive(earlier)
        assert processes.leftovers(earlier) == []
        processes.stop(earlier, wait_seconds=0.1)
        assert innocent.poll() is None
        same = earlier.model_copy(update={"created": created})
        assert processes.is_alive(same), "start time and number are the same"
    finally:
        innocent.kill()
        innocent.wait(10)


def test_a_log_that_has_grown_large_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LARGE_LOG_BYTES", 10)
    (tmp_path / "one.log").write_text("x" * 11)
    running = processes.start([sys.executable, "-c", "print('new')"], os.environ, tmp_path / "one.log", url="")
    assert _wait_for(lambda: not processes.is_alive(running))
    assert "x" not in (tmp_path / "one.log").read_text().replace("exec", "")
    assert (tmp_path / "one.log.old").read_text() == "x" * 11


# ---- what may be asked for


def test_the_logs_of_jobs_outlive_their_head(folder: ServicesFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_JOB_LOGS", 2)
    monkeypatch.setattr(lifecycle, "_JOB_LOG_BYTES", 10)
    logs = folder.home / "session_old" / "logs"
    logs.mkdir(parents=True)
    for age, name in enumerate(("vesalius-probe-0a1b2c3d", "new-1a2b", "brain-2-3c4d", "old-5e6f")):
        log = logs / f"job-driver-{name}.log"
        log.write_text("begun\nwhy it was lost")
        os.utime(log, (1000 - age, 1000 - age))
    (logs / "raylet.out").write_text("of no interest")
    lifecycle._keep_job_logs(folder, logs)
    assert folder.job_log("brain-2-3c4d").read_text() == "t was lost"
    assert sorted(path.name for path in (folder.logs / "jobs").iterdir()) == ["brain-2-3c4d.log", "new-1a2b.log"]


def test_nothing_is_opened_to_others_without_a_login(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"--host 0\.0\.0\.0 opens MLflow and Ray.*add --auth"):
        lifecycle.up(tmp_path, {"host": "0.0.0.0"}, {})
    assert not (tmp_path / "services" / "state.json").exists()


def test_other_settings_than_those_that_run_are_told(folder: ServicesFolder) -> None:
    innocent = psutil.Process()
    one = Running(pid=innocent.pid, created=innocent.create_time(), mark="", url="", since="")
    folder.write(ServicesState(settings=ServiceSettings(cpus=2), boot=this_boot(), running={"mlflow": one}))
    with pytest.raises(ServiceError, match=r"run with other settings than --cpus, --mlflow-port.*vesalius down"):
        lifecycle.up(folder.home, {"cpus": 4}, {"mlflow": _free()})


def test_services_of_another_machine_are_left_alone(folder: ServicesFolder) -> None:
    one = Running(pid=1, created=1.0, mark="", url="", since="")
    folder.write(ServicesState(boot="elsewhere/1", running={"mlflow": one}))
    for call in (lambda: lifecycle.up(folder.home, {}, {}), lambda: lifecycle.down(folder.home)):
        with pytest.raises(ServiceError, match="were started on elsewhere: call this there"):
            call()


def test_after_a_restart_of_the_machine_all_is_dead(folder: ServicesFolder) -> None:
    innocent = psutil.Process()  # a number of the last boot may well be somebody's in this one
    one = Running(pid=innocent.pid, created=innocent.create_time(), mark="", url="", since="")
    boot = f"{this_boot().partition('/')[0]}/an earlier one"
    folder.write(ServicesState(boot=boot, running={"mlflow": one}))
    rows = {row["service"]: row for row in inspection.status(folder.home)}
    assert rows["mlflow"]["state"] == "dead"
    assert rows["ray"]["state"] == "down"
    assert lifecycle.down(folder.home) == []


def test_a_password_on_the_command_line_is_refused(tmp_path: Path) -> None:
    url = "postgresql://me:hidden@localhost/db"
    done = CliRunner().invoke(app, ["up", "--home", str(tmp_path), "--database-url", url])
    assert done.exit_code == 2
    assert "VESALIUS_DATABASE_URL" in done.stderr
    assert "hidden" not in done.output


def test_status_of_a_home_without_services(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["status", "--home", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout.count("down") == len(NAMES)
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_down_of_a_home_without_services(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["down", "--home", str(tmp_path)])
    assert done.exit_code == 0
    assert "no service of this home was running" in done.stdout


# ---- the database


def test_a_given_password_goes_into_a_file_and_nowhere_else(folder: ServicesFolder) -> None:
    kept, line = database.given_database(folder, "postgresql://me:hid:den@db.example.org/lab?sslmode=require")
    assert "hid" not in kept
    file = folder.secrets / "pgpass_given"
    assert not file.exists()
    database.keep_password(folder, line)
    assert file.read_text() == "db.example.org:5432:*:me:hid\\:den\n"
    assert _mode(file) == 0o600
    assert "sslmode=require" in kept
    assert "options=-csearch_path%3Dstudies" in database.Database(kept).schema("studies")


def test_the_password_of_a_database_that_runs_outlives_a_refusal(folder: ServicesFolder) -> None:
    kept, line = database.given_database(folder, "postgresql://me:first@a.example.org/lab")
    database.keep_password(folder, line)
    _joined_home(folder, database=kept)
    with pytest.raises(ServiceError, match="run with other settings than --database"):
        lifecycle.up(folder.home, {"database": "postgresql://me:second@b.example.org/lab"}, {})
    assert (folder.secrets / "pgpass_given").read_text() == line


@pytest.mark.parametrize("url", ["mysql://u@h/d", "sqlite:///x.db", "nonsense", "postgresql://h/d", "postgresql://u@h"])
def test_another_database_is_refused(folder: ServicesFolder, url: str) -> None:
    with pytest.raises(SettingError, match="expected postgresql://USER:PASSWORD@HOST/DATABASE"):
        database.given_database(folder, url)


def test_mlflow_answers_to_its_names_and_no_other() -> None:
    settings = ServiceSettings(host="0.0.0.0", auth=True, allowed_hosts=("lab.example.org",), ports={"mlflow": 5055})
    hosts = allowed_hosts(settings)
    assert {"localhost:5055", "lab.example.org", "lab.example.org:5055"} <= set(hosts)
    assert "*" not in hosts


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", (), None),
        ("127.0.0.1", ("lab.example.org",), {"http://lab.example.org", "https://lab.example.org"}),
        ("0.0.0.0", (), {"http://localhost:5000", "https://localhost:5000"}),
    ],
)
def test_mlflow_is_started_for_the_names_that_it_is_called_by(
    folder: ServicesFolder, host: str, names: tuple[str, ...], expected: set[str] | None
) -> None:
    settings = ServiceSettings(host=host, auth=True, allowed_hosts=names, ports=dict(ports.PORTS))
    plan = Services(folder, settings).plan("mlflow")
    given = dict(zip(plan.command, plan.command[1:], strict=False))
    if expected is None:
        assert not {"--allowed-hosts", "--cors-allowed-origins"} & set(given)
        return
    assert {*names, "127.0.0.1"} <= set(given["--allowed-hosts"].split(","))
    assert expected <= set(given["--cors-allowed-origins"].split(","))


def test_mlflow_unpacks_no_pickle(folder: ServicesFolder) -> None:
    plan = Services(folder, ServiceSettings(ports=dict(ports.PORTS))).plan("mlflow")
    assert plan.environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskSpaceError), (errno.EDQUOT, DiskSpaceError), (errno.EIO, OSError)]
)
def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    path = credentials.keep(tmp_path / "job.json", "before")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error, match=f"{path}: the disk or quota is full" if error is DiskSpaceError else "error"):
        credentials.keep(path, "after")
    assert [one.name for one in tmp_path.iterdir()] == ["job.json"]
    assert path.read_text() == "before"


# ---- joining


def _joined_home(folder: ServicesFolder, **changes: Any) -> Path:
    innocent = psutil.Process()
    one = Running(pid=innocent.pid, created=innocent.create_time(), mark="", url="", since="")
    settings = ServiceSettings(ports={**ports.PORTS, "mlflow": 5055}, **changes)
    running = {"postgres": one, "mlflow": one, "ray": one}
    folder.write(ServicesState(settings=settings, boot=this_boot(), running=running))
    return folder.home


def test_verbs_use_the_services_of_their_home(folder: ServicesFolder, environment: pytest.MonkeyPatch) -> None:
    home = _joined_home(folder, auth=True)
    services.join(home)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5055"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "admin"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == (folder.secrets / "mlflow_password").read_text()
    assert "127.0.0.1:5055" in os.environ[tracking.LOGIN_FOR].split()
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert (folder.secrets / "ray_token").samefile(os.environ["RAY_AUTH_TOKEN_PATH"])
    storage = services.study_storage(home)
    assert storage is not None
    assert "search_path%3Dstudies" in storage


@pytest.mark.parametrize("login", ["grace", None])
def test_who_promotes_is_not_the_login_of_the_services(
    folder: ServicesFolder, environment: pytest.MonkeyPatch, login: str | None
) -> None:
    environment.setattr("getpass.getuser", lambda: "ada")
    if login is not None:
        environment.setenv("MLFLOW_TRACKING_USERNAME", login)
    services.join(_joined_home(folder, auth=True))
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == (login or "admin")
    assert current_user() == (login or "ada")


@pytest.fixture
def trackers() -> Iterator[list[tuple[str, list[str | None]]]]:
    """Give two servers that answer whatever MLflow asks, each with its address and the logins that it was sent."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(2):
            logins: list[str | None] = []

            class Answering(http.server.BaseHTTPRequestHandler):
                heard = logins

                def do_GET(self) -> None:
                    self.heard.append(self.headers["Authorization"])
                    self.rfile.read(int(self.headers["Content-Length"] or 0))
                    self.send_response(200)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"{}")

                do_POST = do_GET

                def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            made.append((f"http://127.0.0.1:{server.server_port}", logins))
        yield made


def test_the_login_goes_to_the_services_alone(
    folder: ServicesFolder, environment: pytest.MonkeyPatch, trackers: list[tuple[str, list[str | None]]]
) -> None:
    (ours, to_us), (other, to_others) = trackers
    port = int(ours.rpartition(":")[2])
    settings = ServiceSettings(ports={**ports.PORTS, "mlflow": port}, auth=True, allowed_hosts=("proxy.example",))
    for name, value in Services(folder, settings).cluster_environment().items():
        environment.setenv(name, value)  # as a job finds it
    tracking.client(ours)
    assert to_us
    assert all(login is not None and login.startswith("Basic ") for login in to_us)
    tracking.client(other)
    assert to_others
    assert set(to_others) == {None}
    del to_us[:]
    tracking.client(ours).search_experiments()
    assert len(to_us) == 1
    assert to_us[0] is not None, "it was put back"
    assert {f"localhost:{port}", "proxy.example"} <= set(os.environ[tracking.LOGIN_FOR].split())


def test_a_login_of_ones_own_is_not_the_services(folder: ServicesFolder, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_TRACKING_PASSWORD", "hers")
    services.join(_joined_home(folder, auth=True))
    assert tracking.LOGIN_FOR not in os.environ


def test_what_was_set_before_stays(folder: ServicesFolder, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", "off")
    environment.setenv("RAY_ADDRESS", "elsewhere:6379")
    services.join(_joined_home(folder, auth=True))
    assert os.environ["MLFLOW_TRACKING_URI"] == "off"
    assert os.environ["RAY_ADDRESS"] == "elsewhere:6379"
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ, "our token goes to nobody else"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_services_are_left_alone_where_that_is_said(folder: ServicesFolder, environment: pytest.MonkeyPatch) -> None:
    home = _joined_home(folder)
    environment.setenv("VESALIUS_SERVICES", "off")
    services.join(home)
    assert "RAY_ADDRESS" not in os.environ
    assert services.study_storage(home) is None


def test_a_home_without_services_is_as_ever(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    services.join(tmp_path)
    assert not any(name in os.environ for name in _VARIABLES)
    assert list(tmp_path.iterdir()) == []


def _noted(folder: ServicesFolder) -> ServicesState:
    state = folder.read()
    assert state is not None
    return state


def _with_ended(state: ServicesState, name: Name) -> ServicesState:
    """Return what is noted where a service has ended: a process of its number that began at another time is not it."""
    one = state.running.get(name, state.running["ray"]).model_copy(update={"created": 1.0})
    return state.model_copy(update={"running": {**state.running, name: one}})


def test_a_service_that_is_gone_is_not_passed_over(folder: ServicesFolder, environment: pytest.MonkeyPatch) -> None:
    home = _joined_home(folder)
    folder.write(_with_ended(_noted(folder), "ray"))
    with pytest.raises(ServiceError, match=r"the Ray head of .* ended without `vesalius down`: `vesalius up`"):
        services.join(home)
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.parametrize("name", ["studies", "supervisor"])
def test_a_service_that_no_verb_needs_stops_none(
    folder: ServicesFolder, environment: pytest.MonkeyPatch, name: Any
) -> None:
    home = _joined_home(folder)
    folder.write(_with_ended(_noted(folder), name))
    services.join(home)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5055"


def test_a_job_waits_until_a_service_that_is_started_again_answers(
    folder: ServicesFolder, environment: pytest.MonkeyPatch
) -> None:
    home = _joined_home(folder)
    well = _noted(folder)
    folder.write(_with_ended(well, "mlflow"))
    environment.setenv("VESALIUS_JOB", "brain")
    silent: set[str] = set()
    environment.setattr(Services, "problem", lambda services, name: "starting" if name in silent else None)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        """Play what `up` does: it notes what is well, starts the rest, and that takes its time to answer."""
        waited.append(seconds)
        if len(waited) == 1:
            running = {name: one for name, one in well.running.items() if name != "mlflow"}
            folder.write(well.model_copy(update={"running": running}))
        elif len(waited) == 2:
            silent.add("mlflow")
            folder.write(well)
        else:
            silent.clear()

    environment.setattr("vesalius.infra.services.joining.time.sleep", sleep)
    services.join(home)
    assert len(waited) == 3
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5055"


def test_a_job_whose_services_are_stopped_meanwhile_is_joined_to_none(
    folder: ServicesFolder, environment: pytest.MonkeyPatch
) -> None:
    home = _joined_home(folder)
    well = _noted(folder)
    folder.write(_with_ended(well, "mlflow"))
    environment.setenv("VESALIUS_JOB", "brain")
    environment.setattr(
        "vesalius.infra.services.joining.time.sleep",
        lambda seconds: folder.write(well.model_copy(update={"running": {}})),
    )
    services.join(home)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert services.jobs_access(home, None) is None


@pytest.mark.parametrize("noted", [True, False])
def test_a_verb_beside_services_that_are_being_started_says_so(
    folder: ServicesFolder, environment: pytest.MonkeyPatch, noted: bool
) -> None:
    home = _joined_home(folder)
    well = _noted(folder)
    environment.setattr(lifecycle, "STARTING_SECONDS", time.time())
    if noted:
        environment.setattr(Services, "problem", lambda services, name: "starting" if name == "mlflow" else None)
    else:
        running = {name: one for name, one in well.running.items() if name != "mlflow"}
        folder.write(well.model_copy(update={"running": running}))
    with pytest.raises(ServiceError, match=r"^MLflow of .* does not answer, or not yet \(see `vesalius status`\)"):
        services.join(home)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    if noted:  # one that has long been there is busy, and not asked
        environment.setattr(lifecycle, "STARTING_SECONDS", 0.0)
        services.join(home)
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5055"


def test_jobs_are_heard_of_while_only_their_head_is_there(
    folder: ServicesFolder, environment: pytest.MonkeyPatch
) -> None:
    home = _joined_home(folder)
    well = _noted(folder)
    folder.write(_with_ended(well, "mlflow"))
    assert services.jobs_access(home, None) is not None
    folder.write(_with_ended(well, "ray"))
    with pytest.raises(ClusterGoneError, match=r"the Ray head of .* ended without `vesalius down`"):
        services.jobs_access(home, None)
    folder.write(well.model_copy(update={"running": {"postgres": well.running["postgres"]}}))
    with pytest.raises(ServiceError, match=r"the Ray head of .* is not up"):
        services.jobs_access(home, None)


def test_the_token_opens_our_own_head_and_goes_to_nobody_else(
    folder: ServicesFolder, environment: pytest.MonkeyPatch
) -> None:
    home = _joined_home(folder)
    own = services.jobs_access(home, None)
    assert own is not None
    assert own[0] == "http://127.0.0.1:8265"
    assert own[1]["Authorization"].startswith("Bearer ")
    assert services.jobs_access(home, "http://localhost:8265") is not None
    assert services.jobs_access(home, "http://127.0.0.1:9000") is None
    assert services.jobs_access(home, "http://evil.example.org:8265") is None
