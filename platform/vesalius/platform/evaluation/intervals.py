"""Bootstrap over subjects from their histograms.

A resample of subjects is a row of multiplicities; its pooled counts are that row times the subjects' counts. So
thousands of resamples are a few matrix products, chunk by chunk, and no voxel is looked at again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError
from vesalius.platform.evaluation.histogram import NUM_BINS, Histogram
from vesalius.platform.evaluation.metrics import POOLED, PooledFigure, Rows, image_auroc_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Interval = tuple[float, float]
# Entries of one (resamples, bins) block: 16 MB in float64. About six of them are alive at once.
_BLOCK = 1 << 21


class SubjectCounts:
    """The histograms of S subjects on bins that all share, as few as the figures need.

    Only bins that hold a lesion voxel of some subject matter one by one: the healthy voxels of a run of bins between
    two of those lie above and below the same lesion voxels, whichever bin of the run they are in, and no best
    threshold lies inside it. Each run is therefore one bin, and every figure stays exact.

    Attributes:
        negatives: (S, B) uint32 healthy voxels by increasing score.
        positives: (S, B) uint32 lesion voxels by increasing score.
    """

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        with_lesion = np.zeros(NUM_BINS, dtype=np.bool_)
        for histogram in histograms:
            with_lesion[histogram.bins[histogram.positive_counts > 0]] = True
        starts = with_lesion.copy()
        starts[1:] |= with_lesion[:-1]
        starts[0] = True
        place = np.cumsum(starts) - 1
        shape = (len(histograms), int(place[-1]) + 1)
        self.negatives: NDArray[np.uint32] = np.zeros(shape, dtype=np.uint32)
        self.positives: NDArray[np.uint32] = np.zeros(shape, dtype=np.uint32)
        for row, histogram in enumerate(histograms):
            np.add.at(self.negatives[row], place[histogram.bins], histogram.negative_counts.astype(np.uint32))
            np.add.at(self.positives[row], place[histogram.bins], histogram.positive_counts.astype(np.uint32))

    def figures(self, multiplicities: Rows, names: Sequence[PooledFigure]) -> dict[PooledFigure, Rows]:
        """Return each figure of (R, S) resamples as (R,) values, NaN where a resample leaves it undefined."""
        num_resamples, num_bins = len(multiplicities), self.negatives.shape[1]
        values: dict[PooledFigure, Rows] = {name: np.empty(num_resamples) for name in names}
        rows = max(1, _BLOCK // num_bins)
        for start in range(0, num_resamples, rows):
            part = slice(start, start + rows)
            weights = multiplicities[part].astype(np.float64)
            negatives, positives = _product(weights, self.negatives), _product(weights, self.positives)
            for name in names:
                values[name][part] = POOLED[name](negatives, positives)
        return values


def _product(weights: Rows, counts: NDArray[np.uint32]) -> Rows:
    """Return weights @ counts in float64, widening a block of bins at a time."""
    answer = np.empty((len(weights), counts.shape[1]))
    columns = max(1, _BLOCK // max(1, len(counts)))
    for start in range(0, counts.shape[1], columns):
        part = slice(start, start + columns)
        answer[:, part] = weights @ counts[:, part].astype(np.float64)
    return answer


def resamples(num_subjects: int, num: int, seed: int) -> Rows:
    """Return (num, S) float64: how often each subject occurs in each of ``num`` draws of S with replacement."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_subjects, 1 / num_subjects)
    return generator.multinomial(num_subjects, shares, size=num).astype(np.float64)


