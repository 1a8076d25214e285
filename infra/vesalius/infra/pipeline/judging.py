"""Score a run's splits, choose its thresholds, and say how good it is."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vesalius.infra.pipeline.tracked import outbox_of
from vesalius.infra.pipeline.training import require_model
from vesalius.methods import METHODS
from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError, RunError, SettingError, StoreError
from vesalius.platform.evaluation import VOXEL_SETS, Figures, evaluate, fit_threshold
from vesalius.platform.models import ModelCard, load_model, model_digest, update_card
from vesalius.platform.progress import silent
from vesalius.platform.registry.gate import image_contents
from vesalius.platform.scoring import ScoreInfo, ScoreStore, score_store
from vesalius.platform.store import CohortStore, place_of
from vesalius.platform.training import choose_device

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from vesalius.platform.evaluation import Threshold, VoxelSet
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import SubjectRecord

Policy = Literal["auto", "best_dice", "quantile"]
VALIDATION = "validation"
METHODS_PATH = "vesalius.methods:METHODS"
"""Where a registered model and a worker find the table of methods; a constant of ours, never read from a model."""

PAPER_QUANTILE = 0.98


class ThresholdRule(Settings):
    """How a run's thresholds are chosen.

    Attributes:
        policy: ``auto`` takes the best Dice where the split has outlined lesions, else the quantile of healthy scores.
        quantile: share of healthy voxels below the threshold; 0.98 where None.
        split: on which split; Baur et al. 2018 take the training residuals.
        min_component: components of fewer voxels are dropped; kept with the threshold. Baur et al. 2018 take 6.
        subjects: so many of the training split at most, evenly spread over it; None takes all. Where a volume takes
            minutes to score, a quantile of some subjects' million voxels says as much as one of all of them.
    """

    policy: Policy = "auto"
    quantile: float | None = Field(None, gt=0, lt=1)
    split: Literal["train", "validation"] = "validation"
    min_component: int = Field(1, ge=1)
    subjects: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _quantile_is_read(self) -> ThresholdRule:
        if self.quantile is not None and self.policy != "quantile":
            raise ValueError("a quantile goes with the policy quantile: set the policy, or leave the quantile out")
        if self.subjects is not None and self.split != "train":
            raise ValueError("subjects limits the training split: validation subjects are all taken")
        return self

    def chosen(self, store: CohortStore) -> list[SubjectRecord]:
        """Return the subjects of a store that the threshold is chosen on."""
        records = store.subjects(self.split)
        if self.subjects is None or self.subjects >= len(records):
            return records
        return [records[index * len(records) // self.subjects] for index in range(self.subjects)]


DEFAULT_RULE = ThresholdRule()


def score_run(
    run: RunFolder,
    split: str,
    *,
    store: CohortStore | None = None,
    subjects: Collection[str] | None = None,
    device: str = "auto",
    num_workers: int = 0,
    progress: Progress = silent,
) -> ScoreStore:
    """Score a split with a finished run's model, or go on with it, or find it done.

    Args:
        run: a finished run.
        split: of ``store``.
        store: another store, of the model's grid where its method asks for that; the run's own by default.
        subjects: ids of a part of the split; None scores all of it.
        device: cpu, cuda or auto.
        num_workers: processes that score; 0 scores in this one.
        progress: called after each volume.

    Raises:
        RunError: the run is not finished.
        CohortError: the split is empty.
        PartialScoreError: workers could not score some subjects; the others are kept.
    """
    card = require_model(run)
    cohort = store or CohortStore.open(run.spec.store)
    info = ScoreInfo(
        method=card.method,
        model_digest=model_digest(run.model),
        cohort_digest=cohort.digest,
        store=str(cohort.path),
        split=split,
        run_id=run.run_id,
    )
    out = scores_folder(run, split, cohort)
    return score_by(run.model, cohort, split, out, info, device, num_workers, progress, subjects)


def score_by(
    model: Path,
    store: CohortStore,
    split: str,
    out: Path,
    info: ScoreInfo,
    device: str,
    num_workers: int,
    progress: Progress,
    subjects: Collection[str] | None = None,
) -> ScoreStore:
    """Score a split in this process, or with so many workers; see :func:`score_run`."""
    device = device_name(device, num_workers=num_workers)
    if num_workers == 0:
        method, _ = load_model(model, METHODS, device)
        return score_store(method, store, split, out, info=info, device=device, progress=progress, subjects=subjects)
    from vesalius.platform.cluster.scoring import SplitWork, score_split

    work = SplitWork(model=model.absolute(), methods=METHODS_PATH, store=store.path, device=device)
    return score_split(work, split, out, info=info, num_workers=num_workers, progress=progress, subjects=subjects)


def is_own(run: RunFolder, store: CohortStore) -> bool:
    """Return whether a store is the one that a run was trained on: by its place, or by its content elsewhere."""
    return store.digest == run.spec.cohort_digest or store.path.resolve() == place_of(run.spec.store).resolve()


def scores_folder(run: RunFolder, split: str, store: CohortStore) -> Path:
    """Return where a run's maps of a split are kept; those of another store than its own lie apart."""
    return run.scores(split if is_own(run, store) else f"{store.path.name}-{store.digest[:8]}-{split}")


