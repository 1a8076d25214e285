"""Ray's metrics of this node, ours among them, as Prometheus reads them."""

from __future__ import annotations

import asyncio

from vesalius.infra.services.asking import asked
from vesalius.infra.serving.refusals import Refusal

_SECONDS = 10.0


async def node_metrics() -> bytes:
    """Return what Ray's agent on the ingress's node exports.

    Raises:
        Refusal: there is no agent, or it does not answer.
    """
    return await asyncio.to_thread(_read)


def _read() -> bytes:
    import ray

    own = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        port = node.get("MetricsExportPort")
        if node.get("NodeID") == own and port:
            try:
                return asked(f"http://{node['NodeManagerAddress']}:{port}/metrics", _SECONDS)
            except (OSError, ValueError):
                break
    raise Refusal(503, "Ray's metrics agent on this node does not answer: try again later", retry_seconds=10)
