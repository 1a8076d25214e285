"""Requests under way: counted, so that a server that is to end can wait for them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINGER_SECONDS = 1.0
"""From the last byte that was handed to Serve's proxy to its way over the line."""


class Requests:
    """Those under way. Lives in one event loop.

    Attributes:
        ending: no more are to be taken in.
    """

    def __init__(self) -> None:
        self.ending = False
        self._num = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Count one for the while."""
        self._num += 1
        self._none.clear()
        try:
            yield
        finally:
            self._num -= 1
            if not self._num:
                self._none.set()

    async def end(self, seconds: float) -> int:
        """Take no more in, wait until none is under way, and return how many still are.

        Args:
            seconds: to wait at most.
        """
        self.ending = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)
        await asyncio.sleep(_LINGER_SECONDS)
        return self._num
