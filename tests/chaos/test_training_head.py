"""A head that dies and comes back knowing what it knew, because Redis keeps it: training does not notice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch

from vesalius.platform.testing.nodes import NODE
from vesalius.platform.testing.steady import SteadyRun

if TYPE_CHECKING:
    from pathlib import Path

    from ray.cluster_utils import Cluster

    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own

_AWAY_SECONDS = 10.0


@pytest.fixture(autouse=True)
def _remembered(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the head of the cluster, which is made after this, keep in Redis what it knows."""
    monkeypatch.setenv("RAY_REDIS_ADDRESS", redis)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "120")


def test_a_head_that_redis_remembers_costs_no_worker(
    toy_store: CohortStore, tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = SteadyRun(tmp_path, "whole", toy_store, num_workers=0, settings={"pause_seconds": 0})
    whole.start()
    assert whole.ends() == 0
    cluster.add_node(**NODE)
    run = SteadyRun(tmp_path, "run", toy_store)
    run.start()
    try:
        run.wait(lambda: run.last)
        cluster.head_node.kill_gcs_server()
        stood, killed = run.last, time.monotonic()
        run.wait(lambda: time.monotonic() > killed + _AWAY_SECONDS)
        meanwhile = run.last
        cluster.head_node.start_gcs_server()
        run.wait(lambda: run.last != meanwhile or run.folder.state == "finished")
        seconds = time.monotonic() - killed
        assert run.ends() == 0, run.log[-3000:]
    finally:
        run.end()
    assert [group.num_workers for group in run.folder.groups] == [2], "a worker was lost"
    assert run.folder.state == "finished"
    for name, value in whole.weights.items():
        torch.testing.assert_close(run.weights[name], value, rtol=1e-5, atol=1e-6)
    with capsys.disabled():
        went_on = "went on" if meanwhile != stood else "waited"
        print(f"\nthe head away for {_AWAY_SECONDS:.0f} s: training {went_on}; next checkpoint after {seconds:.1f} s")
