"""How many workers a cluster has room for, and waiting for nodes that are gone or still to come."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from vesalius.platform.cluster.capacity import capacity
from vesalius.platform.cluster.session import joins_another
from vesalius.platform.errors import RunError

if TYPE_CHECKING:
    from vesalius.platform.runs import RunFolder

_LOG = logging.getLogger(__name__)
_BETWEEN_SECONDS = 1.0
_STEADY_SECONDS = 5.0
"""A node that has just died is still among the living for a while; so is its return only believed after a while."""


def num_possible(bundle: dict[str, float]) -> int:
    """Return how many workers of these resources the nodes that live have room for, were nothing else at work there."""
    import ray

    return sum(
        min(int(node["Resources"].get(name, 0) // amount) for name, amount in bundle.items() if amount)
        for node in ray.nodes()
        if node["Alive"]
    )


def await_nodes(run: RunFolder, bundle: dict[str, float], *, after_loss: bool) -> int:
    """Wait for room for a run's workers, and return with how many to go on.

    Args:
        run: to be trained.
        bundle: resources of one worker.
        after_loss: whether workers have just been lost. The first time, a runtime of our own is not waited for, which
            no node will ever join, and a cluster that grows is, however long its nodes take.

    Returns:
        As many workers as were asked for, or as there is room for when the time is over.

    Raises:
        RunError: there is room for fewer than ``training.min_workers``.
    """
    spec = run.spec
    wanted, settings = spec.num_workers, spec.training
    what = "GPUs" if bundle.get("GPU") else "cores"
    possible = num_possible(bundle)
    # What has just been lost may still be counted: nothing is believed before it has been so for a while.
    steady = time.monotonic() + (_STEADY_SECONDS if after_loss else 0.0)
    grows = not after_loss and all(capacity().get(name, 0) >= amount * wanted for name, amount in bundle.items())
    seconds = math.inf if grows else settings.wait_for_nodes_seconds if after_loss or joins_another() else 0.0
    deadline = time.monotonic() + seconds
    said = False
    while (possible < wanted and time.monotonic() < deadline) or time.monotonic() < min(steady, deadline):
        if possible < wanted and not said:
            said = True
            limit = "" if grows else f" up to {seconds:.0f} s"
            _LOG.warning(
                "%d workers need %d %s and the cluster has %d now: waiting%s for nodes",
                *(wanted, wanted, what, possible, limit),
            )
            _ask_for(bundle, wanted)
        time.sleep(_BETWEEN_SECONDS)
        possible = num_possible(bundle)
    if possible >= wanted:
        return wanted
    fewest = min(settings.min_workers, wanted) if after_loss or run.has_checkpointed else wanted
    if possible < fewest:
        remedy = "train on the CPU with --set training.device=cpu" if what == "GPUs" else "use a larger cluster"
        raise RunError(
            f"{fewest} workers need {fewest} {what} and the cluster has {possible}: use fewer workers, or {remedy}"
        )
    _LOG.warning("going on with %d of %d workers until there is room for more", possible, wanted)
    return possible


def _ask_for(bundle: dict[str, float], wanted: int) -> None:
    """Tell a cluster that can grow what is missing; others take note and do nothing."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[bundle] * wanted)


class Regrouping:
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
        self._thread = threading.Thread(target=self._watch, name="regrouping", daemon=True)

    def __enter__(self) -> Regrouping:
        self._run.regrouping.unlink(missing_ok=True)
        if self._num_workers < self._run.spec.num_workers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_asked_for(self) -> bool:
        """Whether the workers were asked to end so that more of them can go on."""
        return self._run.regrouping.exists()

    def _watch(self) -> None:
        since: float | None = None
        while not self._stop.wait(_BETWEEN_SECONDS):
            if num_possible(self._bundle) <= self._num_workers:
                since = None
                continue
            since = since or time.monotonic()
            if time.monotonic() - since >= 2 * _STEADY_SECONDS:
                self._run.regrouping.touch()
                return
