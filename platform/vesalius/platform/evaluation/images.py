"""Whole images: whether a volume has anything anomalous in it (Simarro Viana et al. 2020, section 3).

The rule everywhere: an image is anomalous where ``score >= threshold``. A figure that the images do not define (no
healthy one, say) is None.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError
from vesalius.platform.evaluation.intervals import Interval, percentile_bounds, resamples
from vesalius.platform.evaluation.metrics import auroc_rows, average_precision_rows, image_counts
from vesalius.platform.evaluation.thresholds import refuse_choosing
from vesalius.platform.evaluation.voxels import resampled_onto

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from vesalius.platform.evaluation.metrics import Rows
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord

_EDGES = (0.025, 0.975)
_TOP_SHARE = 0.01


class Curve(Settings):
    """A curve from its strictest threshold to its most lenient, as points (x, y).

    Attributes:
        x: false positive rate of a ROC curve, recall of a precision-recall curve.
        y: true positive rate, or precision.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]


class Detection(Settings):
    """How well scores tell one kind of image from another.

    Attributes:
        num_positive: images that should score high.
        num_negative: images that should not.
        auroc: area under the ROC curve, ties counting half.
        average_precision: sum_n (R_n - R_{n-1}) P_n; by chance it is the share of positive images.
        intervals: of both, 95 % bootstrap over images; none where either kind has fewer than two.
    """

    num_positive: int
    num_negative: int
    auroc: float | None = None
    average_precision: float | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)


class OperatingPoint(Settings):
    """A threshold, and what it gives.

    Attributes:
        threshold: an image is anomalous where its score is at least this.
        chosen_on: the split it was chosen on.
        split: the split that it is applied to.
        sensitivity: share of anomalous images found (the paper's recall).
        specificity: share of healthy images left alone.
        accuracy: share of all images judged rightly.
        intervals: of the three, 95 % bootstrap over images, the threshold as it is.
    """

    threshold: float
    chosen_on: str
    split: str
    sensitivity: float
    specificity: float
    accuracy: float
    intervals: dict[str, Interval] = Field(default_factory=dict)


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
        anomalous: image scores of subjects with a finding, those that only a quality label marks left out.
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


def detection(scores: ArrayLike, labels: ArrayLike, *, bootstrap: int = 1000, seed: int = 0) -> Detection:
    """Return AUROC and average precision of image scores, with intervals.

    Args:
        scores: (S,) finite.
        labels: (S,) bool, True where the image is positive.
        bootstrap: resamples of images; 0 gives no intervals.
        seed: of the resamples.
    """
    marked = np.asarray(labels, dtype=np.bool_)
    num_positive, num_negative = int(marked.sum()), int((~marked).sum())

    def figures(multiplicities: Rows) -> dict[str, Rows]:
        _, negatives, positives = image_counts(scores, marked, multiplicities)
        precision = average_precision_rows(negatives, positives)
        # Without a healthy image every precision is one, which says nothing.
        both = (negatives.sum(1) > 0) & (positives.sum(1) > 0)
        return {
            "auroc": auroc_rows(negatives, positives),
            "average_precision": np.where(both, precision, np.nan),
        }

    values = {name: _known(rows) for name, rows in figures(np.ones((1, marked.size))).items()}
    intervals: dict[str, Interval] = {}
    if bootstrap > 0 and min(num_positive, num_negative) >= 2:
        drawn = figures(resamples(marked.size, bootstrap, seed))
        intervals = {name: bounds for name, rows in drawn.items() if (bounds := percentile_bounds(rows, _EDGES))}
    return Detection(num_positive=num_positive, num_negative=num_negative, intervals=intervals, **values)


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Return true over false positive rates, from (0, 0) to (1, 1); empty unless both kinds of image are there."""
    _, false, true = _descending(scores, labels)
    if not false.size or not false[-1] or not true[-1]:
        return Curve(x=(), y=())
    return Curve(x=(0.0, *(false / false[-1]).tolist()), y=(0.0, *(true / true[-1]).tolist()))


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Return precision over recall, from the strictest threshold on; empty without a positive image."""
    _, false, true = _descending(scores, labels)
    if not true.size or not true[-1]:
        return Curve(x=(), y=())
    return Curve(x=tuple((true / true[-1]).tolist()), y=tuple((true / (true + false)).tolist()))


