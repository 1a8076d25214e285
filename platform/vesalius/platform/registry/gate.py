"""The gate split: subjects that no model was trained, tuned or reported on, and a model's scores of them."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vesalius.platform.config import digest
from vesalius.platform.errors import CohortError, ModelError
from vesalius.platform.progress import silent
from vesalius.platform.registry.gates import Timing
from vesalius.platform.scoring import ScoreInfo, score_store, score_volume, volume_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vesalius.platform.contracts import Method
    from vesalius.platform.models import ModelCard
    from vesalius.platform.progress import Progress
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord

GATE = "gate"
_FEWEST_LESIONS = 2


def gate_subjects(store: CohortStore, *, with_lesions: bool = True) -> list[SubjectRecord]:
    """Return the gate's subjects whose voxels can be counted, after checking that they may decide.

    A subject known to be anomalous without a mask has no voxels to count and is left out.

    Args:
        store: with the split.
        with_lesions: whether lesions are needed, to compare two models.

    Raises:
        CohortError: the split is empty, has fewer than two annotated lesions where they are needed, or holds a subject
            (by id, source file or prepared image) of another split.
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
    if with_lesions:
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
    folder: Path,
    *,
    batch_volumes: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> ScoreStore:
    """Score a model on the gate. Scores are kept below ``folder`` and reused for the same model and cohort."""
    info = ScoreInfo(
        method=card.method, model_digest=card.digest, cohort_digest=store.digest, store=str(store.path), split=GATE
    )
    return score_store(
        method,
        store,
        GATE,
        folder / digest(info)[:16],
        info=info,
        batch_volumes=batch_volumes,
        device=device,
        progress=progress,
    )


def time_volumes(
    method: Method, store: CohortStore, num: int, device: torch.device | str, progress: Progress = silent
) -> Timing:
    """Score some gate subjects one by one, spread evenly over the split, after one that is not counted."""
    records = store.subjects(GATE)
    chosen = [records[index * len(records) // num] for index in range(num)] if num < len(records) else records
    volumes = [volume_of(store, record) for record in chosen]
    progress(0, len(volumes), "seconds per volume")
    score_volume(method, volumes[0], device)
    seconds = []
    for done, volume in enumerate(volumes, 1):
        seconds.append(score_volume(method, volume, device)[1])
        progress(done, len(volumes), "seconds per volume")
    kind = torch.device(device).type
    if kind == "cuda":
        words = torch.cuda.get_device_name(torch.device(device))
    else:
        words = f"{_processor()} ({torch.get_num_threads()} threads)"
    return Timing(seconds=seconds, device=words, kind=kind)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.machine()


def _grid(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
