"""How each service is started and how it is asked whether it is well."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from vesalius.infra.services import credentials, database
from vesalius.infra.services.addresses import clients_host, is_loopback
from vesalius.infra.services.asking import asked, why_not
from vesalius.platform import tracking
from vesalius.platform.errors import ServiceError

if TYPE_CHECKING:
    from vesalius.infra.services.state import Name, ServiceSettings, ServicesFolder

_ASKING_SECONDS = 10.0
_FOREIGN = ("MLFLOW_", "RAY_", "PG", "VESALIUS_")
"""Begins of variables that are ours to set: what a shell was in for another server must not reach these."""

STOP_SECONDS = 30
HEAD_AWAY_SECONDS = 300
"""How long machines of the cluster wait for a head that Redis remembers; Ray's own limit is a minute."""

BEAT_SECONDS = 1000.0
"""Longer than any step of the supervisor's: all services together may take ten minutes to start, and so may a wheel to
be sent to a cluster that was first asked what it has."""


@dataclass(frozen=True)
class Plan:
    """What is to be started.

    Attributes:
        command: program and arguments.
        environment: complete.
        url: where it answers.
        user: to run as.
    """

    command: list[str]
    environment: dict[str, str]
    url: str
    user: str | None = None


class Services:
    """The services of a home under its settings."""

    def __init__(self, folder: ServicesFolder, settings: ServiceSettings) -> None:
        self.folder = folder
        self.settings = settings

    @property
    def database(self) -> database.Database:
        """The database that figures and studies are kept in."""
        if self.settings.database is not None:
            return database.Database(self.settings.database)
        return database.own_database(self.folder, self.settings.ports["postgres"])

    @property
    def names(self) -> tuple[Name, ...]:
        """Services to be started, in this order."""
        own: tuple[Name, ...] = ("postgres",) if self.settings.database is None else ()
        watching: tuple[Name, ...] = ("supervisor",) if self.settings.supervised else ()
        return (*own, "mlflow", "ray", "studies", *watching)

    def url(self, name: Name) -> str:
        """Return where a service answers."""
        ports, host = self.settings.ports, clients_host(self.settings.host)
        return {
            "postgres": f"postgresql://127.0.0.1:{ports['postgres']}",
            "mlflow": f"http://{host}:{ports['mlflow']}",
            "ray": f"http://{host}:{ports['ray_dashboard']}",
            "studies": f"http://127.0.0.1:{ports['studies']}",
            "supervisor": "",
        }[name]

    def plan(self, name: Name) -> Plan:
        """Return how a service is started."""
        return {
            "postgres": self._postgres,
            "mlflow": self._mlflow,
            "ray": self._ray,
            "studies": self._studies,
            "supervisor": self._supervisor,
        }[name]()

    def problem(self, name: Name) -> str | None:
        """Ask a service something real; return what is wrong, or None."""
        if name == "postgres":
            return self.database.problem(only_server=True)
        if name == "supervisor":
            return self._beat_problem()
        paths = {"mlflow": "/health", "ray": "/api/gcs_healthz", "studies": "/api/studies"}
        return _ask(self.url(name) + paths[name])

    def _postgres(self) -> Plan:
        user = database.make_cluster(self.folder)
        if user is not None:
            self.folder.path.chmod(self.folder.path.stat().st_mode | 0o001)
        environment = _environment()
        return Plan(
            database.server_command(self.folder, self.settings.ports["postgres"]),
            environment,
            self.url("postgres"),
            user,
        )

    def _mlflow(self) -> Plan:
        settings = self.settings
        port = settings.ports["mlflow"]
        environment = {
            **_environment(),
            "MLFLOW_BACKEND_STORE_URI": self.database.url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # half of its processes, for what nothing here uses
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # nothing that a model brings runs code here
            "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.kept_or_made(self.folder.secrets / "mlflow_sessions"),
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", settings.host, "--port", str(port)]
        command += ["--workers", "1", "--artifacts-destination", str(self.folder.path / "artifacts")]
        if settings.auth:
            file = credentials.login_settings(self.folder.secrets, self.database.schema(database.LOGIN))
            _, password = credentials.tracking_login(self.folder.secrets)
            environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(file), "MLFLOW_AUTH_ADMIN_PASSWORD": password}
            command += ["--app-name", "basic-auth"]
        if settings.allowed_hosts or not is_loopback(settings.host):
            hosts = allowed_hosts(settings)
            command += ["--allowed-hosts", ",".join(hosts)]
            # Pages come by https where a proxy with TLS stands before it.
            origins = [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]
            command += ["--cors-allowed-origins", ",".join(origins)]
        return Plan(command, environment, self.url("mlflow"))

    def _ray(self) -> Plan:
        settings = self.settings
        ports = settings.ports
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += [f"--port={ports['ray']}", f"--dashboard-host={settings.host}"]
        command += [f"--dashboard-port={ports['ray_dashboard']}", f"--dashboard-agent-listen-port={ports['ray_agent']}"]
        command += [f"--metrics-export-port={ports['ray_metrics']}"]
        command += [f"--ray-client-server-port={ports['ray_client']}"]  # Ray has no way to leave that server out
        command += [f"--num-cpus={_cores() if settings.cpus is None else settings.cpus}"]
        command += [] if settings.gpus is None else [f"--num-gpus={settings.gpus}"]
        command += [f"--object-store-memory={settings.object_store_mib * 2**20}", f"--temp-dir={self.session_folder()}"]
        environment = {**_environment(), **self.cluster_environment(), **self._memory_of_the_head()}
        return Plan(command, environment, self.url("ray"))

    def cluster_environment(self) -> dict[str, str]:
        """Return what the head, and so every job and worker on it, finds in its environment."""
        environment = {
            **ray_access(self.folder),
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            "RAY_JOB_STOP_SIGNAL": "SIGINT",  # at SIGTERM Ray writes the stack of a crash into the job's log
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
            "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "VESALIUS_HOME": str(self.folder.home),
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
        }
        if self.settings.auth:
            name, password = credentials.tracking_login(self.folder.secrets)
            environment |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
            environment[tracking.LOGIN_FOR] = login_places(self.settings)  # a job may be told to track elsewhere
        return environment

    def _memory_of_the_head(self) -> dict[str, str]:
        """Return what lets the head keep what it knows in Redis, and its machines wait for it meanwhile."""
        if self.settings.redis is None:
            return {}
        # Several homes, on several machines, may use one Redis.
        digest = hashlib.sha256(f"{socket.gethostname()} {self.folder.home}".encode()).hexdigest()[:16]
        return {
            "RAY_REDIS_ADDRESS": self.settings.redis,
            "RAY_external_storage_namespace": f"vesalius-{digest}",
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_AWAY_SECONDS),
        }

    def session_folder(self) -> Path:
        """Return a private folder with a short name: sockets lie in it, and their paths may have 107 characters."""
        digest = hashlib.sha256(str(self.folder.home).encode()).hexdigest()[:8]
        path = Path(tempfile.gettempdir()) / f"vesalius-{os.getuid()}-{digest}"
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or path.is_symlink():
            raise ServiceError(f"{path} is not this user's alone, and Ray keeps sockets there: remove it")
        return path / "ray"  # which Ray opens to everyone; nobody comes so far

    def _studies(self) -> Plan:
        command = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()"]
        command += [self.database.schema(database.STUDIES), "--host", "127.0.0.1"]  # it has no login
        command += ["--port", str(self.settings.ports["studies"]), "--server", "wsgiref"]
        return Plan(command, _environment(), self.url("studies"))

    def _supervisor(self) -> Plan:
        self.folder.beat.unlink(missing_ok=True)  # an earlier one's
        command = [sys.executable, "-m", "vesalius.infra.supervisor", "--home", str(self.folder.home)]
        # It has more to look after than one server that does not answer, and tries again by itself.
        patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        return Plan(command, {**_environment(), **patience}, self.url("supervisor"))

    def _beat_problem(self) -> str | None:
        """Return what is wrong with the supervisor, which answers nobody: how long it has not looked."""
        try:
            seconds = time.time() - self.folder.beat.stat().st_mtime
        except OSError:
            return "it has not looked yet"
        return None if seconds < BEAT_SECONDS else f"it has not looked for {seconds:.0f} s"


