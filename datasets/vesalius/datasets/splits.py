"""Splits by person: given, or drawn so that order, time and later additions change nothing.

train (healthy) | validation (choices) | gate (promotion) | test (reported, never used to choose).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field, model_validator

from vesalius.platform.config import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Split = Literal["train", "validation", "gate", "test"]
SPLITS: tuple[str, ...] = get_args(Split)


class SplitSettings(Settings):
    """How subjects without a given split are divided.

    The fractions need not sum to one: they are taken relative to their sum. 40 healthy subjects give 24, 5, 5 and 6.
    """

    train: float = Field(0.6, ge=0, description="share of the healthy subjects; anomalous ones are never drawn into it")
    validation: float = Field(0.125, ge=0, description="share that thresholds and settings are chosen on")
    gate: float = Field(0.125, ge=0, description="share that promotion is decided on")
    test: float = Field(0.15, ge=0, description="share that is reported and never used to choose")
    seed: int = Field(0, description="another seed draws another division")

    @model_validator(mode="after")
    def _positive(self) -> SplitSettings:
        if not any(self.fractions().values()):
            raise ValueError("at least one share must be above 0")
        return self

    def fractions(self) -> dict[str, float]:
        """Return the shares by split, as given."""
        return {name: getattr(self, name) for name in SPLITS}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Someone whose split is to be drawn, or was.

    Attributes:
        person: who; all scans of a person share one split.
        anomalous: any of the person's scans shows an anomaly.
        committed: the split that stands already, if any.
    """

    person: str
    anomalous: bool
    committed: str | None = None


def draw_splits(candidates: Sequence[Candidate], settings: SplitSettings) -> dict[str, str]:
    """Return a split for every person, keeping committed ones where they are.

    Healthy and anomalous persons are divided separately; the anomalous ones among validation, gate and test. Within
    each, persons are ranked by a hash of seed and name, and fill the places that the committed ones leave free: so
    the counts are exact, and neither the order of the input nor a broken-off and continued ingest changes them.

    Args:
        candidates: one entry a person.
        settings: shares and seed.
    """
    splits: dict[str, str] = {}
    for anomalous in (False, True):
        members = [person for person in candidates if person.anomalous is anomalous]
        shares = settings.fractions()
        if anomalous:
            shares = {name: share for name, share in shares.items() if name != "train"}
            if not any(shares.values()):
                shares = {"test": 1.0}
        splits.update(_divide(members, shares, settings.seed))
    return splits


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divide ``total`` by largest remainder: whole numbers that sum to it, each within one of its exact share."""
    whole = sum(shares.values())
    exact = {name: total * share / whole for name, share in shares.items()}
    counts = {name: int(value + 1e-9) for name, value in exact.items()}
    order = sorted(shares, key=lambda name: (counts[name] - exact[name], SPLITS.index(name)))
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _divide(members: Iterable[Candidate], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    members = list(members)
    splits = {member.person: member.committed for member in members if member.committed is not None}
    taken = Counter(splits.values())
    wanted = apportion(len(members), shares)
    free = {name: max(0, wanted[name] - taken[name]) for name in wanted}
    waiting = sorted(
        (member.person for member in members if member.committed is None), key=lambda person: _rank(seed, person)
    )
    # Where other shares were committed before, the free places may outnumber those waiting: the last splits give way.
    places = [name for name, count in free.items() for _ in range(count)]
    return splits | dict(zip(waiting, places, strict=False))


def _rank(seed: int, person: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{person}".encode()).digest()