def youden_threshold(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Return the threshold of greatest sensitivity + specificity - 1 (Youden 1950), of equal ones the highest.

    It is one of the scores. None unless both kinds of image are there.
    """
    values, false, true = _descending(scores, labels)
    if not values.size or not false[-1] or not true[-1]:
        return None
    # In whole numbers, so that equal ones are equal.
    index = true * false[-1] - false * true[-1]
    return float(values[int(index.argmax())])


def operate(
    threshold: float,
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    chosen_on: str,
    split: str,
    bootstrap: int = 1000,
    seed: int = 0,
) -> OperatingPoint | None:
    """Return what a threshold gives on image scores (S,) and labels (S,); None unless both kinds are there."""
    found, marked = np.asarray(scores, dtype=np.float64) >= threshold, np.asarray(labels, dtype=np.bool_)
    num_positive, num_negative = int(marked.sum()), int((~marked).sum())
    if not num_positive or not num_negative:
        return None

    def figures(multiplicities: Rows) -> dict[str, Rows]:
        hits, passes = multiplicities @ (found & marked), multiplicities @ (~found & ~marked)
        positives, negatives = multiplicities @ marked, multiplicities @ ~marked
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "sensitivity": hits / positives,
                "specificity": passes / negatives,
                "accuracy": (hits + passes) / (positives + negatives),
            }

    values = {name: float(rows[0]) for name, rows in figures(np.ones((1, marked.size))).items()}
    intervals: dict[str, Interval] = {}
    if bootstrap > 0 and min(num_positive, num_negative) >= 2:
        drawn = figures(resamples(marked.size, bootstrap, seed))
        intervals = {name: bounds for name, rows in drawn.items() if (bounds := percentile_bounds(rows, _EDGES))}
    return OperatingPoint(threshold=threshold, chosen_on=chosen_on, split=split, intervals=intervals, **values)


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
            case of screening; each is reported against all healthy subjects.
        bootstrap: resamples behind the intervals; 0 gives none.
        seed: of the resamples.

    Raises:
        CohortError: the split is empty, or a subject was not scored.
        SettingError: ``validation`` is of a split kept for reporting.
    """
    records = _scored(scores, store)
    healthy = [record for record in records if not record.has_lesion]
    cases = [record for record in records if record.has_lesion and not _any(record, quality)]
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
            those = [record for record in records if record.labels.get(name) is True]
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
    records = _scored(scores, store)
    cases = [record for record in records if record.has_lesion and not _any(record, quality)]
    return youden_threshold(*_together(scores, cases, [record for record in records if not record.has_lesion]))


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


def _any(record: SubjectRecord, labels: Sequence[str]) -> bool:
    return any(record.labels.get(name) is True for name in labels)


def _together(
    scores: ScoreStore, positive: Sequence[SubjectRecord], negative: Sequence[SubjectRecord]
) -> tuple[list[float], list[bool]]:
    """Return image scores and labels, the positive subjects first."""
    values = [scores.record(record.subject_id).image_score for record in (*positive, *negative)]
    return values, [True] * len(positive) + [False] * len(negative)


def _descending(scores: ArrayLike, labels: ArrayLike) -> tuple[Rows, Rows, Rows]:
    """Return the scores that occur, falling; healthy and anomalous images at or above each."""
    values, negatives, positives = image_counts(scores, labels, np.ones((1, np.asarray(scores).size)))
    return values[::-1], np.cumsum(negatives[0, ::-1]), np.cumsum(positives[0, ::-1])


def _known(rows: Rows) -> float | None:
    value = float(rows[0])
    return None if math.isnan(value) else value
