"""A tree of DICOM files as archives and scanners export them: one folder a patient or a study, series below it.

Names of files and of folders below the first mean nothing: what belongs together is read from the tags.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.dicom import by_preference, find_series
from vesalius.datasets.dicom.headers import looks_like_dicom
from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vesalius.datasets.dicom import Series

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One series of a folder, without its files' tags: those of a whole archive would fill a memory.

    Attributes:
        series: without headers.
        rank: in the order of preference of the folder's usable series; -1 for one with a problem.
        study: time and UID of its study; empty where its one file cannot be read.
        patients: digests of the patients' IDs.
    """

    series: Series
    rank: int
    study: tuple[str, str]
    patients: frozenset[str]


class DicomLayout:
    """A folder of patients' or studies' folders, or one such folder.

    Each folder in ``root`` is a subject, named by it, with all that lies below; where DICOM files lie in ``root``
    itself, it is the one subject. Several studies in a folder give one subject each, ``<folder>_study-01`` by date, all
    of one person; so do folders whose files carry one patient's ID. Of each modality the series that
    :func:`vesalius.datasets.dicom.best_series` prefers is taken; every other one is named in the subject's warnings.

    Every file's tags are read once: what was found in a folder is kept until a file in it changes, comes or goes.
    """

    # Of CT, which most such trees are; MR is refused by it by name and takes another with --recipe.
    default_recipe: ClassVar[str] = "f_anogan_3d_2020"
    about: ClassVar[About] = About(
        tree="""\
ROOT/
  patient-1/study/series/IM0001.dcm                   any names and depth: what belongs together is in the tags""",
        source="an archive's or a scanner's export of head CT or MR",
        terms="those of the data: DICOM files name people unless they were de-identified",
    )

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[str, tuple[_Found, ...]]] = {}

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return the modalities of the series that make a volume: of ``CT`` and ``MR``.

        Raises:
            CohortError: there is no DICOM file, or none of the series makes a volume.
        """
        names: set[str] = set()
        problems: list[str] = []
        for _, everything in self._folders(root):
            names |= {found.series.modality for found in everything if found.series.problem is None}
            problems.extend(found.series.problem for found in everything if found.series.problem is not None)
        if not names:
            raise CohortError(f"{root} holds no series that makes a volume: {_reasons(problems)}")
        return tuple(sorted(names))

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a study, sorted by id, without reading a voxel (except of files that claim one place).

        Raises:
            CohortError: there is no DICOM file.
        """
        subjects = []
        first_seen: dict[str, str] = {}
        for folder, everything in self._folders(root):
            patients = {patient for found in everything for patient in found.patients}
            known = sorted({first_seen[patient] for patient in patients if patient in first_seen})
            person = known[0] if known else _id_of(folder)
            first_seen.update(dict.fromkeys(patients, person))
            problem = (
                f"{folder} holds images of {len(patients)} patients: give each a folder" if len(patients) > 1 else None
            )
            subjects.extend(_subjects(folder, everything, modalities, person, problem))
        return sorted(subjects, key=lambda raw: raw.subject_id)

    def write_example(self, root: Path) -> Path:
        """Write four patients: tilted and uneven, a duplicate, scouts and dose sheets, two studies of one person."""
        from vesalius.datasets.layouts.example_dicom import write_dicom_example

        return write_dicom_example(root)

    def _folders(self, root: Path) -> Iterator[tuple[Path, tuple[_Found, ...]]]:
        """Yield each subject's folder with the series in it, one at a time.

        Raises:
            CohortError: there is no DICOM file.
        """
        if not root.is_dir():
            raise CohortError(f"{root} is not a folder: give one that holds DICOM files, or folders of them")
        places = sorted(root.iterdir())
        if any(path.is_file() and looks_like_dicom(path) for path in places):
            places = [root]
        is_empty = True
        for place in places:
            if place.is_dir() and (place == root or not place.is_symlink()):
                everything = self._found(place, root)
                if everything:
                    is_empty = False
                    yield place, everything
        if is_empty:
            raise CohortError(f"{root} holds no DICOM file: expected folders of patients with .dcm files below them")

    def _found(self, place: Path, root: Path) -> tuple[_Found, ...]:
        state = _state(place)
        known = self._kept.get(place)
        if known is None or known[0] != state:
            self._kept[place] = known = (state, _without_tags(find_series(place, root=root)))
        return known[1]


def _state(folder: Path) -> str:
    """Return a digest of the names, sizes and times of all files below a folder, of what links lead to also."""
    told = hashlib.sha256()
    for place, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            state: tuple[int, ...] = ()
            try:
                status = os.stat(path)
                state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            except OSError:  # a broken link is a state too
                pass
            told.update(f"{path!a} {state}\n".encode())
    return told.hexdigest()


def _without_tags(everything: Sequence[Series]) -> tuple[_Found, ...]:
    ranks = {id(one): rank for rank, one in enumerate(by_preference([s for s in everything if s.problem is None]))}
    return tuple(
        _Found(
            series=replace(series, headers=()),
            rank=ranks.get(id(series), -1),
            study=min(((header.study_time, header.study_uid) for header in series.headers), default=("", "")),
            patients=frozenset(header.patient for header in series.headers if header.patient),
        )
        for series in everything
    )


def _subjects(
    folder: Path, everything: Sequence[_Found], modalities: Sequence[str], person: str, problem: str | None
) -> list[RawSubject]:
    studies: dict[str, list[_Found]] = defaultdict(list)
    for found in everything:
        studies[found.study[1]].append(found)
    usable = [
        study
        for study in studies.values()
        if any(found.series.problem is None and found.series.modality in modalities for found in study)
    ]
    if len(usable) < 2:
        return [_subject(folder, _id_of(folder), everything, modalities, person, problem)]
    stray = [found for study in studies.values() if study not in usable for found in study]
    usable.sort(key=lambda study: min(found.study for found in study))
    return [
        _subject(folder, f"{_id_of(folder)}_study-{number:02d}", [*study, *stray], modalities, person, problem)
        for number, study in enumerate(usable, 1)
    ]


def _subject(
    folder: Path,
    subject_id: str,
    everything: Sequence[_Found],
    modalities: Sequence[str],
    person: str,
    problem: str | None,
) -> RawSubject:
    taken: dict[str, tuple[str, ...]] = {}
    problems = [found.series.problem for found in everything if found.series.problem is not None]
    warnings = list(problems)
    for modality in modalities:
        candidates = [
            found for found in everything if found.series.problem is None and found.series.modality == modality
        ]
        if not candidates:
            continue
        best = min(candidates, key=lambda found: found.rank).series
        taken[modality] = tuple(str(path.absolute()) for path in best.files)
        warnings.extend(best.warnings)
        warnings.extend(
            f"{found.series.name} was not taken: {best.name} serves better"
            for found in candidates
            if found.series is not best
        )
    if not taken:
        problem = problem or f"{folder}: none of its series makes a volume: {_reasons(problems)}"
    return RawSubject(
        subject_id=subject_id,
        person=person,
        series=taken,
        origin=str(folder),
        problem=problem,
        warnings=tuple(warnings),
    )


def _reasons(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more if problems else "of the modalities asked for there is none"


def _id_of(folder: Path) -> str:
    text = re.sub(r"[^A-Za-z0-9._-]", "_", folder.absolute().name)
    return text.lstrip(".")[:100] or "subject"
