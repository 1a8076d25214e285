"""Kill the driver, and kill a worker, in mid-training: what comes out must equal an unbroken run bit for bit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest
import torch
from safetensors.torch import load_file

from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.testing.methods import training_settings
from vesalius.platform.testing.steady import SteadyRun
from vesalius.platform.tracking import client
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.long

_DRIVER = """
import sys
from pathlib import Path
from vesalius.methods import METHODS
from vesalius.platform import cluster
from vesalius.platform.runs import RunFolder
from vesalius.platform.tables import lookup
run = RunFolder(Path(sys.argv[1]))
cluster.train(run, lookup(METHODS, run.spec.method, "method"))
"""


def _run(home: Path, name: str, store: CohortStore, num_workers: int) -> RunFolder:
    from vesalius.methods import METHODS
    from vesalius.platform.config import override
    from vesalius.platform.tables import lookup

    settings = lookup(METHODS, "implicit_field", "method").presets()["tiny"]
    # Long enough to be caught in the middle.
    settings = override(settings, {"epochs": 1500})
    spec = RunSpec(
        run_id=name,
        method="implicit_field",
        settings=settings.model_dump(mode="json"),
        training=training_settings(threads=1, checkpoint_every=20, validate_every=500),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=num_workers,
        created="2026-01-01T00:00:00Z",
    )
    return create_run(home, spec)


def _start(run: RunFolder) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _DRIVER, str(run.path)], start_new_session=True)


def _wait_for_checkpoint(run: RunFolder, beyond: str, driver: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        last = Checkpoints(run.checkpoints).last()
        if last is not None and last > beyond:
            return last
        assert driver.poll() is None, "the driver ended before it could be killed: give it more epochs"
        time.sleep(0.02)
    raise AssertionError("no checkpoint in two minutes")


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    last = Checkpoints(run.checkpoints).last()
    assert last is not None
    weights: dict[str, torch.Tensor] = load_file(run.checkpoints / last / "weights.safetensors")
    return weights


def _end_group(driver: subprocess.Popen[bytes]) -> None:
    """End what the driver started; they share its session, which is nobody else's."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == driver.pid:
                process.kill()
        except (ProcessLookupError, psutil.Error):
            continue


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_killed_driver_resumes_to_the_same_weights(toy_store: CohortStore, tmp_path: Path, num_workers: int) -> None:
    whole = _run(tmp_path, "whole", toy_store, num_workers)
    assert _start(whole).wait(300) == 0
    broken = _run(tmp_path, "broken", toy_store, num_workers)
    seen = "0001-00000000"
    for _ in range(2):
        driver = _start(broken)
        try:
            seen = _wait_for_checkpoint(broken, seen, driver)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait(30)
        finally:
            _end_group(driver)
    before: str = broken.state
    assert before == "training", "a killed driver had no time to say how it ended"
    assert _start(broken).wait(300) == 0
    assert broken.state == "finished"
    kept = _weights(broken)
    for name, value in _weights(whole).items():
        assert torch.equal(value, kept[name]), f"{name} differs after the kill"


def test_a_killed_worker_is_replaced_and_nothing_is_lost(toy_store: CohortStore, tmp_path: Path) -> None:
    whole = _run(tmp_path, "whole", toy_store, 2)
    assert _start(whole).wait(300) == 0
    broken = _run(tmp_path, "broken", toy_store, 2)
    driver = _start(broken)
    try:
        _wait_for_checkpoint(broken, "0001-00000000", driver)
        workers = [
            process
            for process in psutil.process_iter()
            if os.getsid(process.pid) == driver.pid and "RayTrainWorker" in " ".join(process.cmdline())
        ]
        assert workers, "no Ray Train worker was found"
        workers[-1].kill()
        assert driver.wait(300) == 0
    finally:
        _end_group(driver)
    kept = _weights(broken)
    for name, value in _weights(whole).items():
        assert torch.equal(value, kept[name]), f"{name} differs after a worker was lost"
    groups = broken.groups
    assert [group.num_workers for group in groups] == [2, 2], "the worker was killed when there was nothing left to do"
    assert groups[1].lost
    assert groups[1].step > 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_disk_that_fills_up_costs_no_checkpoint(toy_store: CohortStore, tmp_path: Path, num_workers: int) -> None:
    whole = SteadyRun(tmp_path, "whole", toy_store, num_workers=0, settings={"pause_seconds": 0})
    whole.start()
    assert whole.ends() == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    # Tracked: what waits to be sent lies on the full disk too, and must not hide what has happened.
    tracked_at = f"sqlite:///{tmp_path}/mlflow.db"
    run = SteadyRun(disk, "run", toy_store, num_workers=num_workers, tracked_at=tracked_at)
    (run.folder.path / "driver.log").symlink_to(tmp_path / "driver.log")
    try:
        run.start()
        run.wait(lambda: run.last)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        assert run.ends() != 0, "there is no room for another checkpoint"
        (disk / "filler").unlink()
        said = run.log.splitlines()[-1]
        assert "DiskSpaceError" in said, run.log[-3000:]
        assert "the disk or quota is full" in said
        assert len(run.folder.groups) <= 1, "a full disk is no lost worker: trying again is of no use"
        checkpoints = Checkpoints(run.folder.checkpoints)
        stood = checkpoints.last()
        assert stood is not None
        for path in run.folder.checkpoints.iterdir():
            assert path.name.startswith(".") or load_file(path / "weights.safetensors")
        run.start()
        assert run.ends() == 0, run.log[-3000:]
        assert run.last > stood
        for name, value in whole.weights.items():
            assert torch.equal(value, run.weights[name]), f"{name} differs after the disk was full"
        spec, total = run.folder.spec, run.folder.progress.total
        history = client(tracked_at).get_metric_history(spec.mlflow_run_id, "head/loss")
        assert [one.step for one in history] == list(range(1, total + 1)), "a metric is missing, or was sent twice"
    finally:
        run.end()
        subprocess.run(["umount", "-l", str(disk)], check=True)
