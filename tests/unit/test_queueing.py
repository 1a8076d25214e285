"""What waits for a cluster that has no core: for ever where it may still get one, for a minute where it may not."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from vesalius.platform.cluster import queueing
from vesalius.platform.cluster.queueing import STARVED_SECONDS, Queue, Starvation
from vesalius.platform.errors import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Give what a cluster has and what it may become, and let half a minute pass whenever somebody looks at a clock."""
    there: dict[str, float] = {}
    most: dict[str, float] = {}
    clock = itertools.count(0.0, STARVED_SECONDS / 2)
    with monkeypatch.context() as patch:
        patch.setattr("ray.cluster_resources", lambda: there)
        patch.setattr(queueing, "capacity", lambda: most)
        patch.setattr("time.monotonic", lambda: next(clock))
        yield there, most


def test_a_cluster_without_a_core_ends_what_waits(cluster: tuple[dict[str, float], dict[str, float]]) -> None:
    there, most = cluster
    starvation = Starvation()
    starvation.check()
    there["CPU"] = most["CPU"] = 1
    starvation.check()
    there["CPU"] = most["CPU"] = 0
    starvation.check()
    starvation.check()
    with pytest.raises(WorkerLostError, match="has had no core for 60 s: add a node"):
        starvation.check()


def test_a_cluster_that_may_still_grow_is_waited_for(
    cluster: tuple[dict[str, float], dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    _, most = cluster
    most["CPU"] = 4
    starvation = Starvation()
    for _ in range(100):
        starvation.check()
    assert [record.getMessage() for record in caplog.records] == [
        "the cluster has no core now: waiting for the nodes that it may add"
    ]


@pytest.mark.parametrize(("cores", "flying"), [(2, 4), (3, 2)])
def test_where_there_are_more_cores_no_more_fly_than_may_run(cores: int, flying: int) -> None:
    queue = Queue(range(10), 2, cores)
    assert sum(queue.take(number) is not None for number in range(10)) == flying
