"""What the tests of whole tables share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import DataRequest, Protocol, reproduce

if TYPE_CHECKING:
    from pathlib import Path

Reproduced = Callable[..., tuple[dict[str, Any], str]]
"""A protocol, a folder and ``reproduce``'s further options, to the document that it prints and what it says."""


@pytest.fixture
def reproduced(capsys: pytest.CaptureFixture[str]) -> Reproduced:
    """Return a function that reproduces a protocol on its phantoms, with one thread and ``tiny`` where it scales."""

    def play(paper: Protocol, out: Path, **options: Any) -> tuple[dict[str, Any], str]:
        with Terminal(True) as terminal:
            reproduce(terminal, paper, out, DataRequest(), threads=1, small="tiny", **options)
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    return play
