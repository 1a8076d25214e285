"""Nodes that die, come back, or cannot be reached for a while: training goes on, and nothing is computed wrongly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.testing.methods import training_settings
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ray.cluster_utils import Cluster

    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

_DRIVER = """
import sys
from pathlib import Path
from steady_method import Steady
from vesalius.platform import cluster
from vesalius.platform.runs import RunFolder
cluster.train(RunFolder(Path(sys.argv[1])), Steady)
"""
_HERE = Path(__file__).parent
_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def _run(
    home: Path, name: str, store: CohortStore, *, pause_seconds: float = 0.05, num_workers: int = 2, **training: Any
) -> RunFolder:
    spec = RunSpec(
        run_id=name,
        method="steady",
        settings={"epochs": 400, "pause_seconds": pause_seconds},
        training=training_settings(threads=1, checkpoint_every=20, validate_every=100_000, **training),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=num_workers,
        created="2026-01-01T00:00:00Z",
    )
    return create_run(home, spec)


def _start(run: RunFolder, **environment: str) -> subprocess.Popen[bytes]:
    with (run.path / "driver.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(run.path)],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(condition: Callable[[], object], run: RunFolder, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        log = (run.path / "driver.log").read_text()[-3000:]
        assert driver.poll() is None, f"the driver ended before its time: {log}"
        assert time.monotonic() < deadline, f"nothing came of it in three minutes: {log}"
        time.sleep(0.1)


def _end(driver: subprocess.Popen[bytes] | None) -> None:
    """End what the driver started; they share its session, which is nobody else's."""
    for process in psutil.process_iter() if driver is not None else ():
        try:
            if os.getsid(process.pid) == driver.pid:  # type: ignore[union-attr]  # there is a driver, or no process
                process.kill()
        except (ProcessLookupError, psutil.Error):
            continue


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    last = Checkpoints(run.checkpoints).last()
    assert last is not None
    weights: dict[str, torch.Tensor] = load_file(run.checkpoints / last / "weights.safetensors")
    return weights


def _last(run: RunFolder) -> str:
    return Checkpoints(run.checkpoints).last() or ""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{_HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    made = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    try:
        yield made
    finally:
        made.shutdown()


def test_fewer_workers_go_on_and_as_many_as_before_once_the_node_is_back(
    toy_store: CohortStore, tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _run(tmp_path, "whole", toy_store, pause_seconds=0, num_workers=0)
    assert _start(whole).wait(300) == 0
    doomed = cluster.add_node(**_NODE)
    run = _run(tmp_path, "run", toy_store, wait_for_nodes_seconds=8)
    driver = _start(run)
    try:
        _wait(lambda: _last(run), run, driver)
        killed = time.monotonic()
        os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        _wait(lambda: len(run.groups) == 2, run, driver)
        stood = _last(run)
        _wait(lambda: _last(run) > stood, run, driver)
        resumed = time.monotonic() - killed
        cluster.add_node(**_NODE)
        _wait(lambda: len(run.groups) == 3 or run.state == "finished", run, driver)
        assert driver.wait(400) == 0, (run.path / "driver.log").read_text()[-3000:]
    finally:
        _end(driver)
    groups = run.groups
    assert [group.num_workers for group in groups] == [2, 1, 2]
    assert groups[2].lost == "nodes are back: more workers go on"
    assert run.state == "finished"
    with capsys.disabled():
        print(f"\na node killed: {resumed:.1f} s until the next checkpoint by fewer workers")
    kept = _weights(run)
    for name, value in _weights(whole).items():
        torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-6, msg=f"{name} differs beyond rounding")


def test_fewer_than_allowed_is_one_sentence_and_costs_nothing(
    toy_store: CohortStore, tmp_path: Path, cluster: Cluster
) -> None:
    doomed = cluster.add_node(**_NODE)
    run = _run(tmp_path, "run", toy_store, wait_for_nodes_seconds=5, min_workers=2)
    driver = _start(run)
    try:
        _wait(lambda: _last(run), run, driver)
        os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        assert driver.wait(300) != 0
    finally:
        _end(driver)
    assert "2 workers need 2 cores and the cluster has 1" in (run.path / "driver.log").read_text()
    stood = _last(run)
    cluster.add_node(**_NODE)
    driver = _start(run)
    try:
        assert driver.wait(400) == 0, (run.path / "driver.log").read_text()[-3000:]
    finally:
        _end(driver)
    assert run.state == "finished"
    assert _last(run) > stood
