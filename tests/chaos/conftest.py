"""A cluster whose nodes are there to be killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vesalius.platform.testing.nodes import cluster_of_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.cluster_utils import Cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Hold a head of one core, which processes started meanwhile join."""
    with cluster_of_nodes() as made:
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        yield made
