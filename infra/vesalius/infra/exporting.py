"""A store's volumes and a run's maps as NIfTI files, in the space of the file each subject came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from vesalius.platform.config import Settings
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.geometry import spacing_of, write_nifti
from vesalius.platform.progress import silent
from vesalius.platform.scoring import native_labels, native_map
from vesalius.platform.store import require_space

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.platform.config import Matrix4
    from vesalius.platform.progress import Progress
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.scoring.native import Placed
    from vesalius.platform.store import CohortStore, SubjectRecord

What = Literal["image", "brain", "head", "lesion", "structures", "map", "restoration", "extras"]
Grid = Literal["native", "prepared"]

WHATS: tuple[What, ...] = get_args(What)
OF_A_RUN: frozenset[str] = frozenset({"map", "restoration", "extras"})
ENDINGS = (".nii.gz", ".nii")
_SLACK_BYTES = 1_000_000

ScoresOf = Callable[["SubjectRecord"], "ScoreStore"]


class ExportedFile(Settings):
    """One file that was written.

    Attributes:
        subject_id: whose.
        what: which of its volumes.
        channel: the modality, where the volume has channels; of ``extras`` the further map's name.
        path: the file.
        shape: its voxels.
        spacing_mm: its voxel size.
        dtype: its type.
    """

    subject_id: str
    what: What
    channel: str | None = None
    path: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    dtype: str


class ExportReport(Settings):
    """What an export did.

    Attributes:
        files: written, in order.
        without: ids of the subjects that lack what was asked for, by what; only where several were asked for.
    """

    files: tuple[ExportedFile, ...]
    without: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """One stored array and the files it becomes: one, or one a channel; of ``extras``, one for each further map."""

    record: SubjectRecord
    what: What
    paths: dict[str | None, Path]


def export_volumes(
    store: CohortStore,
    subject_ids: Sequence[str],
    whats: Sequence[What],
    out: Path,
    *,
    grid: Grid = "native",
    scores_of: ScoresOf | None = None,
    lenient: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write volumes of subjects as NIfTI files, each complete or absent.

    Images, maps (``extras`` are a method's further ones, such as ``spread``) and restorations are sampled linearly as
    float32, masks (uint8) and structure labels (uint8 or uint16) by nearest neighbour. Where the prepared grid is the
    file's own (turned, flipped or cropped), every voxel is copied. Intensities are the prepared ones. A voxel of the
    file that the prepared grid does not reach is 0 in masks and labels, and the volume's least value in the others.

    Args:
        store: the cohort.
        subject_ids: whose volumes.
        whats: which volumes.
        out: a folder, or a file (.nii, .nii.gz) where one is written.
        grid: ``native`` the space of the file a subject came from, ``prepared`` the store's.
        scores_of: gives the finished scores of a subject's split; needed for maps and restorations.
        lenient: pass over subjects that lack what is asked for, and say so in the report.
        force: overwrite.
        progress: called before each file.

    Raises:
        CohortError: a subject is not in the store, or lacks what is asked for.
        SettingError: ``out`` is a file and several are to be written, or a file is there already.
        StoreError: there are no such scores.
        DiskSpaceError: there is no room.
    """
    planned, without = _plan(store, subject_ids, whats, out, scores_of, lenient)
    if not planned:
        missing = " or ".join(whats)
        raise CohortError(f"{store.path}: no subject asked for has a {missing}: `vesalius check` lists what there is")
    paths = [path for item in planned for path in item.paths.values()]
    _check_targets(paths, out, force)
    files: list[ExportedFile] = []
    for item in planned:
        volumes = _volumes(store, item, grid, scores_of)
        for (channel, path), (array, affine) in zip(item.paths.items(), volumes, strict=True):
            progress(len(files), len(paths), path.name)
            # As if nothing could be compressed; one file at a time, so that nothing is counted twice.
            require_space(path.parent, array.nbytes + _SLACK_BYTES)
            write_nifti(path, array, affine)
            d, h, w = array.shape
            files.append(
                ExportedFile(
                    subject_id=item.record.subject_id,
                    what=item.what,
                    channel=channel,
                    path=str(path),
                    shape=(d, h, w),
                    spacing_mm=spacing_of(affine),
                    dtype=array.dtype.name,
                )
            )
    progress(len(paths), len(paths), "")
    return ExportReport(files=tuple(files), without=without)


