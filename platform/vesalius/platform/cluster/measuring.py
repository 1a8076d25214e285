"""What one training worker measures of its run, for :mod:`vesalius.platform.cluster.metrics`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vesalius.platform.cluster.metrics import (
    CHECKPOINT_SECONDS,
    CHECKPOINT_TIME,
    TRAINING_FAILURES,
    TRAINING_PROGRESS,
    TRAINING_RESTARTS,
    TRAINING_SAMPLES,
    TRAINING_STEPS,
    count,
    gauge,
    observe,
)

if TYPE_CHECKING:
    from vesalius.platform.errors import VesaliusError
    from vesalius.platform.runs import RunFolder, RunSpec


class RunMeter:
    """Counts what a rank does; where a figure is the run's and not a rank's, rank 0 gives it."""

    def __init__(self, run: RunFolder, spec: RunSpec, rank: int) -> None:
        self._run = run
        self._method = spec.method
        self._is_first = rank == 0

    def begin(self) -> None:
        """Note that this rank's workers begin, and how often workers of this run have been lost."""
        if self._is_first:
            losses = sum(group.follows_loss for group in self._run.groups)
            gauge(TRAINING_RESTARTS, losses, method=self._method, run=self._run.run_id)
            gauge(CHECKPOINT_TIME, time.time(), method=self._method, run=self._run.run_id)

    def trained(self, stage: str, num_items: int) -> None:
        """Count a step's items."""
        count(TRAINING_SAMPLES, num_items, method=self._method, stage=stage)

    def step(self, stage: str, overall: int, total: int) -> None:
        """Count a step, ``overall`` of ``total`` over all stages."""
        if self._is_first:
            count(TRAINING_STEPS, method=self._method, stage=stage)
            gauge(TRAINING_PROGRESS, overall / max(1, total), method=self._method, run=self._run.run_id)

    def saved(self, seconds: float) -> None:
        """Note a checkpoint; only the rank that wrote it calls."""
        observe(CHECKPOINT_SECONDS, seconds, method=self._method)
        gauge(CHECKPOINT_TIME, time.time(), method=self._method, run=self._run.run_id)

    def failed(self, error: VesaliusError) -> None:
        """Count a training that ends on purpose, once a run."""
        if self._is_first:
            count(TRAINING_FAILURES, method=self._method, kind=type(error).__name__)
