"""Training on a cluster that has no worker yet: Ray's own autoscaler, with nodes that are processes of this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from vesalius.methods import METHODS
from vesalius.platform import cluster
from vesalius.platform.errors import RunError
from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.tables import lookup
from vesalius.platform.testing.methods import training_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


@pytest.fixture(scope="module")
def growing() -> Iterator[None]:
    """Hold a cluster of a head that computes nothing and up to two nodes of one core."""
    from ray.cluster_utils import AutoscalingCluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        machine = AutoscalingCluster(
            head_resources={"CPU": 0},
            worker_node_types={
                "cpu": {
                    "resources": {"CPU": 1, "object_store_memory": 128 * 2**20},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": 2,
                }
            },
            idle_timeout_minutes=0.5,
            autoscaler_v2=True,
        )
        machine.start()
        patch.setenv("RAY_ADDRESS", "auto")
        try:
            yield
        finally:
            machine.shutdown()


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
    with pytest.raises(RunError, match="3 workers need 3 cores and the cluster has 2"):
        cluster.train(run, kind)
