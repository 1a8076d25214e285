"""Thresholds: fitted by a named policy on a named split, never on one that a result is reported on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from pydantic import Field, field_validator, model_validator

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.evaluation.components import drop_small_components
from vesalius.platform.evaluation.histogram import VALUES, Histogram
from vesalius.platform.evaluation.metrics import best_dice
from vesalius.platform.evaluation.voxels import VoxelSet, subject_histogram

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore

Policy = Literal["best_dice", "quantile"]
FITTING_SPLITS = ("train", "validation")
# What lies above every finite float16: no voxel reaches it.
_ABOVE_ALL = 65536.0


class Threshold(Settings):
    """A voxel is anomalous where ``score >= value``.

    Attributes:
        value: the threshold.
        policy: how it was chosen.
        split: on which split: ``train`` or ``validation``.
        voxel_set: over which voxels.
        quantile: of the policy quantile: the share of healthy voxels that lie below ``value``.
        min_component: 3D components of ``score >= value`` with fewer voxels are dropped (26 neighbours touch, see
            :func:`vesalius.platform.evaluation.components.drop_small_components`); 1 keeps all.
    """

    value: float
    policy: Policy
    split: str
    voxel_set: VoxelSet
    quantile: float | None = Field(None, gt=0, lt=1)
    min_component: int = Field(1, ge=1)

    @field_validator("split")
    @classmethod
    def _fitting_split(cls, split: str) -> str:
        if split not in FITTING_SPLITS:
            raise ValueError(f"thresholds come from {' or '.join(FITTING_SPLITS)}")
        return split

    @model_validator(mode="after")
    def _quantile_of_its_policy(self) -> Threshold:
        if self.quantile is not None and self.policy != "quantile":
            raise ValueError(f"a threshold of the policy {self.policy} has no quantile")
        return self

    def segment(self, score_map: NDArray[np.float16]) -> NDArray[np.bool_]:
        """Return which voxels of a map (D, H, W) are anomalous; a map is compared as it is kept, in float16."""
        return drop_small_components(score_map >= self.value, self.min_component)


def refuse_choosing(split: str, what: str) -> None:
    """Refuse to choose anything on a split that is kept for reporting or promotion.

    Raises:
        SettingError: ``split`` is neither train nor validation.
    """
    if split not in FITTING_SPLITS:
        reason = {"test": "it is reported and never used to choose", "gate": "it decides promotions and nothing else"}
        raise SettingError(
            f"{what} cannot be chosen on the split '{split}' "
            f"({reason.get(split, 'an unknown split')}): use validation or train"
        )


def fit_threshold(
    scores: ScoreStore,
    store: CohortStore,
    policy: Policy = "best_dice",
    voxel_set: VoxelSet = "all",
    quantile: float = 0.98,
    min_component: int = 1,
    subjects: Collection[str] | None = None,
) -> Threshold:
    """Choose a threshold on the split that was scored.

    ``best_dice`` takes the threshold of the best pooled Dice over all annotated subjects, healthy ones included (the
    implicit-field paper's choice, on validation). ``quantile`` takes the least threshold that leaves at most
    1 - quantile of the voxels of healthy subjects anomalous (Baur et al. 2018 take 0.98 of the training residuals).

    Args:
        scores: of the train or validation split.
        store: with the lesion and brain masks.
        policy: how to choose.
        voxel_set: over which voxels.
        quantile: share of healthy voxels below the threshold; read by the quantile policy only.
        min_component: kept with the threshold, which is chosen as if it were 1.
        subjects: ids of those that count; None takes all that were scored.

    Raises:
        SettingError: the split is kept for reporting or promotion, or a setting is out of range.
        CohortError: the split holds no annotated lesion (best_dice) or no healthy subject (quantile).
    """
    split = scores.info.split
    refuse_choosing(split, "a threshold")
    if policy not in get_args(Policy):
        raise SettingError(f"unknown threshold policy '{policy}': the known ones are {', '.join(get_args(Policy))}")
    if not 0 < quantile < 1:
        raise SettingError(f"quantile is {quantile}, expected a share between 0 and 1, such as 0.98")
    if min_component < 1:
        raise SettingError(f"min_component is {min_component}, expected 1 (keep every component) or more voxels")
    records = [
        store.record(record.subject_id)
        for record in scores.records
        if subjects is None or record.subject_id in subjects
    ]
    if policy == "quantile":
        records = [record for record in records if not record.has_lesion]
    counted = (subject_histogram(scores, store, record, voxel_set) for record in records)
    pooled = Histogram.pooled(histogram for histogram in counted if histogram is not None)
    if policy == "best_dice":
        best = best_dice(pooled)
        if best is None:
            raise CohortError(
                f"the split '{split}' of {store.path} holds no annotated lesion, which the policy best_dice needs: "
                "use the policy quantile"
            )
        value = best.threshold
    else:
        if not pooled.num_negatives:
            raise CohortError(
                f"the split '{split}' of {store.path} holds no healthy subject, which the policy quantile needs: "
                "use the policy best_dice or another split"
            )
        value = healthy_quantile(pooled, quantile)
    return Threshold(
        value=value,
        policy=policy,
        split=split,
        voxel_set=voxel_set,
        quantile=quantile if policy == "quantile" else None,
        min_component=min_component,
    )


def healthy_quantile(histogram: Histogram, quantile: float) -> float:
    """Return the least float16 score t such that at most 1 - quantile of the healthy voxels have ``score >= t``.

    Where more of them than that share the highest score, no score will do and the answer lies just above it.
    """
    negatives = histogram.negatives
    at_or_above = np.cumsum(negatives[::-1])[::-1]
    allowed = np.floor((1 - quantile) * negatives.sum() + 1e-9)
    usable = np.flatnonzero((at_or_above <= allowed) & np.isfinite(VALUES))
    return float(VALUES[usable[0]]) if usable.size else _ABOVE_ALL
