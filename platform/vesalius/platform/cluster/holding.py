"""Many jobs for few workers that each hold something costly to make, such as a model: an actor each.

What an actor does outlives neither the job nor the driver: what it held when it died is tried again by another, and the
third time with the cluster to itself, as in :mod:`vesalius.platform.cluster.tasks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vesalius.platform.cluster.queueing import Queue, Starvation, is_lost, named, outcome_of
from vesalius.platform.cluster.session import session

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from vesalius.platform.cluster.queueing import Trial

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_held(
    make: Callable[[], Callable[[Item], Result]],
    items: Iterable[Item],
    *,
    num_workers: int,
    num_gpus: float = 0.0,
) -> Generator[tuple[Item, Result | Exception]]:
    """Apply what ``make`` returns to every item; yield ``(item, result or error)`` in the order they are ready.

    ``make`` is called once a worker, when its first item comes. Close the iterator when leaving it early: the workers
    are then ended.

    Args:
        make: importable on the workers, as is what it returns.
        items: what to apply it to; each may be tried again.
        num_workers: actors of one core each; 0 works in the calling process, in order, without Ray.
        num_gpus: of each actor.

    Raises:
        WorkerLostError: the cluster has had no core for a minute and adds none. As an outcome: an item's worker died
            each time.
    """
    if num_workers == 0:
        yield from _in_turn(make, items)
    else:
        yield from _on_actors(make, items, num_workers, num_gpus)


def _in_turn(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
) -> Generator[tuple[Item, Result | Exception]]:
    work = _Held(make)
    for item in items:
        try:
            outcome: Result | Exception = work.do(item)
        except Exception as error:  # handed to the caller, who names the item and goes on with the others
            outcome = error
        yield item, outcome


def _on_actors(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], num_workers: int, num_gpus: float
) -> Generator[tuple[Item, Result | Exception]]:
    with session(num_workers):
        import ray

        # As wide as the actors, whatever the cluster has: further jobs could only wait in their queues.
        queue = Queue(items, num_workers, num_workers)
        pool = _Pool(make, num_workers, num_gpus)
        starvation = Starvation()
        try:
            while True:
                while (trial := queue.take(len(pool.flying))) is not None:
                    pool.give(trial)
                if not pool.flying:
                    return
                ready, _ = ray.wait(list(pool.flying), num_returns=1, timeout=5)
                if not ready:
                    starvation.check()
                    continue
                starvation.over()
                for reference in ready:
                    trial, outcome = pool.take_back(reference)
                    if not queue.takes_back(trial, outcome):
                        yield trial.item, named(trial, outcome)
        finally:
            pool.end()


class _Held:
    """What one worker holds: made when it is first needed, so that a failure to make it is an outcome like others."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._work: Callable[[Any], Any] | None = None

    def do(self, item: Any) -> Any:
        """Do one job."""
        if self._work is None:
            self._work = self._make()
        return self._work(item)


class _Pool(Generic[Item]):
    """The actors, and what each has been handed."""

    def __init__(self, make: Callable[[], Callable[[Item], Any]], num_workers: int, num_gpus: float) -> None:
        import ray

        self.flying: dict[Any, tuple[Trial[Item], Any]] = {}
        held = ray.put(make)
        kind: Any = ray.remote(_Held)
        options = {"num_cpus": 1, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
        self._begin: Callable[[], Any] = lambda: kind.options(scheduling_strategy="SPREAD", **options).remote(held)
        self._actors: list[Any] = [self._begin() for _ in range(num_workers)]

    def give(self, trial: Trial[Item]) -> None:
        """Hand a job to the actor that has least to do."""
        busy = [holder for _, holder in self.flying.values()]
        actor = min(self._actors, key=lambda one: sum(one is holder for holder in busy))
        self.flying[actor.do.remote(trial.item)] = (trial, actor)

    def take_back(self, reference: Any) -> tuple[Trial[Item], Any]:
        """Return a job that is done, or whose actor is; another takes a dead one's place."""
        trial, actor = self.flying.pop(reference)
        outcome = outcome_of(reference)
        if is_lost(outcome) and not isinstance(outcome, MemoryError):
            # All that it had been handed is lost with it, and it is replaced once.
            self._actors = [self._begin() if one is actor else one for one in self._actors]
        return trial, outcome

    def end(self) -> None:
        """End the actors and what they do."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
