"""A CSV file that says where everything is: for what no other layout fits, and for in-house data.

One row a subject. Columns: ``subject_id``; ``image``, or one column a modality (any column that names .nii files or
Analyze pairs); and, each optional, ``person``, ``brain_mask``, ``head_mask``, ``lesion_mask``, ``structures``,
``split``, ``group``, ``lesion_labels`` (the values that mark lesion, such as ``1 2 4``; every value above 0.5 where it
is left out), ``label:<name>``. Every other column is demographics. Delimiters are commas, semicolons or tabs; a
byte-order mark does no harm.

Paths are relative to the CSV file. They must lie in its folder, with every link on the way followed, or in the folder
that ``--within`` names: a table from elsewhere cannot reach what nobody meant to show it.
"""

from __future__ import annotations

import csv
import difflib
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.layouts.tabular import Row, known, labels_of, read_table, value_of
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FILES = ("brain_mask", "head_mask", "lesion_mask", "structures")
_RESERVED = ("subject_id", "person", "split", "group", "lesion_labels", *_FILES)
_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img")


class ManifestLayout:
    """A CSV file; see the module's head for its columns."""

    default_recipe: ClassVar[str] = "mni_affine"
    about: ClassVar[About] = About(
        tree="""\
cohort.csv, one row a subject:
  subject_id,T1w,FLAIR,lesion_mask,split,group,age,label:fracture
  case-1,scans/1_t1.nii.gz,scans/1_flair.nii.gz,,train,control,61,false
  case-2,scans/2_t1.nii.gz,scans/2_flair.nii.gz,scans/2_seg.nii.gz,test,patient,,true""",
        source="write it for data that no other layout fits: in-house scans, CENTER-TBI, BraTS 2015, ...",
        terms="those of the data it lists",
        lesion_mask="what the column lesion_mask names: values above 0.5, or those in the column lesion_labels",
        own_labels=True,
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return the columns that name images: ``image``, and any other whose cells name .nii, .nii.gz, .hdr or .img.

        Raises:
            CohortError: it is no table, or lacks ``subject_id`` or a column of images.
        """
        return _read(root)[0]

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a row, sorted by id, without reading a voxel.

        Raises:
            CohortError: it is no table, or lacks ``subject_id`` or a column of images.
        """
        available, rows = _read(root)
        subjects = [_subject(root, row, modalities, available) for row in rows]
        return sorted(subjects, key=lambda raw: raw.subject_id)

    def write_example(self, root: Path) -> Path:
        """Write two modalities, relative paths, a byte-order mark, quoted commas, unknown cells and a lesion."""
        from vesalius.datasets.layouts.example import write_manifest_example

        return write_manifest_example(root)


def _read(root: Path) -> tuple[tuple[str, ...], list[Row]]:
    if root.is_dir():
        raise CohortError(f"{root} is a folder: give the CSV file that lists the subjects")
    columns, rows = read_table(root, _delimiter(root))
    if "subject_id" not in columns:
        near = difflib.get_close_matches("subject_id", columns, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}' to be it? " if near else ""
        raise CohortError(f"{root} has no column subject_id: {hint}it has {', '.join(columns)}")
    images = tuple(
        sorted(
            name
            for name in columns
            if name == "image"
            or (name not in _RESERVED and any(row.cells[name].lower().endswith(_ENDINGS) for row in rows))
        )
    )
    if not images:
        raise CohortError(
            f"{root} has no column of images: add a column 'image', or one a modality, with paths of .nii or .nii.gz "
            f"files (it has {', '.join(columns)})"
        )
    return images, rows


def _delimiter(path: Path) -> str:
    """Return the delimiter that the header uses most: spreadsheets of some countries write semicolons."""
    try:
        with path.open("rb") as stream:
            header = stream.readline(65536).decode("utf-8-sig", errors="replace")
    except OSError:
        return ","
    return max(",;\t", key=header.count)


def _subject(root: Path, row: Row, modalities: Sequence[str], available: Sequence[str]) -> RawSubject:
    cells = row.cells
    images = {modality: path for modality in modalities if (path := _path(root, cells.get(modality, ""))) is not None}
    masks = {role: _path(root, cells.get(role, "")) for role in _FILES}
    demographics = {
        name: value_of(text)
        for name, text in cells.items()
        if name and name not in _RESERVED and name not in available and not name.startswith("label:")
    }
    return RawSubject(
        subject_id=cells["subject_id"],
        person=known(cells.get("person", "")),
        images=images,
        brain_mask=masks["brain_mask"],
        head_mask=masks["head_mask"],
        lesion_mask=masks["lesion_mask"],
        structures=masks["structures"],
        lesion_labels=_values(cells.get("lesion_labels", ""), root, row),
        split=known(cells.get("split", "")),
        group=known(cells.get("group", "")),
        demographics=demographics,
        labels=labels_of(cells),
        origin=f"{root} line {row.line}",
    )


def _values(text: str, root: Path, row: Row) -> tuple[int, ...]:
    words = (known(text) or "").replace(",", " ").split()
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise CohortError(
            f"{root} line {row.line}: lesion_labels is '{text}': expected whole numbers above 0, such as 1 2 4"
        )
    return tuple(sorted({int(word) for word in words}))


def _path(root: Path, text: str) -> str | None:
    cell = known(text)
    return None if cell is None else str((root.parent / cell).absolute())


def write_manifest(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write rows as a manifest; every row has the same columns."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
