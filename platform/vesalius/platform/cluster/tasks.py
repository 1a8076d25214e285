"""Many independent jobs: one Ray task each, over all nodes, bounded in flight; what a dead worker held is tried again.

Ray itself retries nothing here. It would repeat a job that kills its worker as if nothing were wrong with it, and one
that ran out of memory beside the same neighbours as before. A job whose worker died is tried once more with the others;
one that ran out of memory lowers, for good, how many run at once. The third time it has the cluster to itself: what
fails then fails by itself, and is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from vesalius.platform.cluster.capacity import capacity
from vesalius.platform.cluster.metrics import TASKS_RUNNING, TASKS_WAITING, gauge
from vesalius.platform.cluster.queueing import Queue, Starvation, named, outcome_of
from vesalius.platform.cluster.session import session
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from vesalius.platform.cluster.queueing import Trial
    from vesalius.platform.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        WorkerLostError: the cluster has had no core for a minute and adds none. As an outcome: an item's worker died
            each time.
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
        queue = Queue(items, num_workers, capacity().get("CPU", 0))
        flying: dict[Any, Trial[Item]] = {}
        name = getattr(function, "__name__", type(function).__name__).strip("_")
        done = 0
        starvation = Starvation()
        try:
            while True:
                while (trial := queue.take(len(flying))) is not None:
                    flying[task.remote(trial.item)] = trial
                gauge(TASKS_RUNNING, len(flying), function=name)
                gauge(TASKS_WAITING, max(0, total - done - len(flying)), function=name)
                if not flying:
                    return
                ready, _ = ray.wait(list(flying), num_returns=1, timeout=5)
                if not ready:
                    starvation.check()
                    continue
                starvation.over()
                for reference in ready:
                    trial = flying.pop(reference)
                    outcome = outcome_of(reference)
                    if not queue.takes_back(trial, outcome):
                        done += 1
                        yield trial.item, named(trial, outcome)
        finally:
            gauge(TASKS_RUNNING, 0, function=name)
            gauge(TASKS_WAITING, 0, function=name)
            for reference in flying:
                ray.cancel(reference, force=False)