def fit_thresholds(
    run: RunFolder, *, rule: ThresholdRule = DEFAULT_RULE, device: str = "auto", progress: Progress = silent
) -> ModelCard:
    """Choose a threshold for each voxel set on a split of a run's own store, and keep them with the model.

    The figures of the validation split at those thresholds become the card's metrics
    (``validation/all/average_precision`` and so on), and go to the run's folder and to tracking. A store without the
    rule's split leaves the model as it is, and so does a second call that comes to the same.

    Raises:
        RunError: the run is not finished.
        CohortError: the split lacks what the policy needs.
    """
    store = CohortStore.open(run.spec.store)
    return _fit_own(run, store, store, rule, device, progress)


def _fit_own(
    run: RunFolder, store: CohortStore, reference: CohortStore, rule: ThresholdRule, device: str, progress: Progress
) -> ModelCard:
    card = require_model(run)
    thresholds = _thresholds_on(run, store, reference, rule, device, progress)
    if not thresholds:
        return card
    figures: dict[VoxelSet, Figures] = {}
    if store.subjects(VALIDATION):
        scores = score_run(run, VALIDATION, store=store, device=device, progress=progress)
        figures = evaluate(scores, reference, thresholds)
    numbers = _numbers(VALIDATION, figures)
    if card.thresholds == thresholds and _lasting(card.metrics) == _lasting(numbers):
        return card
    if figures:
        keep_figures(run, VALIDATION, store, figures)
    return update_card(run.model, thresholds=thresholds, metrics=numbers)


def _thresholds_on(
    run: RunFolder, store: CohortStore, reference: CohortStore, rule: ThresholdRule, device: str, progress: Progress
) -> dict[VoxelSet, Threshold]:
    """Choose thresholds on a store's split and write them nowhere; empty where it has no such split.

    Maps are of ``store``, voxels and truth of ``reference``.
    """
    records = rule.chosen(store)
    if not records:
        return {}
    policy = rule.policy
    if policy == "auto":
        policy = "best_dice" if any("lesion" in r.arrays and r.has_lesion for r in records) else "quantile"
    quantile = PAPER_QUANTILE if rule.quantile is None else rule.quantile
    subjects = [record.subject_id for record in records]
    scores = score_run(run, rule.split, store=store, subjects=subjects, device=device, progress=progress)
    return {
        # Of these and no others, whatever else of the split an earlier call has scored.
        voxels: fit_threshold(scores, store, policy, voxels, quantile, rule.min_component, subjects)
        for voxels in VOXEL_SETS
    }


