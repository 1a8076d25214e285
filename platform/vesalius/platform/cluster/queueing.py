"""Jobs in a queue: what is tried next and again, how much at once, and what a lost job's outcome means."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vesalius.platform.cluster.capacity import capacity
from vesalius.platform.errors import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOG = logging.getLogger(__name__)

Item = TypeVar("Item")

ATTEMPTS = 3
STARVED_SECONDS = 60.0


@dataclass
class Trial(Generic[Item]):
    """An item that is tried for the first, second or third time."""

    item: Item
    number: int = 1


@dataclass(frozen=True)
class ShortOfMemory:
    """What a job returns whose memory ran out over a part of it: it is tried again, and taken as it is in the end.

    Attributes:
        result: of the job, with what became of that part.
    """

    result: Any


class Queue(Generic[Item]):
    """What is to be tried next, and how much at once."""

    def __init__(self, items: Iterable[Item], num_workers: int, num_cores: float) -> None:
        """Begin with all that is to be done.

        Args:
            items: taken one after the other, when there is room for the next.
            num_workers: jobs that may run at once.
            num_cores: that the cluster may ever have for them.
        """
        self._fresh = iter(items)
        self._again: deque[Trial[Item]] = deque()
        self._alone: deque[Trial[Item]] = deque()
        self._running = num_workers
        # A second task a worker bridges the time until the driver looks; where there are more cores it would run.
        self._width = 2 * num_workers if num_cores <= num_workers else num_workers

    @property
    def width(self) -> int:
        """How many may be in flight now."""
        return self._width

    def take(self, num_flying: int) -> Trial[Item] | None:
        """Return the next trial, or None where enough is in flight or nothing is left."""
        if num_flying >= self._width:
            return None
        for item in self._fresh:
            return Trial(item)
        if self._again:
            return self._again.popleft()
        if self._alone and num_flying == 0:
            self._width = 1
            return self._alone.popleft()
        return None

    def takes_back(self, trial: Trial[Item], outcome: object) -> bool:
        """Say whether an item is to be tried again, and see to it."""
        if not is_lost(outcome) or trial.number >= ATTEMPTS:
            return False
        if _is_out_of_memory(outcome):
            self._running = self._width = max(1, self._running // 2)
        trial.number += 1
        (self._alone if trial.number == ATTEMPTS else self._again).append(trial)
        return True


def outcome_of(reference: Any) -> Any:
    """Return what a job that is done has returned or raised, or how it was lost."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except ray.exceptions.RayError as error:
        return error


def is_lost(outcome: object) -> bool:
    """Say whether a job ended by no word of its own: its worker or node died, or memory ran out."""
    import ray

    own = isinstance(outcome, ray.exceptions.RayTaskError)
    return is_out_of_memory_in_words(outcome) or (isinstance(outcome, ray.exceptions.RayError) and not own)


def is_out_of_memory_in_words(outcome: object) -> bool:
    """Say whether memory ran out and the worker lives to say so."""
    return isinstance(outcome, MemoryError | ShortOfMemory)


def _is_out_of_memory(outcome: object) -> bool:
    import ray

    return is_out_of_memory_in_words(outcome) or isinstance(outcome, ray.exceptions.OutOfMemoryError)


def named(trial: Trial[Item], outcome: Any) -> Any:
    """Return an outcome as its owner is to read it: what was lost for good is an error that says how often."""
    if isinstance(outcome, ShortOfMemory):
        return outcome.result
    if not is_lost(outcome) or isinstance(outcome, MemoryError):
        return outcome
    why = "it ran out of memory" if _is_out_of_memory(outcome) else f"it crashed, {type(outcome).__name__}"
    return WorkerLostError(f"its worker process died each of {trial.number} times, the last time alone ({why})")


class Starvation:
    """Watches for a cluster that has no core left for what waits."""

    def __init__(self) -> None:
        self._moved = time.monotonic()
        self._said = False

    def over(self) -> None:
        """Note that something was done."""
        self._moved = time.monotonic()

    def check(self) -> None:
        """Look, where nothing was done for a while; what waits is itself what a cluster that grows hears of.

        Raises:
            WorkerLostError: there has been no core for a minute, and none will be added.
        """
        import ray

        if ray.cluster_resources().get("CPU", 0) >= 1:
            self.over()
        elif capacity().get("CPU", 0) >= 1:
            if not self._said:
                self._said = True
                _LOG.warning("the cluster has no core now: waiting for the nodes that it may add")
        elif time.monotonic() - self._moved > STARVED_SECONDS:
            raise WorkerLostError(
                f"the cluster has had no core for {STARVED_SECONDS:.0f} s: add a node and run the same again"
            )
