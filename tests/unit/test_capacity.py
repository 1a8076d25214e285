"""How large a cluster may become: what an autoscaler may add, as a managed Ray or a variable tells it."""

from __future__ import annotations

import pytest

from vesalius.platform.cluster.capacity import GROWS_TO, capacity, num_fitting
from vesalius.platform.errors import RunError


@pytest.mark.parametrize(
    ("there", "groups", "expected"),
    [
        ({"CPU": 4.0}, None, {"CPU": 4.0}),
        ({"CPU": 4.0}, [], {"CPU": 4.0}),
        ({"memory": 9.0}, [({"CPU": 8, "GPU": 1}, 4)], {"memory": 9.0, "CPU": 32.0, "GPU": 4.0}),
        ({"CPU": 16.0}, [({"CPU": 4}, 2), ({"CPU": 8, "GPU": 2}, 3)], {"CPU": 32.0, "GPU": 6.0}),
        ({"CPU": 99.0}, [({"CPU": 4}, 2)], {"CPU": 99.0}),
        ({}, [({"GPU": 1}, 0)], {"GPU": 0.0}),
    ],
)
def test_what_may_be_added_counts(
    there: dict[str, float],
    groups: list[tuple[dict[str, int], int]] | None,
    expected: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray._private.state import state
    from ray.core.generated import autoscaler_pb2

    config = autoscaler_pb2.ClusterConfig() if groups is not None else None
    for resources, most in groups or []:
        assert config is not None
        group = config.node_group_configs.add(max_count=most)
        for name, number in resources.items():
            group.resources[name] = number
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(state, "get_cluster_config", lambda: config)
    assert capacity() == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("", {"CPU": 4.0}),
        ("CPU=64,GPU=4", {"CPU": 64.0, "GPU": 4.0}),
        ("CPU=2, GPU=0", {"CPU": 4.0, "GPU": 0.0}),
    ],
)
def test_what_a_cluster_may_grow_to_is_told(
    told: str, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray._private.state import state

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    monkeypatch.setenv(GROWS_TO, told)
    assert capacity() == expected


@pytest.mark.parametrize("told", ["64", "CPU", "CPU=many", "=4", "CPU=-1", "CPU=64;GPU=4", "cpu=64", "GPUS=4"])
def test_what_cannot_be_read_of_it_is_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private.state import state

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    monkeypatch.setenv(GROWS_TO, told)
    with pytest.raises(RunError, match=f"VESALIUS_GROWS_TO={told} is not read: expected whole numbers"):
        capacity()


@pytest.mark.parametrize(
    ("gpus", "have", "expected"),
    [
        (0.6, 2.0, 2),
        (0.4, 3.0, 6),
        (0.5, 2.0, 4),
        (0.1, 1.0, 10),
        (0.5, 0.5, 1),
        (0.6, 1.5, 1),
        (1, 3.0, 3),
        (2, 3.0, 1),
    ],
)
def test_a_part_of_a_gpu_is_of_one_gpu(gpus: float, have: float, expected: int) -> None:
    assert num_fitting({"CPU": 1.0, "GPU": gpus}, [{"CPU": 64.0, "GPU": have}]) == expected
