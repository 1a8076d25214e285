"""Fixtures of the tests that need a server or a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.services.ports import PORTS, is_free
from vesalius.platform.cluster import session
from vesalius.platform.testing import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Hold a Ray runtime of two cores for all tests of a file."""
    with session(2):
        yield


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[str]:
    """Start an MLflow server whose files lie in ``tmp_path`` and return its address."""
    with servers.tracking_server(tmp_path) as server:
        yield server.address


@dataclass
class ServedHome:
    """A home for services on ports of its own, and the command line that is called on it."""

    home: Path
    ports: dict[str, int]
    environment: dict[str, str]

    def command(self, verb: str, *arguments: object) -> list[str]:
        program = [sys.executable, "-c", "from vesalius.infra.cli import main; main()"]
        return [*program, verb, "--home", str(self.home), *map(str, arguments)]

    def call(
        self, verb: str, *arguments: object, code: int | None = 0, seconds: float = 400, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(verb, *arguments),
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def ask(self, verb: str, *arguments: object, code: int = 0) -> Any:
        return json.loads(self.call(verb, "--json", *arguments, code=code).stdout)

    def up(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        flags = [f"--{name.replace('_', '-')}-port={port}" for name, port in self.ports.items()]
        watched = () if "--supervisor" in arguments else ("--no-supervisor",)
        return self.call("up", "--cpus", 2, "--object-store-mib", 200, *watched, *flags, *arguments, code=code)

    def services(self) -> dict[str, dict[str, Any]]:
        found = json.loads(self.call("status", "--json", code=None).stdout)
        return {row["service"]: row for row in found["services"]}


@pytest.fixture(scope="module")
def served_homes() -> Iterator[Callable[[], ServedHome]]:
    """Return a maker of homes for services; what runs in them at the end is stopped, and they are removed."""
    from vesalius.infra.services.database import program
    from vesalius.infra.services.kinds import Services
    from vesalius.infra.services.state import ServiceSettings, ServicesFolder
    from vesalius.platform.errors import ServiceError

    try:
        program("initdb")
        if os.geteuid() == 0:
            pwd.getpwnam("postgres")
    except (ServiceError, KeyError):
        pytest.skip("no PostgreSQL is installed here, or nobody to run it as")
    made: list[ServedHome] = []

    def make() -> ServedHome:
        # Beside pytest's own folders, which the user that PostgreSQL runs as may not enter.
        home = Path(tempfile.mkdtemp(prefix="vesalius-served-"))
        home.chmod(0o755)
        # Below those that the system gives to whoever asks for any: a service that is down keeps its port.
        start = random.SystemRandom().randrange(20000, 32000)
        free = (port for port in range(start, 32700) if is_free(port, "0.0.0.0"))
        ports = {name: next(free) for name in PORTS}
        left_out = ("RAY_", "MLFLOW_", "VESALIUS_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        made.append(ServedHome(home, ports, environment))
        return made[-1]

    yield make
    for one in made:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.call("down", code=None, seconds=200)
        sessions = Services(ServicesFolder(one.home), ServiceSettings()).session_folder().parent
        shutil.rmtree(sessions, ignore_errors=True)
        shutil.rmtree(one.home, ignore_errors=True)
