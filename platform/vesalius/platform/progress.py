"""How long work tells how far it is: a plain callable, so that the platform draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""``progress(done, total, note)``: called from the thread that does the work."""


def silent(done: int, total: int, note: str) -> None:
    """Report nothing."""
