"""Small DICOM trees for the contract suite: an ellipsoidal head, scanned as real scanners scan real ones."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.writing import SeriesPlan, write_series

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

_ORBITS_MM = ((-30.0, 62.0, -20.0), (30.0, 62.0, -20.0))


def example_ct_head(seed: int, *, bleed: bool = False) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return a function from (..., 3) RAS mm to Hounsfield units: air, scalp, skull, brain, ventricles, orbits.

    The brain is a little brighter towards the front, so that every place differs; a bleed lies on the right.
    """
    rng = np.random.default_rng(seed)
    radii = np.array([68.0, 86.0, 66.0]) * rng.uniform(0.95, 1.05, 3)
    ripple = rng.uniform(20, 30)

    def values(points: NDArray[np.float64]) -> NDArray[np.float64]:
        radius = np.sqrt((points**2 / radii**2).sum(axis=-1))
        image = np.full(radius.shape, -1000.0)
        image[radius < 1.12] = 20.0
        image[radius < 1.06] = 900.0
        brain = radius < 0.97
        image[brain] = (34 + points[..., 1] / 40 + 2 * np.cos(points / ripple).sum(axis=-1))[brain]
        image[(points**2 / np.array([12.0, 30.0, 14.0]) ** 2).sum(axis=-1) < 1] = 6.0
        for place in _ORBITS_MM:
            image[np.linalg.norm(points - place, axis=-1) < 13] = 12.0
        if bleed:
            image[np.linalg.norm(points - np.array([35.0, -10.0, 20.0]), axis=-1) < 14] = 70.0
        return image

    return values


def write_dicom_example(root: Path) -> Path:
    """Write five scans of four people; see :class:`vesalius.datasets.layouts.dicom.DicomLayout`."""
    even = tuple(float(place) for place in np.arange(-72, 73, 8))
    base = tuple(float(place) for place in np.arange(-70, -21, 6))
    above = tuple(float(place) for place in np.arange(-19.5, 71, 9))

    # A tilted gantry, thin slices through the base and thick ones above; numbered from the vertex down.
    plan = SeriesPlan(
        places_mm=(*above[::-1], *base[::-1]),
        thickness_mm=(*(9.0 for _ in above), *(6.0 for _ in base)),
        key="HEAD",
        study="example-1",
        tags={"GantryDetectorTilt": "18.5"},
    ).tilted(18.5)
    write_series(root / "patient-1/study/ser2", plan, example_ct_head(1))
    scout = SeriesPlan(
        places_mm=(0.0,),
        row=(0.0, 1.0, 0.0),
        column=(0.0, 0.0, -1.0),
        key="SCOUT",
        study="example-1",
        tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesNumber": 1},
    )
    write_series(root / "patient-1/study/ser1", scout, example_ct_head(1))

    # One folder for all series, a slice exported twice, a sharp kernel, a screenshot with the dose; no file endings.
    place = root / "patient-2"
    plan = SeriesPlan(places_mm=even, thickness_mm=8.0, key="AXIAL", study="example-2")
    files = write_series(place, plan, example_ct_head(2), name="IM{:05d}".format)
    shutil.copyfile(files[4], place / "IM90004")
    tags = {"ConvolutionKernel": "BONE", "SeriesNumber": 3}
    bone = SeriesPlan(places_mm=even, thickness_mm=8.0, key="BONE", study="example-2", tags=tags)
    write_series(place, bone, example_ct_head(2), name="IM1{:04d}".format)
    tags = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "SeriesNumber": 999, "SeriesDescription": "Dose Report"}
    write_series(
        place,
        SeriesPlan(places_mm=(0.0,), key="DOSE", study="example-2", tags=tags),
        example_ct_head(2),
        name="IM2{:04d}".format,
    )
    (place / "README.txt").write_text("exported from the archive\n")

    # Two studies of one person in one folder, scanned sagittally from left to right and coronally from front to back.
    sagittal = SeriesPlan(
        places_mm=even,
        row=(0.0, 1.0, 0.0),
        column=(0.0, 0.0, -1.0),
        table=(-1.0, 0.0, 0.0),
        thickness_mm=8.0,
        key="SAGITTAL",
        study="example-3a",
        tags={"PatientID": "example-3"},
    )
    write_series(root / "patient-3/2020", sagittal, example_ct_head(3))
    coronal = SeriesPlan(
        places_mm=(-88.0, -80.0, *even, 80.0, 88.0),
        row=(1.0, 0.0, 0.0),
        column=(0.0, 0.0, -1.0),
        table=(0.0, 1.0, 0.0),
        thickness_mm=8.0,
        key="CORONAL",
        study="example-3b",
        tags={"PatientID": "example-3", "StudyDate": "20210101"},
    )
    write_series(root / "patient-3/2021", coronal, example_ct_head(3, bleed=True))

    # Values stored as another scanner has them, and its number for what lies outside the circle it measured.
    def in_circle(points: NDArray[np.float64]) -> NDArray[np.float64]:
        image = example_ct_head(4)(points)
        image[np.hypot(points[..., 0], points[..., 1]) > 115] = -2000.0
        return image

    tags = {"PixelPaddingValue": -2000, "PatientID": "REMOVED"}
    plan = SeriesPlan(places_mm=even, thickness_mm=8.0, intercept=0.0, key="CT PLAIN", study="example-4", tags=tags)
    write_series(root / "patient-4/a/b", plan, in_circle, name=lambda index: f"{(index * 7) % len(even)}.ima")
    return root
