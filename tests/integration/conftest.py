"""Fixtures of the tests that need a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vesalius.platform.testing import servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[str]:
    """Start an MLflow server whose files lie in ``tmp_path`` and return its address."""
    with servers.tracking_server(tmp_path) as server:
        yield server.address
