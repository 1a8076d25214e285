"""OASIS-1: 416 adults of 18 to 96 years, ``OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/*.hdr`` (Marcus et al. 2007).

What is taken is the brain-masked, gain-field-corrected mean of each session's scans in Talairach space at 1 mm
(``..._t88_masked_gfc``): what is not 0 is brain. FSL's tissue classes lie beside it (``FSL_SEG/..._fseg``).

**Orientation.** The files are Analyze pairs: big-endian, of four dimensions with one frame, without an affine; their
``orient`` is 0. They are read as Analyze defines that and as converters of the archive take them: the first axis from
right to left, the second from back to front, the third from feet to head (LAS). A header with another ``orient`` is
refused. The world's origin is put at the grid's centre, which is not Talairach's: register, or take a recipe that
centres.

``oasis_cross-sectional.csv`` gives demographics. A clinical dementia rating above 0 makes a session anomalous; the
young, who were not rated, are healthy volunteers. Twenty people came back within 90 days (``_MR2``): both sessions are
one person's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.layouts.tabular import Cell, read_table, require_columns, value_of
from vesalius.datasets.reading import RawVolumes, read_subject
from vesalius.platform.errors import CohortError, VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.datasets.nifti import RawVolume

TISSUES = {"csf": 1, "grey_matter": 2, "white_matter": 3}
_SESSION = re.compile(r"(?P<person>OAS1_\d{4})_MR\d")
_TABLE = "oasis_cross-sectional.csv"
_AXES = "LAS"


class Oasis1Layout:
    """The discs of OASIS-1, unpacked into one folder or one each."""

    default_recipe: ClassVar[str] = "mni_affine"
    about: ClassVar[About] = About(
        tree="""\
ROOT/ (or ROOT/disc1/, ROOT/disc2/, ...)
  oasis_cross-sectional.csv                           demographics and clinical dementia rating
  OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/
    OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr  and .img; n3 to n6, the number of scans averaged
  OAS1_0001_MR1/FSL_SEG/
    OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.hdr  and .img; optional""",
        source="https://sites.wustl.edu/oasisbrains/ (OASIS-1, twelve discs and one table)",
        terms="OASIS Data Use Agreement: accept it; no re-identification; cite Marcus et al. 2007",
        labels={
            "anomalous": "dementia",
            "dementia": "the clinical dementia rating is above 0; not given for the young, who were not rated",
            "cdr": "clinical dementia rating: 0, 0.5, 1 or 2",
        },
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return ``("T1w",)``.

        Raises:
            CohortError: there is no session with such an image.
        """
        _sessions(root)
        return ("T1w",)

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a session, sorted by id, without reading a voxel.

        Raises:
            CohortError: there is no session with such an image, or the table is missing or not OASIS-1's.
        """
        sessions = _sessions(root)
        people = _table(root / _TABLE)
        return [_subject(folder, people.get(folder.name)) for folder in sessions]

    def write_example(self, root: Path) -> Path:
        """Write big-endian pairs on two discs: two sessions of one person, dementia, someone who was not rated."""
        from vesalius.datasets.layouts.example_mr import write_oasis1_example

        return write_oasis1_example(root)


def read(raw: RawSubject, modalities: Sequence[str]) -> RawVolumes:
    """Read a session and take its axes as the archive has them: the reader of :class:`Oasis1Layout`.

    Raises:
        VolumeError: a file is missing or unusable, or its ``orient`` is another than the archive's.
    """
    volumes = read_subject(raw, modalities)
    return replace(
        volumes,
        images={name: _oriented(volume) for name, volume in volumes.images.items()},
        structures=None if volumes.structures is None else _oriented(volumes.structures),
    )


def _oriented(volume: RawVolume) -> RawVolume:
    axes = volume.notes["analyze"]["axes"]
    if axes != _AXES:
        raise VolumeError(
            f"{volume.name}: its header says that its axes are {axes}, expected {_AXES} as in the archive"
        )
    return replace(volume, oriented=True)


def _sessions(root: Path) -> list[Path]:
    places = sorted([*root.glob("OAS1_*"), *root.glob("*/OAS1_*")], key=lambda path: path.name) if root.is_dir() else []
    found = [folder for folder in places if _SESSION.fullmatch(folder.name) and _images(folder)]
    if not found:
        raise CohortError(
            f"{root} is not OASIS-1: expected OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc.hdr in it"
        )
    return found


def _images(folder: Path) -> list[Path]:
    return sorted((folder / "PROCESSED/MPRAGE/T88_111").glob(f"{folder.name}_mpr_n*_anon_111_t88_masked_gfc.hdr"))


def _subject(folder: Path, cells: dict[str, Cell | None] | None) -> RawSubject:
    images = _images(folder)
    classes = sorted((folder / "FSL_SEG").glob(f"{folder.name}_*_t88_masked_gfc_fseg.hdr"))
    match = _SESSION.fullmatch(folder.name)
    assert match is not None  # found by that name
    problem = None
    if len(images) > 1:
        problem = f"{folder} has {len(images)} masked images in T88_111 ({', '.join(p.name for p in images)}): keep one"
    elif cells is None:
        problem = f"{folder}: {_TABLE} has no row for {folder.name}: whether it shows dementia is not known"
    cells = dict(cells or {})
    rating = cells.pop("CDR", None)
    labels: dict[str, Cell] = {"anomalous": False}
    if isinstance(rating, int | float):
        labels = {"anomalous": rating > 0, "dementia": rating > 0, "cdr": rating}
    return RawSubject(
        subject_id=folder.name,
        person=match["person"],
        images={"T1w": str(images[0].absolute())},
        structures=str(classes[0].absolute()) if classes else None,
        structure_names=TISSUES if classes else {},
        group="dementia" if labels["anomalous"] else "control",
        demographics=cells,
        labels=labels,
        reader="vesalius.datasets.layouts.oasis1:read",
        origin=str(folder),
        problem=problem,
    )


def _table(path: Path) -> dict[str, dict[str, Cell | None]]:
    if not path.is_file():
        raise CohortError(f"{path} is missing: it says who has dementia: download it with the archive")
    columns, rows = read_table(path, ",")
    require_columns(path, columns, ["ID", "M/F", "Age", "CDR"])
    found: dict[str, dict[str, Cell | None]] = {}
    for row in rows:
        name = row.cells["ID"]
        if name in found:
            raise CohortError(f"{path} line {row.line} names '{name}' a second time: keep one row a session")
        found[name] = {key: value_of(text) for key, text in row.cells.items() if key and key != "ID"}
        rating = found[name]["CDR"]
        if isinstance(rating, str | bool):
            raise CohortError(f"{path} line {row.line}: CDR is '{row.cells['CDR']}': expected a number or nothing")
    return found
