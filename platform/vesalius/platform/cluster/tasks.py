"""Many independent jobs: one Ray task each, over all nodes, bounded in flight; what a dead worker held is tried again.

Ray itself retries nothing here. It would repeat a job that kills its worker as if nothing were wrong with it, and one
that ran out of memory beside the same neighbours as before. A job whose worker died is tried once more with the others;
one that ran out of memory lowers, for good, how many run at once. The third time it has the cluster to itself: what
fails then fails by itself, and is named.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vesalius.platform.cluster.metrics import TASKS_RUNNING, TASKS_WAITING, gauge
from vesalius.platform.cluster.session import session
from vesalius.platform.errors import WorkerLostError
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from vesalius.platform.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

ATTEMPTS = 3
STARVED_SECONDS = 60.0


def map_tasks(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    progress: Progress = silent,
    total: int = 0,
) -> Generator[tuple[Item, Result | Exception]]:
    """Apply ``function`` to every item, each in a Ray task of one core; yield ``(item, result or error)``.

    ``num_workers`` tasks run at once, spread over the nodes, and as many wait where the cluster has no more cores than
    that. The next item is taken when one is done: memory is bounded by the workers and not by the items. Results come
    in the order they are ready. Close the iterator when leaving it early: what runs is then cancelled.

    Args:
        function: importable on the workers; it must keep no state and may be called twice for one item.
        items: what to apply it to.
        num_workers: tasks at once; 0 works in the calling process, in order, without Ray.
        progress: called after each item.
        total: number of items, for ``progress``.

    Raises:
        WorkerLostError: the cluster has had no core left for a minute. As an outcome: an item's worker died each time.
    """
    outcomes = _in_turn(function, items) if num_workers == 0 else _on_ray(function, items, num_workers, total)
    for done, (item, outcome) in enumerate(outcomes, start=1):
        progress(done, total, "")
        yield item, outcome


def _in_turn(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[tuple[Item, Result | Exception]]:
    for item in items:
        try:
            outcome: Result | Exception = function(item)
        except Exception as error:  # handed to the caller, who names the item and goes on with the others
            outcome = error
        yield item, outcome


def _on_ray(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int, total: int
) -> Generator[tuple[Item, Result | Exception]]:
    with session(num_workers):
        import ray

        task = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(function)
        queue = _Queue(items, num_workers, ray.cluster_resources().get("CPU", 0))
        flying: dict[Any, _Trial[Item]] = {}
        name = getattr(function, "__name__", type(function).__name__).strip("_")
        done = 0
        moved = time.monotonic()
        try:
            while True:
                while (trial := queue.take(len(flying))) is not None:
                    flying[task.remote(trial.item)] = trial
                gauge(TASKS_RUNNING, len(flying), function=name)
                gauge(TASKS_WAITING, max(0, total - done - len(flying)), function=name)
                if not flying:
                    return
                ready, _ = ray.wait(list(flying), num_returns=1, timeout=5)
                if not ready and ray.cluster_resources().get("CPU", 0) < 1:
                    _check_starved(moved)
                    continue
                moved = time.monotonic()
                for reference in ready:
                    trial = flying.pop(reference)
                    outcome = _outcome(reference)
                    if not queue.takes_back(trial, outcome):
                        done += 1
                        yield trial.item, _named(trial, outcome)
        finally:
            gauge(TASKS_RUNNING, 0, function=name)
            gauge(TASKS_WAITING, 0, function=name)
            for reference in flying:
                ray.cancel(reference, force=False)


@dataclass
class _Trial(Generic[Item]):
    item: Item
    number: int = 1


class _Queue(Generic[Item]):
    """What is to be tried next, and how much at once."""

    def __init__(self, items: Iterable[Item], num_workers: int, num_cores: float) -> None:
        self._fresh = iter(items)
        self._again: deque[_Trial[Item]] = deque()
        self._alone: deque[_Trial[Item]] = deque()
        self._running = num_workers
        # A second task a worker bridges the time until the driver looks; where there are more cores it would run.
        self._width = 2 * num_workers if num_cores <= num_workers else num_workers

    @property
    def width(self) -> int:
        """How many may be in flight now."""
        return self._width

    def take(self, num_flying: int) -> _Trial[Item] | None:
        """Return the next trial, or None where enough is in flight or nothing is left."""
        if num_flying >= self._width:
            return None
        for item in self._fresh:
            return _Trial(item)
        if self._again:
            return self._again.popleft()
        if self._alone and num_flying == 0:
            self._width = 1
            return self._alone.popleft()
        return None

    def takes_back(self, trial: _Trial[Item], outcome: object) -> bool:
        """Say whether an item is to be tried again, and see to it."""
        if not _is_lost(outcome) or trial.number >= ATTEMPTS:
            return False
        if _is_out_of_memory(outcome):
            self._running = self._width = max(1, self._running // 2)
        trial.number += 1
        (self._alone if trial.number == ATTEMPTS else self._again).append(trial)
        return True


def _outcome(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except ray.exceptions.RayError as error:
        return error


def _is_lost(outcome: object) -> bool:
    """Say whether a task ended by no word of its own: its worker or node died, or memory ran out."""
    import ray

    own = isinstance(outcome, ray.exceptions.RayTaskError)
    return isinstance(outcome, MemoryError) or (isinstance(outcome, ray.exceptions.RayError) and not own)


def _is_out_of_memory(outcome: object) -> bool:
    import ray

    return isinstance(outcome, MemoryError | ray.exceptions.OutOfMemoryError)


def _named(trial: _Trial[Item], outcome: Any) -> Any:
    if not _is_lost(outcome) or isinstance(outcome, MemoryError):
        return outcome
    why = "it ran out of memory" if _is_out_of_memory(outcome) else f"it crashed, {type(outcome).__name__}"
    return WorkerLostError(f"its worker process died each of {trial.number} times, the last time alone ({why})")


def _check_starved(since: float) -> None:
    if time.monotonic() - since > STARVED_SECONDS:
        raise WorkerLostError(
            f"the cluster has had no core for {STARVED_SECONDS:.0f} s: add a node and run the same again"
        )
