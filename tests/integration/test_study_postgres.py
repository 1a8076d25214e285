"""Studies in a real PostgreSQL: two drivers of one study, and a server that goes away in the middle."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vesalius.platform import cluster
from vesalius.platform.errors import StudyError
from vesalius.tuning import analyse, drive, try_storage
from vesalius.tuning.testing import BASE, ToyTrainer, toy_study

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.testing.servers import PostgreSQL
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


@pytest.fixture(scope="module")
def server(postgresql: PostgreSQL) -> PostgreSQL:
    if _PACKAGE is None:
        pytest.skip("no package speaks to PostgreSQL here: pip install 'psycopg[binary]'")
    return postgresql


def _study(home: Path, server: PostgreSQL, name: str, trials: int) -> StudyFolder:
    return toy_study(
        home,
        name=name,
        storage=server.address(str(_PACKAGE)),
        shared=True,
        trials=trials,
        concurrent=1,
        space={"x": "0..1"},
    )


def test_drivers_that_begin_at_once_make_the_tables_once(server: PostgreSQL) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(server.address(str(_PACKAGE)), isolation_level="AUTOCOMMIT")
    for attempt in range(3):
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE fresh{attempt}"))
        address = server.address(str(_PACKAGE)).removesuffix("/postgres") + f"/fresh{attempt}"
        with ThreadPoolExecutor(6) as drivers:
            list(drivers.map(try_storage, [address] * 6))
    engine.dispose()


def test_two_drivers_share_one_study(server: PostgreSQL, tmp_path: Path) -> None:
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


def test_a_server_that_goes_away_is_waited_for(server: PostgreSQL, tmp_path: Path) -> None:
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


def test_a_server_that_stays_away_ends_in_a_sentence_and_loses_nothing(server: PostgreSQL, tmp_path: Path) -> None:
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
