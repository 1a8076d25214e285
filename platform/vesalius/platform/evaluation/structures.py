"""What is found in named structures: the highest error within each, against what is known of the structure.

Bieder et al. 2022, section 4: a data set may say no more than that there is a bleed in the left hemisphere. A
structure is called anomalous where the error exceeds a threshold somewhere in it, so that its number is its maximum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, field_validator

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError
from vesalius.platform.evaluation.intervals import Interval, auroc_interval
from vesalius.platform.evaluation.marks import marked
from vesalius.platform.evaluation.metrics import image_auroc
from vesalius.platform.evaluation.voxels import resampled_onto
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vesalius.platform.progress import Progress
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord


class Structure(Settings):
    """A structure, and the label that says whether it is anomalous.

    Attributes:
        name: in the subjects' structure labels, such as ``left_hemisphere``.
        label: of the subject, such as ``bleed_left``.
    """

    name: str
    label: str


class StructureTask(Settings):
    """Which structures are judged together.

    Attributes:
        name: such as ``ICH``.
        structures: each of them is a case of its own: of both hemispheres a subject brings two.
    """

    name: str
    structures: tuple[Structure, ...] = Field(min_length=1)

    @field_validator("structures")
    @classmethod
    def _once_each(cls, structures: tuple[Structure, ...]) -> tuple[Structure, ...]:
        if len({one.name for one in structures}) != len(structures):
            raise ValueError("a structure is named twice: name each once")
        return structures


class StructureFigures(Settings):
    """How well one task is done. What the subjects leave undefined is None.

    Attributes:
        task: its name.
        num_subjects: that have one of its structures at least.
        num_cases: structures of subjects.
        num_anomalous: those that are anomalous.
        auroc: of the maxima against the labels, ties counting half.
        interval: 95 %, bootstrap over subjects: a subject's structures are drawn together.
        scores: the maxima, in the order of ``subjects``.
        labels: whether each is anomalous.
        subjects: whose they are.
    """

    task: str
    num_subjects: int
    num_cases: int
    num_anomalous: int
    auroc: float | None = None
    interval: Interval | None = None
    scores: tuple[float, ...] = ()
    labels: tuple[bool, ...] = ()
    subjects: tuple[str, ...] = ()


def structure_maxima(
    score_map: NDArray[np.floating], structures: NDArray[np.integer], names: Mapping[str, int]
) -> dict[str, float]:
    """Return the maximum of a map (D, H, W) within each structure; one without a voxel is left out.

    Args:
        score_map: finite.
        structures: (D, H, W) labels.
        names: label by structure.
    """
    # One pass over the volume, whatever the number of structures; labels are small whole numbers.
    highest = np.full(int(structures.max(initial=0)) + 1, -np.inf)
    np.maximum.at(highest, structures.ravel(), score_map.ravel().astype(np.float64))
    return {
        name: float(highest[value])
        for name, value in names.items()
        if value < highest.size and highest[value] > -np.inf
    }


def structure_cases(
    records: Iterable[SubjectRecord], task: StructureTask
) -> list[tuple[SubjectRecord, Structure, bool]]:
    """Return a task's cases: a subject's structure, and whether it is anomalous.

    A structure of which nobody says whether it is anomalous is no case. Of a subject that is labelled as not
    ``anomalous`` no structure is.

    Raises:
        CohortError: a label is neither true nor false.
    """
    cases = []
    for record in records:
        for one in task.structures:
            answer = marked(record, one.label)
            if answer is None and marked(record, "anomalous") is False:
                answer = False
            if answer is not None and one.name in record.structures:
                cases.append((record, one, answer))
    return cases


def evaluate_structures(
    scores: ScoreStore,
    store: CohortStore,
    tasks: Sequence[StructureTask],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    subjects: Collection[str] | None = None,
    progress: Progress = silent,
) -> dict[str, StructureFigures]:
    """Compute the figures of a scored split for each task, by its name.

    Args:
        scores: of one split, on whatever grid.
        store: the reference store: its grid, its structures and labels.
        tasks: what is asked.
        bootstrap: resamples of subjects behind the intervals; 0 gives none.
        seed: of the resamples.
        subjects: ids of a part of the split; None takes all of it.
        progress: called after each subject.

    Raises:
        CohortError: no subject of the split has one of a task's structures and a label that says whether it is
            anomalous, such a label is neither true nor false, or a subject was not scored.
    """
    split = scores.info.split
    records = [one for one in store.subjects(split) if subjects is None or one.subject_id in subjects]
    missing = [record.subject_id for record in records if record.subject_id not in scores]
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(records)} subjects of the split '{split}' were not scored ({missing[0]}): "
            "score the split again, or name the subjects to evaluate"
        )
    maxima: dict[str, dict[str, float]] = {}
    for done, record in enumerate(records, 1):
        maxima[record.subject_id] = _maxima(scores, store, record)
        progress(done, len(records), record.subject_id)
    return {task.name: _figures(task, records, maxima, store, split, bootstrap, seed) for task in tasks}


def _maxima(scores: ScoreStore, store: CohortStore, record: SubjectRecord) -> dict[str, float]:
    structures = store.structures(record.subject_id)
    if structures is None:
        return {}
    score_map = resampled_onto(scores.map(record.subject_id), scores.record(record.subject_id), record)
    return structure_maxima(score_map, structures, record.structures)


def _figures(
    task: StructureTask,
    records: Sequence[SubjectRecord],
    maxima: Mapping[str, Mapping[str, float]],
    store: CohortStore,
    split: str,
    bootstrap: int,
    seed: int,
) -> StructureFigures:
    cases = [
        (record.subject_id, maxima[record.subject_id][one.name], answer)
        for record, one, answer in structure_cases(records, task)
        if one.name in maxima[record.subject_id]
    ]
    if not cases:
        names = " or ".join(one.name for one in task.structures)
        labels_asked = " or ".join(one.label for one in task.structures)
        raise CohortError(
            f"no subject of the split '{split}' of {store.path} has a {names} and the label {labels_asked}: "
            "prepare it with recipe.structures=ct, or give structure labels of these names, and label its subjects"
        )
    owners, values, labels = (list(column) for column in zip(*cases, strict=True))
    return StructureFigures(
        task=task.name,
        num_subjects=len(set(owners)),
        num_cases=len(cases),
        num_anomalous=sum(labels),
        auroc=image_auroc(values, labels),
        interval=auroc_interval(values, labels, owners, num=bootstrap, seed=seed),
        scores=tuple(values),
        labels=tuple(labels),
        subjects=tuple(owners),
    )
