"""How large a cluster may become: what it has, and what its autoscaler may still add."""

from __future__ import annotations


def capacity() -> dict[str, float]:
    """Return what the cluster that this process has joined can offer of each resource, at most.

    A cluster that scales says in its configuration how many nodes of each kind it may have; one that does not offers
    what is there. Ray Train waits for what is asked of the autoscaler.
    """
    import ray
    from ray._private.state import state  # Ray Train asks there too: there is no public way

    there: dict[str, float] = ray.cluster_resources()
    most = state.get_max_resources_from_cluster_config() or {}
    return {name: max(there.get(name, 0.0), float(most.get(name, 0))) for name in {*there, *most}}


def cores_by_node(*, free: bool) -> list[float]:
    """Return the cores of each node that stands: those that nothing has reserved at this moment, or all."""
    from ray._private import state  # Ray's public sums do not say what one node has

    nodes = state.available_resources_per_node() if free else state.total_resources_per_node()
    return [float(resources.get("CPU", 0.0)) for resources in nodes.values()]
