"""CQ500: head CT of 491 patients in Delhi as DICOM series, read by three radiologists (Chilamkurthy et al. 2018).

One scan a patient is taken (Bieder et al. 2022, section 3): without contrast agent by the words of the series' folder
and description (``CT C``, ``CECT``, ``POST CONTRAST``, ``ORAL IV``, ``4cc sec 150cc`` are with), then what
:func:`vesalius.datasets.dicom.best_series` prefers: a soft kernel, the longer extent, the thinner slices. The paper's
own 196 scans are not known: a table ``series.csv`` beside ``reads.csv`` (columns ``name``, ``series``: the series'
folder) overrides the choice for the scans that it names. Series that are no volume are named in the subject's warnings.

Each finding is what two of the three readers saw. A scan is anomalous with a bleed or a fracture (Bieder et al. 2022,
appendix B): mass effect and shift are labels and do not by themselves keep a scan out of the training split. Single
readers' votes are in :func:`read_reads`. There are no masks.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vesalius.datasets.dicom import Series, best_series, find_series
from vesalius.datasets.layouts.ct_findings import CT_FINDINGS
from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.layouts.tabular import read_table, require_columns, zero_or_one
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

READERS = ("R1", "R2", "R3")
FINDINGS = {
    "ICH": "ich",
    "IPH": "iph",
    "IVH": "ivh",
    "SDH": "sdh",
    "EDH": "edh",
    "SAH": "sah",
    "BleedLocation-Left": "bleed_left",
    "BleedLocation-Right": "bleed_right",
    "ChronicBleed": "chronic_bleed",
    "Fracture": "fracture",
    "CalvarialFracture": "calvarial_fracture",
    "OtherFracture": "other_fracture",
    "MassEffect": "mass_effect",
    "MidlineShift": "midline_shift",
}
"""Label by the name that reads.csv has for it."""

_FOLDER = re.compile(r"CQ500-?CT-?(\d+)(?: CQ500-?CT-?\d+)?")
_PLAIN = re.compile(r"\b(plain|pre|non|without|ncct)\b", re.IGNORECASE)
_CONTRAST = re.compile(r"\b(contrast|post|cect|c|iv|cc|cta|angio\w*)\b|\d+cc\b|c\+", re.IGNORECASE)
_TWO_OF_THREE = 2
_NUM_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What each reader saw.

    Attributes:
        names: scans, in the order of the table.
        categories: the table's column ``Category`` by scan: how the scan was selected (B1, B2).
        findings: labels, in the order of the last axis of ``votes``.
        votes: (scans, 3 readers, findings) bool.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    findings: tuple[str, ...]
    votes: NDArray[np.bool_]

    def majority(self) -> NDArray[np.bool_]:
        """Return (scans, findings): what two readers or three saw."""
        seen: NDArray[np.bool_] = self.votes.sum(axis=1) >= _TWO_OF_THREE
        return seen


class Cq500Layout:
    """The unpacked archives of CQ500 in one folder, with reads.csv."""

    default_recipe: ClassVar[str] = "position_regression_2022"
    about: ClassVar[About] = About(
        tree="""\
