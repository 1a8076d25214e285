"""Figures of detection from counts, equal to scikit-learn's from the voxels.

The rule everywhere: a voxel is anomalous where ``score >= threshold``. A figure that the counts do not define (no
lesion voxel at all, say) is None.

Inside, rows of counts are worked on at once, so that one definition serves a single histogram and the thousands of
resamples of a bootstrap: ``negatives`` and ``positives`` are (..., B) by increasing score, answers (...) with NaN where
undefined.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vesalius.platform.evaluation.histogram import VALUES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike

    from vesalius.platform.evaluation.histogram import Histogram

Rows = NDArray[np.float64]
PooledFigure = Literal["best_dice", "average_precision", "auroc", "fpr_at_95_recall"]
RECALL = 0.95


class BestDice(NamedTuple):
    """The best Dice over all thresholds, and the highest threshold that reaches it."""

    dice: float
    threshold: float


def best_dice(histogram: Histogram) -> BestDice | None:
    """Return the best Dice over all voxels and thresholds (the paper's [DICE]); None without a lesion voxel."""
    if not histogram.num_positives:
        return None
    dice = _dice_curve(*_floats(histogram))
    best = int(dice.argmax())
    return BestDice(float(dice[best]), float(VALUES[histogram.bins[::-1][best]]))


def dice_at(histogram: Histogram, threshold: float) -> float | None:
    """Return the Dice of ``score >= threshold`` against the lesion; None without a lesion voxel."""
    num_positives = histogram.num_positives
    if not num_positives:
        return None
    first = int(np.searchsorted(VALUES[histogram.bins], threshold, side="left"))
    found = int(histogram.positive_counts[first:].sum())
    flagged = found + int(histogram.negative_counts[first:].sum())
    return 2 * found / (num_positives + flagged)


def average_precision(histogram: Histogram) -> float | None:
    """Return the average precision, sum_n (R_n - R_{n-1}) P_n; None without a lesion voxel."""
    return _single(average_precision_rows, histogram)


def auroc(histogram: Histogram) -> float | None:
    """Return the area under the ROC curve, ties counting half; None unless there are both kinds of voxel."""
    return _single(auroc_rows, histogram)


def fpr_at_recall(histogram: Histogram, recall: float = RECALL) -> float | None:
    """Return the least false positive rate of a threshold that finds ``recall`` of the lesion voxels.

    None unless there are both kinds of voxel.
    """
    return _single(lambda negatives, positives: fpr_at_recall_rows(negatives, positives, recall), histogram)


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Return the area under the ROC curve of image scores, ties counting half.

    Args:
        scores: (S,) finite image scores.
        labels: (S,) bool, True where the image is anomalous.

    Returns:
        None unless both kinds of image are there.
    """
    once = np.ones((1, np.asarray(scores).size))
    value = float(image_auroc_rows(scores, labels, once)[0])
    return None if math.isnan(value) else value


def image_auroc_rows(scores: ArrayLike, labels: ArrayLike, multiplicities: Rows) -> Rows:
    """Return (R,) image AUROCs of (R, S) resamples: how often each of S images counts."""
    return auroc_rows(*image_counts(scores, labels, multiplicities)[1:])


def image_counts(scores: ArrayLike, labels: ArrayLike, multiplicities: Rows) -> tuple[Rows, Rows, Rows]:
    """Count images by score: (B,) scores that occur, rising; (R, B) healthy and (R, B) anomalous images at each.

    Args:
        scores: (S,) finite image scores.
        labels: (S,) bool, True where the image is anomalous.
        multiplicities: (R, S) how often each image counts.
    """
    values, anomalous = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    if not values.size:
        none = np.zeros((len(multiplicities), 0))
        return np.zeros(0), none, none
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) != 0]))
    weights, anomalous = multiplicities[:, order].astype(np.float64), anomalous[order]
    return (
        values[order][starts],
        np.add.reduceat(weights * ~anomalous, starts, axis=1),
        np.add.reduceat(weights * anomalous, starts, axis=1),
    )


def best_dice_rows(negatives: Rows, positives: Rows) -> Rows:
    """Best Dice of rows of counts."""
    return np.asarray(np.where(positives.sum(-1) > 0, _dice_curve(negatives, positives).max(-1, initial=0.0), np.nan))


def average_precision_rows(negatives: Rows, positives: Rows) -> Rows:
    """Average precision of rows of counts."""
    true, false = _descending(positives), _descending(negatives)
    false += true
    precision = np.divide(true, false, out=np.zeros_like(true), where=false > 0)
    return _ratio(np.einsum("...b,...b->...", precision, positives[..., ::-1]), positives.sum(-1))


def auroc_rows(negatives: Rows, positives: Rows) -> Rows:
    """Area under the ROC curve of rows of counts: lesion voxels above each healthy one, those equal to it by half."""
    above = _descending(positives)
    above -= positives[..., ::-1] / 2
    pairs = np.einsum("...b,...b->...", above, negatives[..., ::-1])
    return _ratio(pairs, positives.sum(-1) * negatives.sum(-1))


def fpr_at_recall_rows(negatives: Rows, positives: Rows, recall: float = RECALL) -> Rows:
    """False positive rate at ``recall`` of rows of counts."""
    total = positives.sum(-1)
    # Divided and not multiplied out: the same rounding as in a ROC curve's true positive rates.
    with np.errstate(invalid="ignore", divide="ignore"):
        reached = _descending(positives) / total[..., None] >= recall
    if not reached.shape[-1]:
        return np.full(total.shape, np.nan)
    first = reached.argmax(-1)
    false = np.take_along_axis(_descending(negatives), first[..., None], axis=-1)[..., 0]
    return np.where(total > 0, _ratio(false, negatives.sum(-1)), np.nan)


POOLED: Mapping[PooledFigure, Callable[[Rows, Rows], Rows]] = {
    "best_dice": best_dice_rows,
    "average_precision": average_precision_rows,
    "auroc": auroc_rows,
    "fpr_at_95_recall": fpr_at_recall_rows,
}
"""The figures of pooled voxels by the key they carry everywhere."""


def _single(rows: Callable[[Rows, Rows], Rows], histogram: Histogram) -> float | None:
    value = float(rows(*_floats(histogram)))
    return None if math.isnan(value) else value


def _floats(histogram: Histogram) -> tuple[Rows, Rows]:
    # float64 holds whole numbers exactly up to 2^53 voxels.
    return histogram.negative_counts.astype(np.float64), histogram.positive_counts.astype(np.float64)


def _descending(counts: Rows) -> Rows:
    """Return how many voxels lie at or above each bin, bins by decreasing score."""
    return np.cumsum(counts[..., ::-1], axis=-1)


def _dice_curve(negatives: Rows, positives: Rows) -> Rows:
    """Return the Dice at each bin's score, bins by decreasing score."""
    true = _descending(positives)
    both = _descending(negatives)
    both += true
    both += positives.sum(-1, keepdims=True)
    true *= 2
    return np.divide(true, both, out=np.zeros_like(true), where=both > 0)


def _ratio(top: Rows, bottom: Rows) -> Rows:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, np.divide(top, bottom), np.nan)
