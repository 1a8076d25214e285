"""The score store: the maps of one model over one split."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from vesalius.platform.config import canonical_json, digest
from vesalius.platform.errors import StoreError
from vesalius.platform.scoring.files import MAP, RESTORATION, array_path, extra_name, score_arrays, score_files
from vesalius.platform.scoring.records import ScoreInfo, ScoreRecord
from vesalius.platform.store import check_subject_id, space_errors
from vesalius.platform.store.arrays import array_facts, read_array, write_group
from vesalius.platform.store.files import sync_folder, write_file, write_files
from vesalius.platform.store.lock import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Score

FORMAT = 2
# Not the name of a cohort store's manifest: neither kind of folder can be taken for the other.
_MANIFEST = "scores.json"
_SUBJECTS = "subjects"
_PARTIAL = ".partial"
_LOCK = ".lock"
_OURS = frozenset({_MANIFEST, _SUBJECTS, _PARTIAL, _LOCK, "zarr.json"})


class ScoreStore:
    """Maps on disk. Reading is safe from any number of threads and processes; :meth:`writing` makes the one writer."""

    def __init__(self, path: Path, info: ScoreInfo, records: Iterable[ScoreRecord]) -> None:
        self.path = path
        self.info = info
        self._records = {record.subject_id: record for record in sorted(records, key=lambda item: item.subject_id)}

    # ---- opening

    @classmethod
    @contextlib.contextmanager
    def writing(cls, path: Path, info: ScoreInfo) -> Iterator[ScoreStore]:
        """Be the one writer of an empty score store, or of what another call with the same identity left here.

        Scores of another model, cohort or split at the same place are replaced.

        Raises:
            StoreError: the folder holds something that is not a score store, or another process is writing.
        """
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file: give a folder for the scores")
        standing = _read_info(path)
        if standing is None and path.is_dir() and not _is_of_another_format(path):
            foreign = sorted({entry.name for entry in path.iterdir()} - _OURS)
            if foreign or (path / "zarr.json").exists():
                raise StoreError(
                    f"{path} is not empty and not a score store (it holds {(foreign or ['zarr.json'])[0]}): "
                    "give another folder"
                )
        with space_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with exclusive(path / _LOCK):
            standing = _read_info(path)
            if standing is None or standing.identity != info.identity:
                with space_errors(path):
                    _begin(path, info)
            yield cls(path, info, _finished_subjects(path))

    @classmethod
    def open(cls, path: Path) -> ScoreStore:
        """Open finished scores for reading.

        Raises:
            StoreError: the folder holds no scores, or the scoring was broken off.
        """
        info = _read_info(path)
        if info is None:
            if _is_of_another_format(path):
                raise StoreError(f"{path} holds scores of another version: run the same `vesalius score` again")
            raise StoreError(f"{path} holds no scores: make them with `vesalius score`")
        records = _read_manifest(path)
        if records is None:
            raise StoreError(f"{path}: the scoring was broken off or is under way: run the same `vesalius score` again")
        return cls(path, info, records)

    # ---- what it holds

    @property
    def records(self) -> list[ScoreRecord]:
        """Scored subjects sorted by id."""
        return list(self._records.values())

    @property
    def seconds_per_volume(self) -> float | None:
        """Mean over the subjects; None without any."""
        return float(np.mean([record.seconds for record in self.records])) if self._records else None

    def __contains__(self, subject_id: object) -> bool:
        return subject_id in self._records

    def record(self, subject_id: str) -> ScoreRecord:
        """Return one subject's record.

        Raises:
            StoreError: the subject was not scored.
        """
        if subject_id not in self._records:
            raise StoreError(f"{self.path} holds no scores of subject '{subject_id}': score the split again")
        return self._records[subject_id]

    def map(self, subject_id: str) -> NDArray[np.float16]:
        """Return the (D, H, W) float16 anomaly map, higher is more anomalous."""
        return self._read(subject_id, MAP)

    def restoration(self, subject_id: str) -> NDArray[np.float16] | None:
        """Return the (C, D, H, W) float16 restoration, or None where the method has none."""
        return self._read(subject_id, RESTORATION) if self.record(subject_id).restoration else None

    def extra(self, subject_id: str, name: str) -> NDArray[np.float16]:
        """Return a further (D, H, W) float16 map.

        Raises:
            StoreError: there is none of that name.
        """
        known = self.record(subject_id).extras
        if name not in known:
            raise StoreError(f"{self.path}: subject {subject_id} has no extra map '{name}', only {list(known)}")
        return self._read(subject_id, extra_name(name))

    # ---- writing

    def write(self, record: ScoreRecord, score: Score) -> None:
        """Write one subject's maps; complete or absent, whenever the process is killed. Only inside :meth:`writing`.

        Args:
            record: its ``restoration``, ``extras`` and ``arrays`` are filled in here.
            score: of the volume of ``record.shape``.

        Raises:
            DivergenceError: a value is not finite as float16.
            DiskSpaceError: the disk is full.
            ModelError: a further map's name cannot name a folder.
            VolumeError: the record's axes do not run to the right, to the front and up.
        """
        subject_id = check_subject_id(record.subject_id)
        arrays = score_arrays(score, self.info.method, subject_id)
        record = record.model_copy(
            update={
                "restoration": score.restoration is not None,
                "extras": tuple(sorted(score.extras)),
                "arrays": {name: array_facts(values) for name, values in arrays.items()},
            }
        )
        files = score_files(record, arrays)
        partial = self.path / _PARTIAL / f"{subject_id}.{uuid.uuid4().hex}"
        final = self.path / _SUBJECTS / subject_id
        try:
            with space_errors(self.path):
                partial.parent.mkdir(exist_ok=True)
                write_files(partial, files)
                shutil.rmtree(final, ignore_errors=True)
                os.rename(partial, final)
                sync_folder(final.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._records = dict(sorted({**self._records, subject_id: record}.items()))

    def finish(self) -> None:
        """Write the manifest: from now on the scores count as complete."""
        body = {"records": [record.model_dump(mode="json") for record in self.records]}
        aside = self.path / _PARTIAL
        with space_errors(self.path):
            aside.mkdir(exist_ok=True)
            content = canonical_json({**body, "sha256": digest(body)}).encode()
            write_file(self.path / _MANIFEST, content, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _read(self, subject_id: str, name: str) -> NDArray[np.float16]:
        facts = self.record(subject_id).arrays.get(name)
        folder = self.path / _SUBJECTS / subject_id / array_path(name)
        advice = f"remove {self.path} and score the split again"
        try:
            values = read_array(folder).astype(np.float16)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder throws at damaged bytes
            raise StoreError(f"{folder} cannot be read ({type(error).__name__}): {advice}") from error
        # A file that is gone would read as zeros: as if nothing had been found.
        if array_facts(values) != facts:
            raise StoreError(f"{folder} does not hold what was scored: {advice}")
        return values


def _begin(path: Path, info: ScoreInfo) -> None:
    """Empty the folder and note what will be scored."""
    # The manifest goes first and the attributes come last: killed in between, the folder is begun anew.
    (path / _MANIFEST).unlink(missing_ok=True)
    (path / "zarr.json").unlink(missing_ok=True)
    shutil.rmtree(path / _SUBJECTS, ignore_errors=True)
    (path / _SUBJECTS).mkdir()
    aside = path / _PARTIAL
    aside.mkdir(exist_ok=True)
    write_group(path / _SUBJECTS, {}, aside)
    write_group(path, {"vesalius": {"scores": FORMAT, "info": info.model_dump(mode="json")}}, aside)


def _attributes(folder: Path) -> Any:
    """Return what this package noted in a group's attributes, or None."""
    try:
        return json.loads((folder / "zarr.json").read_text())["attributes"]["vesalius"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_info(path: Path) -> ScoreInfo | None:
    noted = _attributes(path)
    if not isinstance(noted, dict) or noted.get("scores") != FORMAT:
        return None
    try:
        return ScoreInfo.model_validate(noted.get("info"))
    except ValidationError:
        return None


def _is_of_another_format(path: Path) -> bool:
    noted = _attributes(path)
    return isinstance(noted, dict) and "scores" in noted


def _read_manifest(path: Path) -> list[ScoreRecord] | None:
    """Return the records of finished scores, or None where the manifest is missing or damaged."""
    try:
        body = json.loads((path / _MANIFEST).read_bytes())
        checksum = body.pop("sha256")
        if digest(body) != checksum:
            return None
        return [ScoreRecord.model_validate(item) for item in body["records"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _finished_subjects(path: Path) -> list[ScoreRecord]:
    """Return the records of subjects that are completely written: their folders were renamed into place."""
    records = []
    for folder in sorted((path / _SUBJECTS).iterdir()):
        noted = _attributes(folder) if folder.is_dir() else None
        # What cannot be read counts as not scored, and is scored again.
        with contextlib.suppress(ValidationError):
            records.append(ScoreRecord.model_validate(noted["record"] if isinstance(noted, dict) else None))
    return records