def _plan(
    store: CohortStore,
    subject_ids: Sequence[str],
    whats: Sequence[What],
    out: Path,
    scores_of: ScoresOf | None,
    lenient: bool,
) -> tuple[list[_Planned], dict[str, tuple[str, ...]]]:
    """Return what is to be written where, and who lacks what."""
    planned: list[_Planned] = []
    without: dict[str, tuple[str, ...]] = {}
    for subject_id in dict.fromkeys(subject_ids):
        record = store.record(subject_id)
        for what in dict.fromkeys(whats):
            if _has(record, what, scores_of):
                paths = {part: _target(out, record, what, part) for part in _parts(record, what, scores_of)}
                planned.append(_Planned(record=record, what=what, paths=paths))
            elif lenient:
                without[what] = (*without.get(what, ()), subject_id)
            else:
                has = [known for known in WHATS if known not in OF_A_RUN and _has(record, known, None)]
                raise CohortError(f"{store.path}: subject {subject_id} has no {what}, only {', '.join(has)}")
    return planned, without


def _has(record: SubjectRecord, what: What, scores_of: ScoresOf | None) -> bool:
    if what not in OF_A_RUN:
        return what in record.arrays
    if scores_of is None:
        raise SettingError(f"a {what} is a run's: name the run that made it")
    found = scores_of(record).record(record.subject_id)
    return {"map": True, "restoration": found.restoration}.get(what, bool(found.extras))


def _parts(record: SubjectRecord, what: What, scores_of: ScoresOf | None) -> tuple[str | None, ...]:
    """Return what tells the files of one array apart."""
    if what == "extras" and scores_of is not None:
        return scores_of(record).record(record.subject_id).extras
    return record.channels if what in ("image", "restoration") else (None,)


def _target(out: Path, record: SubjectRecord, what: What, channel: str | None) -> Path:
    if out.name.endswith(ENDINGS):
        return out
    # A modality may be called anything; a file may not.
    alone = channel is None or (what != "extras" and len(record.channels) == 1)
    suffix = "" if alone else f"_{re.sub(r'[^A-Za-z0-9._-]', '-', channel or '')}"
    return out / f"{record.subject_id}_{what}{suffix}.nii.gz"


def _check_targets(paths: Sequence[Path], out: Path, force: bool) -> None:
    """Refuse before anything is written what would overwrite, or end up in one file."""
    if out.name.endswith(ENDINGS):
        if len(paths) > 1:
            raise SettingError(f"{out} is one file and {len(paths)} are to be written: give a folder with --out")
    elif out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file that is not named .nii or .nii.gz: give a folder, or such a name")
    doubled = sorted({path for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if doubled:
        raise SettingError(f"two volumes would be written to {doubled[0]}: export them to different folders")
    standing = [path for path in paths if path.exists()]
    if any(path.is_dir() for path in standing):
        raise SettingError(f"{next(path for path in standing if path.is_dir())} is a folder: give another --out")
    if standing and not force:
        more = f" and {len(standing) - 1} more" if len(standing) > 1 else ""
        raise SettingError(f"{standing[0]}{more} exists already: give another --out, or --force to overwrite")


def _volumes(
    store: CohortStore, item: _Planned, grid: Grid, scores_of: ScoresOf | None
) -> list[tuple[NDArray[Any], Matrix4]]:
    """Return an array's volumes, one a file, each with its affine."""
    record, what = item.record, item.what
    placed: Placed = record
    values: NDArray[Any] | None
    if what == "map" or what == "restoration" or what == "extras":
        assert scores_of is not None  # _has refused it otherwise
        scores = scores_of(record)
        # Where a map lies is the scoring's to say: the store may have been made anew since.
        placed = scores.record(record.subject_id)
        if what == "extras":
            values = np.stack([scores.extra(record.subject_id, str(name)) for name in item.paths])
        else:
            values = scores.map(record.subject_id) if what == "map" else scores.restoration(record.subject_id)
    elif what == "image":
        values = store.image(record.subject_id)
    elif what == "structures":
        values = store.structures(record.subject_id)
    else:
        values = store.mask(record.subject_id, what)
    assert values is not None  # _has has looked
    volumes = list(values) if values.ndim == 4 else [values]
    if values.dtype.kind == "f":
        if grid == "native":
            return [native_map(volume, placed) for volume in volumes]
        return [(np.asarray(volume, dtype=np.float32), placed.affine) for volume in volumes]
    if grid == "native":
        return [native_labels(volume, placed) for volume in volumes]
    return [(volume.astype(np.uint8) if volume.dtype == np.bool_ else volume, placed.affine) for volume in volumes]
