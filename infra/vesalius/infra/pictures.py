"""From stores on disk to pictures: what :mod:`vesalius.infra.figures` draws, read from where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.template import mni152
from vesalius.infra.figures import (
    Case,
    HistogramPanel,
    MethodColumn,
    Tile,
    draw_comparison,
    draw_histogram,
    draw_montage,
    draw_overlay,
)
from vesalius.infra.figures.montage import common_brain, middle_planes, overlap
from vesalius.infra.pipeline import scores_folder
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.evaluation import Histogram, subject_histogram
from vesalius.platform.geometry import resample
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Score
    from vesalius.platform.evaluation import Figures, Threshold, VoxelSet
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import Place, SubjectArrays, SubjectRecord

NUM_CASES = 5
CAPTION = (
    "The methods learnt from healthy subjects only; thresholds come from the validation split.\n"
    "AP: average precision over all voxels of the split. Shown: lesions from large to small, one healthy subject."
)


def draw_store_montage(store: Place, path: Path) -> Path:
    """Draw every subject of a cohort store on one sheet and return ``path``.

    Over them lies the outline of the MNI152 brain where the recipe registers to it, else that of the brain which at
    least half of the subjects share; where grids differ there is nothing to compare with.

    Raises:
        CohortError: the store holds no subject.
    """
    cohort = CohortStore.open(store)
    records = cohort.subjects()
    if not records:
        raise CohortError(f"{store} holds no subject: there is nothing to draw")
    reference, reference_name = _reference(cohort, records)
    tiles = [
        Tile(
            label=f"{record.subject_id}  {record.split}",
            planes=middle_planes(cohort.image(record.subject_id)[0]),
            overlap=None if reference is None else overlap(cohort.brain(record.subject_id), reference),
            attention=bool(record.notes.get("warnings")),
        )
        for record in records
    ]
    how_many = "1 prepared subject" if len(records) == 1 else f"{len(records)} prepared subjects"
    title = f"{how_many} of {cohort.name or cohort.path.name} ({', '.join(cohort.channels)})"
    spacing = records[0].spacing_mm
    return draw_montage(tiles, reference, path, spacing_mm=spacing, title=title, reference_name=reference_name)


def _reference(cohort: CohortStore, records: Sequence[SubjectRecord]) -> tuple[NDArray[np.float32] | None, str]:
    first = records[0]
    if any(record.shape != first.shape for record in records):
        return None, ""
    recipe = cohort.recipe
    on_template = recipe.get("registration") == "affine" and recipe.get("reference", "mni152") == "mni152"
    if on_template and recipe.get("crop", "none") == "none":
        template = mni152()
        brain = resample(template.brain.astype(np.float32), template.affine, first.shape, first.affine)
        return brain, "the MNI152 brain"
    shared = common_brain([cohort.brain(record.subject_id) for record in records])
    return shared, "the brain that at least half of the subjects share"


def choose_cases(store: CohortStore, split: str, num: int = NUM_CASES) -> list[SubjectRecord]:
    """Return subjects to show: lesions evenly spread over their sizes, large to small, then one healthy subject.

    The choice looks at the truth only and never at a map, so that no method's best side is picked.
    """
    outlined = [record for record in store.subjects(split) if record.has_lesion and "lesion" in record.arrays]
    sizes = {record.subject_id: _lesion_size(store, record) for record in outlined}
    # A finding without a place of its own has an empty mask.
    outlined = [record for record in outlined if sizes[record.subject_id]]
    outlined.sort(key=lambda record: (-sizes[record.subject_id], record.subject_id))
    healthy = store.subjects(split, healthy=True)[:1]
    places = np.linspace(0, len(outlined) - 1, min(num - len(healthy), len(outlined))).round().astype(int)
    chosen = [outlined[place] for place in places]
    # A split without outlined lesions still has something to show.
    return [*chosen, *(healthy if chosen else store.subjects(split)[:num])]


def draw_evaluation(
    store: CohortStore,
    split: str,
    scored: Sequence[tuple[ScoreStore, Figures]],
    path: Path,
    *,
    title: str,
    caption: str,
) -> Path:
    """Draw some subjects of a split with every method's map and threshold, and one restoration.

    Args:
        store: the cohort.
        split: its split.
        scored: scores and figures of each method on that split, in the order of the columns.
        path: the PNG to write.
        title: says what is shown.
        caption: one line on how to read it.
    """
    columns = [
        MethodColumn(
            name=_column_name(index, scored),
            threshold=figures.threshold.value if figures.threshold is not None else 1.0,
            remark=f"AP {figures.average_precision:.2f}" if figures.average_precision is not None else "",
        )
        for index, (_, figures) in enumerate(scored)
    ]
    records = choose_cases(store, split)
    restoring = [index for index, (scores, _) in enumerate(scored) if scores.record(records[0].subject_id).restoration]
    restorer = restoring[-1] if restoring else None
    cases = [_case(store, record, scored, columns, restorer) for record in records]
    restored_by = None if restorer is None else columns[restorer].name
    return draw_comparison(cases, columns, path, title=title, caption=caption, restored_by=restored_by)


def draw_runs(
    judged: Sequence[tuple[RunFolder, Mapping[VoxelSet, Figures]]],
    split: str,
    path: Path,
    *,
    store: CohortStore | None = None,
    title: str | None = None,
    caption: str = CAPTION,
) -> Path:
    """Draw evaluated runs side by side; their scores of the split are there already.

    Raises:
        SettingError: the runs were trained on different stores and none is named to draw them on.
    """
    cohort = store or _one_store(judged)
    scored = [(ScoreStore.open(scores_folder(run, split, cohort)), figures["all"]) for run, figures in judged]
    title = title or f"{cohort.name or cohort.path.name}: what the methods find in the {split} split"
    return draw_evaluation(cohort, split, scored, path, title=title, caption=caption)


def draw_histograms(
    judged: Sequence[tuple[RunFolder, Mapping[VoxelSet, Figures]]],
    split: str,
    path: Path,
    *,
    store: CohortStore | None = None,
    voxel_set: VoxelSet = "brain",
) -> Path:
    """Draw the scores of healthy and of lesion voxels of evaluated runs; their maps are read one at a time.

    Args:
        judged: runs with their figures on the split.
        split: what was evaluated.
        path: the PNG to write.
        store: the store evaluated, where it is not the runs' own.
        voxel_set: which voxels count.

    Raises:
        SettingError: the runs were trained on different stores and none is named.
    """
    cohort = store or _one_store(judged)
    scored = [(ScoreStore.open(scores_folder(run, split, cohort)), figures[voxel_set]) for run, figures in judged]
    panels = []
    for index, (scores, figures) in enumerate(scored):
        counted = (subject_histogram(scores, cohort, record, voxel_set) for record in cohort.subjects(split))
        threshold = figures.threshold
        panels.append(
            HistogramPanel(
                name=_column_name(index, scored),
                counts=Histogram.pooled(histogram for histogram in counted if histogram is not None),
                threshold=None if threshold is None else threshold.value,
                how="" if threshold is None else how_chosen(threshold),
            )
        )
    which = {"all": "all voxels", "brain": "the voxels inside the brain"}[voxel_set]
    return draw_histogram(
        panels,
        path,
        title=f"{cohort.name or cohort.path.name}: scores of healthy and of lesion voxels in the {split} split",
        caption=f"Exact counts over {which} of {len(cohort.subjects(split))} subjects; each kind divided by its own "
        "number of voxels.",
    )


def how_chosen(threshold: Threshold) -> str:
    """Return how a threshold was chosen, in a few words."""
    if threshold.quantile is not None:
        return f"{threshold.quantile:.4g} quantile of healthy {threshold.split} voxels"
    return {"best_dice": "best Dice", "quantile": "quantile"}[threshold.policy] + f" on {threshold.split}"


def _one_store(judged: Sequence[tuple[RunFolder, Mapping[VoxelSet, Figures]]]) -> CohortStore:
    stores = {run.spec.store for run, _ in judged}
    if len(stores) > 1:
        raise SettingError(
            f"the runs were trained on different stores ({', '.join(sorted(stores))}): "
            "name the one to draw with --store"
        )
    return CohortStore.open(stores.pop())


def draw_score(
    record: SubjectRecord, arrays: SubjectArrays, score: Score, path: Path, *, title: str, threshold: float | None
) -> Path:
    """Draw one scored volume in three planes and return ``path``."""
    said = (
        f"orange and white: above the model's threshold, {threshold:.4g}" if threshold is not None else "no threshold"
    )
    return draw_overlay(
        arrays.image[0],
        score.map.numpy(),
        path,
        brain=arrays.brain,
        spacing_mm=record.spacing_mm,
        title=title,
        caption=f"image score {score.image_score:.4g}; {said}; planes through the highest score in the brain",
        threshold=threshold,
        restoration=None if score.restoration is None else score.restoration[0].numpy(),
    )


def _lesion_size(store: CohortStore, record: SubjectRecord) -> int:
    mask = store.mask(record.subject_id, "lesion")
    return 0 if mask is None else int(mask.sum())


def _column_name(index: int, scored: Sequence[tuple[ScoreStore, Figures]]) -> str:
    """Return the method's name, with the run's where two runs share a method."""
    info = scored[index][0].info
    shared = sum(scores.info.method == info.method for scores, _ in scored) > 1
    return info.run_id if shared else info.method


def _case(
    store: CohortStore,
    record: SubjectRecord,
    scored: Sequence[tuple[ScoreStore, Figures]],
    columns: Sequence[MethodColumn],
    restorer: int | None,
) -> Case:
    subject = record.subject_id
    notes: Mapping[str, str] = {
        column.name: f"Dice {figures.per_subject[subject]:.2f}"
        for column, (_, figures) in zip(columns, scored, strict=True)
        if subject in figures.per_subject
    }
    restoration = None if restorer is None else scored[restorer][0].restoration(subject)
    return Case(
        label=subject,
        image=store.image(subject)[0],
        brain=store.brain(subject),
        lesion=store.mask(subject, "lesion"),
        spacing_mm=record.spacing_mm,
        maps={
            column.name: scores.map(subject).astype(np.float32)
            for column, (scores, _) in zip(columns, scored, strict=True)
        },
        restoration=None if restoration is None else restoration[0].astype(np.float32),
        notes=notes,
    )
