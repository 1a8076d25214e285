"""Training on a cluster that has no worker yet: Ray's own autoscaler, with nodes that are processes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from vesalius.methods import METHODS
from vesalius.platform import cluster
from vesalius.platform.cluster.capacity import GROWS_TO
from vesalius.platform.errors import RunError
from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.tables import lookup
from vesalius.platform.testing.training_runs import free_port, training_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""By which Ray's provider of nodes that are processes knows the head."""

_HEAD_TYPE = "ray.head.default"
"""Of the head, to that provider; the autoscaler looks for a node type of that name."""

_NODES: dict[str, Any] = {
    "cluster_name": "growing",
    "max_workers": 2,
    "provider": {
        "type": "external",  # named, Ray would look for a file of defaults that its wheel lacks
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": _HEAD,
    },
    "available_node_types": {
        _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {
            "resources": {"CPU": 1, "object_store_memory": 128 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "head_node_type": _HEAD_TYPE,
    "idle_timeout_minutes": 0.5,
    "upscaling_speed": 1.0,
    **{
        f"{whose}_commands": []
        for whose in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    },
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
}


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hold a cluster of a head that computes nothing and up to two nodes of one core.

    Ray's own AutoscalingCluster would end every other Ray on this machine first, and its wheel lacks a file of it.
    """
    folder = tmp_path_factory.mktemp("growing")
    port = free_port()
    nodes = {**_NODES, "provider": {**_NODES["provider"], "gcs_address": f"127.0.0.1:{port}"}}
    (folder / "nodes.json").write_text(json.dumps(nodes))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--autoscaling-config={folder / 'nodes.json'}", f"--port={port}", "--include-dashboard=false"]
    command += [f"--ray-client-server-port={free_port()}", "--object-store-memory=100000000", "--disable-usage-stats"]
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
    }
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "--block" not in (folder / "head.log").read_text():
            assert head.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, "the head did not come up"
            time.sleep(0.5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_MODE", "disabled")
            patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            patch.setenv(GROWS_TO, "CPU=2")  # nobody else tells
            yield
    finally:
        for process in psutil.process_iter():  # its nodes share its session, which is nobody else's
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) == head.pid:
                    process.kill()
        head.wait(30)


def _run(home: Path, name: str, store: CohortStore, num_workers: int) -> tuple[RunFolder, type[Method]]:
    kind: type[Method] = lookup(METHODS, "healthy_atlas", "method")
    spec = RunSpec(
        run_id=name,
        method="healthy_atlas",
        settings=kind.presets()["tiny"].model_dump(mode="json"),
        training=training_settings(threads=1),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=num_workers,
        created="2026-01-01T00:00:00Z",
    )
    return create_run(home, spec), kind


def _wait_for_cores(number: int) -> None:
    import ray

    deadline = time.monotonic() + 180
    while (there := ray.cluster_resources().get("CPU", 0)) != number:
        assert time.monotonic() < deadline, f"the cluster has {there} cores, not {number}"
        time.sleep(1)


def test_training_waits_for_the_node_that_it_asks_for_and_lets_it_go(
    toy_store: CohortStore, tmp_path: Path, growing: None
) -> None:
    run, kind = _run(tmp_path, "grown", toy_store, 1)
    with cluster.session():
        assert cluster.train(run, kind).state == "finished"
        _wait_for_cores(0)


def test_a_wish_for_nodes_ends_with_the_wait(toy_store: CohortStore, tmp_path: Path, growing: None) -> None:
    from vesalius.platform.cluster.nodes import await_nodes

    run, _ = _run(tmp_path, "waiting", toy_store, 2)
    with cluster.session():
        assert await_nodes(run, {"CPU": 1.0, "GPU": 0.0}, again=False) == 2
        _wait_for_cores(0)


def _square(value: int) -> int:
    return value * value


def test_tasks_wait_for_the_nodes_that_they_need(growing: None) -> None:
    with cluster.session():
        _wait_for_cores(0)
        assert dict(cluster.map_tasks(_square, range(4), num_workers=1)) == {value: value**2 for value in range(4)}


def test_more_than_may_be_added_is_refused(toy_store: CohortStore, tmp_path: Path, growing: None) -> None:
    run, kind = _run(tmp_path, "too-large", toy_store, 3)
    with pytest.raises(RunError, match=r"3 workers need 3 cores and the cluster has (2|[01] and may grow to 2): use"):
        cluster.train(run, kind)