def evaluate_run(
    run: RunFolder,
    split: str,
    *,
    store: CohortStore | None = None,
    reference: CohortStore | None = None,
    rule: ThresholdRule = DEFAULT_RULE,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[VoxelSet, Figures]:
    """Return a finished run's figures on a split, at thresholds chosen on validation or training subjects.

    They are also written to the run's folder and to tracking, under the same keys. Another store than the run's own
    has thresholds chosen on its own split, for this evaluation alone: the model keeps those it has. Where such a store
    does not have the rule's split, the model's own thresholds are taken. With ``reference``, a store of the same
    subjects on another grid, maps are brought to that grid and counted there.

    Raises:
        RunError: the run is not finished, or there is no threshold because there is no split to choose one on.
        CohortError: the split is empty, or the validation split lacks what the policy needs, or one of the two holds
            an image that the model was trained on.
    """
    cohort = store or CohortStore.open(run.spec.store)
    card = require_model(run)
    refuse_trained_on(run, card, cohort, {split, VALIDATION} - {"train"})
    thresholds: dict[VoxelSet, Threshold] = {}
    if is_own(run, cohort):
        card = _fit_own(run, cohort, reference or cohort, rule, device, progress)
    else:
        thresholds = _thresholds_on(run, cohort, reference or cohort, rule, device, progress)
    if not thresholds:
        thresholds = {voxels: card.thresholds[voxels] for voxels in VOXEL_SETS if voxels in card.thresholds}
    if not thresholds:
        raise RunError(f"run '{run.run_id}' has no threshold: {cohort.path} has no {rule.split} split to choose one on")
    scores = score_run(run, split, store=cohort, device=device, progress=progress)
    figures = evaluate(scores, reference or cohort, thresholds)
    keep_figures(run, split, cohort, figures)
    return figures


def refuse_trained_on(run: RunFolder, card: ModelCard, store: CohortStore, splits: Collection[str]) -> None:
    """Refuse to judge a model on images that it was trained on, in a store that has changed since or in another.

    Raises:
        CohortError: a subject of ``splits`` is one of them.
    """
    if store.digest == run.spec.cohort_digest:
        return  # a subject is in one split
    try:
        own = CohortStore.open(run.spec.store)
    except StoreError:
        return  # it is gone: what it held cannot be asked any more
    trained = set(card.cohort.subjects)
    seen = {content for record in own.subjects() if record.subject_id in trained for content in image_contents(record)}
    for record in store.subjects():
        if record.split in splits and not seen.isdisjoint(image_contents(record)):
            raise CohortError(
                f"run '{run.run_id}' was trained on the image of '{record.subject_id}', which {store.path} holds in "
                f"the split '{record.split}': judge it on subjects it has not seen, or train a new run on that store"
            )


def keep_figures(run: RunFolder, split: str, store: CohortStore, figures: dict[VoxelSet, Figures]) -> None:
    """Write figures, the thresholds they were taken at among them, to ``RUN/evaluations`` and to tracking."""
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    name = scores_folder(run, split, store).name
    text = json.dumps({voxels: one.model_dump(mode="json") for voxels, one in figures.items()}, indent=1)
    aside = folder / f".{name}.json.partial"
    aside.write_text(text)
    os.replace(aside, folder / f"{name}.json")
    outbox = outbox_of(run)
    if outbox is not None:
        outbox.log_metrics(_numbers(name, figures))


def _numbers(name: str, figures: dict[VoxelSet, Figures]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for voxels, one in figures.items():
        numbers.update(one.numbers(prefix=f"{name}/{voxels}/"))
    return numbers


def _lasting(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    # A volume takes another time on every machine; that alone must not make another model of it.
    return {key: value for key, value in metrics.items() if not key.endswith("/seconds_per_volume")}


def kept_rows(run: RunFolder, name: str) -> dict[str, dict[str, Any]]:
    """Return the nine figures by voxel set that :func:`keep_figures` wrote for a split; empty where it never did."""
    try:
        kept = json.loads((run.path / "evaluations" / f"{name}.json").read_text())
        return {voxels: Figures.model_validate(one).row() for voxels, one in kept.items()}
    except (OSError, ValueError):
        return {}


def kept_figures(run: RunFolder, name: str) -> dict[VoxelSet, Figures]:
    """Return the figures with their intervals that :func:`keep_figures` wrote for a split; empty where it never did."""
    try:
        kept = json.loads((run.path / "evaluations" / f"{name}.json").read_text())
        return {voxels: Figures.model_validate(kept[voxels]) for voxels in VOXEL_SETS if voxels in kept}
    except (OSError, ValueError):
        return {}


def device_name(device: str, *, num_workers: int = 0) -> str:
    """Return ``cpu`` or ``cuda``.

    Args:
        device: cpu, cuda or auto.
        num_workers: that compute; a device that is named is theirs then, and this process need not have it.

    Raises:
        SettingError: not cpu, cuda or auto, or there is no CUDA device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError(f"--device is '{device}': expected cpu, cuda or auto")
    return device if num_workers and device != "auto" else choose_device(device, "--device").type
