"""A split scored by several workers: the maps of one worker, bit for bit, kept by the one driver."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vesalius.platform.cluster.holding import map_held
from vesalius.platform.cluster.metrics import SCORING_ERRORS, SCORING_SECONDS, VOLUMES_SCORED, count, observe
from vesalius.platform.cluster.queueing import ShortOfMemory
from vesalius.platform.errors import DivergenceError, PartialScoreError, StoreError, told
from vesalius.platform.models import load_model
from vesalius.platform.progress import silent
from vesalius.platform.scoring import ScoreStore, score_volumes, volume_of
from vesalius.platform.scoring.split import batches, map_bytes, score_record, wanted_subjects
from vesalius.platform.store import CohortStore, require_space
from vesalius.platform.tables import resolve
from vesalius.platform.training.memory import is_out_of_shared_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from vesalius.platform.contracts import Score
    from vesalius.platform.progress import Progress
    from vesalius.platform.scoring import ScoreInfo
    from vesalius.platform.store import Place, SubjectRecord


@dataclass(frozen=True, kw_only=True)
class SplitWork:
    """What a scoring worker is told, once.

    Attributes:
        model: its folder, which every worker sees.
        methods: where the methods' table is, ``package.module:NAME``.
        store: the cohort, which every worker sees.
        device: where to score.
    """

    model: Path
    methods: str
    store: Place
    device: str

    def __call__(self) -> Callable[[list[str]], list[Outcome] | ShortOfMemory]:
        """Load the model and return what scores a batch of subjects."""
        method, card = load_model(self.model, resolve(self.methods), self.device)
        store = CohortStore.open(self.store)

        def score(subjects: list[str]) -> list[Outcome] | ShortOfMemory:
            try:
                return together(subjects)
            except Exception:  # each by itself says whose it is, and no one pays for another
                outcomes = [alone(subject) for subject in subjects]
            return ShortOfMemory(outcomes) if any(one.is_short_of_memory for one in outcomes) else outcomes

        def together(subjects: list[str]) -> list[Outcome]:
            volumes = [volume_of(store, store.record(subject)) for subject in subjects]
            scores, seconds = score_volumes(method, volumes, self.device)
            count(VOLUMES_SCORED, len(volumes), method=card.method, source="batch")
            for _ in volumes:
                observe(SCORING_SECONDS, seconds, method=card.method, source="batch")
            return [
                Outcome(subject_id=subject, score=score, seconds=seconds)
                for subject, score in zip(subjects, scores, strict=True)
            ]

        def alone(subject: str) -> Outcome:
            try:
                return together([subject])[0]
            except Exception as error:  # a defect of the method's at this volume, too: a row, and not the end
                count(SCORING_ERRORS, source="batch", kind=type(error).__name__)
                is_short = is_out_of_shared_memory(error, self.device)
                return Outcome(subject_id=subject, problem=told(error), is_short_of_memory=is_short)

        return score


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a subject: a score, or why there is none."""

    subject_id: str
    score: Score | None = None
    seconds: float = 0.0
    problem: str = ""
    is_short_of_memory: bool = False


@dataclass
class _Ledger:
    """Counts what is done while it comes."""

    total: int
    progress: Progress
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def note(self, subject: str, problem: str = "") -> None:
        self.done += 1
        if problem:
            self.failed[subject] = problem
        self.progress(self.done, self.total, f"{subject}: {problem}"[:80] if problem else subject)


def score_split(
    work: SplitWork,
    split: str,
    out: Path,
    *,
    info: ScoreInfo,
    num_workers: int,
    progress: Progress = silent,
    subjects: Collection[str] | None = None,
) -> ScoreStore:
    """Score a split with several workers; go on where a killed call stopped.

    Which subjects are scored together is what :func:`vesalius.platform.scoring.score_store` decides, so the maps are
    the same whoever computes them. What was scored before is read again first: what is damaged is scored anew.

    Args:
        work: for the workers.
        split: of the store.
        out: folder of the scores.
        info: what is scored by which model; see :func:`score_store`.
        num_workers: actors; each takes a core, and a GPU where the device is one.
        progress: called after each subject.
        subjects: ids of a part of the split; None scores all of it.

    Raises:
        PartialScoreError: some subjects could not be scored; the others are kept, and the same call tries these again.
        CohortError: the split holds no subject, or not one of those named.
        StoreError: ``out`` holds something else, or another process is scoring into it.
        WorkerLostError: no worker could start.
    """
    store = CohortStore.open(work.store)
    wanted = wanted_subjects(store, split, subjects)
    records = {record.subject_id: record for record in wanted}
    method, _ = load_model(work.model, resolve(work.methods))
    facts = {"split": split, "effort": "full", "store": str(store.path.absolute()), "cohort_digest": store.digest}
    info = info.model_copy(update=facts)
    with ScoreStore.writing(out, info) as scores:
        missing = {name for name in records if name not in scores or not _is_sound(scores, name)}
        require_space(out, sum(map_bytes(records[name]) for name in missing))
        ledger = _Ledger(len(wanted), progress, done=len(wanted) - len(missing))
        groups = [
            [record.subject_id for record in group]
            for group in batches(method, wanted)
            if not missing.isdisjoint(record.subject_id for record in group)
        ]
        gpus = 1.0 if work.device.startswith("cuda") else 0.0
        with contextlib.closing(map_held(work, groups, num_workers=num_workers, num_gpus=gpus)) as outcomes:
            for group, outcome in outcomes:
                if isinstance(outcome, Exception):
                    outcome = [Outcome(subject_id=name, problem=told(outcome)) for name in group]
                for one in outcome:
                    if one.subject_id in missing:
                        ledger.note(one.subject_id, one.problem or _keep(scores, records[one.subject_id], one))
        if ledger.failed:
            raise PartialScoreError(
                f"{len(ledger.failed)} of {len(wanted)} subjects could not be scored; the others are kept: run the "
                "same again once the cause is gone",
                ledger.failed,
            )
        scores.finish()
    return ScoreStore.open(out)


def _keep(scores: ScoreStore, record: SubjectRecord, outcome: Outcome) -> str:
    """Write a subject's maps; return why they cannot be kept, nothing where they are."""
    assert outcome.score is not None  # without a score there is a problem
    try:
        scores.write(score_record(record, outcome.score.image_score, outcome.seconds), outcome.score)
    except DivergenceError as error:
        return told(error)
    return ""


def _is_sound(scores: ScoreStore, subject_id: str) -> bool:
    """Read all that is kept of a subject and say whether it is what was scored."""
    try:
        scores.map(subject_id)
        scores.restoration(subject_id)
        for name in scores.record(subject_id).extras:
            scores.extra(subject_id, name)
    except StoreError:
        return False
    return True
