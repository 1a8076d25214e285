"""PhysioNet CT-ICH 1.3.1: head CT of 75 people after trauma, with bleeds drawn slice by slice (Hssayeni et al. 2020).

``ct_scans/049.nii`` in Hounsfield units, 5 mm slices; ``masks/049.nii`` on the same grid, every scan's, empty for those
without a bleed. ``hemorrhage_diagnosis_raw_ct.csv`` holds both radiologists' consensus slice by slice; a subject has a
finding where some slice has it, and slices are in :func:`read_slices`. ``Patient_demographics.csv`` has a header of
two rows with a line break in one cell and a blank at the end of another: age and sex are taken from it.

The tables of version 1.0 (one header row; names without ``raw_ct``) are understood too; its pictures are no volumes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.ct_findings import CT_FINDINGS
from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.layouts.tabular import (
    Row,
    as_table,
    known,
    read_rows,
    read_table,
    require_columns,
    value_of,
    zero_or_one,
)
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BLEEDS = {
    "Intraventricular": "ivh",
    "Intraparenchymal": "iph",
    "Subarachnoid": "sah",
    "Epidural": "edh",
    "Subdural": "sdh",
}
_FRACTURE = "Fracture_Yes_No"
_NONE = "No_Hemorrhage"
_DIAGNOSIS = ("hemorrhage_diagnosis_raw_ct.csv", "hemorrhage_diagnosis.csv")
_PEOPLE = ("Patient_demographics.csv", "patient_demographics.csv")
_NAME = re.compile(r"(\d+)\.nii(\.gz)?")
_MASK_VALUES = (1, 255)


@dataclass(frozen=True, kw_only=True)
class SliceRead:
    """What the radiologists agreed on for one slice.

    Attributes:
        subject_id: such as ``049``.
        number: of the slice, from 1.
        findings: by label: ``ivh``, ``iph``, ``sah``, ``edh``, ``sdh`` and ``fracture``.
    """

    subject_id: str
    number: int
    findings: Mapping[str, bool]


class CtIchLayout:
    """The unpacked archive of version 1.3.1."""

    default_recipe: ClassVar[str] = "f_anogan_3d_2020"
    about: ClassVar[About] = About(
        tree="""\
ROOT/
  hemorrhage_diagnosis_raw_ct.csv
  Patient_demographics.csv                            optional
  ct_scans/049.nii
  masks/049.nii""",
        source="https://physionet.org/content/ct-ich/1.3.1/",
        terms="PhysioNet: CC BY 4.0; cite Hssayeni et al., Data 2020, and Goldberger et al. 2000",
        labels={
            "anomalous": "a bleed or a fracture",
            **{name: f"{CT_FINDINGS[name]}, in some slice" for name in ("ich", *BLEEDS.values(), "fracture")},
        },
        lesion_mask="bleeds, the consensus of two radiologists; fractures are not drawn",
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return ``("CT",)``.

        Raises:
            CohortError: there is no scan.
        """
        _scans(root)
        return ("CT",)

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a scan, sorted by id, without reading a voxel.

        Raises:
            CohortError: there is no scan, or a table is missing or not CT-ICH's.
        """
        scans = _scans(root)
        table = _first(root, _DIAGNOSIS)
        if table is None:
            raise CohortError(
                f"{root / _DIAGNOSIS[0]} is missing: take the archive's own, it says what each scan shows"
            )
        labels = subject_labels(read_slices(table))
        people = _first(root, _PEOPLE)
        demographics = {} if people is None else read_demographics(people)
        subjects = []
        for subject_id, path in scans.items():
            mask = _first(root / "masks", (f"{subject_id}.nii", f"{subject_id}.nii.gz"))
            problem = None
            if mask is None:
                problem = f"{path} has no mask: expected masks/{subject_id}.nii, which the archive has for every scan"
            elif subject_id not in labels:
                problem = f"{path}: {table.name} has no row for {subject_id}: what the scan shows is not known"
            subjects.append(
                RawSubject(
                    subject_id=subject_id,
                    images={"CT": str(path.absolute())},
                    lesion_mask=None if mask is None else str(mask.absolute()),
                    lesion_labels=_MASK_VALUES,
                    demographics=demographics.get(subject_id, {}),
                    labels=labels.get(subject_id, {}),
                    origin=str(path),
                    problem=problem,
                )
            )
        return subjects

    def write_example(self, root: Path) -> Path:
        """Write four scans: bleeds, a fracture alone, an empty mask; the tables with their odd headers."""
        from vesalius.datasets.layouts.example_ct import write_ct_ich_example

        return write_ct_ich_example(root)


def read_slices(path: Path) -> list[SliceRead]:
    """Return the diagnosis slice by slice, in the order of the table.

    Raises:
        CohortError: it is no table, lacks a column, has a slice twice, a cell is neither 0 nor 1, or a row says both
            that there is a bleed and that there is none.
    """
    columns, rows = read_table(path, ",")
    require_columns(path, columns, ["PatientNumber", "SliceNumber", *BLEEDS, _NONE, _FRACTURE])
    slices: list[SliceRead] = []
    seen: set[tuple[str, int]] = set()
    for row in rows:
        subject_id, number = _id(path, row, "PatientNumber"), row.cells["SliceNumber"]
        if not number.isdecimal() or (subject_id, int(number)) in seen:
            raise CohortError(f"{path} line {row.line}: SliceNumber '{number}' is no number, or there a second time")
        seen.add((subject_id, int(number)))
        findings = {label: zero_or_one(path, row, column) for column, label in BLEEDS.items()}
        if zero_or_one(path, row, _NONE) == any(findings.values()):
            raise CohortError(f"{path} line {row.line}: {_NONE} and the kinds of bleed contradict each other: mend it")
        slices.append(
            SliceRead(
                subject_id=subject_id,
                number=int(number),
                findings={**findings, "fracture": zero_or_one(path, row, _FRACTURE)},
            )
        )
    return slices


def subject_labels(slices: Sequence[SliceRead]) -> dict[str, dict[str, bool]]:
    """Return each subject's labels: a finding is there where some slice has it."""
    found: dict[str, dict[str, bool]] = {}
    for read in slices:
        labels = found.setdefault(read.subject_id, dict.fromkeys(read.findings, False))
        for name, seen in read.findings.items():
            labels[name] |= seen
    for labels in found.values():
        labels["ich"] = any(labels[name] for name in BLEEDS.values())
        labels["anomalous"] = labels["ich"] or labels["fracture"]
    return found


