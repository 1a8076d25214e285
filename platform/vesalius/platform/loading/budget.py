"""How much memory a worker may fill with decoded volumes."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

FREE_SHARE = 0.5
"""Part of the free memory that volumes may fill where nothing is stated: the rest is the model's and the batches'."""

_CGROUP = Path("/sys/fs/cgroup")
_SHARED_BY = ContextVar("_SHARED_BY", default=1)
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the memory that this process may still take: of the machine, or of its container where that is less."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or the word "max": no limit
            free = min(free, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return max(free, 0)


@contextlib.contextmanager
def memory_shared_by(num_processes: int) -> Iterator[None]:
    """Take that part of the free memory which is left to each of ``num_processes`` begun together.

    They are beside the workers of one run, and no setting of it: how many there were does not change what is learnt.
    """
    token = _SHARED_BY.set(num_processes)
    try:
        yield
    finally:
        _SHARED_BY.reset(token)


def budget_bytes(cache_mib: int | None, workers_here: int) -> int:
    """Return the bytes one worker may hold.

    Args:
        cache_mib: what the settings state for one worker; None shares out half of the free memory.
        workers_here: workers on this machine, this one included; :func:`memory_shared_by` says who else there is.
    """
    if cache_mib is not None:
        return cache_mib * 2**20
    return int(available_bytes() * FREE_SHARE) // (max(1, workers_here) * _SHARED_BY.get())
