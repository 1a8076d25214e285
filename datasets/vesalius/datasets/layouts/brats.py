"""The Brain Tumour Segmentation challenges from 2018 on: one folder a scan, four contrasts and a mask.

====================  ====================================================================  ==================
year                  files                                                                 labels
====================  ====================================================================  ==================
2018, 2019            ``HGG|LGG/Brats18_<site>_<n>_1/..._{t1,t1ce,t2,flair,seg}.nii.gz``    1, 2, 4
2020                  ``BraTS20_Training_001/..._{t1,t1ce,t2,flair,seg}.nii[.gz]``          1, 2, 4
2021                  ``BraTS2021_00000/..._{t1,t1ce,t2,flair,seg}.nii.gz``                 1, 2, 4
2023 and later        ``BraTS-GLI-00001-000/...-{t1n,t1c,t2w,t2f,seg}.nii.gz``              1, 2, 3
====================  ====================================================================  ==================

1 is necrosis, 2 oedema, 4 (from 2023: 3) enhancing tumour; together they are the whole tumour, which the lesion mask
is. The images are co-registered to one another at 1 mm and skull-stripped: what is not 0 is brain. From 2023 the last
three digits number a person's scans, which stay in one split. The grade is the group: the folder until 2019, the column
``Grade`` of ``name_mapping.csv`` in 2020. Subject 355 of 2020 has its mask under another name, ``W39_..._Segm.nii``.

A scan whose mask is missing is refused, unless no scan below the root has one (a challenge's validation set): then all
are taken as anomalous, without a mask. Later additions with a label 4 beside 3 (a resection's cavity, 2024; children)
are no healthy tissue either, and none of the labels above: list them in a manifest, with its column ``lesion_labels``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.layouts.tabular import known, read_table, require_columns, value_of
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MODALITIES = ("FLAIR", "T1ce", "T1w", "T2w")
"""One set of names for all years: T1ce is the T1w after contrast agent."""

_OLD = re.compile(r"(?:BraTS(?:\d\d_[A-Za-z0-9]+_[A-Za-z0-9]+(?:_\d+)?|2021_\d+))", re.IGNORECASE)
_NEW = re.compile(r"(?P<person>BraTS-[A-Z]+-\d+)-\d+", re.IGNORECASE)
_OLD_ENDINGS = {"T1w": "_t1", "T1ce": "_t1ce", "T2w": "_t2", "FLAIR": "_flair", "seg": "_seg"}
_NEW_ENDINGS = {"T1w": "-t1n", "T1ce": "-t1c", "T2w": "-t2w", "FLAIR": "-t2f", "seg": "-seg"}
_OLD_LABELS, _NEW_LABELS = (1, 2, 4), (1, 2, 3)
_MISNAMED = re.compile(r".*_Segm\.nii(\.gz)?")
_GRADES = ("HGG", "LGG")


class BratsLayout:
    """A BraTS archive as it unpacks, or a folder that holds several."""

    default_recipe: ClassVar[str] = "implicit_field_2021"
    about: ClassVar[About] = About(
        tree="""\
ROOT/                                                 of 2018 to 2025
  HGG/Brats18_2013_11_1/Brats18_2013_11_1_{t1,t1ce,t2,flair,seg}.nii.gz
  BraTS20_Training_001/BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii[.gz]
  BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz
  BraTS-GLI-00001-000/BraTS-GLI-00001-000-{t1n,t1c,t2w,t2f,seg}.nii.gz
  name_mapping.csv, survival_info.csv                 optional (2020): grade, age""",
        source="https://www.med.upenn.edu/cbica/brats2020/ (2018 to 2020), https://www.synapse.org/brats (later)",
        terms="register and accept the challenge's terms; cite Menze et al. 2015, Bakas et al. 2017 and 2018",
        labels={"anomalous": "true: every scan shows a tumour"},
        lesion_mask="the whole tumour: labels 1, 2 and 4 until 2021, 1, 2 and 3 from 2023",
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return those of ``FLAIR``, ``T1ce``, ``T1w`` and ``T2w`` that some scan has.

        Raises:
            CohortError: there is no folder of a scan.
        """
        scans = _scans(root)
        return tuple(name for name in MODALITIES if any(name in files for files in scans.values()))

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a scan, sorted by id, without reading a voxel.

        Raises:
            CohortError: there is no folder of a scan, or a table beside them cannot be read.
        """
        scans = _scans(root)
        with_masks = any("seg" in files for files in scans.values())
        grades, demographics = _grades(root), _survival(root)
        return sorted(
            (
                _subject(folder, files, modalities, with_masks, grades, demographics.get(folder.name, {}))
                for folder, files in scans.items()
            ),
            key=lambda raw: raw.subject_id,
        )

    def write_example(self, root: Path) -> Path:
        """Write scans of four years: grades by folder and by table, a mask misnamed, two scans of one person."""
        from vesalius.datasets.layouts.example_mr import write_brats_example

        return write_brats_example(root)


def _scans(root: Path) -> dict[Path, dict[str, Path]]:
    """Return the files by role of each scan's folder, at most three levels down, in order of path."""
    found: dict[Path, dict[str, Path]] = {}
    for pattern in ("*", "*/*", "*/*/*"):
        for folder in root.glob(pattern) if root.is_dir() else ():
            if folder.is_dir() and (_OLD.fullmatch(folder.name) or _NEW.fullmatch(folder.name)):
                files = _files(folder)
                if files:
                    found[folder] = files
    if not found:
        raise CohortError(
            f"{root} is not a BraTS tree: expected folders such as BraTS20_Training_001 or BraTS-GLI-00001-000 with "
            "images of their own name in them"
        )
    return dict(sorted(found.items()))