def bootstrap_intervals(
    histograms: Sequence[Histogram],
    dice: Sequence[float | None],
    image_scores: Sequence[float],
    labels: Sequence[bool],
    *,
    num: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Return percentile intervals over subjects.

    A resample that leaves a figure undefined (no subject with a lesion was drawn) is left out for that figure. A figure
    whose interval would rest on fewer than two subjects of a kind it needs has none.

    Args:
        histograms: of the S subjects whose voxels are annotated (healthy ones included).
        dice: their Dice at the fixed threshold, None where the subject has no lesion.
        image_scores: of all subjects that have an image score.
        labels: of the same subjects: True where anomalous.
        num: resamples; 0 gives no intervals.
        seed: of the draws.
        confidence: the share between the two bounds.

    Returns:
        ``{figure: (low, high)}``.
    """
    found: dict[str, Interval] = {}
    if num < 1:
        return found
    edges = ((1 - confidence) / 2, (1 + confidence) / 2)
    if sum(histogram.num_positives > 0 for histogram in histograms) >= 2:
        weights = resamples(len(histograms), num, seed)
        pooled = SubjectCounts(histograms).figures(weights, get_args(PooledFigure))
        drawn: dict[str, Rows] = {str(name): values for name, values in pooled.items()}
        defined = np.array([value is not None for value in dice])
        if defined.sum() >= 2:
            known = weights[:, defined]
            total = known @ np.array([value for value in dice if value is not None])
            counts = known.sum(1)
            drawn["dice_mean"] = np.divide(total, counts, out=np.full(num, np.nan), where=counts > 0)
        found.update({name: bounds for name, values in drawn.items() if (bounds := percentile_bounds(values, edges))})
    num_anomalous = sum(map(bool, labels))
    if min(num_anomalous, len(labels) - num_anomalous) >= 2:
        values = image_auroc_rows(image_scores, labels, resamples(len(labels), num, seed))
        if bounds := percentile_bounds(values, edges):
            found["image_auroc"] = bounds
    return found


def auroc_interval(
    scores: Sequence[float],
    labels: Sequence[bool],
    owners: Sequence[str],
    *,
    num: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval | None:
    """Return the interval of the AUROC of cases of which one subject may own several; they are drawn together.

    None where it would rest on fewer than two subjects with an anomalous case, or with a healthy one.

    Args:
        scores: of N cases.
        labels: True where a case is anomalous.
        owners: the subject of each case.
        num: resamples of subjects; 0 gives no interval.
        seed: of the draws.
        confidence: the share between the two bounds.
    """
    anomalous = {owner for owner, label in zip(owners, labels, strict=True) if label}
    healthy = {owner for owner, label in zip(owners, labels, strict=True) if not label}
    if num < 1 or min(len(anomalous), len(healthy)) < 2:
        return None
    names, of_case = np.unique(np.asarray(owners), return_inverse=True)
    weights = resamples(len(names), num, seed)[:, of_case]
    edges = ((1 - confidence) / 2, (1 + confidence) / 2)
    return percentile_bounds(image_auroc_rows(scores, labels, weights), edges)


def percentile_bounds(values: Rows, edges: tuple[float, float]) -> Interval | None:
    """Return the quantiles ``edges`` of resampled values, those that are NaN left out; None where all are."""
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, edges)
    return float(low), float(high)


class PairedResult(Settings):
    """A figure of two methods on the same subjects, and how sure the difference is.

    Attributes:
        metric: the figure.
        a: its value for the first method, all subjects pooled.
        b: its value for the second.
        difference: a - b (b - a where less is better).
        low: lower bound of the two-sided interval of the difference.
        high: upper bound of it.
        lower_bound: one-sided bound: the difference exceeds it with the stated confidence.
        probability: share of resamples in which a is the better one; ties count half.
        confidence: of the interval and of the one-sided bound.
        num_subjects: subjects compared.
    """

    metric: PooledFigure | Literal["image_auroc"]
    a: float
    b: float
    difference: float
    low: float
    high: float
    lower_bound: float
    probability: float
    confidence: float
    num_subjects: int


def paired_bootstrap(
    a: Sequence[Histogram],
    b: Sequence[Histogram],
    metric: PooledFigure = "average_precision",
    *,
    num: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedResult:
    """Compare two methods on the same subjects: each resample of subjects is drawn once and used for both.

    A positive difference always speaks for ``a``: it is a - b, and b - a for ``fpr_at_95_recall``, where less is
    better. Resamples that leave the figure undefined (no lesion was drawn) are left out.

    Args:
        a: histograms by subject of the first method (a candidate).
        b: histograms of the same subjects, in the same order, of the second (the champion).
        metric: a figure of pooled voxels.
        num: resamples.
        seed: of the draws.
        confidence: of the interval and of the one-sided bound.

    Raises:
        CohortError: the two were not computed on the same voxels, or the subjects leave the figure undefined.
    """
    if len(a) != len(b) or any(
        (x.num_negatives, x.num_positives) != (y.num_negatives, y.num_positives) for x, y in zip(a, b, strict=False)
    ):
        raise CohortError(
            "the two methods were not scored on the same voxels of the same subjects: "
            "score both on one split and compare them on one reference store"
        )
    sign: Literal[1, -1] = -1 if metric == "fpr_at_95_recall" else 1
    weights = np.concatenate([np.ones((1, len(a))), resamples(len(a), num, seed)]) if a else np.ones((1, 0))
    first = SubjectCounts(a).figures(weights, [metric])[metric]
    second = SubjectCounts(b).figures(weights, [metric])[metric]
    if math.isnan(first[0]):
        raise CohortError(
            f"{metric} is undefined on these {len(a)} subjects: comparing two methods needs annotated lesions"
        )
    differences = sign * (first - second)
    whole, drawn = differences[0], differences[1:]
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        raise CohortError(f"none of {num} resamples leaves {metric} defined: draw more, or annotate more subjects")
    low, high, lower = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2, 1 - confidence])
    return PairedResult(
        metric=metric,
        a=float(first[0]),
        b=float(second[0]),
        difference=float(whole),
        low=float(low),
        high=float(high),
        lower_bound=float(lower),
        probability=float(((drawn > 0) + 0.5 * (drawn == 0)).mean()),
        confidence=confidence,
        num_subjects=len(a),
    )
