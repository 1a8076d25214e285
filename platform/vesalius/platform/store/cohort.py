"""The cohort store: prepared volumes of one recipe, a Zarr v3 group a subject, and a manifest that is the commit."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vesalius.platform.config import canonical_json, digest
from vesalius.platform.errors import CohortError, StoreError
from vesalius.platform.progress import silent
from vesalius.platform.store.arrays import ChunkSettings, array_facts, encode, read_array, write_array, write_group
from vesalius.platform.store.files import file_digest, folder_digests, remove_folder, sync_folder
from vesalius.platform.store.lock import exclusive
from vesalius.platform.store.manifest import FORMAT, NAME, Entry, Manifest, read_manifest, record_digest, write_manifest
from vesalius.platform.store.records import SubjectArrays, SubjectRecord, check_subject_id
from vesalius.platform.store.space import require_space, space_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.platform.contracts import CohortFacts
    from vesalius.platform.progress import Progress

_PARTIAL = ".partial"
_LOCK = ".lock"
_SUBJECTS = "subjects"
_OURS = frozenset({_PARTIAL, _LOCK, _SUBJECTS, "zarr.json"})
# Room for metadata, the manifest and the file system's own blocks, beside the voxels themselves.
_SLACK_BYTES = 1_000_000


class CohortStore:
    """A cohort on disk. Make one with :meth:`create` or :meth:`open`.

    Reading is safe from any number of threads and processes; open the store in each process. Writing is for one
    process that holds :meth:`lock`, together with the workers it hands :meth:`write` to.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        self._locks = 0

    # ---- opening

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        recipe: Mapping[str, Any],
        channels: Sequence[str],
        name: str = "",
        chunks: ChunkSettings | None = None,
    ) -> CohortStore:
        """Make an empty store, or open the one that is there if it is of the same recipe and channels.

        Args:
            path: a folder that is absent, empty, or already a store.
            recipe: JSON of how subjects are prepared; ``recipe["dtype"]`` is the image's type (float32 or float16).
            channels: modality names in the order of the image's first axis.
            name: what the cohort is called.
            chunks: how arrays are cut and compressed; None for the measured default.

        Raises:
            StoreError: the folder holds something else, or a store of another recipe or other channels.
        """
        plain = dict(recipe)
        if plain.get("dtype", "float32") not in ("float32", "float16"):
            raise StoreError(f"{path}: the recipe's dtype is {plain['dtype']!r}, expected float32 or float16")
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file: give a folder for the store")
        if path.is_dir() and not (path / NAME).exists():
            foreign = sorted({entry.name for entry in path.iterdir()} - _OURS)
            if foreign:
                raise StoreError(
                    f"{path} is not empty and not a cohort store (it holds {foreign[0]}): give another folder"
                )
        manifest = Manifest(name=name, recipe=plain, channels=tuple(channels), chunks=chunks or ChunkSettings())
        with space_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            with exclusive(path / _LOCK):
                if not (path / NAME).exists():
                    require_space(path, _SLACK_BYTES)
                    (path / _PARTIAL).mkdir(exist_ok=True)
                    (path / _SUBJECTS).mkdir(exist_ok=True)
                    write_group(path / _SUBJECTS, {})
                    write_group(path, {"vesalius": {"format": FORMAT}})
                    write_manifest(path, manifest, path / _PARTIAL)
        store = cls.open(path)
        if store.recipe_digest != manifest.recipe_digest:
            raise StoreError(
                f"{path} was prepared by another recipe ({_differences(store.recipe, plain)}): "
                "give the same recipe or another folder"
            )
        if store.channels != manifest.channels:
            raise StoreError(
                f"{path} holds the channels {', '.join(store.channels)} and not {', '.join(channels)}: "
                "give the same modalities or another folder"
            )
        return store

    @classmethod
    def open(cls, path: Path) -> CohortStore:
        """Open a store for reading.

        Raises:
            StoreError: the folder is not a store, or its manifest is damaged.
        """
        return cls(path, read_manifest(path))

    # ---- what it holds

    @property
    def name(self) -> str:
        """What the cohort is called."""
        return self._manifest.name

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe every subject was prepared by, as plain JSON."""
        return dict(self._manifest.recipe)

    @property
    def recipe_digest(self) -> str:
        """Digest of the recipe."""
        return self._manifest.recipe_digest

    @property
    def channels(self) -> tuple[str, ...]:
        """Modality names, in the order of the images' first axis."""
        return self._manifest.channels

    @property
    def digest(self) -> str:
        """Digest of the cohort: the same input gives the same, whatever the order, time, workers or codec."""
        return self._manifest.cohort_digest

    def subjects(self, split: str | None = None, *, healthy: bool | None = None) -> list[SubjectRecord]:
        """Return committed subjects sorted by id: of one split or all, healthy or not or both."""
        records = (self._manifest.subjects[key].record for key in sorted(self._manifest.subjects))
        return [
            record
            for record in records
            if (split is None or record.split == split) and (healthy is None or record.has_lesion is not healthy)
        ]

    def record(self, subject_id: str) -> SubjectRecord:
        """Return one subject's record.

        Raises:
            CohortError: no such subject is committed.
        """
        return self._entry(subject_id).record

    def image(self, subject_id: str) -> NDArray[np.float32]:
        """Return (C, D, H, W) float32 intensities."""
        return self._read(subject_id, "image").astype(np.float32, copy=False)

    def brain(self, subject_id: str) -> NDArray[np.bool_]:
        """Return the (D, H, W) brain mask."""
        return self._read(subject_id, "brain").view(np.bool_)

    def mask(self, subject_id: str, role: Literal["brain", "head", "lesion"]) -> NDArray[np.bool_] | None:
        """Return a (D, H, W) mask, or None where the subject has none."""
        return self._read(subject_id, role).view(np.bool_) if role in self.record(subject_id).arrays else None

    def structures(self, subject_id: str) -> NDArray[np.integer[Any]] | None:
        """Return (D, H, W) structure labels (see ``record.structures``), or None where the subject has none."""
        return self._read(subject_id, "structures") if "structures" in self.record(subject_id).arrays else None

    def facts(self, split: str = "train") -> CohortFacts:
        """Return what a method may know of the cohort: the ordered healthy subjects of a split and their one grid.

        Raises:
            CohortError: there is no healthy subject in the split, or they do not share one grid.
        """
        from vesalius.platform.contracts import CohortFacts  # imports torch, which reading a store does not need

        records = self.subjects(split, healthy=True)
        if not records:
            raise CohortError(f"{self.path} holds no healthy subject in the split '{split}'")
        first = records[0]
        for record in records[1:]:
            if record.shape != first.shape or not np.allclose(record.affine, first.affine, rtol=0, atol=1e-4):
                raise CohortError(
                    f"{self.path}: subjects {first.subject_id} and {record.subject_id} lie on different grids "
                    f"({first.shape} and {record.shape}): prepare them with one grid"
                )
        return CohortFacts(
            subjects=tuple(record.subject_id for record in records),
            grid=first.shape,
            spacing_mm=first.spacing_mm,
            affine=first.affine,
            channels=self.channels,
            digest=self.digest,
        )

    # ---- writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one writer: hold this for a whole ingest. Clears what a killed writer left unfinished.

        Raises:
            StoreError: another writer is at work; the message names it.
        """
        with self._locked():
            if self._locks == 1:
                for leftover in (self.path / _PARTIAL).iterdir():
                    remove_folder(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
            yield

    def write(self, record: SubjectRecord, arrays: SubjectArrays) -> SubjectRecord:
        """Write a subject's voxels. It is not visible before :meth:`commit`. Workers may call this in parallel.

        Returns:
            The record with ``arrays`` and ``has_lesion`` filled in: hand it to :meth:`commit`.

        Raises:
            CohortError: the id cannot name a subject.
            VolumeError: shapes disagree or the image is not finite.
            StoreError: the subject is committed with other content, or is of another recipe or other channels.
            DiskSpaceError: the disk is full; nothing half-written stays.
        """
        subject_id = check_subject_id(record.subject_id)
        record = self._completed(record)
        encoded = encode(record, arrays, self.recipe.get("dtype", "float32"))
        lesion = encoded.get("lesion")
        record = record.model_copy(
            update={
                "arrays": {name: array_facts(array) for name, array in encoded.items()},
                "has_lesion": bool(
                    record.has_lesion or record.labels.get("anomalous") is True or (lesion is not None and lesion.any())
                ),
            }
        )
        committed = self._manifest.subjects.get(subject_id)
        if committed is not None:
            if record_digest(committed.record) == record_digest(record):
                return committed.record
            raise StoreError(f"{self.path}: subject {subject_id} is committed with other content: give it another id")
        require_space(self.path, sum(array.nbytes for array in encoded.values()) + _SLACK_BYTES)
        with space_errors(self.path):
            self._write_aside(record, encoded)
        return record

    def commit(self, records: Iterable[SubjectRecord]) -> None:
        """Make written subjects part of the cohort, all or none, by replacing the manifest in one step.

        Raises:
            StoreError: a subject was not written, or is committed with other content.
            DiskSpaceError: the disk is full; the old manifest stands.
        """
        with self._locked(), space_errors(self.path):
            current = read_manifest(self.path)
            entries = dict(current.subjects)
            for record in records:
                known = entries.get(record.subject_id)
                if known is not None and record_digest(known.record) != record_digest(record):
                    raise StoreError(
                        f"{self.path}: subject {record.subject_id} is committed with other content: give it another id"
                    )
                metadata = self.path / _SUBJECTS / check_subject_id(record.subject_id) / "zarr.json"
                if not metadata.exists():
                    raise StoreError(f"{self.path}: subject {record.subject_id} was not written before its commit")
                if known is None:
                    entries[record.subject_id] = Entry(record=record, metadata_sha256=file_digest(metadata))
            updated = current.model_copy(update={"subjects": dict(sorted(entries.items()))})
            if updated != current:
                write_manifest(self.path, updated, self.path / _PARTIAL)
            self._manifest = updated

    # ---- checking

    def check(self, progress: Progress = silent) -> list[str]:
        """Re-read everything against its checksums and return one sentence a problem."""
        from vesalius.platform.store.checking import check_store

        return check_store(self.path, progress)

    # ---- inside

    def _entry(self, subject_id: str) -> Entry:
        entry = self._manifest.subjects.get(subject_id)
        if entry is None:
            raise CohortError(f"{self.path} holds no subject '{subject_id}'")
        return entry

    def _read(self, subject_id: str, name: str) -> NDArray[Any]:
        facts = self._entry(subject_id).record.arrays[name]
        folder = self.path / _SUBJECTS / subject_id / name
        try:
            array = read_array(folder)
        except Exception as error:
            raise StoreError(
                f"{folder} cannot be read ({type(error).__name__}): run 'vesalius check {self.path}'"
            ) from error
        if array.shape != facts.shape or array.dtype.name != facts.dtype:
            raise StoreError(f"{folder} is not what was committed: run 'vesalius check {self.path}'")
        return array

    def _completed(self, record: SubjectRecord) -> SubjectRecord:
        if record.channels != self.channels:
            raise StoreError(
                f"subject {record.subject_id} has the channels {', '.join(record.channels)} "
                f"and {self.path} holds {', '.join(self.channels)}"
            )
        if record.recipe_digest and record.recipe_digest != self.recipe_digest:
            raise StoreError(f"subject {record.subject_id} was prepared by another recipe than {self.path}")
        return record.model_copy(update={"recipe_digest": self.recipe_digest})

    def _write_aside(self, record: SubjectRecord, encoded: Mapping[str, NDArray[Any]]) -> None:
        partial = self.path / _PARTIAL / f"{record.subject_id}.{uuid.uuid4().hex}"
        replaced = partial.with_name(partial.name + ".replaced")
        final = self.path / _SUBJECTS / record.subject_id
        try:
            partial.mkdir(parents=True)
            for name, array in encoded.items():
                write_array(partial / name, array, self._manifest.chunks)
            files = folder_digests(partial, sync=True)
            write_group(partial, {"vesalius": {"record": record.model_dump(mode="json"), "files": files}})
            file_digest(partial / "zarr.json", sync=True)
            sync_folder(partial)
            if final.exists():
                # Written before and never committed: a writer was killed in between.
                os.rename(final, replaced)
            os.rename(partial, final)
            sync_folder(final.parent)
        finally:
            remove_folder(partial)
            remove_folder(replaced)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self._locks == 0:
                stack.enter_context(exclusive(self.path / _LOCK))
                (self.path / _PARTIAL).mkdir(exist_ok=True)
            self._locks += 1
            try:
                yield
            finally:
                self._locks -= 1


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*old, *new}) if canonical_json(old.get(key)) != canonical_json(new.get(key))]
    return "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in keys[:3]) or digest(old)[:12]
