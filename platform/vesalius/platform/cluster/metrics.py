"""What Vesalius tells Prometheus: through Ray, from whichever process measures; nothing where Ray is absent.

A metric is a line in :data:`METRICS`; :func:`count`, :func:`gauge` and :func:`observe` record into it. Ray's agent on
each node exports them on its metrics port under :attr:`Metric.exported`.

**How many series there are is bounded.** The agent keeps every series of a counter or histogram until it ends, so
these carry labels from closed lists alone (methods, stages, kinds of errors). A run's id is a label of gauges only:
their series go two reports after their process does. Beyond :data:`MOST_VALUES` values of one label in one process
the rest is called ``other``.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal

MOST_VALUES = 64
OTHER = "other"
_MOST_CHARACTERS = 128
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric that Vesalius exports.

    Attributes:
        name: without Ray's prefix and Prometheus's suffix.
        kind: of metric, as Prometheus counts.
        about: what is measured, in what unit.
        labels: names of its labels; every call gives each of them.
        boundaries: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """Return what its series are called where Prometheus reads them."""
        if self.kind == "counter":
            return (f"ray_{self.name}_total",)
        if self.kind == "histogram":
            return tuple(f"ray_{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (f"ray_{self.name}",)


TRAINING_SAMPLES = Metric(
    name="vesalius_training_samples",
    kind="counter",
    about="Items of the view that training has seen: points, patches, slices or volumes; each rank counts its share",
    labels=("method", "stage"),
)
TRAINING_STEPS = Metric(
    name="vesalius_training_steps",
    kind="counter",
    about="Training steps done, counted by rank 0",
    labels=("method", "stage"),
)
TRAINING_PROGRESS = Metric(
    name="vesalius_training_progress",
    kind="gauge",
    about="Share of a run's steps that are done, 0 to 1",
    labels=("method", "run"),
)
TRAINING_RESTARTS = Metric(
    name="vesalius_training_restarts",
    kind="gauge",
    about="Times that workers of a run under way were lost, or their node, and others went on from the last checkpoint",
    labels=("method", "run"),
)
TRAINING_FAILURES = Metric(
    name="vesalius_training_failures",
    kind="counter",
    about="Trainings that a worker ended on purpose, by the kind of error",
    labels=("method", "kind"),
)
CHECKPOINT_SECONDS = Metric(
    name="vesalius_checkpoint_seconds",
    kind="histogram",
    about="Seconds from the begin of writing a checkpoint to the rename that commits it",
    labels=("method",),
    boundaries=_SECONDS,
)
CHECKPOINT_TIME = Metric(
    name="vesalius_checkpoint_timestamp_seconds",
    kind="gauge",
    about="When a run's training began or last committed a checkpoint, in seconds since 1970",
    labels=("method", "run"),
)
TASKS_RUNNING = Metric(
    name="vesalius_tasks_running",
    kind="gauge",
    about="Tasks of one driver, such as subjects being ingested, that are handed to the cluster",
    labels=("function",),
)
TASKS_WAITING = Metric(
    name="vesalius_tasks_waiting",
    kind="gauge",
    about="Tasks of one driver that are still to be done and not yet handed over",
    labels=("function",),
)
VOLUMES_SCORED = Metric(
    name="vesalius_volumes_scored",
    kind="counter",
    about="Volumes scored; source is batch (a split or a folder) or serving",
    labels=("method", "source"),
)
SCORING_SECONDS = Metric(
    name="vesalius_scoring_seconds",
    kind="histogram",
    about="Seconds a volume took to score, the method alone",
    labels=("method", "source"),
    boundaries=_SECONDS,
)
SCORING_ERRORS = Metric(
    name="vesalius_scoring_errors",
    kind="counter",
    about="Volumes that could not be scored, by the kind of error",
    labels=("source", "kind"),
)
SERVING_REQUESTS = Metric(
    name="vesalius_serving_requests",
    kind="counter",
    about="HTTP requests answered, by route template and status",
    labels=("route", "status"),
)
SERVING_QUEUE = Metric(
    name="vesalius_serving_queue",
    kind="gauge",
    about="Requests taken in and not yet answered by one replica",
    labels=("model",),
)
SERVING_SECONDS = Metric(
    name="vesalius_serving_seconds",
    kind="histogram",
    about="Seconds from a request's first byte to the last of its answer",
    labels=("route",),
    boundaries=_SECONDS,
)
SERVING_VERSION = Metric(
    name="vesalius_serving_version",
    kind="gauge",
    about="Version of the registered model that answers",
    labels=("model",),
)
SERVING_SWAPS = Metric(
    name="vesalius_serving_swaps",
    kind="counter",
    about="Times another version of a model took over (switched), and times it could not be loaded (failed)",
    labels=("model", "outcome"),
)

METRICS = (
    TRAINING_SAMPLES,
    TRAINING_STEPS,
    TRAINING_PROGRESS,
    TRAINING_RESTARTS,
    TRAINING_FAILURES,
    CHECKPOINT_SECONDS,
    CHECKPOINT_TIME,
    TASKS_RUNNING,
    TASKS_WAITING,
    VOLUMES_SCORED,
    SCORING_SECONDS,
    SCORING_ERRORS,
    SERVING_REQUESTS,
    SERVING_QUEUE,
    SERVING_SECONDS,
    SERVING_VERSION,
    SERVING_SWAPS,
)

_lock = threading.Lock()
_made: dict[str, Any] = {}
_values: dict[tuple[str, str], set[str]] = {}


def count(metric: Metric, amount: float = 1, **labels: str) -> None:
    """Add to a counter; nothing where ``amount`` is not above 0, or Ray is absent."""
    if amount > 0 and (made := _instrument(metric, "counter")) is not None:
        made.inc(amount, tags=_bounded(metric, labels))


def gauge(metric: Metric, value: float, **labels: str) -> None:
    """Set a gauge; nothing where Ray is absent. It stands until it is set again or this process ends."""
    if (made := _instrument(metric, "gauge")) is not None:
        made.set(value, tags=_bounded(metric, labels))


def observe(metric: Metric, value: float, **labels: str) -> None:
    """Put a value into a histogram; nothing where Ray is absent."""
    if (made := _instrument(metric, "histogram")) is not None:
        made.observe(value, tags=_bounded(metric, labels))


def _instrument(metric: Metric, kind: str) -> Any:
    """Return Ray's object for a metric, one a process, or None where this process is no part of a Ray runtime."""
    if metric.kind != kind:
        raise TypeError(f"{metric.name} is a {metric.kind}, not a {kind}")
    ray = sys.modules.get("ray")  # who has not imported it is no part of a runtime, and need not wait for its import
    if ray is None or not ray.is_initialized():
        return None
    with _lock:
        if metric.name not in _made:
            _made[metric.name] = _make(metric)
        return _made[metric.name]


def _make(metric: Metric) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.kind == "histogram":
        return Histogram(metric.name, metric.about, boundaries=list(metric.boundaries), tag_keys=metric.labels)
    return (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.about, tag_keys=metric.labels)


def _bounded(metric: Metric, labels: dict[str, str]) -> dict[str, str]:
    """Return the labels of a series, none of them longer or more various than is good for whoever stores them."""
    if set(labels) != set(metric.labels):
        raise TypeError(f"{metric.name} has the labels {metric.labels}, not {tuple(labels)}")
    with _lock:
        return {name: _known(metric.name, name, value[:_MOST_CHARACTERS]) for name, value in labels.items()}


def _known(metric: str, label: str, value: str) -> str:
    seen = _values.setdefault((metric, label), set())
    if value not in seen and len(seen) >= MOST_VALUES:
        return OTHER
    seen.add(value)
    return value
