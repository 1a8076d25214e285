"""Many jobs for few workers that each hold something costly to make, such as a model: an actor each.

What an actor does outlives neither the job nor the driver: what it held when it died is tried again by another, and the
third time by one whose fellows have all been ended with what they held. Where memory runs out, the actors become fewer
for good. Only an actor that has answered is handed a job: those for which the cluster has no room yet wait, and hold
nothing up.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vesalius.platform.cluster.capacity import capacity
from vesalius.platform.cluster.queueing import (
    ATTEMPTS,
    STARVED_SECONDS,
    Queue,
    ShortOfMemory,
    is_lost,
    is_out_of_memory_in_words,
    named,
    outcome_of,
)
from vesalius.platform.cluster.session import session
from vesalius.platform.errors import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from vesalius.platform.cluster.queueing import Trial

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)
_JOBS = 2
"""At one actor: the second bridges the time in which the driver keeps what the first came to."""


def map_held(
    make: Callable[[], Callable[[Item], Result | ShortOfMemory]],
    items: Iterable[Item],
    *,
    num_workers: int,
    num_gpus: float = 0.0,
) -> Generator[tuple[Item, Result | Exception]]:
    """Apply what ``make`` returns to every item; yield ``(item, result or error)`` in the order they are ready.

    ``make`` is called once a worker, when its first item comes. Close the iterator when leaving it early: the workers
    are then ended.

    Args:
        make: importable on the workers, as is what it returns; where memory runs out that workers share, that raises a
            MemoryError, or returns :class:`ShortOfMemory`.
        items: what to apply it to; each may be tried again.
        num_workers: actors of one core each, or fewer where the cluster has no room for all of them; 0 works in the
            calling process, in order, without Ray.
        num_gpus: of each actor.

    Raises:
        WorkerLostError: for a minute no actor was left and the cluster had no room for one, or each died as it began.
            As an outcome: an item's worker died each time.
    """
    if num_workers == 0:
        yield from _in_turn(make, items)
    else:
        yield from _on_actors(make, items, num_workers, num_gpus)


def _in_turn(
    make: Callable[[], Callable[[Item], Result | ShortOfMemory]], items: Iterable[Item]
) -> Generator[tuple[Item, Result | Exception]]:
    work = _Held(make)
    for item in items:
        try:
            outcome = work.do(item)
        except Exception as error:  # handed to the caller, who names the item and goes on with the others
            outcome = error
        yield item, outcome.result if isinstance(outcome, ShortOfMemory) else outcome


def _on_actors(
    make: Callable[[], Callable[[Item], Result | ShortOfMemory]],
    items: Iterable[Item],
    num_workers: int,
    num_gpus: float,
) -> Generator[tuple[Item, Result | Exception]]:
    with session(num_workers):
        import ray

        queue = Queue(items, num_workers, num_workers)
        pool = _Pool(make, num_gpus)
        trial: Trial[Item] | None = None
        try:
            while True:
                trial = trial or queue.take(len(pool.flying))
                if trial is None and not pool.flying:
                    return
                pool.resize(min(num_workers, queue.width))
                if trial is not None and len(pool.flying) < queue.width and pool.gives(trial):
                    trial = None
                    continue
                for reference in ray.wait(pool.awaited, num_returns=1, timeout=5)[0]:
                    done = pool.hear(reference)
                    if done is not None and not queue.takes_back(*done):
                        yield done[0].item, named(*done)
                pool.look_out()
        finally:
            pool.end()


class _Held:
    """What one worker holds: made when it is first needed, so that a failure to make it is an outcome like others."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._work: Callable[[Any], Any] | None = None

    def answer(self) -> None:
        """Say that there is a process."""

    def do(self, item: Any) -> Any:
        """Do one job."""
        if self._work is None:
            self._work = self._make()
        return self._work(item)


