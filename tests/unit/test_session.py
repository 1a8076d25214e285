"""A Ray runtime that is to be held."""

from __future__ import annotations

import pytest

from vesalius.platform import cluster
from vesalius.platform.errors import RunError


def test_a_cluster_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "ray://nowhere:1")
    with (
        pytest.raises(RunError, match="no Ray cluster answers at RAY_ADDRESS=ray://nowhere:1: start it"),
        cluster.session(),
    ):
        pass


def test_a_runtime_that_does_not_come_up_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        # Of Ray 2.60 on a machine that had no time for it.
        raise Exception("The current node timed out during startup. This could happen because some raylet failed.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = r"Ray did not start on this machine \(The current node timed out during startup\): nothing was begun"
    with pytest.raises(RunError, match=wanted), cluster.session():
        pass


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_cluster_that_runs_on_this_machine_is_not_joined_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    memory = 100 * 2**20
    others = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False}
    )
    try:
        with cluster.session(1):
            assert ray.get_runtime_context().gcs_address != others.address
    finally:
        others.shutdown()
