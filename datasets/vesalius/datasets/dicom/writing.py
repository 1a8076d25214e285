"""DICOM files of a function of world coordinates: for examples and tests, whose truth is then known everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Field = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_CT, _MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


@dataclass(frozen=True, kw_only=True)
class SeriesPlan:
    """How a series is scanned. Lengths in mm, directions and places in LPS, as DICOM has them.

    Attributes:
        places_mm: along ``table``, one a slice, in the order of the instance numbers.
        row: direction of a row, to the next column.
        column: direction of a column, to the next row.
        table: direction in which the table moves: not the slices' normal where the gantry is tilted.
        center_mm: world place of the image's centre at place 0.
        size: columns, rows.
        pixel_mm: between neighbours along a row, and along a column.
        thickness_mm: of every slice, or one a slice.
        slope: of the rescaling.
        intercept: of the rescaling.
        key: what makes its UIDs its own; the same key gives the same files.
        study: likewise for the study.
        tags: further tags by keyword, or other values for those written; None leaves one out.
    """

    places_mm: Sequence[float]
    row: tuple[float, float, float] = (1.0, 0.0, 0.0)
    column: tuple[float, float, float] = (0.0, 1.0, 0.0)
    table: tuple[float, float, float] = (0.0, 0.0, 1.0)
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    size: tuple[int, int] = (48, 48)
    pixel_mm: tuple[float, float] = (5.0, 5.0)
    thickness_mm: float | Sequence[float] | None = None
    slope: float = 1.0
    intercept: float = -1024.0
    key: str = "series"
    study: str = "study"
    tags: Mapping[str, Any] = field(default_factory=dict)

    def tilted(self, degrees: float) -> SeriesPlan:
        """Return the plan with its planes turned about the row's direction, the table's direction as it is."""
        turn = np.deg2rad(degrees)
        column, normal = np.array(self.column), np.cross(self.row, self.column)
        x, y, z = (float(part) for part in np.cos(turn) * column - np.sin(turn) * normal)
        return SeriesPlan(**{**vars(self), "column": (x, y, z)})

    def corner_mm(self, index: int) -> NDArray[np.float64]:
        """Return the centre of a slice's first pixel, LPS."""
        half = (np.array(self.size) - 1) / 2 * np.array(self.pixel_mm)
        center = np.array(self.center_mm) + self.places_mm[index] * np.array(self.table)
        corner: NDArray[np.float64] = center - half[0] * np.array(self.row) - half[1] * np.array(self.column)
        return corner

    def points_mm(self, index: int) -> NDArray[np.float64]:
        """Return (rows, columns, 3): the centres of a slice's pixels, RAS."""
        columns, rows = (np.arange(count) * step for count, step in zip(self.size, self.pixel_mm, strict=True))
        plane = columns[None, :, None] * np.array(self.row) + rows[:, None, None] * np.array(self.column)
        points: NDArray[np.float64] = (plane + self.corner_mm(index)) * np.array([-1.0, -1.0, 1.0])
        return points


def write_series(
    folder: Path, plan: SeriesPlan, values: Field, *, name: Callable[[int], str] = "{:03d}.dcm".format
) -> list[Path]:
    """Write one file a slice and return them in the order of the plan.

    Args:
        folder: made when absent.
        plan: how it is scanned.
        values: takes (rows, columns, 3) RAS mm to (rows, columns) Hounsfield units.
        name: file name by index in the plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(len(plan.places_mm)):
        path = folder / name(index)
        write_slice(path, plan, index, values(plan.points_mm(index)))
        files.append(path)
    return files


def write_slice(path: Path, plan: SeriesPlan, index: int, image: NDArray[np.float64]) -> None:
    """Write one slice of a plan as an uncompressed file of signed 16-bit values."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    stored = np.clip(np.rint((image - plan.intercept) / plan.slope), -32768, 32767).astype("<i2")
    is_ct = plan.tags.get("Modality", "CT") == "CT"
    sop_class = UID(plan.tags.get("SOPClassUID", _CT if is_ct else _MR))
    instance = generate_uid(entropy_srcs=[plan.study, plan.key, str(index)])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    given = plan.thickness_mm
    thickness = given if given is None or isinstance(given, int | float) else given[index]
    tags: dict[str, Any] = {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": sop_class,
        "SOPInstanceUID": instance,
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "Modality": "CT" if is_ct else "MR",
        "SeriesDescription": plan.key,
        "PatientName": "Doe^Jane",
        "PatientBirthDate": "19500101",
        "PatientID": plan.study,
        "SliceThickness": None if thickness is None else _decimal(thickness),
        "StudyInstanceUID": generate_uid(entropy_srcs=[plan.study]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=[plan.study, plan.key]),
        "SeriesNumber": 2,
        "InstanceNumber": index + 1,
        "ImagePositionPatient": [_decimal(value) for value in plan.corner_mm(index)],
        "ImageOrientationPatient": [_decimal(value) for value in (*plan.row, *plan.column)],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": plan.size[1],
        "Columns": plan.size[0],
        "PixelSpacing": [_decimal(plan.pixel_mm[1]), _decimal(plan.pixel_mm[0])],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": _decimal(plan.intercept),
        "RescaleSlope": _decimal(plan.slope),
    }
    for keyword, value in {**tags, **plan.tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = stored.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _decimal(value: float) -> str:
    """Return a number in the sixteen characters that DICOM's decimal strings may have."""
    return next(text for digits in range(15, 0, -1) if len(text := f"{value + 0.0:.{digits}g}") <= 16)