class _Pool(Generic[Item]):
    """The actors that are about to start, those that have answered, and what each of these has been handed."""

    def __init__(self, make: Callable[[], Callable[[Item], Any]], num_gpus: float) -> None:
        import ray

        self.flying: dict[Any, tuple[Trial[Item], Any]] = {}
        held = ray.put(make)
        kind: Any = ray.remote(_Held)
        self._bundle = {"CPU": 1.0, **({"GPU": num_gpus} if num_gpus else {})}
        options = {"num_cpus": 1, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
        self._begin: Callable[[], Any] = lambda: kind.options(scheduling_strategy="SPREAD", **options).remote(held)
        self._starting: dict[Any, tuple[Any, float]] = {}
        self._ready: list[Any] = []
        self._last_ready = time.monotonic()
        self._wanted = 0
        self._failed_starts = 0
        self._has_warned = False

    @property
    def awaited(self) -> list[Any]:
        """What the next answer may come from."""
        return [*self._starting, *self.flying]

    def resize(self, wanted: int) -> None:
        """Begin the actors that are missing; of too many, end those that have not started or have nothing to do."""
        self._wanted = wanted
        spare = len(self._starting) + len(self._ready) - wanted
        if spare > 0:
            late = list(self._starting)[-spare:]
            idle = [actor for actor in self._ready if not self._num_jobs(actor)][: spare - len(late)]
            for actor in [*(self._starting.pop(reference)[0] for reference in late), *idle]:
                self._end(actor)
        # Where each dies as it begins, another would too.
        while spare < 0 and self._failed_starts + len(self._starting) < ATTEMPTS * wanted:
            spare += 1
            actor = self._begin()
            self._starting[actor.answer.remote()] = (actor, time.monotonic())

    def gives(self, trial: Trial[Item]) -> bool:
        """Hand a job to the actor that has least to do; say whether there is one that has room for it."""
        actor = min(self._ready, key=self._num_jobs, default=None)
        if actor is None or self._num_jobs(actor) >= _JOBS:
            return False
        self.flying[actor.do.remote(trial.item)] = (trial, actor)
        return True

    def hear(self, reference: Any) -> tuple[Trial[Item], Any] | None:
        """Return a job that is done, or whose actor is; None where an actor has started or failed to."""
        outcome = outcome_of(reference)
        if reference in self._starting:
            actor, _ = self._starting.pop(reference)
            if isinstance(outcome, Exception):
                self._start_failed(actor, outcome)
            else:
                self._ready.append(actor)
                self._failed_starts = 0
            return None
        trial, actor = self.flying.pop(reference)
        if is_lost(outcome) and not is_out_of_memory_in_words(outcome):
            # All that it had been handed is lost with it.
            self._end(actor)
            self._failed_starts = 0
            self._last_ready = time.monotonic()
        return trial, outcome

    def look_out(self) -> None:
        """Warn once where actors have long been waiting to start.

        Raises:
            WorkerLostError: none is left and the cluster has no room for one, nor will it make any.
        """
        now = time.monotonic()
        if self._ready:
            self._last_ready = now
        if not self._ready and now - self._last_ready > STARVED_SECONDS:
            offered = capacity()
            lacking = [name for name, amount in self._bundle.items() if offered.get(name, 0) < amount]
            if lacking:
                raise WorkerLostError(
                    f"the cluster has had no {_name(lacking[0])} for a worker for {STARVED_SECONDS:.0f} s: add a node "
                    "with one and run the same again"
                )
        oldest = min((since for _, since in self._starting.values()), default=now)
        if not self._has_warned and now - oldest > STARVED_SECONDS:
            self._has_warned = True
            each = " and ".join(f"{amount:g} {_name(resource)}" for resource, amount in self._bundle.items())
            started = len(self._ready)
            _LOG.warning("%d of %d workers have started so far: each needs %s", started, self._wanted, each)

    def end(self) -> None:
        """End the actors and what they do."""
        for actor in [*(actor for actor, _ in self._starting.values()), *self._ready]:
            self._end(actor)

    def _num_jobs(self, actor: Any) -> int:
        return sum(actor is holder for _, holder in self.flying.values())

    def _start_failed(self, actor: Any, error: Exception) -> None:
        self._end(actor)
        self._failed_starts += 1
        if self._failed_starts >= ATTEMPTS * self._wanted and not self._ready and not self._starting:
            lines = (str(error).strip() or type(error).__name__).splitlines()  # the worker's traceback before its end
            raise WorkerLostError(
                f"{self._failed_starts} workers in a row died as they started, the last one so: {lines[-1]}"
            )

    def _end(self, actor: Any) -> None:
        """End an actor, also one that may only be out of reach: its core is free for another."""
        import ray

        self._ready = [one for one in self._ready if one is not actor]
        ray.kill(actor)


def _name(resource: str) -> str:
    return "core" if resource == "CPU" else resource
