"""Whole images: screening, kinds of lesion, quality control (Simarro Viana et al. 2020, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.infra.figures import KindCurve, KindScores, RocRow, draw_kinds, draw_precision_recall, draw_roc
from vesalius.infra.pipeline import score_run
from vesalius.infra.reproduce.levels import SPLIT, Drawn, Level, Section
from vesalius.platform.evaluation import ImageFigures, evaluate_images, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.infra.reproduce.cohort import Cohorts
    from vesalius.platform.evaluation import Kind, OperatingPoint
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore

_SCREENING = (
    ("auroc", "AUROC", ".3f"),
    ("map_auroc", "AUROC map", ".3f"),
    ("average_precision", "AP", ".3f"),
)
_POINTS = (
    ("sensitivity", "sens", ".2f"),
    ("specificity", "spec", ".2f"),
    ("own_accuracy", "acc*", ".3f"),
    ("own_sensitivity", "sens*", ".3f"),
    ("own_specificity", "spec*", ".3f"),
)


class ImageLevel(Level):
    """Whether there is anything in an image, by its score."""

    def said(self) -> str:
        """Return what is judged."""
        return (
            "Whole images by their score; AUROC map: by the highest hundredth of their map's brain voxels, one rule "
            "for all rows. sens, spec: at the Youden point of the validation split; *: at that of these very images, "
            "as the paper has it, an upper bound of the two together, not of either. Images that only a fault or an "
            "operation marks are no cases of screening."
        )

    def lacks(self, store: CohortStore) -> str | None:
        """Return what is missing."""
        found = {record.has_lesion for record in whole(store.subjects(SPLIT), self.protocol.quality_labels)}
        if found == {True, False}:
            return None
        lacking = "healthy subject" if True in found else "subject known to be anomalous"
        return f"{store.path} holds no {lacking} in its test split: images are told apart from each other"

    def judge(self, run: RunFolder, cohorts: Cohorts, device: str, progress: Progress) -> ImageFigures:
        """Return the figures; the scores are there already."""
        scores, validation = (score_run(run, name, device=device, progress=progress) for name in (SPLIT, "validation"))
        return evaluate_images(
            scores,
            cohorts.reference,
            validation=validation,
            types=self.protocol.lesion_labels,
            quality=self.protocol.quality_labels,
        )

    def numbers(self, found: Any) -> dict[str, Any]:
        """Return the figures by column."""
        figures: ImageFigures = found
        numbers: dict[str, Any] = {
            "auroc": figures.screening.auroc,
            "map_auroc": figures.by_map.auroc,
            "average_precision": figures.screening.average_precision,
            "seconds_per_volume": figures.seconds_per_volume,
        }
        intervals: dict[str, Any] = dict(figures.screening.intervals)
        if "auroc" in figures.by_map.intervals:
            intervals["map_auroc"] = figures.by_map.intervals["auroc"]
        for prefix, point in (("", figures.at_validation), ("own_", figures.at_own)):
            numbers |= _at(point, prefix)
            intervals |= {f"{prefix}{key}": value for key, value in point.intervals.items()} if point else {}
        for group, kinds, key in (
            ("lesion", figures.types, "average_precision"),
            ("quality", figures.quality, "auroc"),
        ):
            numbers |= {f"{group}/{label}": getattr(kind.detection, key) for label, kind in kinds.items()}
            intervals |= {
                f"{group}/{label}": kind.detection.intervals[key]
                for label, kind in kinds.items()
                if key in kind.detection.intervals
            }
        return {**numbers, "intervals": intervals}

    def sections(self) -> list[Section]:
        """Return screening, and where the paper has them kinds of lesion and quality control."""
        sections = [
            Section(title="Screening", columns=_SCREENING),
            Section(title="Screening at the Youden points", columns=_POINTS),
        ]
        for title, group, labels in (
            ("Average precision by kind of lesion, against all healthy images", "lesion", self.protocol.lesion_labels),
            ("AUROC of quality control, against all healthy images", "quality", self.protocol.quality_labels),
        ):
            if labels:
                columns = tuple((f"{group}/{label}", label.replace("_", " "), ".3f") for label in labels)
                sections.append(Section(title=title, columns=columns))
        return sections

    def remark(self, found: Any) -> str:
        """Return the AUROC."""
        return "" if found.screening.auroc is None else f"AUROC {found.screening.auroc:.2f}"

    def draw(self, rows: Sequence[Drawn], out: Path) -> dict[str, Path]:
        """Draw ROC curves with their Youden points, precision over recall by kind, and scores by kind."""
        name, title = self.protocol.name, self.protocol.title.partition(",")[0]
        drawn = {
            "roc": draw_roc(
                [_roc(row) for row in rows],
                out / f"{name}-roc.png",
                title=f"{title}: screening, {SPLIT} split",
                caption="Filled: the Youden point chosen on validation. Open: chosen on these very images.",
            )
        }
        by_kind = [(row.label, _curves(row.found)) for row in rows if row.found.types]
        if by_kind:
            drawn["lesions"] = draw_precision_recall(
                by_kind,
                out / f"{name}-lesions.png",
                title=f"{title}: kinds of lesion, {SPLIT} split",
                caption="Each kind against all healthy images. Dotted: what chance gives.",
            )
        panels = [(row.label, _kinds(row.found)) for row in rows]
        drawn["quality"] = draw_kinds(
            panels,
            out / f"{name}-quality.png",
            title=f"{title}: image scores by kind, {SPLIT} split",
            caption="A dot an image, a bar the median; the logarithm of the score where all are positive. AUROC "
            "against the healthy images.",
        )
        return drawn


def _at(point: OperatingPoint | None, prefix: str) -> dict[str, float | None]:
    keys = ("accuracy", "sensitivity", "specificity")
    return {f"{prefix}{key}": None if point is None else getattr(point, key) for key in keys}


def _roc(row: Drawn) -> RocRow:
    figures: ImageFigures = row.found
    points = [
        None if point is None else (1 - point.specificity, point.sensitivity)
        for point in (figures.at_validation, figures.at_own)
    ]
    return RocRow(
        name=row.label,
        x=figures.roc.x,
        y=figures.roc.y,
        auroc=figures.screening.auroc,
        interval=figures.screening.intervals.get("auroc"),
        chosen=points[0],
        own=points[1],
    )


def _curves(figures: ImageFigures) -> list[KindCurve]:
    return [
        KindCurve(
            name=_plain(label),
            recall=kind.curve.x,
            precision=kind.curve.y,
            average=kind.detection.average_precision,
            share=kind.detection.num_positive / (kind.detection.num_positive + kind.detection.num_negative),
        )
        for label, kind in figures.types.items()
    ]


def _kinds(figures: ImageFigures) -> list[KindScores]:
    groups: list[tuple[str, Mapping[str, Kind]]] = [("lesion", figures.types), ("quality", figures.quality)]
    return [
        KindScores(name="healthy", scores=figures.healthy, group="healthy"),
        *_all_anomalous(figures),
        *(
            KindScores(name=_plain(label), scores=kind.scores, group=group, auroc=kind.detection.auroc)
            for group, kinds in groups
            for label, kind in kinds.items()
        ),
    ]


def _all_anomalous(figures: ImageFigures) -> list[KindScores]:
    """Return the images with anything in them, where nobody says what it is; else their kinds show them."""
    if figures.types:
        return []
    auroc = figures.screening.auroc
    return [KindScores(name="anomalous", scores=figures.anomalous, group="lesion", auroc=auroc)]


def _plain(label: str) -> str:
    """Return a label as a person reads it."""
    names = {
        "edh": "epidural",
        "sdh": "subdural",
        "iph": "intraparenchymal",
        "sah": "subarachnoid",
        "ivh": "ventricular",
    }
    return names.get(label, label.replace("_", " "))