def allowed_hosts(settings: ServiceSettings) -> list[str]:
    """Return the names that MLflow may be called by where it listens beyond loopback, or stands behind a proxy."""
    port = settings.ports["mlflow"]
    names = ["localhost", "127.0.0.1", clients_host(settings.host), socket.gethostname(), *settings.allowed_hosts]
    return [text for name in dict.fromkeys(names) for text in (name, f"{name}:{port}")]


def login_places(settings: ServiceSettings) -> str:
    """Return where MLflow's login may be sent: here, and to the proxies that the settings name."""
    here = ("localhost", "127.0.0.1", clients_host(settings.host), socket.gethostname())
    places = [*(f"{host}:{settings.ports['mlflow']}" for host in here), *settings.allowed_hosts]
    return " ".join(dict.fromkeys(places))


def ray_access(folder: ServicesFolder) -> dict[str, str]:
    """Return what a process needs to be let in by the head; its token is made where there is none yet."""
    path = folder.secrets / "ray_token"
    credentials.kept_or_made(path)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def _environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    # Programs that come with this Python are found first: Ray calls pip by its name.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _cores() -> int:
    with contextlib.suppress(AttributeError):  # where a process cannot be held to some cores
        return len(psutil.Process().cpu_affinity())
    return os.cpu_count() or 1


def _ask(url: str) -> str | None:
    try:
        asked(url, _ASKING_SECONDS)
    except (OSError, ValueError) as error:
        return why_not(error)
    return None
