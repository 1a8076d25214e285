"""How many workers a cluster has room for, and waiting for nodes that are gone or still to come."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from vesalius.platform.cluster.capacity import capacity, num_fitting, resources_by_node
from vesalius.platform.cluster.session import joins_another
from vesalius.platform.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.platform.runs import RunFolder

_LOG = logging.getLogger(__name__)
_BETWEEN_SECONDS = 1.0
_STEADY_SECONDS = 5.0
"""A node that has just died is still among the living for a while; so is its return only believed after a while."""


def num_possible(bundle: dict[str, float]) -> int:
    """Return how many workers of these resources the nodes that live have room for, were nothing else at work there."""
    return num_fitting(bundle, resources_by_node(free=False))


def num_free(bundle: dict[str, float]) -> int:
    """Return how many workers of these resources the nodes that live have room for, beside what is at work there."""
    return num_fitting(bundle, resources_by_node(free=True))


def await_nodes(run: RunFolder, bundle: dict[str, float], *, again: bool) -> int:
    """Wait for room for a run's workers, and return with how many to go on.

    The first time, what others use is room too: a run waits for its turn in Ray's own queue. Later, where it could go
    on with fewer workers meanwhile, only what is free is.

    Args:
        run: to be trained.
        bundle: resources of one worker.
        again: whether workers of it have begun before. The first time, a runtime of our own is not waited for, which
            no node will ever join, and a cluster that grows is, however long its nodes take.

    Returns:
        As many workers as were asked for, or as there is room for when the time is over.

    Raises:
        RunError: the cluster is too small for ``training.min_workers``.
    """
    spec = run.spec
    wanted, settings = spec.num_workers, spec.training
    what = resource_of(bundle)
    room_for = num_free if again else num_possible
    room = room_for(bundle)
    # What has just been lost may still be counted: nothing is believed before it has been so for a while.
    steady = time.monotonic() + (_STEADY_SECONDS if again else 0.0)
    grows = not again and all(capacity().get(name, 0) >= amount * wanted for name, amount in bundle.items())
    seconds = math.inf if grows else settings.wait_for_nodes_seconds if again or joins_another() else 0.0
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        place: Any = None
        while (room < wanted and time.monotonic() < deadline) or time.monotonic() < min(steady, deadline):
            if room < wanted and place is None:
                limit = "" if grows else f" up to {seconds:.0f} s"
                _LOG.warning(
                    "%d workers need %d %s and the cluster has %d%s now: waiting%s for nodes",
                    *(wanted, wanted, what, room, " free" if again else "", limit),
                )
                place = stack.enter_context(_place_in_queue(bundle, wanted))
            time.sleep(_BETWEEN_SECONDS)
            room = wanted if place is not None and _is_made(place) else room_for(bundle)
    if room >= wanted:
        return wanted
    fewest = min(settings.min_workers, wanted) if again or run.has_checkpointed else wanted
    if room >= fewest:
        _LOG.warning("going on with %d of %d workers until there is room for more", room, wanted)
        return room
    possible = num_possible(bundle)
    if possible < fewest:
        remedy = "train on the CPU with --set training.device=cpu" if what == "GPUs" else "use a larger cluster"
        most = num_fitting(bundle, [capacity()])
        if most >= fewest:  # it may have them, and they did not come
            raise RunError(
                f"{fewest} workers need {fewest} {what}, and in {seconds:.0f} s the cluster had no more than "
                f"{possible}: go on with `vesalius train --resume {run.run_id}` when its nodes are there"
            )
        grown = f" and may grow to {most}" if most > possible else ""
        raise RunError(
            f"{fewest} workers need {fewest} {what} and the cluster has {possible}{grown}: use fewer workers, or "
            f"{remedy}"
        )
    return fewest  # others have the rest: their end is waited for, with as few as are allowed


def resource_of(bundle: dict[str, float]) -> str:
    """Return what a worker of these resources is short of first, for messages."""
    return "GPUs" if bundle.get("GPU") else "cores"


@contextlib.contextmanager
def _place_in_queue(bundle: dict[str, float], num_workers: int) -> Iterator[Any]:
    """Wait in Ray's queue for room for workers, which a cluster that can grow adds nodes for; leave it at the end.

    ``request_resources`` would say so as well, but once for the whole cluster: the last to speak is heard, and still
    is when its process has died.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([{name: amount for name, amount in bundle.items() if amount}] * num_workers)
    try:
        yield group
    finally:
        remove_placement_group(group)


def _is_made(place: Any) -> bool:
    from ray.util.placement_group import placement_group_table

    return bool(placement_group_table(place).get("state") == "CREATED")


class RoomWatch:
    """Watches, while fewer workers train than were asked for, whether there is room for more of them again.

    Where there has been for a while, a file in the run's folder asks the workers to end at their next checkpoint, so
    that nothing is computed twice.
    """

    def __init__(self, run: RunFolder, bundle: dict[str, float], num_workers: int) -> None:
        """Store what to watch.

        Args:
            run: being trained.
            bundle: resources of one worker.
            num_workers: that train now.
        """
        self._run = run
        self._bundle = bundle
        self._num_workers = num_workers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="room", daemon=True)

    def __enter__(self) -> RoomWatch:
        self._run.end_request.unlink(missing_ok=True)
        if self._num_workers < self._run.spec.num_workers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def has_asked(self) -> bool:
        """Whether the workers were asked to end so that more of them can go on."""
        return self._run.end_request.exists()

    def _watch(self) -> None:
        since: float | None = None
        while not self._stop.wait(_BETWEEN_SECONDS):
            if num_free(self._bundle) < 1:
                since = None
                continue
            since = since or time.monotonic()
            if time.monotonic() - since >= 2 * _STEADY_SECONDS:
                self._run.end_request.touch()
                return
