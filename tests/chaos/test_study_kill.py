"""Kill a study's driver, and a trial's worker: no finished trial is run again, none is lost, the search goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import psutil
import pytest
from safetensors.torch import load_file

from vesalius.tuning import Population, StudyFolder, analyse, find_study
from vesalius.tuning.testing import toy_study

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.long

_TRIALS = 12
_DRIVER = """
import sys
from pathlib import Path
from vesalius.tuning import drive, find_study
from vesalius.tuning.testing import BASE, ToyTrainer
home = Path(sys.argv[1])
drive(find_study(home, "toy"), BASE, ToyTrainer(str(home), seconds=float(sys.argv[2])))
"""


def _start(*command: str, home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "off"}
    with (home / "driver.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *command], start_new_session=True, env=environment, stdout=log, stderr=log
        )


def _of_session(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return what of the driver's lives; they share its session, which is nobody else's."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == driver.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def _end_group(driver: subprocess.Popen[bytes]) -> None:
    """Kill what the driver started, and what that starts meanwhile, until nothing of it is left."""
    deadline = time.monotonic() + 30
    while found := _of_session(driver):
        assert time.monotonic() < deadline, found
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _wait(condition: Callable[[], bool], driver: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert driver.poll() is None, (home / "driver.log").read_text()[-3000:]
        assert time.monotonic() < deadline, (home / "driver.log").read_text()[-3000:]
        time.sleep(0.05)


def _log(home: Path) -> list[str]:
    path = home / "log"
    return path.read_text().splitlines() if path.exists() else []


def _num_ended(study: StudyFolder) -> int:
    return len(list((study.path / "trials").glob("*.json"))) if (study.path / "trials").is_dir() else 0


def _under_way(home: Path) -> bool:
    """Say whether some run has begun to train and has steps left that take longer than a kill."""
    for run in {line.split()[1] for line in _log(home) if line.startswith("train")}:
        folder = home / "runs" / run
        gathered, values = folder / "gathered.json", json.loads((folder / "values.json").read_text())
        if gathered.exists() and values["until"] - len(json.loads(gathered.read_text())) >= 2:
            return True
    return False


def _kill_at(ended: int, study: StudyFolder, driver: subprocess.Popen[bytes], home: Path) -> list[str]:
    """Kill a driver, and its workers, once so many trials have ended and another one is under way.

    Returns:
        The lines of those trainings that go on from now on: begun, and of which no worker has written how they ended.
        Trials begin two by two and end two by two, so that they may well be none where one kills at any moment.
    """
    _wait(lambda: _num_ended(study) >= ended and _under_way(home), driver, home)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(30)
    _end_group(driver)
    begun = {line for line in _log(home) if line.startswith("train")}
    return [line for line in begun if study.record(int(line.rpartition("-")[2])) is None]


def test_a_driver_killed_twice_loses_nothing(tmp_path: Path) -> None:
    study = toy_study(tmp_path, trials=_TRIALS, space={"x": "0..1", "k": "1..8"}, criterion=None)
    before: dict[int, dict[str, float]] = {}
    left: list[str] = []
    for ended in (3, 6):
        driver = _start("-c", _DRIVER, str(tmp_path), "0.15", home=tmp_path)
        try:
            left += _kill_at(ended, study, driver, tmp_path)
        finally:
            _end_group(driver)
        rows = {row.number: row.figures for row in analyse(study).trials if row.state == "complete"}
        assert before.items() <= rows.items(), "what had ended stands"
        before = rows
    last = _start("-c", _DRIVER, str(tmp_path), "0.15", home=tmp_path)
    try:
        assert last.wait(300) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        _end_group(last)
    found = analyse(study)
    assert found.counts == {"complete": _TRIALS}
    assert [row.number for row in found.trials] == list(range(_TRIALS)), "none is lost, none was begun in vain"
    values = [tuple(row.values.values()) for row in found.trials]
    assert len(set(values)) == _TRIALS, "what was drawn is not drawn again"
    lines = Counter(_log(tmp_path))
    # A kill may fall between a trial's last step and its record: it is then judged again, and never trained again.
    assert all(lines[f"judge toy-{row.number:04d}"] <= 2 for row in found.trials)
    trained = Counter(line for line in lines.elements() if line.startswith("train"))
    assert trained - Counter(set(trained)) == Counter(left), "those alone go on that were under way at a kill"
    assert 2 <= len(left) <= 4, "one or two at each"
    for row in found.trials:
        assert lines[f"judge toy-{row.number:04d}"] == 1 or f"train toy-{row.number:04d}" in left


def test_a_population_whose_driver_is_killed_twice_comes_to_the_same(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("whole", "killed")]
    whole, killed = (
        toy_study(
            home, population=Population(size=4, generations=3), trials=12, space={"x": "0..1", "k": "1..8"},
            sampler="random",
        )
        for home in homes
    )  # fmt: skip
    left: list[str] = []
    for ends in ([], [3, 7]):
        home = homes[bool(ends)]
        for ended in [*ends, None]:
            driver = _start("-c", _DRIVER, str(home), "0.4" if ends else "0.01", home=home)
            try:
                if ended is None:
                    assert driver.wait(300) == 0, (home / "driver.log").read_text()[-3000:]
                    continue
                left += _kill_at(ended, killed, driver, home)
            finally:
                _end_group(driver)
    one, other = analyse(whole), analyse(killed)
    assert other.counts == {"paused": 8, "complete": 4}
    for row, again in zip(one.trials, other.trials, strict=True):
        assert again == row.model_copy(update={"seconds": again.seconds})
    trained = Counter(line for line in _log(homes[1]) if line.startswith("train"))
    assert len(trained) == 12
    assert trained - Counter(set(trained)) == Counter(left), "those alone go on that were under way at a kill"
    assert 2 <= len(left) <= 4, "one or two at each"


def test_an_interrupted_study_says_how_to_go_on(toy_store: CohortStore, tmp_path: Path) -> None:
    command = "from vesalius.infra.cli import main; main()"
    arguments = [
        "implicit_field", str(toy_store.path), "--preset", "tiny", "--trials", "2", "--name", "study", "--space",
        "num_classes=4..8", "--set", "training.device=cpu", "--set", "method.epochs=3000", "--concurrent", "1",
    ]  # fmt: skip
    driver = _start("-c", command, "tune", "--home", str(tmp_path), *arguments, home=tmp_path)
    try:
        state = tmp_path / "runs" / "study-0000" / "progress.json"
        _wait(state.exists, driver, tmp_path)
        os.kill(driver.pid, signal.SIGINT)
        assert driver.wait(60) == 130
    finally:
        _end_group(driver)
    said = (tmp_path / "driver.log").read_text()
    assert "stopped by you; to go on: vesalius tune --resume study" in said
    assert "Traceback" not in said
    assert [row.state for row in analyse(find_study(tmp_path, "study")).trials] == ["running"]


def test_a_killed_trial_goes_on(tmp_path: Path) -> None:
    study = toy_study(tmp_path, trials=4, criterion=None)
    driver = _start("-c", _DRIVER, str(tmp_path), "0.5", home=tmp_path)
    killed = ""
    try:
        # Both: the worker of one that has not begun yet would not have to go on.
        steps = [tmp_path / "runs" / f"toy-000{number}" / "gathered.json" for number in range(2)]
        _wait(lambda: all(one.exists() and len(json.loads(one.read_text())) > 1 for one in steps), driver, tmp_path)
        workers = [one for one in _of_session(driver) if "ImplicitFunc" in one.name() + " ".join(one.cmdline())]
        assert workers, [" ".join(one.cmdline())[:80] for one in _of_session(driver)]
        workers[0].kill()
        killed = "yes"
        assert driver.wait(300) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        _end_group(driver)
    assert killed
    assert analyse(study).counts == {"complete": 4}
    trained = Counter(line for line in _log(tmp_path) if line.startswith("train"))
    assert sorted(trained.values()) == [1, 1, 1, 2], "the killed one went on, the others did not notice"


def test_a_method_goes_on_bit_for_bit(toy_store: CohortStore, tmp_path: Path) -> None:
    """The search too: the same trials with the same figures, whether the study was broken off or not."""

    def begin(home: Path, *more: str) -> subprocess.Popen[bytes]:
        home.mkdir(exist_ok=True)
        command = "from vesalius.infra.cli import main; main()"
        return _start("-c", command, "tune", "--home", str(home), *more, home=home)

    wanted = [
        "implicit_field", str(toy_store.path), "--preset", "tiny", "--trials", "3", "--name", "study", "--space",
        "num_classes=4..8", "--space", "prior_sigma=log:1e-2..1", "--set", "training.device=cpu", "--set",
        "method.epochs=300", "--set", "training.checkpoint_every=20", "--set", "training.threads=1", "--pruner", "none",
        "--concurrent", "1",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    driver = begin(whole, *wanted)
    try:
        assert driver.wait(400) == 0, (whole / "driver.log").read_text()[-3000:]
    finally:
        _end_group(driver)
    driver = begin(broken, *wanted)
    try:
        checkpoints = broken / "runs" / "study-0000" / "checkpoints"
        _wait(lambda: len(list(checkpoints.glob("0001-*"))) >= 2, driver, broken)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait(30)
    finally:
        _end_group(driver)
    assert json.loads((broken / "runs" / "study-0000" / "state.json").read_text())["state"] == "training"
    driver = begin(broken, "--resume", "study")
    try:
        assert driver.wait(400) == 0, (broken / "driver.log").read_text()[-3000:]
    finally:
        _end_group(driver)
    one, other = (analyse(find_study(home, "study")) for home in (whole, broken))
    assert [row.state for row in other.trials] == ["complete"] * 3
    assert [row.values for row in one.trials] == [row.values for row in other.trials]
    assert [row.curve for row in one.trials] == [row.curve for row in other.trials]
    found = [[row.figures["average_precision"] for row in study.trials] for study in (one, other)]
    assert found[0] == found[1]
    weights = [load_file(home / "runs" / "study-0000" / "model" / "weights.safetensors") for home in (whole, broken)]
    assert all(weights[0][name].equal(value) for name, value in weights[1].items())


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_node_that_dies_costs_its_trial_one_more_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    study = toy_study(tmp_path, trials=4, criterion=None)
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    driver = None
    try:
        doomed = cluster.add_node(**node)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        driver = _start("-c", _DRIVER, str(tmp_path), "1.5", home=tmp_path)
        steps = [tmp_path / "runs" / f"toy-000{number}" / "gathered.json" for number in range(2)]
        _wait(lambda: all(one.exists() and len(json.loads(one.read_text())) > 1 for one in steps), driver, tmp_path)
        os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        assert driver.wait(300) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        if driver is not None:
            _end_group(driver)
        cluster.shutdown()
    assert analyse(study).counts == {"complete": 4}
    trained = Counter(line for line in _log(tmp_path) if line.startswith("train"))
    assert sorted(trained.values()) == [1, 1, 1, 2], "the one on that node went on, the others did not notice"
