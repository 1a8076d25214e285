"""A committed cohort, to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from vesalius.platform.errors import CohortError, StoreError, UnreachableError
from vesalius.platform.store.arrays import read_array
from vesalius.platform.store.checking import folder_of
from vesalius.platform.store.facts import cohort_facts
from vesalius.platform.store.manifest import Manifest, read_manifest
from vesalius.platform.store.ngff import array_path
from vesalius.platform.store.place import place_of
from vesalius.platform.store.remote import RemotePath

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.platform.contracts import CohortFacts
    from vesalius.platform.store.manifest import Entry
    from vesalius.platform.store.place import Place
    from vesalius.platform.store.records import SubjectRecord


class CommittedCohort:
    """What is committed in a store: records, and voxels as they are asked for. The reading half of a cohort store."""

    def __init__(self, path: Place, manifest: Manifest) -> None:
        # A Place. Whoever made the store in a folder may use it as the path that they gave.
        self.path: Path | Any = path
        self._manifest = manifest

    @classmethod
    def open(cls, path: Place | str) -> Self:
        """Open a store for reading.

        Args:
            path: its folder or URL.

        Raises:
            StoreError: the folder is not a store, or its manifest is damaged; the URL cannot be reached or used.
        """
        path = place_of(path)
        return cls(path, read_manifest(path))

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
        return self._read(subject_id, "brain").astype(np.bool_)

    @property
    def chunk_edge(self) -> int | None:
        """Edge in voxels of the cubes that can be read by themselves; None at a URL, whose files are read whole."""
        return None if isinstance(self.path, RemotePath) else self._manifest.chunks.chunk

    def stored(self, subject_id: str, role: str, box: Sequence[tuple[int, int]] | None = None) -> NDArray[Any]:
        """Return an array in the type it is stored in: whole, or the voxels ``[start, stop)`` along D, H, W.

        Raises:
            CohortError: the subject has no such array.
        """
        if role not in self.record(subject_id).arrays:
            raise CohortError(f"subject {subject_id} of {self.path} has no {role} array: prepare it by another recipe")
        return self._read(subject_id, role, box)

    def mask(self, subject_id: str, role: Literal["brain", "head", "lesion"]) -> NDArray[np.bool_] | None:
        """Return a (D, H, W) mask, or None where the subject has none."""
        if role not in self.record(subject_id).arrays:
            return None
        return self._read(subject_id, role).astype(np.bool_)

    def structures(self, subject_id: str) -> NDArray[np.integer[Any]] | None:
        """Return (D, H, W) structure labels (see ``record.structures``), or None where the subject has none."""
        return self._read(subject_id, "structures") if "structures" in self.record(subject_id).arrays else None

    def facts(self, split: str = "train", *, any_grid: bool = False) -> CohortFacts:
        """Return what a method may know of the cohort: the ordered subjects of a split and their one grid.

        All of the training split counts: an anomalous subject stands there only by the user's word. Of other splits
        the healthy ones do. The affine is the first subject's; another's may differ by where its grid lies.

        Args:
            split: whose subjects.
            any_grid: let them lie on different grids (:attr:`Method.any_grid`). Grid and spacing are then the finest
                voxels over the largest extent, so that :attr:`CohortFacts.box_mm` holds every subject's grid.

        Raises:
            CohortError: there is no such subject, or they do not share one grid and need to.
        """
        subjects = self.subjects(split, healthy=None if split == "train" else True)
        return cohort_facts(self.path, subjects, split, self.channels, self.digest, self.recipe, any_grid=any_grid)

    def folder(self, subject_id: str) -> Place:
        """Return where a committed subject's group lies.

        Raises:
            CohortError: no such subject is committed.
        """
        return folder_of(self.path, subject_id, self._entry(subject_id))

    def _entry(self, subject_id: str) -> Entry:
        entry = self._manifest.subjects.get(subject_id)
        if entry is None:
            raise CohortError(f"{self.path} holds no subject '{subject_id}'")
        return entry

    def _read(self, subject_id: str, name: str, box: Sequence[tuple[int, int]] | None = None) -> NDArray[Any]:
        facts = self._entry(subject_id).record.arrays[name]
        folder = self.folder(subject_id) / array_path(name)
        try:
            array = read_array(folder, box)
        except (MemoryError, UnreachableError):
            raise
        except Exception as error:  # whatever a decoder throws at damaged bytes
            raise StoreError(
                f"{folder} cannot be read ({type(error).__name__}): run 'vesalius check {self.path}'"
            ) from error
        if (box is None and array.shape != facts.shape) or array.dtype.name != facts.dtype:
            raise StoreError(f"{folder} is not what was committed: run 'vesalius check {self.path}'")
        return array
