"""What is known of a home's services: how they are to run, and which processes do.

::

    HOME/services/
      state.json    this file; replaced as a whole
      lock          held by the one process that starts or stops services
      logs/         one file a service; ``ray`` leads to the logs of the head and its jobs, ``jobs`` has those of
                    jobs that earlier heads ran
      secrets/      0700: passwords and tokens, each file 0600
      postgres/     the database's own folder
      artifacts/    what MLflow keeps of runs beside figures
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vesalius.infra.services.credentials import keep
from vesalius.platform.config import Settings, validate
from vesalius.platform.errors import ServiceError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Name = Literal["postgres", "mlflow", "ray", "studies", "supervisor"]
NAMES: tuple[Name, ...] = ("postgres", "mlflow", "ray", "studies", "supervisor")
TITLES: Mapping[Name, str] = {
    "postgres": "PostgreSQL",
    "mlflow": "MLflow",
    "ray": "the Ray head",
    "studies": "optuna-dashboard",
    "supervisor": "the supervisor",
}


PROBE = "vesalius-probe"
"""Begins the name of a job of a second, which asks a cluster what it has; what it wrote is of no interest later."""


class ServiceSettings(Settings):
    """How services run; kept with them, so that a second ``up`` needs no options.

    Attributes:
        host: address that MLflow and Ray's dashboard listen at.
        auth: whether MLflow asks for a login.
        allowed_hosts: further names that browsers and clients may call MLflow by.
        ports: by port's name, as in :data:`vesalius.infra.services.ports.PORTS`.
        cpus: that the Ray head offers; None is all of the machine.
        gpus: likewise.
        object_store_mib: Ray's shared memory.
        database: address of somebody else's PostgreSQL, without a password; None is our own.
        redis: HOST:PORT of somebody's Redis that the head keeps what it knows in; None is its memory.
        supervised: whether what ends by itself is started again, and lost jobs submitted again.
    """

    host: str = "127.0.0.1"
    auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    ports: dict[str, int] = Field(default_factory=dict)
    cpus: int | None = None
    gpus: int | None = None
    object_store_mib: int = 512
    database: str | None = None
    redis: str | None = None
    supervised: bool = True


class Running(Settings):
    """A service's process.

    Attributes:
        pid: of the process that leads the service's session.
        created: its start, seconds since the epoch: with it a pid is not mistaken for a later one's.
        mark: a random text in its environment, which its children inherit.
        url: where it answers.
        since: UTC, ISO 8601.
    """

    pid: int
    created: float
    mark: str
    url: str
    since: str


class ServicesState(Settings):
    """What ``state.json`` holds.

    Attributes:
        settings: how they run.
        boot: machine and its boot, since a pid says nothing on another machine or after a restart.
        running: by service; those that are stopped on purpose are absent.
    """

    settings: ServiceSettings = Field(default_factory=ServiceSettings)
    boot: str = ""
    running: dict[Name, Running] = Field(default_factory=dict)


class ServicesFolder:
    """``HOME/services``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "services"

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops services."""
        return self.path / "lock"

    @property
    def beat(self) -> Path:
        """File that the supervisor touches whenever it has looked."""
        return self.path / "supervisor.beat"

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.path / "logs"

    @property
    def secrets(self) -> Path:
        """Folder of passwords and tokens."""
        return self.path / "secrets"

    def log(self, name: Name) -> Path:
        """Log file of a service."""
        return self.logs / f"{name}.log"

    def job_log(self, submission: str) -> Path:
        """Where the log of a job is kept once the head that ran it is gone."""
        return self.logs / "jobs" / f"{submission}.log"

    def make(self) -> None:
        """Make the folders that are not there, those of secrets for their owner alone."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.secrets.mkdir(mode=0o700, exist_ok=True)
        self.secrets.chmod(0o700)

    def read(self) -> ServicesState | None:
        """Return the state, or None where services were never started here.

        Raises:
            ServiceError: the file is damaged.
        """
        path = self.path / "state.json"
        try:
            text = path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return validate(ServicesState, json.loads(text), str(path))
        except (ValueError, SettingError):
            raise ServiceError(
                f"{path} is damaged, so nobody knows which processes are services: end those that still run, remove "
                "the file, and call `vesalius up`"
            ) from None

    def write(self, state: ServicesState) -> None:
        """Replace the state."""
        keep(self.path / "state.json", state.model_dump_json(indent=1))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock; the system lets go of it when the process dies.

        Raises:
            ServiceError: another process holds it.
        """
        with self.lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServiceError(
                    f"another `vesalius up` or `down` is at work in {self.home}: wait for it to end"
                ) from None
            yield


def this_boot() -> str:
    """Return this machine's name and, where it says, which of its boots this is."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: start times alone tell processes apart
        boot = "unknown"
    return f"{platform.node()}/{boot}"


def present(state: ServicesState) -> ServicesState:
    """Return a state without processes of another boot: their numbers mean nothing now.

    Raises:
        ServiceError: they were started on another machine that shares the home.
    """
    boot = this_boot()
    if not state.running or state.boot == boot:
        return state
    machine, here = state.boot.partition("/")[0], boot.partition("/")[0]
    if machine != here:
        raise ServiceError(f"the services of this home were started on {machine}: call this there")
    return state.model_copy(update={"running": {}})
