"""Structures of the head: is there a bleed in this hemisphere, a fracture in the skull? (Bieder et al. 2022).

Section 4 judges each by the highest error within it. Whole images are judged beside them, by
:class:`vesalius.infra.reproduce.images.ImageLevel`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.infra.figures import RocRow, SurfaceCase, draw_roc, draw_surfaces
from vesalius.infra.pipeline import score_run
from vesalius.infra.reproduce.images import ImageLevel
from vesalius.infra.reproduce.levels import SPLIT, Drawn, Level, Section
from vesalius.infra.reproduce.over_models import Model, draw_over_models
from vesalius.infra.reproduce.sizes import SIZES, Size, size_of
from vesalius.infra.reproduce.without_structures import WithoutStructures
from vesalius.platform.config import Settings
from vesalius.platform.evaluation import (
    ImageFigures,
    StructureFigures,
    evaluate_structures,
    marked,
    resampled_onto,
    roc_curve,
    structure_cases,
    whole,
)
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.infra.reproduce.cohort import Cohorts
    from vesalius.infra.reproduce.protocol import Protocol
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import SubjectRecord

_NUM_SURFACES = 2


class StructureFindings(Settings):
    """A row's figures.

    Attributes:
        size: of its model.
        tasks: figures by task.
        images: figures of whole images.
        scores: folder of the maps.
        store: that they were judged on.
    """

    size: Size
    tasks: dict[str, StructureFigures]
    images: ImageFigures
    scores: str
    store: str


class StructureLevel(Level):
    """Whether a structure is anomalous, by the highest score within it."""

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol)
        self._images = ImageLevel(protocol)

    def on(self, store: CohortStore) -> Level:
        """Return this level; that of whole images alone where the cohort has none of the structures.

        Where it has some and not all, something went wrong, and :meth:`lacks` says what.
        """
        asked = {one.name for task in self.protocol.tasks for one in task.structures}
        known = {name for record in store.subjects(SPLIT) for name in record.structures}
        return self if asked & known else WithoutStructures(self.protocol, store)

    def said(self) -> str:
        """Return what is judged."""
        spoilt = ", images that a fault marks left out" if self.protocol.quality_labels else ""
        return (
            f"Structures by the highest value of the map within each, against what is known of it{spoilt}. "
            f"{self._images.said()}"
        )

    def lacks(self, store: CohortStore) -> str | None:
        """Return what is missing: the structures, or both answers to a question."""
        tasks, records = self.protocol.tasks, self._whole(store)
        known = {name for record in records for name in record.structures}
        # A row fails where a single task has no case, and that only after its training.
        bare = [task for task in tasks if not known & {one.name for one in task.structures}]
        if bare:
            names = {one.name for task in bare for one in task.structures}
            return (
                f"{store.path} holds no {' or '.join(sorted(names))} in its test split: prepare it with "
                "recipe.structures=ct, or give structure labels of these names"
            )
        answers = {task.name: {answer for _, _, answer in structure_cases(records, task)} for task in tasks}
        unknown = sorted({one.label for task in tasks if not answers[task.name] for one in task.structures})
        if unknown:
            return f"{store.path} says of no subject of its test split whether it has {' or '.join(unknown)}"
        if any(found == {True, False} for found in answers.values()):
            return self._images.lacks(store)
        labels = sorted({one.label for task in tasks for one in task.structures})
        what = "no subject" if not any(True in found for found in answers.values()) else "none but subjects"
        return f"{store.path} holds {what} with one of the labels {', '.join(labels)} in its test split"

    def judge(self, run: RunFolder, cohorts: Cohorts, device: str, progress: Progress) -> StructureFindings:
        """Return the figures; the scores are there already."""
        scores = score_run(run, SPLIT, device=device, progress=progress)
        judged = [record.subject_id for record in self._whole(cohorts.reference)]
        return StructureFindings(
            size=size_of(run),
            tasks=evaluate_structures(
                scores, cohorts.reference, self.protocol.tasks, subjects=judged, progress=progress
            ),
            images=self._images.judge(run, cohorts, device, progress),
            scores=str(scores.path),
            store=str(cohorts.reference.path),
        )

    def _whole(self, store: CohortStore) -> list[SubjectRecord]:
        return whole(store.subjects(SPLIT), self.protocol.quality_labels)

    def numbers(self, found: Any) -> dict[str, Any]:
        """Return the figures by column."""
        findings: StructureFindings = found
        numbers = self._images.numbers(findings.images)
        for name, figures in findings.tasks.items():
            numbers[f"structure/{name}"] = figures.auroc
            if figures.interval is not None:
                numbers["intervals"][f"structure/{name}"] = figures.interval
        return {**numbers, **findings.size.numbers()}

    def sections(self) -> list[Section]:
        """Return the structures, then the tables of whole images."""
        columns = tuple((f"structure/{task.name}", task.name, ".3f") for task in self.protocol.tasks)
        own = Section(
            title="AUROC of structures, by the highest value within each",
            columns=(*columns, *SIZES),
        )
        return [own, *self._images.sections()]

    def remark(self, found: Any) -> str:
        """Return the first task's AUROC."""
        first: StructureFigures = next(iter(found.tasks.values()))
        return "" if first.auroc is None else f"AUROC {first.auroc:.2f} ({first.task})"

    def draw(self, rows: Sequence[Drawn], out: Path) -> dict[str, Path]:
        """Draw ROC curves by task, AUROC against parameters, memory and patch size, surfaces, and whole images."""
        name, title = self.protocol.name, self.protocol.title.partition(",")[0]
        drawn: dict[str, Path] = {}
        for task in self.protocol.tasks:
            drawn[f"roc of {task.name}"] = draw_roc(
                [_roc(row.label, row.found.tasks[task.name]) for row in rows],
                out / f"{name}-roc-{task.name}.png",
                title=f"{title}: {task.name}, {SPLIT} split",
                caption="The highest value within a structure against what is known of it.",
            )
        drawn |= self._curves(rows, out)
        drawn |= self._surfaces(rows, out)
        of_images = [Drawn(label=row.label, found=row.found.images) for row in rows]
        return {**drawn, **self._images.draw(of_images, out)}

    def _curves(self, rows: Sequence[Drawn], out: Path) -> dict[str, Path]:
        """Draw AUROC over models by task; a part of another task stands over patch sizes alone, as in the paper."""
        names = [task.name for task in self.protocol.tasks]
        models = [
            Model(
                size=row.found.size,
                aurocs={name: (row.found.tasks[name].auroc, row.found.tasks[name].interval) for name in names},
            )
            for row in rows
        ]
        panels = [task.name for task in self.protocol.tasks if len(task.structures) > 1 or not self._is_part(task.name)]
        return draw_over_models(models, out, self.protocol, questions=names, panels=panels)

    def _is_part(self, name: str) -> bool:
        """Return whether all of a task's structures are also another's, as a hemisphere is one of both."""
        by_name = {task.name: set(task.structures) for task in self.protocol.tasks}
        return any(by_name[name] < others for others in by_name.values())

    def _surfaces(self, rows: Sequence[Drawn], out: Path) -> dict[str, Path]:
        """Draw the paper's figure 5 for the network that does best where the surface is asked about."""
        wanted = self.protocol.surface
        rows = [row for row in rows if row.found.size.parameters]
        if wanted is None or not rows:
            return {}
        task = next(task for task in self.protocol.tasks if wanted in {one.name for one in task.structures})
        label = next(one.label for one in task.structures if one.name == wanted)
        best = max(rows, key=lambda row: row.found.tasks[task.name].auroc or 0.0)
        store, scores = CohortStore.open(best.found.store), ScoreStore.open(Path(best.found.scores))
        fit = [record for record in self._whole(store) if wanted in record.structures]
        shown = [record for record in fit if marked(record, label)]
        healthy = [record for record in fit if not record.has_lesion]
        cases = []
        for record in (*shown[:_NUM_SURFACES], *healthy[:1]):
            structures = store.structures(record.subject_id)
            assert structures is not None  # the record names its labels
            cases.append(
                SurfaceCase(
                    label=f"{record.subject_id}, {label.replace('_', ' ') if record in shown else 'healthy'}",
                    mask=structures == record.structures[wanted],
                    error=resampled_onto(scores.map(record.subject_id), scores.record(record.subject_id), record),
                    spacing_mm=record.spacing_mm,
                )
            )
        if not cases:
            return {}
        auroc = best.found.tasks[task.name].auroc
        path = draw_surfaces(
            cases,
            out / f"{self.protocol.name}-{wanted}.png",
            title=f"{best.label}: the {wanted} coloured by the score",
            caption="From the front, the left, the right and the top of the patient. Below the surface as scanned the "
            "same, coloured by the highest value of the map within 8 mm below it. The row that does best at "
            f"'{task.name}'" + ("." if auroc is None else f" (AUROC {auroc:.2f})."),
        )
        return {f"surface of the {wanted}": path}


def _roc(label: str, figures: StructureFigures) -> RocRow:
    curve = roc_curve(figures.scores, figures.labels)
    return RocRow(name=label, x=curve.x, y=curve.y, auroc=figures.auroc, interval=figures.interval)
