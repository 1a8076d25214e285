"""Small raw trees of the CT data sets, each with the names, tables and series of the real archive."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.writing import SeriesPlan, write_series
from vesalius.datasets.layouts.example_dicom import example_ct_head
from vesalius.platform.geometry import grid_affine, write_nifti

if TYPE_CHECKING:
    from pathlib import Path

_PLACES = tuple(float(place) for place in np.arange(-72, 73, 8))
_THICK = tuple(float(place) for place in np.arange(-72, 73, 16))


def write_cq500_example(root: Path) -> Path:
    """Write five scans of CQ500; see :class:`vesalius.datasets.layouts.cq500.Cq500Layout`."""

    def scan(place: Path, name: str, seed: int, *, places: tuple[float, ...] = _PLACES, bleed: bool = False) -> None:
        plan = SeriesPlan(places_mm=places, key=name, study=place.parts[-1], tags={"SeriesNumber": None})
        write_series(
            place / "Unknown Study" / name, plan, example_ct_head(seed, bleed=bleed), name="CT{:06d}.dcm".format
        )

    plain = root / "CQ500-CT-427"
    scan(plain, "CT Plain", 1, places=_THICK, bleed=True)
    scan(plain, "CT PLAIN THIN", 1, bleed=True)
    scan(plain, "CT POST CONTRAST", 1)
    scan(plain, "CT C THIN", 1, places=tuple(float(place) for place in np.arange(-76, 77, 4)))
    scan(root / "CQ500-CT-11", "CT 55mm Plain", 2)
    scan(root / "CQ500-CT-11", "CT 55mm Plain-2", 3, places=_PLACES[:9] + _PLACES[10:])  # a slice is missing
    scan(root / "CQ500CT181 CQ500CT181", "CT PRE CONTRAST 5MM STD", 4, bleed=True)
    scan(root / "qct02/CQ500-CT-20", "CT 5mm", 5)
    scan(root / "qct02/CQ500-CT-20", "CT 0.625mm-2", 6, places=_THICK)
    scan(root / "CQ500-CT-30", "CT BRAIN PLAIN", 7)
    (root / "series.csv").write_text("name,series\nCQ500-CT-20,CT 0.625mm-2\n")
    seen = {
        "CQ500-CT-427": ({"ICH", "IPH", "BleedLocation-Right"}, {"ICH", "IPH", "BleedLocation-Right"}, {"ICH", "SDH"}),
        "CQ500-CT-11": ({"ICH"}, set[str](), set[str]()),
        "CQ500-CT-181": ({"ICH", "BleedLocation-Left"}, {"ICH", "BleedLocation-Left"}, {"ICH", "Fracture"}),
        "CQ500-CT-20": ({"MassEffect"}, {"MassEffect"}, set[str]()),
        "CQ500-CT-30": ({"Fracture", "CalvarialFracture"}, {"Fracture"}, {"CalvarialFracture"}),
        "CQ500-CT-99": (set[str](), set[str](), set[str]()),  # a scan that was not downloaded
    }
    write_reads(root / "reads.csv", seen)
    return root


def write_reads(path: Path, seen: dict[str, tuple[set[str], set[str], set[str]]]) -> None:
    """Write CQ500's reads.csv: by scan, what each of the three readers saw, in the table's own words."""
    from vesalius.datasets.layouts.cq500 import FINDINGS, READERS

    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["name", "Category", *(f"{reader}:{finding}" for reader in READERS for finding in FINDINGS)])
        for index, (name, readers) in enumerate(seen.items()):
            table.writerow([name, f"B{1 + index % 2}", *(int(one in found) for found in readers for one in FINDINGS)])


def write_ct_ich_example(root: Path) -> Path:
    """Write five scans of CT-ICH 1.3.1; see :class:`vesalius.datasets.layouts.ct_ich.CtIchLayout`."""
    shape, spacing_mm = (36, 42, 12), (5.0, 5.0, 13.0)
    affine = grid_affine(shape, spacing_mm, (0.0, 0.0, 0.0))
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    slices, people = [], []
    for number, finding in ((49, "Epidural"), (50, ""), (58, "Intraparenchymal"), (66, "fracture"), (130, "")):
        has_bleed = finding not in ("", "fracture")
        image = example_ct_head(number, bleed=has_bleed)(points)
        mask = (image == 70.0) & (points[..., 0] > 0)
        write_nifti(root / f"ct_scans/{number:03d}.nii", np.rint(image).astype(np.int16), affine)
        write_nifti(root / f"masks/{number:03d}.nii", mask.astype(np.uint8) * np.uint8(255), affine)
        for plane in range(shape[2]):
            bleeds = [int(kind == finding and bool(mask[..., plane].any())) for kind in _KINDS]
            fracture = int(finding == "fracture" and plane == 5)
            slices.append([number, plane + 1, *bleeds, int(not any(bleeds)), fracture])
        kinds = ["1" if kind == finding else "" for kind in _KINDS]
        people.append([number, 0.583333333 if number == 50 else number, "Male" if number % 2 else "Female", *kinds])
    with (root / "hemorrhage_diagnosis_raw_ct.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        table = csv.writer(stream)
        table.writerow(["PatientNumber", "SliceNumber", *_KINDS, "No_Hemorrhage", "Fracture_Yes_No"])
        table.writerows(slices)
    with (root / "Patient_demographics.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        title = "Hemorrhage type based on the radiologists diagnosis "
        table.writerow(
            ["Patient Number", "Age\n(years)", "Gender", title, "", "", "", "", "Fracture (yes 1/no 0)", "Note1"]
        )
        table.writerow(["", "", "", *_KINDS, "", ""])
        table.writerows([*row, "1" if row[0] == 66 else "", ""] for row in people)
    return root


_KINDS = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")
