"""What a gate says of a candidate."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vesalius.platform.config import Settings

Outcome = Literal["passed", "failed", "does not apply", "cannot be evaluated"]


class Verdict(Settings):
    """A gate's answer. One that cannot be evaluated counts as failed: what was asked for has not been shown.

    Attributes:
        gate: its name in the gate file.
        outcome: ``does not apply`` where there is no champion to compare with; it then stands in nobody's way.
        figure: what was measured; None where nothing could be.
        bound: what is held against the limit where that is not the figure itself: a one-sided bound.
        limit: what it must reach, exceed or stay below, as the sentence says.
        low: lower end of the figure's two-sided interval.
        high: upper end of it.
        unit: of these, where they have one.
        num_subjects: gate subjects behind it.
        sentence: for a person.
        details: one entry a subgroup, subject or item.
    """

    gate: str
    outcome: Outcome
    figure: float | None = None
    bound: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    num_subjects: int = 0
    sentence: str
    details: tuple[dict[str, Any], ...] = Field(default_factory=tuple)

    @property
    def passes(self) -> bool:
        """Whether it stands in nobody's way."""
        return self.outcome in ("passed", "does not apply")
