"""Scores of whole items against labels: areas, curves, the Youden point, with intervals over items.

The rule everywhere: an item is anomalous where ``score >= threshold``. A figure that the items do not define (no
healthy one, say) is None.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.evaluation.intervals import Interval, percentile_bounds, resamples
from vesalius.platform.evaluation.metrics import auroc_rows, average_precision_rows, image_counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from vesalius.platform.evaluation.metrics import Rows

_EDGES = (0.025, 0.975)


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


def _descending(scores: ArrayLike, labels: ArrayLike) -> tuple[Rows, Rows, Rows]:
    """Return the scores that occur, falling; healthy and anomalous images at or above each."""
    values, negatives, positives = image_counts(scores, labels, np.ones((1, np.asarray(scores).size)))
    return values[::-1], np.cumsum(negatives[0, ::-1]), np.cumsum(positives[0, ::-1])


def _known(rows: Rows) -> float | None:
    value = float(rows[0])
    return None if math.isnan(value) else value
