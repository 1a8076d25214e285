"""Score a run's splits, choose its thresholds, and say how good it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vesalius.infra.pipeline.training import require_model, tracked_as
from vesalius.methods import METHODS
from vesalius.platform import tracking
from vesalius.platform.errors import RunError, SettingError
from vesalius.platform.evaluation import VOXEL_SETS, Figures, evaluate, fit_threshold
from vesalius.platform.models import ModelCard, load_model, model_digest, read_card, update_card
from vesalius.platform.progress import silent
from vesalius.platform.scoring import ScoreInfo, ScoreStore, score_store
from vesalius.platform.store import CohortStore
from vesalius.platform.training import choose_device

if TYPE_CHECKING:
    from vesalius.platform.evaluation import VoxelSet
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder

Policy = Literal["auto", "best_dice", "quantile"]


def score_run(
    run: RunFolder, split: str, *, store: CohortStore | None = None, device: str = "auto", progress: Progress = silent
) -> ScoreStore:
    """Score a split with a finished run's model, or go on with it, or find it done.

    Args:
        run: a finished run.
        split: of ``store``.
        store: another store of the same grid; the run's own by default.
        device: cpu, cuda or auto.
        progress: called after each volume.

    Raises:
        RunError: the run is not finished.
        CohortError: the split is empty.
    """
    card = require_model(run)
    cohort = store or CohortStore.open(Path(run.spec.store))
    info = ScoreInfo(
        method=card.method,
        model_digest=model_digest(run.model),
        cohort_digest=cohort.digest,
        store=str(cohort.path),
        split=split,
        run_id=run.run_id,
    )
    device = device_name(device)
    method, _ = load_model(run.model, METHODS, device)
    out = scores_folder(run, split, cohort)
    return score_store(method, cohort, split, out, info=info, device=device, progress=progress)


def scores_folder(run: RunFolder, split: str, store: CohortStore) -> Path:
    """Return where a run's maps of a split are kept; those of another store than its own lie apart."""
    own = str(store.path) == run.spec.store
    return run.scores(split if own else f"{store.path.name}-{store.digest[:8]}-{split}")


def fit_thresholds(
    run: RunFolder,
    *,
    store: CohortStore | None = None,
    policy: Policy = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> ModelCard:
    """Choose a threshold for each voxel set on the validation split and keep them with the model.

    ``auto`` takes the best Dice where the split has outlined lesions and otherwise the 98th percentile of healthy
    scores. A store without a validation split leaves the model without thresholds.
    """
    card = require_model(run)
    cohort = store or CohortStore.open(Path(run.spec.store))
    records = cohort.subjects("validation")
    if not records:
        return card
    if policy == "auto":
        policy = "best_dice" if any("lesion" in r.arrays and r.has_lesion for r in records) else "quantile"
    scores = score_run(run, "validation", store=cohort, device=device, progress=progress)
    thresholds = {voxels: fit_threshold(scores, cohort, policy, voxels) for voxels in VOXEL_SETS}
    return update_card(run.model, thresholds=thresholds)


def evaluate_run(
    run: RunFolder,
    split: str,
    *,
    store: CohortStore | None = None,
    policy: Policy = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> dict[VoxelSet, Figures]:
    """Return a finished run's figures on a split, at the thresholds chosen on validation.

    They are also written to the run's folder, to its model's card and to tracking, under the same keys.

    Raises:
        RunError: the run is not finished, or there is no threshold because there is no validation split.
    """
    cohort = store or CohortStore.open(Path(run.spec.store))
    card = fit_thresholds(run, store=cohort, policy=policy, device=device, progress=progress)
    if not card.thresholds:
        raise RunError(f"run '{run.run_id}' has no threshold: {cohort.path} has no validation split to choose one on")
    scores = score_run(run, split, store=cohort, device=device, progress=progress)
    thresholds = {voxels: card.thresholds[voxels] for voxels in VOXEL_SETS if voxels in card.thresholds}
    figures = evaluate(scores, cohort, thresholds)
    keep_figures(run, split, cohort, figures)
    return figures


def keep_figures(run: RunFolder, split: str, store: CohortStore, figures: dict[VoxelSet, Figures]) -> None:
    """Write figures to ``RUN/evaluations``, to the model's card and to tracking."""
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    name = scores_folder(run, split, store).name
    text = json.dumps({voxels: one.model_dump(mode="json") for voxels, one in figures.items()}, indent=1)
    aside = folder / f".{name}.json.partial"
    aside.write_text(text)
    os.replace(aside, folder / f"{name}.json")
    numbers: dict[str, float] = {}
    for voxels, one in figures.items():
        numbers.update(one.numbers(prefix=f"{name}/{voxels}/"))
    update_card(run.model, metrics={**read_card(run.model).metrics, **numbers})
    tracked = tracked_as(run.spec)
    if tracked is not None:
        tracking.log_metrics(*tracked, numbers)


def kept_rows(run: RunFolder, name: str) -> dict[str, dict[str, Any]]:
    """Return the nine figures by voxel set that :func:`keep_figures` wrote for a split; empty where it never did."""
    try:
        kept = json.loads((run.path / "evaluations" / f"{name}.json").read_text())
        return {voxels: Figures.model_validate(one).row() for voxels, one in kept.items()}
    except (OSError, ValueError):
        return {}


def device_name(device: str) -> str:
    """Return ``cpu`` or ``cuda``.

    Raises:
        SettingError: not cpu, cuda or auto, or there is no CUDA device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError(f"--device is '{device}': expected cpu, cuda or auto")
    return choose_device(device).type
