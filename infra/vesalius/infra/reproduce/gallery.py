"""What the rows of a table make of a few subjects, on one sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures import GalleryCase, GalleryRow, draw_gallery, style
from vesalius.infra.pictures import choose_cases
from vesalius.infra.pipeline import scores_folder
from vesalius.infra.reproduce.levels import SPLIT
from vesalius.platform.evaluation import resampled_onto
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.infra.reproduce.levels import Level
    from vesalius.infra.reproduce.running import Judged
    from vesalius.platform.evaluation import VoxelSet
    from vesalius.platform.store import SubjectRecord

NUM_CASES = 3
_MARGIN = 3


def draw_table(
    reference: CohortStore,
    judged: Sequence[Judged],
    path: Path,
    *,
    voxel_set: VoxelSet,
    title: str,
    caption: str,
    level: Level | None = None,
) -> Path | None:
    """Draw restorations and maps of the rows that came to their end; None where there is none.

    Args:
        reference: the store whose grid all are shown on.
        judged: rows.
        path: the PNG to write.
        voxel_set: whose thresholds and figures are written.
        title: says what is shown.
        caption: says how to read it.
        level: of the table, where it is not voxels; it says what stands beside a row.
    """
    done = [one for one in judged if one.run is not None and one.figures is not None]
    if not done:
        return None
    records = choose_cases(reference, SPLIT, NUM_CASES)
    if level is not None:
        records += _without_outline(reference)
    planes = [_Plane(reference, record) for record in records]
    rows = [_row(one, reference, planes, voxel_set, level) for one in done]
    return draw_gallery([plane.case for plane in planes], rows, path, title=title, caption=caption)


def _without_outline(store: CohortStore) -> list[SubjectRecord]:
    """Return the first subject known to be anomalous of which nobody says where, if there is one."""
    for record in store.subjects(SPLIT, healthy=False):
        lesion = store.mask(record.subject_id, "lesion")
        if lesion is None or not lesion.any():
            return [record]
    return []


def _said_of(record: SubjectRecord) -> str:
    if not record.has_lesion:
        return "healthy"
    return "anomalous, not outlined" if record.group is None else record.group.replace("_", " ")


class _Plane:
    """The axial slice of a subject with most lesion, or most brain, cut to the brain."""

    def __init__(self, store: CohortStore, record: SubjectRecord) -> None:
        self.record = record
        self.brain = store.brain(record.subject_id)
        lesion = store.mask(record.subject_id, "lesion")
        shown = lesion if lesion is not None and lesion.any() else self.brain
        self._index = int(np.argmax(shown.sum(axis=(0, 1))))
        held = self.brain if lesion is None else self.brain | lesion
        d, h, _ = style.bounding_box(held, margin=_MARGIN)
        self._box = (h, d)  # a slice drawn from below has its axes turned
        millilitres = 0.0 if lesion is None else float(lesion.sum()) * float(np.prod(record.spacing_mm)) / 1000.0
        self.case = GalleryCase(
            label=record.subject_id,
            image=self.cut(store.image(record.subject_id)[0]),
            brain=self.cut(self.brain),
            lesion=None if lesion is None else self.cut(lesion),
            pixel_mm=style.plane_spacing(record.spacing_mm, 2),
            remark=f"lesion {millilitres:.1f} ml" if millilitres else _said_of(record),
        )

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        plane: NDArray[Any] = style.across(volume, 2, self._index)[self._box]
        return plane


def _row(
    one: Judged, reference: CohortStore, planes: Sequence[_Plane], voxel_set: VoxelSet, level: Level | None
) -> GalleryRow:
    assert one.run is not None
    assert one.figures is not None
    figures = one.figures[voxel_set]
    scores = ScoreStore.open(scores_folder(one.run, SPLIT, CohortStore.open(one.run.spec.store)))
    maps: list[NDArray[Any]] = []
    restorations: list[NDArray[Any] | None] = []
    inside: list[NDArray[Any]] = []
    for plane in planes:
        subject = plane.record.subject_id
        scored = scores.record(subject)
        score_map = resampled_onto(scores.map(subject), scored, plane.record).astype(np.float32)
        restoration = scores.restoration(subject)
        maps.append(plane.cut(score_map))
        inside.append(score_map[plane.brain])
        restorations.append(
            None
            if restoration is None
            else plane.cut(resampled_onto(restoration[0], scored, plane.record).astype(np.float32))
        )
    precision = figures.average_precision
    remark = "" if precision is None else f"AP {precision:.2f}"
    return GalleryRow(
        name=one.row.label,
        remark=remark if level is None else level.remark(one.level),
        threshold=None if figures.threshold is None else figures.threshold.value,
        maps=maps,
        restorations=restorations,
        among=np.sort(np.concatenate(inside)),
        notes={subject: f"Dice {dice:.2f}" for subject, dice in figures.per_subject.items()},
    )