def _files(folder: Path) -> dict[str, Path]:
    endings = _OLD_ENDINGS if _OLD.fullmatch(folder.name) else _NEW_ENDINGS
    inside = {path.name.lower(): path for path in sorted(folder.glob("*.nii*"))}
    found: dict[str, Path] = {}
    for role, ending in endings.items():
        # Where an archive was unpacked twice, the compressed file is the one that it came with.
        for suffix in (".nii", ".nii.gz"):
            path = inside.get(f"{folder.name}{ending}{suffix}".lower())
            if path is not None and not path.is_dir():
                found[role] = path
    misnamed = [path for path in inside.values() if _MISNAMED.fullmatch(path.name)]
    if "seg" not in found and len(misnamed) == 1:
        found["seg"] = misnamed[0]
    return found


def _subject(
    folder: Path,
    files: Mapping[str, Path],
    modalities: Sequence[str],
    with_masks: bool,
    grades: Mapping[str, str],
    demographics: Mapping[str, str | float | int | bool | None],
) -> RawSubject:
    new = _NEW.fullmatch(folder.name)
    mask = files.get("seg")
    problem = None
    if mask is None and with_masks:
        ending = (_NEW_ENDINGS if new else _OLD_ENDINGS)["seg"]
        problem = f"{folder} has no mask: expected {folder.name}{ending}.nii.gz, as other scans here have it"
    return RawSubject(
        subject_id=folder.name,
        person=new["person"] if new else None,
        images={name: str(files[name].absolute()) for name in modalities if name in files},
        lesion_mask=None if mask is None else str(mask.absolute()),
        lesion_labels=() if mask is None else _NEW_LABELS if new else _OLD_LABELS,
        group=folder.parent.name if folder.parent.name in _GRADES else grades.get(folder.name),
        demographics=dict(demographics),
        labels={"anomalous": True},
        origin=str(folder),
        problem=problem,
        warnings=()
        if mask is not None or problem
        else (f"{folder.name} has no mask, like every scan here: maps of it cannot be evaluated voxel by voxel",),
    )


def _tables(root: Path, *names: str) -> list[Path]:
    return [path for name in names for pattern in ("", "*/") for path in sorted(root.glob(f"{pattern}{name}"))]


def _grades(root: Path) -> dict[str, str]:
    found = {}
    for path in _tables(root, "name_mapping.csv"):
        columns, rows = read_table(path, ",")
        require_columns(path, columns, ["Grade"])
        ids = [name for name in columns if name.lower().endswith("subject_id")]
        for row in rows:
            grade = known(row.cells["Grade"])
            if grade is not None:
                found.update({row.cells[name]: grade for name in ids if known(row.cells[name])})
    return found


def _survival(root: Path) -> dict[str, dict[str, str | float | int | bool | None]]:
    """Return age and the like by folder; its columns are the file's, the first one its id."""
    found = {}
    for path in _tables(root, "survival_info.csv", "survival_data.csv"):
        columns, rows = read_table(path, ",")
        for row in rows:
            found[row.cells[columns[0]]] = {name.lower(): value_of(row.cells[name]) for name in columns[1:]}
    return found
