"""Who is told how training goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Watcher(Protocol):
    """Who is told how training goes. Called on every rank; rank 0's is the one that writes."""

    def begun(self, overall: int, total: int) -> None:
        """Training begins, or goes on, after ``overall`` of ``total`` steps over all stages."""
        ...

    def trained(self, stage: str, num_items: int) -> None:
        """A step has used this rank's share of the global batch, so many items of the stage's view."""
        ...

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        """``step`` of ``num_steps`` of a stage is done, ``overall`` of ``total`` over all stages."""
        ...

    def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
        """Metrics at a step counted over all stages."""
        ...

    def milestone(self, overall: int, metrics: Mapping[str, float]) -> None:
        """A validation pass was made or a stage has ended: a good moment to report to a scheduler."""
        ...

    def saved(self, name: str, seconds: float) -> None:
        """A checkpoint of this name stands, and took so long to write."""
        ...


class Unwatched:
    """A watcher that looks away."""

    def begun(self, overall: int, total: int) -> None:
        """Do nothing."""

    def trained(self, stage: str, num_items: int) -> None:
        """Do nothing."""

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        """Do nothing."""

    def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def milestone(self, overall: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def saved(self, name: str, seconds: float) -> None:
        """Do nothing."""
