"""How far readers agree: Fleiss' kappa, and each reader against the majority (Bieder et al. 2022, table 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError
from vesalius.platform.evaluation.metrics import image_auroc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Agreement(Settings):
    """How far the readers agree on one finding. What their votes leave undefined is None.

    Attributes:
        finding: its name.
        num_cases: that all readers looked at.
        num_anomalous: in which the majority saw it.
        kappa: Fleiss' kappa.
        auroc: of each reader's votes against the majority's: the mean of sensitivity and specificity, since a vote is
            yes or no. The majority holds the reader's own vote, so that it flatters every reader alike.
        mean_auroc: over the readers.
    """

    finding: str
    num_cases: int
    num_anomalous: int
    kappa: float | None
    auroc: tuple[float | None, ...]
    mean_auroc: float | None


def fleiss_kappa(counts: NDArray[np.integer]) -> float | None:
    """Return Fleiss' kappa (Fleiss 1971): agreement beyond chance, 1 where all agree, 0 where they might have guessed.

    Args:
        counts: (cases, categories), how many readers put each case into each category; as many for every case.

    Returns:
        None where all readers put all cases into one category: chance agrees as well.

    Raises:
        CohortError: there is no case, fewer than two readers, or another number of readers from case to case.
    """
    counts = np.asarray(counts, dtype=np.float64)
    totals = counts.sum(axis=1)
    if not totals.size or totals.min() != totals.max() or totals[0] < 2:
        raise CohortError("agreement needs cases that the same number of readers, two at least, have read")
    num_readers = totals[0]
    observed = ((np.square(counts).sum(axis=1) - num_readers) / (num_readers * (num_readers - 1))).mean()
    shares = counts.sum(axis=0) / counts.sum()
    by_chance = np.square(shares).sum()
    # Counts are whole numbers, so that one category alone gives a share of 1 exactly.
    return None if by_chance == 1 else float((observed - by_chance) / (1 - by_chance))


def agreement(votes: NDArray[np.bool_], findings: Sequence[str]) -> list[Agreement]:
    """Return the agreement on each finding.

    Args:
        votes: (cases, readers, findings).
        findings: in the order of the last axis.

    Raises:
        CohortError: there is no case, or the number of readers is even, so that there need be no majority.
    """
    num_cases, num_readers, _ = votes.shape
    if not num_cases or num_readers % 2 == 0 or num_readers < 2:
        raise CohortError(
            f"{num_cases} cases of {num_readers} readers have no majority: give cases of 3, 5, ... readers"
        )
    found = []
    for index, finding in enumerate(findings):
        seen = votes[:, :, index]
        positive = seen.sum(axis=1)
        majority = positive > num_readers / 2
        aurocs = tuple(image_auroc(seen[:, reader], majority) for reader in range(num_readers))
        known = [value for value in aurocs if value is not None]
        found.append(
            Agreement(
                finding=finding,
                num_cases=num_cases,
                num_anomalous=int(majority.sum()),
                kappa=fleiss_kappa(np.stack([num_readers - positive, positive], axis=1)),
                auroc=aurocs,
                mean_auroc=float(np.mean(known)) if known else None,
            )
        )
    return found
