"""What gates look at: two models on the same gate subjects, and where the candidate comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vesalius.platform.config import Settings
from vesalius.platform.evaluation import Histogram, VoxelSet, subject_histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vesalius.platform.models import ModelCard
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord


class Lineage(Settings):
    """What is known of a run beside its model.

    Attributes:
        tracked_run: its run in MLflow, or empty.
        parent: ``RUN@STAGE`` that it started from; empty where it started from nothing; None where nobody says.
        parent_digest: of the cohort and settings of that run, or empty where it cannot be read any more.
    """

    tracked_run: str = ""
    parent: str | None = None
    parent_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model on the gate.

    Attributes:
        card: of the model.
        scores: its maps of the gate.
        records: gate subjects whose voxels count, in the store's order.
        histograms: their voxels, one a record.
    """

    card: ModelCard
    scores: ScoreStore
    records: Sequence[SubjectRecord]
    histograms: Sequence[Histogram]

    @classmethod
    def of(
        cls,
        card: ModelCard,
        scores: ScoreStore,
        store: CohortStore,
        records: Sequence[SubjectRecord],
        voxel_set: VoxelSet,
    ) -> Judged:
        """Count a model's voxels; subjects known to be anomalous without a mask have none to count and are left out."""
        counted = [(record, subject_histogram(scores, store, record, voxel_set)) for record in records]
        pairs = [(record, histogram) for record, histogram in counted if histogram is not None]
        return cls(
            card=card,
            scores=scores,
            records=[record for record, _ in pairs],
            histograms=[histogram for _, histogram in pairs],
        )


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the gates are answered from.

    Attributes:
        store: with the gate split.
        subjects: all subjects of the split, those without voxels to count among them.
        candidate: on the gate.
        champion: on the same subjects; None where there is none.
        champion_version: its number.
        lineage: of the candidate.
        timed: times so many volumes one by one; returns seconds each, and the device in words and by kind.
    """

    store: CohortStore
    subjects: Sequence[SubjectRecord]
    candidate: Judged
    champion: Judged | None
    champion_version: str | None
    lineage: Lineage = field(default_factory=Lineage)
    timed: Callable[[int], Timing]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of volumes that were scored one by one.

    Attributes:
        seconds: of each.
        device: in words.
        kind: ``cpu`` or ``cuda``.
    """

    seconds: Sequence[float]
    device: str
    kind: str
