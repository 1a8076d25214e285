"""A Ray cluster of several nodes on this machine, for tests that kill them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.cluster_utils import Cluster

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
"""What a node has: a core, and room for a little."""


@contextlib.contextmanager
def cluster_of_nodes() -> Iterator[Cluster]:
    """Run a head of one core for the while; ``add_node(**NODE)`` adds to it."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()
