"""Studies in a real PostgreSQL: two drivers of one study, and a server that goes away in the middle."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vesalius.platform import cluster
from vesalius.platform.errors import StudyError
from vesalius.tuning import analyse, drive, try_storage
from vesalius.tuning.testing import BASE, ToyTrainer, toy_study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.tuning import StudyFolder

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray's own
_PACKAGE = next((name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name)), None)

_DRIVER = """
import sys
from pathlib import Path
from vesalius.platform import cluster
from vesalius.tuning import drive, find_study
from vesalius.tuning.testing import BASE, ToyTrainer
home = Path(sys.argv[1])
with cluster.session(1):
    drive(find_study(home, "toy"), BASE, ToyTrainer(str(home), seconds=0.1))
"""


def _program(name: str) -> str | None:
    found = shutil.which(name)
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else found


@dataclass
class Server:
    """A PostgreSQL of our own on loopback, for which nobody needs a password."""

    folder: Path
    port: int
    user: str | None

    @property
    def address(self) -> str:
        return f"postgresql+{_PACKAGE}://postgres@127.0.0.1:{self.port}/postgres"

    def call(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program is not None
        done = subprocess.run(
            [program, "-D", str(self.folder / "data"), *arguments],
            user=self.user,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self.call("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if _program("initdb") is None or _PACKAGE is None:
        pytest.skip("no PostgreSQL is installed here, or no package that speaks to it: pip install 'psycopg[binary]'")
    user = None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("root cannot run PostgreSQL and there is no user 'postgres'")
    folder = Path(tempfile.mkdtemp(prefix="vesalius-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Server(folder, port, user)
    try:
        made.call("initdb", "-U", "postgres", "-A", "trust", "--no-sync")
        made.start()
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _study(home: Path, server: Server, name: str, trials: int) -> StudyFolder:
    return toy_study(
        home, name=name, storage=server.address, shared=True, trials=trials, concurrent=1, space={"x": "0..1"}
    )


def test_drivers_that_begin_at_once_make_the_tables_once(server: Server) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(server.address, isolation_level="AUTOCOMMIT")
    for attempt in range(3):
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE fresh{attempt}"))
        address = server.address.removesuffix("/postgres") + f"/fresh{attempt}"
        with ThreadPoolExecutor(6) as drivers:
            list(drivers.map(try_storage, [address] * 6))
    engine.dispose()


def test_two_drivers_share_one_study(server: Server, tmp_path: Path) -> None:
    homes = [tmp_path / "one", tmp_path / "two"]
    studies = [_study(home, server, "toy", 10) for home in homes]
    drivers = []
    for home in homes:
        with (home / "driver.log").open("w") as log:
            command = [sys.executable, "-c", _DRIVER, str(home)]
            drivers.append(subprocess.Popen(command, stdout=log, stderr=log))
    codes = [driver.wait(400) for driver in drivers]
    assert codes == [0, 0], [(home / "driver.log").read_text()[-3000:] for home in homes]
    one, other = (analyse(study) for study in studies)
    assert one.trials == other.trials, "both see the same study"
    ended = [row for row in one.trials if row.state in ("complete", "pruned")]
    assert len(ended) == len(one.trials)
    assert 10 <= len(ended) <= 11, "each may begin the last one"
    assert sum(row.is_start for row in one.trials) == 1
    trained = [{line for line in (home / "log").read_text().splitlines() if line.startswith("train")} for home in homes]
    assert all(trained), "both had a part in it"
    assert not trained[0] & trained[1], "no trial was run by both"
    assert len(trained[0] | trained[1]) == len(ended)
    values = [row.values["method.x"] for row in one.trials]
    assert len(set(values)) == len(values), "no two of them drew the same"


def test_a_server_that_goes_away_is_waited_for(server: Server, tmp_path: Path) -> None:
    study = _study(tmp_path, server, "waiting", 6)
    said: list[str] = []

    def away() -> None:
        deadline = time.monotonic() + 120
        while not (study.path / "trials" / "0001.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        server.stop()
        time.sleep(4)
        server.start()

    thread = threading.Thread(target=away)
    thread.start()
    with cluster.session(2):
        ended = drive(
            study, BASE, ToyTrainer(str(tmp_path), seconds=0.1), progress=lambda done, total, note: said.append(note)
        )
    thread.join()
    assert ended.is_finished
    assert any("storage does not answer, waiting" in note for note in said)
    assert len(analyse(study).trials) == 6
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == len(set(lines)), "nothing was done twice"


def test_a_server_that_stays_away_ends_in_a_sentence_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    study = _study(tmp_path, server, "stopped", 5)

    def away() -> None:
        deadline = time.monotonic() + 120
        while not (study.path / "trials" / "0001.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        server.stop()

    thread = threading.Thread(target=away)
    thread.start()
    with cluster.session(2):
        trainer = ToyTrainer(str(tmp_path), seconds=0.1)
        try:
            with pytest.raises(StudyError, match=r"has not answered for 2 s.*nothing is lost"):
                drive(study, BASE, trainer, patience_seconds=2)
        finally:
            thread.join()
            server.start()
        assert drive(study, BASE, trainer).is_finished
    assert len(analyse(study).trials) == 5
    judged = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("judge")]
    assert len(judged) == len(set(judged)), "no finished trial was run again"
