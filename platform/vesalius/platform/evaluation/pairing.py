"""Two methods on the same subjects by their image scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.platform.errors import CohortError
from vesalius.platform.evaluation.intervals import PairedResult, resamples
from vesalius.platform.evaluation.metrics import image_auroc_rows

if TYPE_CHECKING:
    from collections.abc import Sequence


def paired_image_auroc(
    a: Sequence[float],
    b: Sequence[float],
    labels: Sequence[bool],
    *,
    num: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedResult:
    """Compare the image AUROC of two methods on the same subjects, as :func:`paired_bootstrap` does pooled figures.

    Args:
        a: (S,) image scores of the first method.
        b: (S,) of the second, of the same subjects.
        labels: (S,) True where anomalous.
        num: resamples of subjects.
        seed: of the draws.
        confidence: of the interval and of the one-sided bound.

    Raises:
        CohortError: subjects of one kind are missing, or the two are of other subjects.
    """
    if not len(a) == len(b) == len(labels):
        raise CohortError("the two methods were not scored on the same subjects: score both on one split")
    if not any(labels) or all(labels):
        raise CohortError("image_auroc needs healthy and anomalous subjects: add those that are missing")
    weights = np.concatenate([np.ones((1, len(labels))), resamples(len(labels), num, seed)])
    first, second = (image_auroc_rows(scores, labels, weights) for scores in (a, b))
    differences = first - second
    drawn = differences[1:][~np.isnan(differences[1:])]
    if not drawn.size:
        raise CohortError(f"none of {num} resamples holds both kinds of subject: draw more, or add subjects")
    low, high, lower = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2, 1 - confidence])
    return PairedResult(
        metric="image_auroc",
        a=float(first[0]),
        b=float(second[0]),
        difference=float(differences[0]),
        low=float(low),
        high=float(high),
        lower_bound=float(lower),
        probability=float(((drawn > 0) + 0.5 * (drawn == 0)).mean()),
        confidence=confidence,
        num_subjects=len(labels),
    )
