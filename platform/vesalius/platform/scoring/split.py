"""A method over a whole split, resumable."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vesalius.platform.errors import CohortError, SettingError, StoreError
from vesalius.platform.progress import silent
from vesalius.platform.scoring.maps import ScoreStore
from vesalius.platform.scoring.records import ScoreInfo, ScoreRecord
from vesalius.platform.scoring.volumes import score_volumes, volume_of
from vesalius.platform.store import require_space

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import torch

    from vesalius.platform.contracts import Effort, Method
    from vesalius.platform.progress import Progress
    from vesalius.platform.store import CohortStore, SubjectRecord


_BATCH_VOLUMES = 4


def score_store(
    method: Method,
    store: CohortStore,
    split: str,
    out: Path,
    *,
    info: ScoreInfo,
    batch_volumes: int | None = None,
    device: torch.device | str = "cpu",
    effort: Effort = "full",
    progress: Progress = silent,
    subjects: Collection[str] | None = None,
) -> ScoreStore:
    """Score a split and keep the maps; go on where a killed call stopped, reuse what is finished.

    Neighbours in the split are scored together, whatever their shapes. Which ones is decided by the split alone and not
    by what is done already, so that a resumed scoring gives the maps of an unbroken one, bit for bit (same device). A
    method is deterministic: its noise is keyed by each volume's content.

    Seconds per volume are measured around each scoring call (transfers included, disk excluded) and divided by the
    volumes in it, whatever their sizes; see :func:`score_volumes`.

    Args:
        method: trained.
        store: the cohort.
        split: which part of it.
        out: folder of the scores.
        info: method, model and run; what this call knows itself (store, cohort, split, effort) is set in it.
        batch_volumes: volumes in one call, at most, and never more than the method's own capacity; None takes that
            capacity, and 4 where the method states none.
        device: where to score.
        effort: ``quick`` takes the method's reduced settings.
        progress: called before each batch of volumes and after each subject.
        subjects: ids of a part of the split; None scores all of it.

    Raises:
        CohortError: the split holds no subject, or not one of those named.
        DivergenceError: a map is not finite, or not as float16.
        DiskSpaceError: there is not enough room for the maps.
        SettingError: ``batch_volumes`` is below 1.
        StoreError: ``out`` holds something else, or another process is scoring into it.
    """
    if batch_volumes is not None and batch_volumes < 1:
        raise SettingError(f"batch_volumes is {batch_volumes}, expected 1 or more")
    wanted = wanted_subjects(store, split, subjects)
    facts = {"split": split, "effort": effort, "store": str(store.path.absolute()), "cohort_digest": store.digest}
    info = info.model_copy(update=facts)
    finished = _finished(out, info, wanted)
    if finished is not None:
        progress(len(wanted), len(wanted), "all scored before")
        return finished
    with ScoreStore.writing(out, info) as scores:
        missing = {record.subject_id for record in wanted if record.subject_id not in scores}
        require_space(out, sum(map_bytes(record) for record in wanted if record.subject_id in missing))
        done = len(wanted) - len(missing)
        for group in batches(method, wanted, batch_volumes):
            if missing.isdisjoint(record.subject_id for record in group):
                continue
            # A batch may take minutes: whoever watches sees what is under way, and not only what is done.
            progress(
                done,
                len(wanted),
                f"{group[0].subject_id} and {len(group) - 1} more" if len(group) > 1 else group[0].subject_id,
            )
            answers, seconds = score_volumes(
                method, [volume_of(store, record) for record in group], device, effort=effort
            )
            _measure(info.method, len(group), seconds)
            for record, answer in zip(group, answers, strict=True):
                if record.subject_id in missing:
                    scores.write(score_record(record, answer.image_score, seconds), answer)
                    done += 1
                    progress(done, len(wanted), record.subject_id)
        scores.finish()
    return ScoreStore.open(out)


def _measure(method: str, num_volumes: int, seconds: float) -> None:
    if "ray" not in sys.modules:  # nobody would read it, and a machine with torch alone can score
        return
    from vesalius.platform.cluster.metrics import SCORING_SECONDS, VOLUMES_SCORED, count, observe  # it imports training

    count(VOLUMES_SCORED, num_volumes, method=method, source="batch")
    for _ in range(num_volumes):
        observe(SCORING_SECONDS, seconds, method=method, source="batch")


def _finished(out: Path, info: ScoreInfo, wanted: Sequence[SubjectRecord]) -> ScoreStore | None:
    try:
        scores = ScoreStore.open(out)
    except StoreError:
        return None
    complete = scores.info.identity == info.identity and all(record.subject_id in scores for record in wanted)
    return scores if complete else None


def batches(
    method: Method, wanted: Sequence[SubjectRecord], batch_volumes: int | None = None
) -> Iterator[Sequence[SubjectRecord]]:
    """Yield the subjects that are scored in one call: decided by the split and the method, and not by what is done."""
    capacity = method.capacity()
    size = min(batch_volumes or capacity or _BATCH_VOLUMES, capacity or batch_volumes or _BATCH_VOLUMES)
    for first in range(0, len(wanted), size):
        yield wanted[first : first + size]


def wanted_subjects(store: CohortStore, split: str, subjects: Collection[str] | None) -> list[SubjectRecord]:
    """Return the subjects of a split that are to be scored.

    Raises:
        CohortError: the split holds no subject, or not one of those named.
    """
    records = store.subjects(split)
    if not records:
        known = sorted({record.split for record in store.subjects()})
        raise CohortError(f"{store.path} holds no subject in the split '{split}', only in {', '.join(known) or 'none'}")
    if subjects is None:
        return records
    strangers = sorted(set(subjects) - {record.subject_id for record in records})
    if strangers:
        raise CohortError(f"{store.path}: subject '{strangers[0]}' is not in the split '{split}'")
    return [record for record in records if record.subject_id in set(subjects)]


def map_bytes(record: SubjectRecord) -> int:
    """Return the room for a map and a restoration, uncompressed."""
    d, h, w = record.shape
    return 4 * d * h * w * (1 + len(record.channels))


def score_record(record: SubjectRecord, image_score: float, seconds: float) -> ScoreRecord:
    """Return what is kept of a scored subject besides its maps."""
    return ScoreRecord(
        subject_id=record.subject_id,
        image_score=image_score,
        seconds=seconds,
        has_lesion=record.has_lesion,
        group=record.group,
        channels=record.channels,
        shape=record.shape,
        spacing_mm=record.spacing_mm,
        affine=record.affine,
        source=record.source,
    )
