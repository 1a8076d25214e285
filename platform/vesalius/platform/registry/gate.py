"""The gate: subjects that no model was trained, tuned or reported on, and what two models do on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from vesalius.platform.config import Settings, digest
from vesalius.platform.errors import CohortError, ModelError
from vesalius.platform.evaluation import Histogram, PairedResult, VoxelSet, paired_bootstrap, subject_histogram
from vesalius.platform.progress import silent
from vesalius.platform.scoring import ScoreInfo, score_store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

    from vesalius.platform.contracts import Method
    from vesalius.platform.models import ModelCard
    from vesalius.platform.progress import Progress
    from vesalius.platform.store import CohortStore, SubjectRecord

GATE = "gate"
_FEWEST_LESIONS = 2


class PromotionSettings(Settings):
    """How a candidate is compared with the champion; the same for every candidate of a name."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="that the candidate's average precision is the higher")
    num_resamples: int = Field(2000, ge=100, description="of the paired bootstrap over subjects")
    seed: int = Field(0, ge=0, description="of the resamples")
    voxel_set: VoxelSet = Field("all", description="voxels that count: all of the grid, or those inside the brain")
    batch_volumes: int = Field(4, ge=1, description="volumes scored together")


def gate_subjects(store: CohortStore) -> list[SubjectRecord]:
    """Return the gate's subjects whose voxels can be counted, after checking that they may decide.

    A subject known to be anomalous without a mask has no voxels to count and is left out.

    Raises:
        CohortError: the split is empty, has fewer than two annotated lesions, or holds a subject (by id, source file
            or prepared image) of another split.
    """
    records = store.subjects(GATE)
    if not records:
        known = ", ".join(sorted({record.split for record in store.subjects()})) or "none"
        raise CohortError(
            f"{store.path} holds no subject in the split 'gate' (its splits: {known}): ingest with a share for it, "
            "promotion is decided there"
        )
    _check_disjoint(store, records)
    countable = [record for record in records if not record.has_lesion or "lesion" in record.arrays]
    require_lesions(store, sum(record.has_lesion for record in countable), "with an annotated lesion")
    return countable


def require_lesions(store: CohortStore, num_lesions: int, which: str) -> None:
    """Refuse a gate on which resamples would not vary.

    Raises:
        CohortError: fewer than two of its subjects have a lesion; ``which`` says what is counted.
    """
    if num_lesions < _FEWEST_LESIONS:
        found = "no subject" if num_lesions == 0 else "one subject"
        raise CohortError(
            f"the split 'gate' of {store.path} holds {found} {which} and a comparison needs at least "
            f"{_FEWEST_LESIONS}: add annotated subjects to it"
        )


def _check_disjoint(store: CohortStore, gate: Iterable[SubjectRecord]) -> None:
    ids: dict[str, SubjectRecord] = {}
    contents: dict[str, SubjectRecord] = {}
    for record in store.subjects():
        if record.split != GATE:
            ids[record.subject_id] = record
            contents.update(dict.fromkeys(image_contents(record), record))
    for record in gate:
        twin = ids.get(record.subject_id)
        if twin is not None:
            raise CohortError(
                f"{store.path}: gate subject '{record.subject_id}' is also in the split '{twin.split}': "
                "a subject belongs to one split"
            )
        twin = next((contents[content] for content in image_contents(record) if content in contents), None)
        if twin is not None:
            raise CohortError(
                f"{store.path}: gate subject '{record.subject_id}' is the same image as '{twin.subject_id}' of the "
                f"split '{twin.split}' (equal SHA-256): put both into one split"
            )


def image_contents(record: SubjectRecord) -> set[str]:
    """Return the SHA-256 of a subject's source images and of its prepared one: equal ones mean the same image."""
    # Images only: an empty lesion mask, or the brain mask of a template, may well be that of many subjects.
    files = record.source.sha256 if record.source is not None else {}
    images = {files[channel] for channel in record.channels if channel in files}
    prepared = record.arrays.get("image")
    return images | ({prepared.sha256} if prepared is not None else set())


def check_fits(card: ModelCard, store: CohortStore, gate: list[SubjectRecord], who: str, *, same_cohort: bool) -> None:
    """Check that a model may be judged on a gate.

    Args:
        card: of the model.
        store: with the gate.
        gate: its subjects.
        who: "the candidate (run x)", for the message.
        same_cohort: ask for the very cohort the model was trained on. An older champion may come from an earlier
            state of it.

    Raises:
        ModelError: it was trained on other channels, another grid, recipe or cohort, or on a subject of the gate.
    """
    advice = "promote it on its own store, or under another name"
    trained = card.cohort
    if trained.channels != store.channels:
        raise ModelError(
            f"{who} was trained on the channels {', '.join(trained.channels)} and {store.path} holds "
            f"{', '.join(store.channels)}: {advice}"
        )
    for record in gate:
        if tuple(record.shape) != tuple(trained.grid):
            raise ModelError(
                f"{who} was trained on a grid of {_grid(trained.grid)} voxels and gate subject '{record.subject_id}' "
                f"of {store.path} has {_grid(record.shape)}: {advice}"
            )
        if tuple(record.spacing_mm) != tuple(trained.spacing_mm):
            raise ModelError(
                f"{who} was trained at {_grid(trained.spacing_mm)} mm and gate subject '{record.subject_id}' of "
                f"{store.path} has {_grid(record.spacing_mm)} mm: {advice}"
            )
    if digest(card.recipe) != digest(store.recipe):
        raise ModelError(f"{who} was trained on volumes of another recipe than that of {store.path}: {advice}")
    if same_cohort and trained.digest != store.digest:
        raise ModelError(
            f"{who} was trained on another cohort (digest {trained.digest[:12]}) than {store.path} holds now "
            f"(digest {store.digest[:12]}): train it again on the store as it is"
        )
    seen = sorted({record.subject_id for record in gate} & set(trained.subjects))
    if seen:
        raise ModelError(
            f"{who} was trained on {len(seen)} of the gate's subjects ('{seen[0]}'), which would flatter it: "
            "move them out of the gate, or promote under another name"
        )


def score_gate(
    method: Method,
    card: ModelCard,
    store: CohortStore,
    gate: list[SubjectRecord],
    folder: Path,
    settings: PromotionSettings,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> list[Histogram]:
    """Score a model on the gate and count its voxels; one histogram a subject, in the gate's order.

    Scores are kept below ``folder`` and reused for the same model and cohort.
    """
    info = ScoreInfo(
        method=card.method, model_digest=card.digest, cohort_digest=store.digest, store=str(store.path), split=GATE
    )
    scores = score_store(
        method,
        store,
        GATE,
        folder / digest(info)[:16],
        info=info,
        batch_volumes=settings.batch_volumes,
        device=device,
        progress=progress,
    )
    counted = (subject_histogram(scores, store, record, settings.voxel_set) for record in gate)
    return [histogram for histogram in counted if histogram is not None]


def compare(a: list[Histogram], b: list[Histogram], settings: PromotionSettings) -> PairedResult:
    """Compare the average precision of a candidate ``a`` with that of a champion ``b`` on the same subjects."""
    return paired_bootstrap(
        a,
        b,
        "average_precision",
        num=settings.num_resamples,
        seed=settings.seed,
        confidence=settings.confidence,
    )


def _grid(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
