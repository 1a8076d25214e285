"""Whether the best trial is better than the start when both are trained again with other seeds.

The best of many noisy trials is better than it is: it was chosen for its luck too. So its own figure, and the seed that
it had it with, have no part in this comparison.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vesalius.platform.config import Settings
from vesalius.platform.errors import StudyError
from vesalius.platform.store.files import write_file
from vesalius.platform.store.space import space_errors
from vesalius.tuning.objectives import OBJECTIVES
from vesalius.tuning.spec import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.tuning.analysis import Analysis
    from vesalius.tuning.folder import StudyFolder
    from vesalius.tuning.spec import StudySpec

LEVEL = 0.95
_HELD_OUT = "test.json"


class SeedRow(Settings):
    """Best and start, trained with one seed.

    Attributes:
        seed: of both trainings.
        best: what became of the best; None where it has not come to its end.
        start: what became of the start.
    """

    seed: int
    best: Record | None = None
    start: Record | None = None


class SeedComparison(Settings):
    """The best trial beside the start over seeds that neither was chosen with.

    Attributes:
        objective: that is compared.
        split: on which.
        best: number of the trial.
        start: number of the trial.
        rows: a seed each.
        means: of the best and of the start over the seeds that both came to their end with.
        differences: of those seeds, best less start.
        mean: of the differences.
        interval: of the mean difference over seeds, at :data:`LEVEL`, by Student's t on the differences of pairs; None
            where fewer than two seeds have both, or where both come to the same with every seed.
        sentence: all this for people.
    """

    objective: str
    split: str = "validation"
    best: int
    start: int
    rows: tuple[SeedRow, ...]
    means: tuple[float, float] | None
    differences: tuple[float, ...]
    mean: float | None
    interval: tuple[float, float] | None
    sentence: str


def compared(found: Analysis) -> tuple[int, int]:
    """Return the numbers of the trials that are to be compared: the best and the start.

    Raises:
        StudyError: there is no single best, it is the start itself, or the start did not come to its end.
    """
    if len(found.objectives) > 1:
        raise StudyError(
            f"study '{found.study}' has several objectives and so no single best trial: train one of its front again "
            "with `vesalius train` and --set training.seed"
        )
    if found.best is None:
        raise StudyError(f"study '{found.study}' has no complete trial yet: go on with `vesalius tune --resume`")
    if found.start is None:
        raise StudyError(
            f"the settings that study '{found.study}' started from did not come to their end, so nothing is compared "
            f"with them: `vesalius tune --resume {found.study}` tries them again after want of memory or a lost worker"
        )
    if found.best == found.start:
        raise StudyError(
            f"the best trial of study '{found.study}' has the settings that it started from: none to compare"
        )
    return found.best, found.start


def taken_seeds(spec: StudySpec, found: Analysis) -> set[int]:
    """Return the seeds that a study's trials were trained with: they had a part in choosing."""
    return {int(row.values.get("training.seed", spec.training.seed)) for row in found.trials}


def other_seeds(taken: Sequence[int], num: int) -> list[int]:
    """Return the first seeds from 0 on that are not among those that were taken in choosing."""
    return [seed for seed in range(num + len(taken)) if seed not in taken][:num]


def compare_seeds(folder: StudyFolder, found: Analysis) -> SeedComparison | None:
    """Return what the folder has of best and start over other seeds, or None where it has nothing of the best.

    Seeds that a trial has drawn since are other ones no more, and left out.

    Args:
        folder: of the study.
        found: the study as it stands.
    """
    try:
        best, start = compared(found)
    except StudyError:
        return None
    taken = taken_seeds(folder.spec, found)
    records = {(number, seed): record for (number, seed), record in folder.repeats().items() if seed not in taken}
    if not any(number == best for number, _ in records):
        return None
    rows = tuple(
        SeedRow(seed=seed, best=records.get((best, seed)), start=records.get((start, seed)))
        for seed in sorted({seed for number, seed in records if number in (best, start)})
    )
    return seed_comparison(next(iter(found.objectives)), best, start, rows)


def seed_comparison(
    objective: str, best: int, start: int, rows: tuple[SeedRow, ...], split: str = "validation"
) -> SeedComparison:
    """Return what the rows say of the best and the start.

    Args:
        objective: that is compared; a record that lacks it has no part.
        best: number of the trial.
        start: number of the trial.
        rows: a seed each.
        split: that their figures are of.
    """
    pairs = [
        (row.best.figures[objective], row.start.figures[objective])
        for row in rows
        if row.best is not None and row.start is not None
        if objective in row.best.figures and objective in row.start.figures
    ]
    differences = [one - other for one, other in pairs]
    means = None
    if pairs:
        means = (math.fsum(one for one, _ in pairs) / len(pairs), math.fsum(other for _, other in pairs) / len(pairs))
    mean = math.fsum(differences) / len(differences) if differences else None
    interval = None if _is_the_same(pairs) else mean_interval(differences)
    return SeedComparison(
        objective=objective,
        split=split,
        best=best,
        start=start,
        rows=rows,
        means=means,
        differences=tuple(differences),
        mean=mean,
        interval=interval,
        sentence=_sentence(objective, split, best, means, differences, interval),
    )


def keep_held_out(folder: StudyFolder, comparison: SeedComparison) -> None:
    """Keep how the best and the start compare on the test split."""
    with space_errors(folder.path):
        write_file(folder.path / _HELD_OUT, comparison.model_dump_json(indent=1).encode(), folder.path)


def kept_held_out(folder: StudyFolder) -> SeedComparison | None:
    """Return what was kept of the test split, of whatever trials; None where nothing was."""
    try:
        return SeedComparison.model_validate_json((folder.path / _HELD_OUT).read_text())
    except (OSError, ValueError):
        return None


def held_out(folder: StudyFolder, seeds: SeedComparison | None) -> SeedComparison | None:
    """Return what was kept of the test split, where it is of the trials that are compared now.

    Args:
        folder: of the study.
        seeds: the comparison on validation.
    """
    kept = kept_held_out(folder)
    if kept is None or seeds is None or (kept.best, kept.start) != (seeds.best, seeds.start):
        return None
    return kept


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of a mean by Student's t, at :data:`LEVEL`; None of fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def _is_the_same(pairs: Sequence[tuple[float, float]]) -> bool:
    """Say whether nothing hangs on the seed: what does not scatter over seeds has no interval over them."""
    return len(pairs) > 1 and len(set(pairs)) == 1


def _sentence(
    objective: str,
    split: str,
    best: int,
    means: tuple[float, float] | None,
    differences: Sequence[float],
    interval: tuple[float, float] | None,
) -> str:
    if means is None:
        return f"of trial {best} and the start there is no other seed yet that both have come to their end with"
    num = len(differences)
    seeds = "1 other seed" if num == 1 else f"{num} other seeds"
    where = f"over {seeds} on {split}"
    said = f"{where} trial {best} has {objective} {means[0]:.4g}, the start {means[1]:.4g}"
    mean = means[0] - means[1]
    if interval is None and num > 1:
        return f"{said}; difference {mean:+.4g} with every seed: nothing hangs on it, and seeds give no interval"
    if interval is None:
        return f"{said}; one seed has no interval"
    low, high = interval
    said = f"{said}; difference {mean:+.4g}, {100 * LEVEL:.0f} % interval {low:+.4g} to {high:+.4g} (paired t)"
    if low <= 0 <= high:
        return f"{said}: they cannot be told apart"
    is_better = (low > 0) == (OBJECTIVES[objective].direction == "maximize")
    return f"{said}: the best is {'better' if is_better else 'worse'}"
