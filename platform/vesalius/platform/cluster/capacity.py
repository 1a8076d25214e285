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
