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
