"""Judge what a study has chosen on the test split, once, when nothing is chosen any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.infra.pipeline.judging import evaluate_run
from vesalius.infra.pipeline.populations import refuse_seeds
from vesalius.infra.pipeline.studies import check_resumed
from vesalius.platform.errors import StudyError
from vesalius.platform.runs import find_run
from vesalius.platform.store import CohortStore
from vesalius.tuning import (
    COUNTED,
    Record,
    SeedRow,
    analyse,
    compare_seeds,
    compared,
    keep_held_out,
    kept_held_out,
    seed_comparison,
)

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.progress import Progress
    from vesalius.tuning import Analysis, SeedComparison, StudyFolder

SPLIT = "test"
_DETECTION = ("average_precision", "best_dice", "auroc", "image_auroc")


def check_held_out(study: StudyFolder, home: Path) -> Analysis:
    """Check all that can be checked before its best and the start are trained again, and return what a study has found.

    Args:
        study: whose best is to be judged on the test split.
        home: of the runs.

    Raises:
        StudyError: the study is a population, trials are still to come, there is no best to compare with the start or
            nothing to train again, another best was judged on the test split already, or that has no outlined lesion.
    """
    refuse_seeds(study.spec)
    check_resumed(study, {}, home)
    spec, found = study.spec, analyse(study)
    ended = sum(found.counts.get(state, 0) for state in COUNTED)
    if ended < spec.trials:
        raise StudyError(
            f"study '{spec.name}' has {ended} of {spec.trials} trials: the test split is for what was chosen, when "
            f"nothing is chosen any more; end the study with `vesalius tune --resume {spec.name}`, or with --trials "
            f"{ended} beside it"
        )
    best, start = compared(found)
    if spec.start is not None and not spec.start.trains:
        runs = " ".join(spec.run_id(number) for number in (best, start))
        raise StudyError(
            f"the trials of study '{spec.name}' train nothing after {spec.start.text}, so that other seeds come to the "
            f"same: `vesalius evaluate {runs}` judges the best and the start on the {SPLIT} split"
        )
    kept = kept_held_out(study)
    if kept is not None and (kept.best, kept.start) != (best, start):
        raise StudyError(
            f"trial {kept.best} of study '{spec.name}' was judged on the {SPLIT} split when it was the best, and "
            f"trial {best} is now: to judge one choice after the other there is to choose there; report what "
            f"{study.path / 'test.json'} says, or judge a run by itself with `vesalius evaluate`"
        )
    _, name = _objective(next(iter(found.objectives)))
    _require_lesions(CohortStore.open(spec.store), outlined=name != "image_auroc")
    return found


def judge_held_out(study: StudyFolder, *, home: Path, device: str, progress: Progress) -> SeedComparison:
    """Return the best beside the start on the test split, both as trained again with other seeds, and keep it.

    They are compared by the study's objective, or by average precision where that is none of detection.

    Args:
        study: that has all its trials, and pairs of trainings with other seeds.
        home: of the runs.
        device: to score on.
        progress: called with runs judged and in all.

    Raises:
        StudyError: see :func:`check_held_out`; or nothing was trained again.
    """
    found = check_held_out(study, home)
    spec, seeds = study.spec, compare_seeds(study, found)
    if seeds is None or not seeds.differences:
        raise StudyError(
            f"the best of study '{spec.name}' and the start were not trained again yet: `vesalius study {spec.name} "
            "--seeds 3` does that"
        )
    objective, name = _objective(seeds.objective)
    pairs = [row for row in seeds.rows if len(_both(row, seeds.objective)) == 2]
    rows: list[SeedRow] = []
    for row in pairs:
        judged: dict[str, Record] = {}
        for word, record in _both(row, seeds.objective).items():
            progress(2 * len(rows) + len(judged), 2 * len(pairs), record.run_id)
            figures = evaluate_run(find_run(home, record.run_id), SPLIT, device=device)
            value = getattr(figures["brain" if objective.startswith("brain/") else "all"], name)
            judged[word] = Record(
                number=record.number,
                ending="complete",
                run_id=record.run_id,
                figures={} if value is None else {objective: value},
            )
        rows.append(SeedRow(seed=row.seed, **judged))
    progress(2 * len(pairs), 2 * len(pairs), "")
    comparison = seed_comparison(objective, seeds.best, seeds.start, tuple(rows), SPLIT)
    keep_held_out(study, comparison)
    return comparison


def _objective(judged_by: str) -> tuple[str, str]:
    """Return the objective that a study's best and start are compared by here, and the figure's name."""
    name = judged_by.rpartition("/")[2]
    return (judged_by, name) if name in _DETECTION else ("average_precision", "average_precision")


def _both(row: SeedRow, objective: str) -> dict[str, Record]:
    """Return those of a row that came to their end, by their attribute."""
    records = {"best": row.best, "start": row.start}
    return {word: one for word, one in records.items() if one is not None and objective in one.figures}


def _require_lesions(store: CohortStore, *, outlined: bool) -> None:
    subjects = store.subjects(SPLIT)
    if not outlined and all(one.has_lesion for one in subjects):
        raise StudyError(f"the {SPLIT} split of {store.path} has no healthy subject to tell anomalous ones from")
    if not any(one.has_lesion and (not outlined or "lesion" in one.arrays) for one in subjects):
        what = "subject with an outlined lesion" if outlined else "anomalous subject"
        raise StudyError(f"the {SPLIT} split of {store.path} has no {what}: nothing can be detected in it")
