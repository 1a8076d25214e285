"""The cohort store: prepared volumes of one recipe, a Zarr v3 group a subject, and a manifest that is the commit.

A store lies in a folder of this machine or at a URL (``s3://bucket/cohort``, ``memory://cohort``, ...). Both behave
alike; ``docs/decisions/0002-cohort-store.md`` says what each kind of file system guarantees.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import CohortError, StoreError
from vesalius.platform.progress import silent
from vesalius.platform.store.checking import check_store, find_problems, folder_of, read_written, uncommitted_folders
from vesalius.platform.store.creation import differences, make_store, new_manifest, write_frame
from vesalius.platform.store.files import remove, sync_folder
from vesalius.platform.store.lock import exclusive
from vesalius.platform.store.manifest import (
    LOCK,
    NAME,
    PARTIAL,
    SUBJECTS,
    Manifest,
    read_current,
    read_manifest,
    write_manifest,
)
from vesalius.platform.store.place import place_of
from vesalius.platform.store.reading import CommittedCohort
from vesalius.platform.store.remote_lock import read_lock
from vesalius.platform.store.space import space_errors
from vesalius.platform.store.writing import (
    clear_unfinished,
    committable,
    make_way,
    require_same,
    uncommitted_records,
    write_subject,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from vesalius.platform.progress import Progress
    from vesalius.platform.store.arrays import ChunkSettings
    from vesalius.platform.store.manifest import Entry
    from vesalius.platform.store.place import Place
    from vesalius.platform.store.records import SubjectArrays, SubjectRecord


class CohortStore(CommittedCohort):
    """A cohort on disk or at a URL. Make one with :meth:`create` or :meth:`open`.

    Reading is safe from any number of threads and processes; open the store in each process. Writing is for one
    process that holds :meth:`lock`, together with the workers that :meth:`join` its :attr:`session`.
    """

    def __init__(self, path: Place, manifest: Manifest, session: str | None = None) -> None:
        super().__init__(path, manifest)
        self._depth = 0
        self._session = session
        self._joined = session is not None
        self._confirm: Callable[[], None] | None = None

    # ---- opening

    @classmethod
    def create(
        cls,
        path: Place | str,
        *,
        recipe: Mapping[str, Any],
        channels: Sequence[str],
        name: str = "",
        chunks: ChunkSettings | None = None,
    ) -> CohortStore:
        """Make an empty store, or open the one that is there if it is of the same recipe and channels.

        Args:
            path: a folder or URL that is absent, empty, or already a store.
            recipe: JSON of how subjects are prepared; ``recipe["dtype"]`` is the image's type (float32 or float16).
            channels: modality names in the order of the image's first axis.
            name: what the cohort is called.
            chunks: how arrays are cut and compressed; None for the measured default.

        Raises:
            StoreError: the folder holds something else, or a store of another recipe or other channels; the URL cannot
                be reached or used.
        """
        path = place_of(path)
        wanted = new_manifest(path, recipe, channels, name, chunks)
        if isinstance(path, Path) and path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file: give a folder for the store")
        if not (path / NAME).exists():
            make_store(path, wanted)
        store = cls.open(path)
        if store.recipe_digest != wanted.recipe_digest:
            raise StoreError(
                f"{path} was prepared by another recipe ({differences(store.recipe, wanted.recipe)}): "
                "give the same recipe or another folder"
            )
        if store.channels != wanted.channels:
            raise StoreError(
                f"{path} holds the channels {', '.join(store.channels)} and not {', '.join(wanted.channels)}: "
                "give the same modalities or another folder"
            )
        return store

    @classmethod
    def join(cls, path: Place | str, session: str) -> CohortStore:
        """Open a store as a worker of the process that holds its lock, to :meth:`write` for it.

        Args:
            path: its folder or URL.
            session: the holder's :attr:`session`. When it has ended, nothing can be written any more.
        """
        path = place_of(path)
        return cls(path, read_manifest(path), session)

    # ---- writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one writer: hold this for a whole ingest. Clears what a killed writer left unfinished.

        Raises:
            StoreError: another writer is at work; the message names it.
        """
        with self._locked():
            if self._depth > 1:
                yield
                return
            # Another writer may have committed since this store was opened.
            self._manifest = read_manifest(self.path)
            with space_errors(self.path):
                clear_unfinished(self.path, self._manifest, self._still_ours)
            with self._own_session():
                yield

    @property
    def session(self) -> str:
        """What workers of this lock's holder :meth:`join` by.

        Raises:
            StoreError: the lock is not held.
        """
        if self._session is None:
            raise StoreError(f"{self.path}: nobody holds its lock here: take it before workers are to write")
        return self._session

    @contextlib.contextmanager
    def _own_session(self) -> Iterator[None]:
        folder = None
        if isinstance(self.path, Path):
            self._session = uuid.uuid4().hex
            folder = self.path / PARTIAL / self._session
            with space_errors(self.path):
                folder.mkdir()
        else:
            state = read_lock(self.path / LOCK)
            self._session = None if state is None else state.token
        try:
            yield
        finally:
            self._session = None
            if folder is not None:
                remove(folder)

    def write(self, record: SubjectRecord, arrays: SubjectArrays) -> SubjectRecord:
        """Write a subject's voxels. They are not visible before :meth:`commit`.

        The workers of the process that holds :meth:`lock` may call this in parallel, each on a store that it joined.
        A subject that is already committed with the same content is left alone.

        Returns:
            The record with ``arrays``, ``recipe_digest`` and ``has_lesion`` filled in: hand it to :meth:`commit`.

        Raises:
            CohortError: the id cannot name a subject, or the notes are no JSON.
            VolumeError: shapes disagree, or the image is not finite or does not fit the recipe's type.
            StoreError: the subject is committed with other content, or is of another recipe or other channels.
            DiskSpaceError: there is no room; nothing half-written stays.
        """
        return write_subject(self.path, self._manifest, record, arrays, session=self._session, joined=self._joined)

    def uncommitted(self) -> list[SubjectRecord]:
        """Return the subjects of this recipe that a killed writer wrote whole and did not commit.

        Every file is re-read against its checksum. Whether they are still wanted is the caller's to say;
        :meth:`commit` takes them in.
        """
        return [
            record
            for record in uncommitted_records(self.path, read_manifest(self.path))
            if record.recipe_digest == self.recipe_digest and record.channels == self.channels
        ]

    def make_way(self, subject_ids: Collection[str]) -> None:
        """Remove what lies uncommitted under some ids, so that workers may write them; needs :meth:`lock`."""
        with self._locked(), space_errors(self.path):
            make_way(self.path, self._manifest, subject_ids, self._session, self._still_ours)

    def abandon(self) -> None:
        """Remove the store from its place, at a URL all but the lock; for one that holds nothing; needs :meth:`lock`.

        Raises:
            StoreError: it holds subjects.
        """
        with self._locked():
            if read_manifest(self.path).subjects:
                raise StoreError(f"{self.path} holds subjects and is not removed")
            for name in (NAME, SUBJECTS, PARTIAL, "zarr.json"):
                self._still_ours()
                remove(self.path / name)
            if isinstance(self.path, Path):
                # Last, and then no more than an empty folder: whoever comes from here on finds nothing of ours, and
                # what they make stays.
                remove(self.path / LOCK)
                with contextlib.suppress(OSError):
                    self.path.rmdir()

    def commit(self, records: Iterable[SubjectRecord]) -> None:
        """Make written subjects part of the cohort, all or none, by replacing the manifest in one step.

        Raises:
            StoreError: a subject was not written, or is committed with other content.
            DiskSpaceError: there is no room; the old manifest stands.
        """
        with self._locked():
            current, version = read_current(self.path)
            entries = dict(current.subjects)
            for record in records:
                known = entries.get(record.subject_id)
                if known is None:
                    entries[record.subject_id] = committable(self.path, record)
                else:
                    require_same(self.path, known.record, record)
            if isinstance(self.path, Path):
                with space_errors(self.path):
                    # Also what a killed writer moved into place and had no time to make last.
                    sync_folder(self.path / SUBJECTS)
            self._replace(current, entries, version)

    def forget(self, subject_ids: Iterable[str]) -> None:
        """Take subjects out of the cohort and remove their voxels, damaged or not.

        Raises:
            CohortError: one of them is not committed; nothing is taken out.
        """
        with self._locked():
            current, version = read_current(self.path)
            entries = dict(current.subjects)
            doomed = {}
            for subject_id in dict.fromkeys(subject_ids):
                entry = entries.pop(subject_id, None)
                if entry is None:
                    raise CohortError(f"{self.path} holds no subject '{subject_id}'")
                doomed[subject_id] = folder_of(self.path, subject_id, entry)
            self._replace(current, entries, version)
            for folder in doomed.values():
                self._still_ours()
                remove(folder)

    # ---- checking

    def check(self, progress: Progress = silent) -> list[str]:
        """Re-read everything against its checksums and return one sentence a problem."""
        return check_store(self.path, progress)

    def repair(self, progress: Progress = silent) -> list[str]:
        """Check, forget every damaged subject, drop what was never committed, and renew damaged group metadata.

        Returns:
            The ids of the subjects that are gone: the same ingest takes them in again.
        """
        with self.lock():
            damaged = {p.subject_id for p in find_problems(self.path, progress) if p.subject_id is not None}
            loose = {}
            for folder in uncommitted_folders(self.path, self._manifest):
                written = read_written(folder)
                if written is not None:
                    loose[folder] = written.subject_id
            self.forget(damaged)
            for folder in loose:
                self._still_ours()
                remove(folder)
            write_frame(self.path)
        return sorted({*damaged, *loose.values()})

    # ---- inside

    def _replace(self, current: Manifest, entries: Mapping[str, Entry], version: str | None) -> None:
        updated = current.model_copy(update={"subjects": dict(sorted(entries.items()))})
        if updated != current:
            self._still_ours()
            with space_errors(self.path):
                write_manifest(self.path, updated, self.path / PARTIAL, version)
        self._manifest = updated

    def _still_ours(self) -> None:
        """Raise where the lock is somebody else's by now; asked before every step that cannot be taken back."""
        if self._confirm is not None:
            self._confirm()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self._depth == 0:
                self._confirm = stack.enter_context(exclusive(self.path / LOCK))
                if isinstance(self.path, Path):
                    with space_errors(self.path):
                        (self.path / PARTIAL).mkdir(exist_ok=True)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
