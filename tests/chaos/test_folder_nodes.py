"""Nodes that die and come while a folder is scored: nothing is missing, nothing waits for what is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import psutil
import pytest

from vesalius.infra.folders import cases_in, score_folder
from vesalius.infra.serving.testing.server import make_model, write_head
from vesalius.platform.cluster.holding import map_held
from vesalius.platform.testing.nodes import NODE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to it"
        time.sleep(0.1)


def kill(node: Any) -> None:
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


def is_scoring(node: Any) -> bool:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("_Held.do" in " ".join(process.cmdline()) for process in raylet.children())


def voxels(path: str) -> Any:
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)


def test_a_folder_is_scored_to_its_end_where_a_node_with_a_worker_dies(tmp_path: Path, cluster: Cluster) -> None:
    """The node's core is not replaced: what it held is scored by the one that is left."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10):
        write_head(folder / f"subject-{number}.nii.gz", number)
    model = make_model(tmp_path / "model")
    alone = score_folder(model, cases_in(folder, ("T1w",)), tmp_path / "alone", num_workers=0)
    doomed = cluster.add_node(**NODE)
    command = [sys.executable, "-c", "from vesalius.infra.cli import main; main()", "score", str(model), str(folder)]
    command += ["--workers", "2", "--device", "cpu", "--home", str(tmp_path / "home"), "--json"]
    out = tmp_path / "out"
    run = subprocess.Popen([*command, "--out", str(out)], start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: is_scoring(doomed))
        assert len(list(out.glob("*/result.json"))) < 10
        kill(doomed)
        said, _ = run.communicate(timeout=300)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait(30)
    assert run.returncode == 0, said
    rows = json.loads(said)["volumes"]
    assert [row["name"] for row in rows] == [f"subject-{number}" for number in range(10)]
    for row, expected in zip(rows, alone, strict=True):
        assert row["image_score"] == expected["image_score"]
        np.testing.assert_array_equal(voxels(row["written"]["map"]), voxels(expected["written"]["map"]))
    assert not (out / ".partial").exists()


def lingering(marks: Path) -> Callable[[int], int]:
    """Return work that notes where it is done, and lasts until it may end."""
    import ray

    node = ray.get_runtime_context().get_node_id()

    def work(item: int) -> int:
        (marks / f"{item}-{node}").touch()
        while not (marks / "go").exists():
            time.sleep(0.1)
        return item

    return work


def test_a_node_that_comes_late_takes_the_place_of_one_that_died(tmp_path: Path, cluster: Cluster) -> None:
    import ray

    doomed = cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:

        def nodes() -> set[str]:
            return {path.name.partition("-")[2] for path in tmp_path.glob("*-*")}

        # Ray makes nodes in the main thread only, so the work is done beside it.
        with ThreadPoolExecutor(1) as beside:
            working = beside.submit(lambda: dict(map_held(partial(lingering, tmp_path), range(8), num_workers=2)))
            try:
                wait_for(lambda: len(nodes()) == 2)
                kill(doomed)
                new = cluster.add_node(**NODE)
                wait_for(lambda: new.node_id in nodes())
            finally:
                (tmp_path / "go").touch()
            assert working.result(300) == {item: item for item in range(8)}
    finally:
        ray.shutdown()
    assert len(nodes()) == 3