ROOT/
  reads.csv
  series.csv                                          optional: name,series chooses a scan's series by its folder
  CQ500-CT-427/Unknown Study/CT Plain/CT000000.dcm    or CQ500CT427 CQ500CT427/Unknown Study/...""",
        source="http://headctstudy.qure.ai/dataset (also https://academictorrents.com, CQ500)",
        terms="CC BY-NC-SA 4.0; cite Chilamkurthy et al., Lancet 2018",
        labels={
            "anomalous": "a bleed or a fracture",
            **{name: f"{CT_FINDINGS[name]}: seen by two of three readers" for name in FINDINGS.values()},
        },
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return ``("CT",)``.

        Raises:
            CohortError: there is no folder of a scan.
        """
        _folders(root)
        return ("CT",)

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a scan, sorted by id, without reading a voxel (the tags of every file are read).

        Raises:
            CohortError: there is no folder of a scan, reads.csv is missing or not CQ500's, or series.csv names a scan
                twice or one that reads.csv does not have.
        """
        folders = _folders(root)
        reads = read_reads(root / "reads.csv")
        labels = {
            name: dict(zip(reads.findings, (bool(seen) for seen in row), strict=True))
            for name, row in zip(reads.names, reads.majority(), strict=True)
        }
        categories = dict(zip(reads.names, reads.categories, strict=True))
        chosen = _choices(root / "series.csv", labels)
        with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
            series = pool.map(lambda folder: find_series(folder, root=root), [folder for _, folder in folders])
            subjects = [
                _subject(name, folder, found, labels.get(name), categories.get(name, ""), chosen.get(name))
                for (name, folder), found in zip(folders, series, strict=True)
            ]
        return sorted(subjects, key=lambda raw: raw.subject_id)

    def write_example(self, root: Path) -> Path:
        """Write scans of both kinds of folder names: with contrast, a scout, a missing slice, chosen by series.csv."""
        from vesalius.datasets.layouts.example_ct import write_cq500_example

        return write_cq500_example(root)


def read_reads(path: Path) -> Reads:
    """Return every reader's votes, from CQ500's reads.csv.

    Raises:
        CohortError: it is missing or no table, a reader's column is missing, a scan is there twice, or a vote is
            neither 0 nor 1.
    """
    if not path.is_file():
        raise CohortError(f"{path} is missing: download it with CQ500's archives and put it beside their folders")
    columns, rows = read_table(path, ",")
    require_columns(path, columns, ["name", *(f"{reader}:{name}" for reader in READERS for name in FINDINGS)])
    names: list[str] = []
    votes = np.zeros((len(rows), len(READERS), len(FINDINGS)), dtype=bool)
    for index, row in enumerate(rows):
        if row.cells["name"] in names:
            raise CohortError(f"{path} line {row.line} names {row.cells['name']} a second time: keep one row a scan")
        names.append(row.cells["name"])
        for number, reader in enumerate(READERS):
            for place, finding in enumerate(FINDINGS):
                votes[index, number, place] = zero_or_one(path, row, f"{reader}:{finding}")
    return Reads(
        names=tuple(names),
        categories=tuple(row.cells.get("Category", "") for row in rows),
        findings=tuple(FINDINGS.values()),
        votes=votes,
    )


def _folders(root: Path) -> list[tuple[str, Path]]:
    """Return (CQ500-CT-<n>, folder) in order of path, at most one folder down."""
    found = []
    for pattern in ("*", "*/*"):
        for folder in sorted(root.glob(pattern)) if root.is_dir() else []:
            match = _FOLDER.fullmatch(folder.name)
            # "CQ500CT1 CQ500CT1" may hold a folder of its own name.
            if match is not None and folder.is_dir() and not _FOLDER.fullmatch(folder.parent.name):
                found.append((f"CQ500-CT-{int(match[1])}", folder))
    if not found:
        raise CohortError(f"{root} is not CQ500: expected folders such as CQ500-CT-427 with DICOM series in them")
    return found


def _choices(path: Path, scans: Collection[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    columns, rows = read_table(path, ",")
    require_columns(path, columns, ["name", "series"])
    chosen: dict[str, str] = {}
    for row in rows:
        name = row.cells["name"]
        if name in chosen:
            raise CohortError(f"{path} line {row.line} names {name} a second time: keep one row a scan")
        if name not in scans:
            raise CohortError(f"{path} line {row.line} names '{name}': expected a name as reads.csv has it")
        chosen[name] = row.cells["series"]
    return chosen


def _subject(
    name: str,
    folder: Path,
    series: Sequence[Series],
    labels: Mapping[str, bool] | None,
    category: str,
    wanted: str | None,
) -> RawSubject:
    scans = [found for found in series if found.problem is None and found.modality == "CT"]
    warnings = [found.problem for found in series if found.problem is not None]
    problem = None
    if wanted is not None:
        candidates = [found for found in scans if found.files[0].parent.name == wanted]
        if not candidates:
            there = ", ".join(sorted({found.files[0].parent.name for found in scans})) or "none that makes a volume"
            problem = (
                f"{folder}: series.csv chooses '{wanted}', which is no series that makes a volume (there are {there})"
            )
    else:
        candidates = [
            found for found in scans if not with_contrast(f"{found.files[0].parent.name}, {found.description}")
        ]
        if not candidates:
            reasons = "; ".join(warnings[:3]) or f"{len(scans)} series with a contrast agent"
            problem = f"{folder}: there is no series without contrast agent that makes a volume: {reasons}"
    if labels is None:
        problem = f"{folder}: reads.csv has no row for {name}: what the readers saw in it is not known"
    best = best_series(candidates) if candidates else None
    if best is not None:
        warnings.extend(best.warnings)
    findings = dict(labels or {})
    return RawSubject(
        subject_id=name,
        series={} if best is None else {"CT": tuple(str(path.absolute()) for path in best.files)},
        group=category or None,
        labels={**findings, "anomalous": bool(findings.get("ich") or findings.get("fracture"))} if labels else {},
        origin=str(folder),
        problem=problem,
        warnings=tuple(warnings),
    )


def with_contrast(words: str) -> bool:
    """Return whether a series' name says that a contrast agent was given: ``CT C THIN`` and not ``CT PRE CONTRAST``."""
    text = words.replace("_", " ")
    return bool(_CONTRAST.search(text)) and not _PLAIN.search(text)