def read_demographics(path: Path) -> dict[str, dict[str, str | float | int | bool | None]]:
    """Return ``age_years``, ``sex`` and ``note`` by subject, from the table of version 1.3.1 or of 1.0.

    Raises:
        CohortError: it is no table, or has no column for the patient's number or age.
    """
    rows = read_rows(path, ",")
    start = next((index for index, (_, cells) in enumerate(rows) if _column(cells[0]) == "number"), None)
    if start is None:
        raise CohortError(f"{path} has no column 'Patient Number': take the table of the archive as it is")
    header, body = rows[start][1], rows[start + 1 :]
    if body and not body[0][1][0]:
        body = body[1:]  # 1.3.1: a second row names the kinds of bleed below their title; the slices' table has them
    names = [_column(name) or f"column {index}" for index, name in enumerate(header)]
    columns, table = as_table(path, names, body)
    if "age_years" not in columns:
        raise CohortError(f"{path} has no column 'Age (years)': take the table of the archive as it is")
    found: dict[str, dict[str, str | float | int | bool | None]] = {}
    for row in table:
        subject_id = _id(path, row, "number")
        if subject_id in found:
            raise CohortError(f"{path} line {row.line} names patient {subject_id} a second time: keep one row")
        found[subject_id] = {
            "age_years": value_of(row.cells["age_years"]),
            "sex": known(row.cells.get("sex", "")),
            "note": known(row.cells.get("note", "")),
        }
    return found


def _column(name: str) -> str:
    """Return what a header cell stands for, whatever its line breaks and blanks; '' for what is not taken."""
    words = " ".join(name.split()).lower()
    if words.startswith("patient number"):
        return "number"
    if words.startswith("age"):
        return "age_years"
    return {"gender": "sex", "condition on file": "note", "note1": "note"}.get(words, "")


def _id(path: Path, row: Row, column: str) -> str:
    text = row.cells[column]
    if not text.isdecimal():
        raise CohortError(f"{path} line {row.line}: the patient's number is '{text}': expected a whole number")
    return f"{int(text):03d}"


def _scans(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted((root / "ct_scans").glob("*.nii*")) if (root / "ct_scans").is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(f"{int(match[1]):03d}", path)
    if not found:
        raise CohortError(f"{root} is not CT-ICH 1.3.1: expected ct_scans/049.nii and masks/049.nii in it")
    return found


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file() or (folder / name).is_symlink()), None)
