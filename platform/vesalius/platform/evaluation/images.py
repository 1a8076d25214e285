"""Whole images: whether a volume has anything anomalous in it (Simarro Viana et al. 2020, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError
from vesalius.platform.evaluation.marks import marked, whole
from vesalius.platform.evaluation.ranking import (
    Curve,
    Detection,
    OperatingPoint,
    detection,
    operate,
    precision_recall_curve,
    roc_curve,
    youden_threshold,
)
from vesalius.platform.evaluation.thresholds import refuse_choosing
from vesalius.platform.evaluation.voxels import resampled_onto

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord

_TOP_SHARE = 0.01


class Kind(Settings):
    """Images of one kind against all healthy ones.

    Attributes:
        label: the label that marks them.
        detection: figures.
        scores: their image scores.
        curve: precision over recall.
    """

    label: str
    detection: Detection
    scores: tuple[float, ...]
    curve: Curve


class ImageFigures(Settings):
    """How well a method's image scores find subjects with anything in them.

    Attributes:
        method: name in the methods' table.
        split: the split that was scored.
        healthy: image scores of healthy subjects.
        anomalous: image scores of subjects with a finding. Images with a quality label are neither.
        screening: the two against each other.
        by_map: the same with one number for every method: the mean of the highest hundredth of its map's brain voxels.
            What a method's own score makes of its map shows beside it.
        roc: their ROC curve.
        at_validation: the Youden point chosen on validation; None where that lacks either kind.
        at_own: the Youden point chosen on the very images it is reported on, as the paper has it: an upper bound.
        types: by label, subjects with that kind of lesion, whatever else they have, against all healthy ones.
        quality: by label, images that something spoilt, or that show an operation, against all healthy ones.
        seconds_per_volume: mean.
    """

    method: str
    split: str
    healthy: tuple[float, ...]
    anomalous: tuple[float, ...]
    screening: Detection
    by_map: Detection
    roc: Curve
    at_validation: OperatingPoint | None = None
    at_own: OperatingPoint | None = None
    types: dict[str, Kind] = Field(default_factory=dict)
    quality: dict[str, Kind] = Field(default_factory=dict)
    seconds_per_volume: float | None = None


def evaluate_images(
    scores: ScoreStore,
    store: CohortStore,
    *,
    validation: ScoreStore | None = None,
    types: Sequence[str] = (),
    quality: Sequence[str] = (),
    bootstrap: int = 1000,
    seed: int = 0,
) -> ImageFigures:
    """Compute the figures of a split's image scores.

    Args:
        scores: of the split to be reported.
        store: its labels say which subjects are healthy, and what the others have.
        validation: scores of the validation split, which the threshold is chosen on; None chooses none there.
        types: labels of kinds of lesion, each reported against all healthy subjects.
        quality: labels of images that something spoilt or that show an operation. A subject with one of them is no
            case of screening and, without a finding, no healthy one; each is reported against all healthy subjects.
        bootstrap: resamples behind the intervals; 0 gives none.
        seed: of the resamples.

    Raises:
        CohortError: the split is empty, a subject was not scored, or one of these labels is neither true nor false.
        SettingError: ``validation`` is of a split kept for reporting.
    """
    records = _scored(scores, store)
    cases, healthy = _screened(records, quality)
    values, labels = _together(scores, cases, healthy)
    threshold = None if validation is None else _chosen(validation, store, quality)
    split, options = scores.info.split, {"bootstrap": bootstrap, "seed": seed}
    own = youden_threshold(values, labels)

    def point(value: float | None, chosen_on: str) -> OperatingPoint | None:
        if value is None:
            return None
        return operate(value, values, labels, chosen_on=chosen_on, split=split, **options)

    def kinds(names: Sequence[str]) -> dict[str, Kind]:
        found = {}
        for name in names:
            those = [record for record in records if marked(record, name)]
            if those:
                numbers, marks = _together(scores, those, healthy)
                found[name] = Kind(
                    label=name,
                    detection=detection(numbers, marks, **options),
                    scores=tuple(numbers[: len(those)]),
                    curve=precision_recall_curve(numbers, marks),
                )
        return found

    return ImageFigures(
        method=scores.info.method,
        split=split,
        healthy=tuple(values[len(cases) :]),
        anomalous=tuple(values[: len(cases)]),
        screening=detection(values, labels, **options),
        by_map=detection([_highest(scores, store, record) for record in (*cases, *healthy)], labels, **options),
        roc=roc_curve(values, labels),
        at_validation=point(threshold, "validation" if validation is None else validation.info.split),
        at_own=point(own, split),
        types=kinds(types),
        quality=kinds(quality),
        seconds_per_volume=float(np.mean([scores.record(record.subject_id).seconds for record in records])),
    )


def _chosen(scores: ScoreStore, store: CohortStore, quality: Sequence[str]) -> float | None:
    refuse_choosing(scores.info.split, "a threshold on image scores")
    return youden_threshold(*_together(scores, *_screened(_scored(scores, store), quality)))


def _screened(
    records: Sequence[SubjectRecord], quality: Sequence[str]
) -> tuple[list[SubjectRecord], list[SubjectRecord]]:
    """Return the subjects with a finding and the healthy ones; a spoilt image is neither, whatever it shows."""
    fit = whole(records, quality)
    return [record for record in fit if record.has_lesion], [record for record in fit if not record.has_lesion]


def _scored(scores: ScoreStore, store: CohortStore) -> list[SubjectRecord]:
    split = scores.info.split
    records = store.subjects(split)
    if not records:
        raise CohortError(f"{store.path} holds no subject of the split '{split}' to evaluate")
    missing = [record.subject_id for record in records if record.subject_id not in scores]
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(records)} subjects of the split '{split}' were not scored ({missing[0]}): "
            "score the split again"
        )
    return records


def _highest(scores: ScoreStore, store: CohortStore, record: SubjectRecord) -> float:
    """Return the mean of the highest hundredth of a map's brain voxels, on the store's grid."""
    name = record.subject_id
    values = resampled_onto(scores.map(name), scores.record(name), record).astype(np.float64)
    brain = store.brain(name)
    inside = np.sort(values[brain] if brain.any() else values.ravel())
    return float(inside[-max(1, round(_TOP_SHARE * inside.size)) :].mean())


def _together(
    scores: ScoreStore, positive: Sequence[SubjectRecord], negative: Sequence[SubjectRecord]
) -> tuple[list[float], list[bool]]:
    """Return image scores and labels, the positive subjects first."""
    values = [scores.record(record.subject_id).image_score for record in (*positive, *negative)]
    return values, [True] * len(positive) + [False] * len(negative)
