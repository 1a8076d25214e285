"""Real servers on loopback for tests that are about them: an MLflow server, PostgreSQL, and Redis."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.platform.testing.training_runs import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_UP_SECONDS = 120.0


class TrackingServer:
    """An MLflow server that can be killed and started again. Not safe for several threads."""

    def __init__(self, folder: Path, database: str | None = None, *, num_workers: int = 1) -> None:
        """Choose a port; nothing is started.

        Args:
            folder: of its log and its files.
            database: where it keeps its runs; an SQLite file in ``folder`` where None.
            num_workers: processes that answer.
        """
        self._num_workers = num_workers
        self.folder = folder
        self.port = free_port()
        self._database = database or f"sqlite:///{folder}/server.db"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its tracking URI."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ended, or does not answer in two minutes; with what it said.
        """
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", str(self._num_workers), "--backend-store-uri", self._database]
        command += ["--artifacts-destination", str(self.folder / "files")]
        log = self.folder / "server.log"
        with log.open("a") as written:
            self._process = subprocess.Popen(
                command, env=environment, stdout=written, stderr=written, start_new_session=True
            )
        deadline = time.monotonic() + _UP_SECONDS
        while not self.answers:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the MLflow server did not come up: {log.read_text()[-3000:]}")
            time.sleep(0.2)

    @property
    def answers(self) -> bool:
        """Whether it is healthy at this moment."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its workers by SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        self._process.wait(30)
        self._process = None


class PostgreSQL:
    """A PostgreSQL of our own, for which nobody needs a password, in a folder that goes with it."""

    def __init__(self) -> None:
        """Choose a folder and a port; nothing is started.

        Raises:
            FileNotFoundError: PostgreSQL's programs are not installed.
            PermissionError: this process is root's, and there is no user ``postgres`` to run it as.
        """
        if program("initdb") is None:
            raise FileNotFoundError("no PostgreSQL is installed here")
        self.user = None
        if os.geteuid() == 0:
            try:
                self.user = pwd.getpwnam("postgres").pw_name
            except KeyError:
                raise PermissionError("root cannot run PostgreSQL and there is no user 'postgres'") from None
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="vesalius-postgres-"))
        if self.user is not None:
            shutil.chown(self.folder, self.user)

    def address(self, package: str = "psycopg") -> str:
        """Return its address for SQLAlchemy with the package that speaks to it."""
        return f"postgresql+{package}://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, after making its files the first time, and wait until it answers."""
        if not (self.folder / "data").exists():
            self._call("initdb", "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self._call("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End it as a kill would: what is committed is there when it starts again, and it recovers."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        """Remove its folder, after ending it where it still runs."""
        if (self.folder / "data" / "postmaster.pid").exists():
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, name: str, *arguments: str) -> None:
        found = program(name)
        assert found is not None
        done = subprocess.run(
            [found, "-D", str(self.folder / "data"), *arguments],
            user=self.user,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stdout}{done.stderr}")


def program(name: str) -> str | None:
    """Return where one of PostgreSQL's programs is, or None where it is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


@contextlib.contextmanager
def tracking_server(folder: Path, database: str | None = None) -> Iterator[TrackingServer]:
    """Hold a running MLflow server for the while; see :class:`TrackingServer`."""
    server = TrackingServer(folder, database)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Hold a running PostgreSQL for the while; see :class:`PostgreSQL`."""
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run a Redis that keeps in ``folder`` what it is told, and yield its address.

    Raises:
        FileNotFoundError: it is not installed.
        RuntimeError: it does not answer in half a minute; with what it said.
    """
    program, client = shutil.which("redis-server"), shutil.which("redis-cli")
    if program is None or client is None:
        raise FileNotFoundError("no redis-server on this machine")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        asked = [client, "-p", str(port), "ping"]
        deadline = time.monotonic() + 30
        while subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() != "PONG":
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
