"""Ingest: raw tree -> cohort store, subject by subject, on Ray tasks.

First every source is hashed and every lesion mask looked at, then splits are given out, then what is new is prepared.
Workers write their subject's arrays aside; this process alone commits. So a killed ingest leaves what was committed
readable, the next one goes on, and the digest is the same whatever the order and the number of workers.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vesalius.datasets import LAYOUTS
from vesalius.datasets.admission import DRAWN, Admission, admit, check_ids, choose_modalities
from vesalius.datasets.confinement import confine
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.outcome import IngestReport
from vesalius.datasets.prepare import prepare
from vesalius.datasets.reading import Inspection, inspect
from vesalius.datasets.recipes import Recipe, recipe_named, recipe_of
from vesalius.datasets.splits import SPLITS, SplitSettings
from vesalius.platform.config import Settings
from vesalius.platform.errors import (
    CohortError,
    DiskSpaceError,
    SettingError,
    VesaliusError,
    VolumeError,
    WorkerLostError,
)
from vesalius.platform.progress import silent
from vesalius.platform.store import CohortStore, RemotePath, holds_nothing, place_of
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.datasets.layouts.raw import Layout
    from vesalius.platform.progress import Progress
    from vesalius.platform.store import Place, SubjectRecord

__all__ = ["IngestReport", "ingest"]

_COMMIT_SECONDS = 1.0
"""Subjects that are prepared faster than this share a commit: the manifest is rewritten whole each time."""


def ingest(
    layout: Layout | str,
    root: Path,
    store_path: Place | str,
    *,
    recipe: Recipe | Mapping[str, Any] | str | None = None,
    modalities: Sequence[str] = (),
    splits: SplitSettings | None = None,
    num_workers: int = 0,
    allow_anomalous_training: bool = False,
    within: Path | None = None,
    name: str = "",
    progress: Progress = silent,
) -> IngestReport:
    """Take the subjects of a raw tree into a cohort store; what is there already stays as it is.

    Args:
        layout: a layout, or its name in :data:`vesalius.datasets.LAYOUTS`.
        root: the raw tree, or the file that describes it.
        store_path: the store, by folder or URL; made when absent.
        recipe: how to prepare; a recipe, its JSON, its name, or None for the layout's own.
        modalities: which images become channels, in order; none picks the only one there is.
        splits: how subjects without a given split are divided.
        num_workers: Ray tasks at once; 0 works in this process, without Ray.
        allow_anomalous_training: anomalous subjects that are given the training split are taken into it and trained
            on; without it they are refused.
        within: the folder that every file must lie in, with links followed; None takes ``root``, or the folder that
            holds it where it is a file.
        name: what the cohort is called.
        progress: called with subjects done, subjects in all and the last one's id; with none done while sources are
            hashed.

    Returns:
        The report. Look at ``failed``, or call :meth:`IngestReport.raise_for_failures`.

    Raises:
        CohortError: the root is not of this layout, or ids are duplicated or ill-formed; nothing is written.
        SettingError: unknown layout, recipe or modality.
        StoreError: the folder is no store, is of another recipe or other channels, or is in use.
        DiskSpaceError: the disk is full; what was committed stays.
    """
    started = time.monotonic()
    # Absolute, both: workers of a cluster stand in folders of their own.
    store_path, root = place_of(store_path).absolute(), root.absolute()
    if num_workers and isinstance(store_path, RemotePath) and store_path.protocol == "memory":
        raise SettingError(f"{store_path} lies in this process, which workers do not see: ingest with 0 workers")
    found: Layout = lookup(LAYOUTS, layout, "layout")() if isinstance(layout, str) else layout
    named = recipe or found.default_recipe
    chosen = recipe_named(named) if isinstance(named, str) else recipe_of(named)
    if not root.exists():
        raise CohortError(f"{root}: there is no such file or folder")
    if within is not None and not within.is_dir():
        raise SettingError(f"--within {within}: there is no such folder")
    channels = choose_modalities(found.modalities(root), modalities, root)
    subjects = check_ids(found.discover(root, channels), root)
    table = None if root.is_dir() else root.parent
    subjects = confine(subjects, within or table or root, table)
    plain = chosen.model_dump(mode="json")
    # An existing store is opened first: that it is of another recipe should be said before an hour of hashing.
    is_new = holds_nothing(store_path)
    store = None if is_new else CohortStore.create(store_path, recipe=plain, channels=channels, name=name)

    inspections, failed = _inspect_all(subjects, channels, max(1, num_workers), progress)

    def admitted() -> Admission:
        return admit(
            subjects,
            inspections,
            store.subjects() if store else [],
            splits or SplitSettings(),
            allow_anomalous_training=allow_anomalous_training,
        )

    admission = admitted()
    added: dict[str, SubjectRecord] = {}
    is_gone = False
    if admission.waiting:
        store = store or CohortStore.create(store_path, recipe=plain, channels=channels, name=name)
        with store.lock():
            # Once more: another ingest may have committed since, the other scan of a person among its subjects.
            admission = admitted()
            tasks = [
                _Task(
                    raw=raw,
                    split=admission.splits[raw.subject_id],
                    drawn=raw.subject_id in admission.drawn,
                    sha256=inspections[raw.subject_id].sha256,
                    allow_anomalous_training=allow_anomalous_training,
                    recipe=chosen,
                    channels=channels,
                    store=str(store_path),
                    session=store.session,
                )
                for raw in admission.waiting
            ]
            try:
                failures = _take_in(store, tasks, num_workers, progress, added, done=len(subjects) - len(tasks))
            finally:
                # While the lock is held: without it, what is there may be another ingest's.
                if is_new and not store.subjects():
                    store.abandon()
                    is_gone = True
        failed.update(failures)
        if is_gone:
            store = None
    failed.update(admission.failed)
    records = store.subjects() if store else []
    warnings = {key: tuple(record.notes.get("warnings", ())) for key, record in added.items()}
    warnings.update(admission.warnings)
    return IngestReport(
        store=str(store_path),
        added=tuple(sorted(added)),
        unchanged=admission.unchanged,
        failed=dict(sorted(failed.items())),
        warnings={key: sentences for key, sentences in sorted(warnings.items()) if sentences},
        splits={split: sum(record.split == split for record in records) for split in SPLITS},
        channels=channels,
        digest=store.digest if store else "",
        seconds=round(time.monotonic() - started, 3),
    )


class _Task(Settings):
    """One subject to be prepared, with all that a worker needs to know."""

    raw: RawSubject
    split: str
    drawn: bool
    sha256: dict[str, str]
    allow_anomalous_training: bool
    recipe: Recipe
    channels: tuple[str, ...]
    store: str
    session: str


def _inspect_all(
    subjects: Sequence[RawSubject], channels: tuple[str, ...], num_threads: int, progress: Progress
) -> tuple[dict[str, Inspection], dict[str, str]]:
    """Hash every source. In threads and not in tasks: where nothing is new, no cluster need be started to see it."""
    inspections: dict[str, Inspection] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(max_workers=num_threads)
    try:
        futures = [pool.submit(inspect, raw, channels) for raw in subjects]
        for raw, future in zip(subjects, futures, strict=True):
            try:
                inspections[raw.subject_id] = future.result()
            except Exception as error:  # one bad file does not stop the others
                failed[raw.subject_id] = _reason(raw, error)
            progress(0, len(subjects), f"looked at {raw.subject_id}")
    finally:
        # Broken off by the user, it does not read the rest of the archive first.
        pool.shutdown(cancel_futures=True)
    return inspections, failed


def _take_in(
    store: CohortStore,
    tasks: Sequence[_Task],
    num_workers: int,
    progress: Progress,
    added: dict[str, SubjectRecord],
    *,
    done: int,
) -> dict[str, str]:
    """Prepare and commit; fill ``added`` as subjects are committed and return the reasons of those that failed."""
    from vesalius.platform.cluster import map_tasks  # loads torch, which the workers that prepare do not need

    failed: dict[str, str] = {}
    total = done + len(tasks)
    pending = _written_before(store, tasks)
    done += len(pending)
    waiting = [task for task in tasks if task.raw.subject_id not in pending]
    store.make_way([task.raw.subject_id for task in waiting])
    num_workers = num_workers if waiting else 0  # no cluster is started for nothing
    committed_at = time.monotonic()
    # Closed before the lock is let go of: no task of ours runs on after that.
    with contextlib.closing(map_tasks(_prepare_one, waiting, num_workers=num_workers, total=len(waiting))) as results:
        try:
            for task, outcome in results:
                subject_id = task.raw.subject_id
                done += 1
                if isinstance(outcome, DiskSpaceError):
                    raise outcome  # the next subject would fill the disk as well
                if isinstance(outcome, Exception):
                    failed[subject_id] = _reason(task.raw, outcome)
                else:
                    pending[subject_id] = outcome
                if time.monotonic() - committed_at >= _COMMIT_SECONDS:
                    _commit(store, pending, added)
                    committed_at = time.monotonic()
                progress(done, total, subject_id)
        finally:
            # Also when the user breaks it off: what is prepared need not be prepared again.
            _commit(store, pending, added)
    return failed


def _commit(store: CohortStore, pending: dict[str, SubjectRecord], added: dict[str, SubjectRecord]) -> None:
    if pending:
        store.commit(pending.values())
        added.update(pending)
        pending.clear()


def _written_before(store: CohortStore, tasks: Sequence[_Task]) -> dict[str, SubjectRecord]:
    """Return what a killed ingest wrote whole and did not commit, where it is what this one would write."""
    wanted = {task.raw.subject_id: task for task in tasks}
    found: dict[str, SubjectRecord] = {}
    for record in store.uncommitted():
        task = wanted.get(record.subject_id)
        if task is None or record.source is None:
            continue
        raw = task.raw
        if task.split == "train" and record.has_lesion and not task.allow_anomalous_training:
            continue  # an ingest that was allowed to left it; this one is not
        source = record.source
        if (
            (dict(source.sha256), dict(source.files), record.split, record.group)
            == (task.sha256, raw.file_names(), task.split, raw.group)
            and dict(record.demographics) == dict(raw.demographics)
            and dict(record.labels) == dict(raw.labels)
        ):
            found[record.subject_id] = record
    return found


def _prepare_one(task: _Task) -> SubjectRecord:
    """Prepare a subject and write its arrays aside; runs on a worker."""
    raw = task.raw
    record, arrays = prepare(raw, task.recipe, task.channels, split=task.split)
    assert record.source is not None  # prepare always says where a subject came from
    if dict(record.source.sha256) != task.sha256:
        raise VolumeError(f"{raw.origin or raw.subject_id}: its files changed while they were taken in: run it again")
    if task.split == "train" and record.has_lesion and not task.allow_anomalous_training:
        raise CohortError(
            f"{raw.origin or raw.subject_id}: {raw.subject_id} holds a lesion and may not be in the training split: "
            "give it another, or allow it with --allow-anomalous-training"
        )
    notes = {**record.notes, "split": DRAWN if task.drawn else "given", "person": raw.person or raw.subject_id}
    return CohortStore.join(task.store, task.session).write(record.model_copy(update={"notes": notes}), arrays)


def _reason(raw: RawSubject, error: Exception) -> str:
    if isinstance(error, WorkerLostError):
        sentence = f"{raw.subject_id}: {error}: look at its files, or give more memory"
    elif isinstance(error, VesaliusError):
        sentence = str(error)
    elif isinstance(error, MemoryError):
        sentence = "there is not enough memory to prepare it: use fewer workers or a coarser grid"
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        sentence = f"it failed unexpectedly ({type(error).__name__}: {first[:200]}): please report this"
    return sentence if raw.subject_id in sentence else f"{raw.subject_id}: {sentence}"
