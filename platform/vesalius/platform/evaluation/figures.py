"""The implicit-field paper's protocol: one line of its table, per voxel set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.evaluation.histogram import Histogram
from vesalius.platform.evaluation.intervals import Interval, bootstrap_intervals
from vesalius.platform.evaluation.metrics import (
    auroc,
    average_precision,
    best_dice,
    dice_at,
    fpr_at_recall,
    image_auroc,
)
from vesalius.platform.evaluation.thresholds import Threshold, refuse_choosing
from vesalius.platform.evaluation.voxels import VOXEL_SETS, VoxelSet, subject_voxels
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vesalius.platform.evaluation.voxels import SubjectVoxels
    from vesalius.platform.progress import Progress
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord


FIGURE_KEYS = (
    "method",
    "best_dice",
    "dice_mean",
    "dice_std",
    "average_precision",
    "auroc",
    "fpr_at_95_recall",
    "image_auroc",
    "seconds_per_volume",
)
"""The keys that figures carry everywhere: store, tracking, JSON, tables."""


class Figures(Settings):
    """How well a method finds anomalies. What the subjects leave undefined is None.

    Attributes:
        method: name in the methods' table.
        split: the split that was scored.
        voxel_set: over which voxels; ``brain`` leaves out lesion voxels outside the brain mask too.
        num_subjects: subjects whose voxels count, healthy ones included.
        num_lesions: those of them with a lesion voxel in the set.
        num_images: subjects behind ``image_auroc``: also those known to be anomalous without a mask.
        best_dice: best Dice over all voxels and thresholds (the paper's [DICE]): an upper bound, as its threshold is
            chosen on the very voxels it is reported on.
        dice_mean: mean over subjects with lesions of the Dice at ``threshold``, components below its
            ``min_component`` dropped; no other figure knows of components.
        dice_std: their standard deviation (of the population: divided by n).
        average_precision: over all voxels.
        auroc: over all voxels.
        fpr_at_95_recall: share of healthy voxels flagged where 95 % of the lesion voxels are.
        image_auroc: of the image scores against whether the subject is anomalous; the same in every voxel set.
        seconds_per_volume: mean; see ``score_store`` for how it is measured.
        threshold: of ``dice_mean``, chosen on another split; None where there is none.
        intervals: 95 % bootstrap intervals over subjects, by figure.
        per_subject: Dice at the threshold by subject id.
    """

    method: str
    split: str
    voxel_set: VoxelSet
    num_subjects: int
    num_lesions: int
    num_images: int
    best_dice: float | None = None
    dice_mean: float | None = None
    dice_std: float | None = None
    average_precision: float | None = None
    auroc: float | None = None
    fpr_at_95_recall: float | None = None
    image_auroc: float | None = None
    seconds_per_volume: float | None = None
    threshold: Threshold | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)
    per_subject: dict[str, float] = Field(default_factory=dict)

    def row(self) -> dict[str, str | float | None]:
        """Return the figures under :data:`FIGURE_KEYS`, in that order."""
        return {key: getattr(self, key) for key in FIGURE_KEYS}

    def numbers(self, prefix: str = "") -> dict[str, float]:
        """Return the figures that are defined as ``{prefix + key: number}``, for tracking."""
        return {
            f"{prefix}{key}": float(value)
            for key, value in self.row().items()
            if value is not None and not isinstance(value, str)
        }


def evaluate(
    scores: ScoreStore,
    store: CohortStore,
    thresholds: Mapping[VoxelSet, Threshold],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    subjects: Collection[str] | None = None,
    progress: Progress = silent,
) -> dict[VoxelSet, Figures]:
    """Compute the figures of a scored split over both voxel sets.

    One map is held at a time, and of each subject its counts stay: at most a megabyte, whatever its number of voxels.

    Args:
        scores: of one split.
        store: the reference store: its grid, masks and labels. Maps on another grid are resampled onto it.
        thresholds: by voxel set, fitted on train or validation; a set without one has no ``dice_mean``.
        bootstrap: resamples behind the intervals; 0 gives none.
        seed: of the resamples.
        subjects: ids of a part of the split (a group to be reported apart); None takes all of it.
        progress: called after each subject.

    Raises:
        CohortError: a subject of the split was not scored, or there is none.
        SettingError: a threshold was chosen on a split kept for reporting, or over the other voxel set.
    """
    _check_thresholds(thresholds)
    records = _reported(scores, store, subjects)
    histograms: dict[VoxelSet, dict[str, Histogram]] = {name: {} for name in VOXEL_SETS}
    dice: dict[VoxelSet, dict[str, float | None]] = {name: {} for name in VOXEL_SETS}
    for done, record in enumerate(records, 1):
        voxels = subject_voxels(scores, store, record)
        progress(done, len(records), record.subject_id)
        if voxels is None:
            continue
        for name in VOXEL_SETS:
            histogram = voxels.histogram(name)
            histograms[name][record.subject_id] = histogram
            dice[name][record.subject_id] = _dice(voxels, histogram, name, thresholds.get(name))
    return {
        name: _figures(scores, records, histograms[name], dice[name], name, thresholds.get(name), bootstrap, seed)
        for name in VOXEL_SETS
    }


def _dice(
    voxels: SubjectVoxels, histogram: Histogram, voxel_set: VoxelSet, threshold: Threshold | None
) -> float | None:
    if threshold is None:
        return None
    if threshold.min_component == 1:
        return dice_at(histogram, threshold.value)
    # Which voxels hang together the counts do not say: the map is asked, while it is at hand.
    return voxels.dice(voxel_set, threshold.value, threshold.min_component)


def _figures(
    scores: ScoreStore,
    records: list[SubjectRecord],
    histograms: dict[str, Histogram],
    dice: dict[str, float | None],
    voxel_set: VoxelSet,
    threshold: Threshold | None,
    bootstrap: int,
    seed: int,
) -> Figures:
    pooled = Histogram.pooled(histograms.values())
    best = best_dice(pooled)
    known = {name: value for name, value in dice.items() if value is not None}
    image_scores = [scores.record(record.subject_id).image_score for record in records]
    labels = [record.has_lesion for record in records]
    return Figures(
        method=scores.info.method,
        split=scores.info.split,
        voxel_set=voxel_set,
        num_subjects=len(histograms),
        num_lesions=sum(histogram.num_positives > 0 for histogram in histograms.values()),
        num_images=len(records),
        best_dice=None if best is None else best.dice,
        dice_mean=float(np.mean(list(known.values()))) if known else None,
        dice_std=float(np.std(list(known.values()))) if known else None,
        average_precision=average_precision(pooled),
        auroc=auroc(pooled),
        fpr_at_95_recall=fpr_at_recall(pooled),
        image_auroc=image_auroc(image_scores, labels),
        seconds_per_volume=float(np.mean([scores.record(record.subject_id).seconds for record in records])),
        threshold=threshold,
        intervals=bootstrap_intervals(
            list(histograms.values()), list(dice.values()), image_scores, labels, num=bootstrap, seed=seed
        ),
        per_subject=known,
    )


def _check_thresholds(thresholds: Mapping[VoxelSet, Threshold]) -> None:
    for name, threshold in thresholds.items():
        refuse_choosing(threshold.split, "a threshold")
        if threshold.voxel_set != name:
            raise SettingError(
                f"the threshold given for the voxel set '{name}' was chosen over '{threshold.voxel_set}': "
                "fit one for each set"
            )


def _reported(scores: ScoreStore, store: CohortStore, subjects: Collection[str] | None) -> list[SubjectRecord]:
    split = scores.info.split
    records = store.subjects(split)
    if subjects is not None:
        records = [record for record in records if record.subject_id in set(subjects)]
        strangers = sorted(set(subjects) - {record.subject_id for record in records})
        if strangers:
            raise CohortError(f"{store.path}: subject '{strangers[0]}' is not in the split '{split}'")
    if not records:
        raise CohortError(f"{store.path} holds no subject of the split '{split}' to evaluate")
    missing = [record.subject_id for record in records if record.subject_id not in scores]
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(records)} subjects of the split '{split}' were not scored ({missing[0]}): "
            "score the split again, or name the subjects to evaluate"
        )
    return records
