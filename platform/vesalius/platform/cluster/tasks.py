"""Many small independent jobs: one Ray task each, bounded flight, a lost worker's job tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from vesalius.platform.cluster.session import session
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
) -> Iterator[tuple[Item, Result | Exception]]:
    """Apply ``function`` to every item, each in a Ray task of one core; yield ``(item, result or error)``.

    At most two tasks a worker are in flight, so memory is bounded by the workers and not by the items. Results
    come in the order they are ready. A lost worker's task is tried again on another.

    Args:
        function: importable on the workers; it must not keep state.
        items: what to apply it to.
        num_workers: tasks at once; 0 works in the calling process, in order, without Ray.
        progress: called after each item.
        total: number of items, for ``progress``.
    """
    done = 0
    if num_workers == 0:
        for item in items:
            try:
                outcome: Result | Exception = function(item)
            except Exception as error:  # handed to the caller, who names the item and goes on with the others
                outcome = error
            done += 1
            progress(done, total, "")
            yield item, outcome
        return
    with session(num_workers):
        import ray

        task = ray.remote(num_cpus=1, max_retries=2)(function)
        waiting: dict[Any, Item] = {}
        source = iter(items)
        exhausted = False
        try:
            while waiting or not exhausted:
                while not exhausted and len(waiting) < 2 * num_workers:
                    try:
                        item = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    waiting[task.remote(item)] = item
                if not waiting:
                    break
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=5)
                for reference in ready:
                    item = waiting.pop(reference)
                    try:
                        outcome = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        outcome = error.cause if isinstance(error.cause, Exception) else error
                    except ray.exceptions.RayError as error:
                        outcome = error
                    done += 1
                    progress(done, total, "")
                    yield item, outcome
        finally:
            for reference in waiting:
                ray.cancel(reference, force=False)
