"""How large a cluster may become: what it has, and what its autoscaler may still add."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vesalius.platform.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


GROWS_TO = "VESALIUS_GROWS_TO"
"""The variable that says how much of each resource an autoscaler may bring the cluster to, such as ``CPU=64,GPU=4``.

It is read in the process that asks; a runtime of our own, which nobody adds to, hides it from its processes.
"""


def capacity() -> dict[str, float]:
    """Return what the cluster that this process has joined can offer of each resource, at most.

    That is what is there, or what :data:`GROWS_TO` says where that is more: of what its autoscaler may add, Ray's own
    tells no program (a managed Ray does, and is asked).

    Raises:
        RunError: the variable cannot be read.
    """
    import ray
    from ray._private.state import state  # Ray Train asks there too: there is no public way

    there: dict[str, float] = ray.cluster_resources()
    most = {**(state.get_max_resources_from_cluster_config() or {}), **grows_to()}
    return {name: max(there.get(name, 0.0), float(most.get(name, 0))) for name in {*there, *most}}


def grows_to() -> dict[str, float]:
    """Return what :data:`GROWS_TO` says, by Ray's names of resources; empty where it is unset.

    Raises:
        RunError: it cannot be read.
    """
    text = os.environ.get(GROWS_TO, "")
    told = {}
    for part in filter(None, text.split(",")):
        name, _, amount = part.partition("=")
        is_misspelt = name.strip().upper().rstrip("S") in ("CPU", "GPU") and name.strip() not in ("CPU", "GPU")
        if not name.strip() or is_misspelt or not amount.strip().isdecimal():
            raise RunError(  # no fault of the settings of a trial that asks
                f"{GROWS_TO}={text} is not read: expected whole numbers by Ray's names of resources, such as "
                "CPU=64,GPU=4; unset it where the cluster does not grow"
            )
        told[name.strip()] = float(amount)
    return told


def resources_by_node(*, free: bool) -> list[Mapping[str, float]]:
    """Return what each node that lives has of each resource: what nothing has reserved at this moment, or all."""
    import ray

    if not free:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    from ray._private.state import available_resources_per_node  # there is no public way that tells nodes apart

    return list(available_resources_per_node().values())


def num_fitting(bundle: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many workers have room on nodes, each of them on one.

    Args:
        bundle: resources of one worker; one of them at least is more than nothing.
        nodes: what each has, see :func:`resources_by_node`.
    """
    wanted = {name: amount for name, amount in bundle.items() if amount}
    return sum(min(_times(name, amount, node.get(name, 0.0)) for name, amount in wanted.items()) for node in nodes)


def _times(name: str, amount: float, have: float) -> int:
    """Return how often a node has an amount of a resource; a part of a GPU is a part of one, not of two of them."""
    if name != "GPU" or amount >= 1:
        return int(have / amount + 1e-6)
    whole = int(have + 1e-6)
    # Which GPUs have parts that are free is not told: what is left beside whole ones is taken to be of one.
    return whole * int(1 / amount + 1e-6) + int(max(0.0, have - whole) / amount + 1e-6)
