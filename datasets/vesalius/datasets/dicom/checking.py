"""Whether the files of one series make a volume, by their tags alone: what it is, whether they fit, where they lie."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.encodings import uid_name
from vesalius.datasets.dicom.gaps import missing_slices
from vesalius.datasets.dicom.geometry import MIN_SLICES, SAME_DIRECTION, SAME_PLACE_MM, Stack, same_numbers, stack_of
from vesalius.datasets.dicom.pixels import pixel_problem
from vesalius.datasets.dicom.resampling import MAX_VOXELS, grid_of
from vesalius.datasets.dicom.series import named
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.dicom.headers import SliceHeader

_CT, _MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2.1": "an enhanced multi-frame CT image: convert it with dcm2niix first",
    "1.2.840.10008.5.1.4.1.1.2.2": "a legacy converted multi-frame CT image: convert it with dcm2niix first",
    "1.2.840.10008.5.1.4.1.1.4.1": "an enhanced multi-frame MR image: convert it with dcm2niix first",
    "1.2.840.10008.5.1.4.1.1.4.4": "a legacy converted multi-frame MR image: convert it with dcm2niix first",
    "1.2.840.10008.5.1.4.1.1.7": "a secondary capture (a screenshot, a dose sheet or a rendering)",
    "1.2.840.10008.5.1.4.1.1.104.1": "an encapsulated PDF",
    "1.2.840.10008.5.1.4.1.1.88.67": "a dose report",
}
_LOCALISER = re.compile(
    r"\b(locali[sz]ers?|scouts?|topograms?|surview|survey|scanograms?|scano|loc|smart ?prep|bolus ?track\w*|"
    r"premonitoring|monitoring|test ?bolus)\b",
    re.IGNORECASE,
)
_DOSE = re.compile(r"\b(dose ?(report|info|record|summary|sheet)|exam ?protocol|patient ?protocol)\b", re.IGNORECASE)
_PHANTOM = re.compile(r"\b(phantoms?|qa|qc|water ?cal\w*|daily ?cal\w*|quality ?(assurance|control))\b", re.IGNORECASE)
_MAX_TILT_DEGREES = 45.0


def check_series(headers: Sequence[SliceHeader], name: str) -> tuple[Stack, tuple[str, ...]]:
    """Return where the slices of one volume lie, with what is odd about them, after every check of :func:`find_series`.

    Raises:
        VolumeError: they make no volume; the message begins with ``name``.
    """
    try:
        return checked(headers)
    except VolumeError as error:
        raise VolumeError(f"{name}: {error}") from None


def checked(headers: Sequence[SliceHeader]) -> tuple[Stack, tuple[str, ...]]:
    """Return where slices lie and what is odd about them.

    Raises:
        VolumeError: they make no volume; the message is a clause, to follow the name of the series.
    """
    _check_kind(headers)
    if len(headers) < MIN_SLICES:
        raise VolumeError(
            f"it holds {len(headers)} images: expected {MIN_SLICES} slices at least: export the whole series"
        )
    _check_alike(headers)
    for header in headers:
        problem = pixel_problem(header)
        if problem is not None:
            raise VolumeError(f"{header.path.name} {problem}")
    stack = stack_of(headers)
    columns, rows = stack.size
    if columns * rows * len(headers) > MAX_VOXELS:
        raise VolumeError(f"it holds {columns} x {rows} x {len(headers)} voxels, more than {MAX_VOXELS:,}")
    ordered = [headers[index] for index in stack.order]
    _check_places(stack, ordered)
    if stack.tilt_degrees > _MAX_TILT_DEGREES:
        raise VolumeError(
            f"its slices drift sideways by {stack.tilt_degrees:.1f} degrees by their positions: export it again"
        )
    warnings = _check_tilt(stack, ordered)
    grid_of(stack)
    return stack, warnings


def _check_kind(headers: Sequence[SliceHeader]) -> None:
    first = headers[0]
    if not first.series_uid:
        raise VolumeError(f"{first.path.name} has no SeriesInstanceUID: export it again")
    if first.sop_class not in (_CT, _MR):
        kind = _CLASSES.get(first.sop_class) or uid_name(first.sop_class) or "of an unknown class"
        raise VolumeError(f"it is {kind}")
    if first.modality not in ("CT", "MR"):
        raise VolumeError(f"its modality is '{first.modality}': expected CT or MR")
    told = " ".join((first.description, *first.image_type))
    if _LOCALISER.search(told):
        raise VolumeError("it is a localiser (scout)")
    if _DOSE.search(told.replace("_", " ")):
        raise VolumeError("it is a dose report")
    for text in (first.description, *first.texts):
        if _PHANTOM.search(text.replace("_", " ")):
            raise VolumeError(f"it shows a phantom, by its description '{text}'")


def _check_alike(headers: Sequence[SliceHeader]) -> None:
    first = headers[0]
    for header in headers[1:]:
        if (header.rows, header.columns) != (first.rows, first.columns):
            raise VolumeError(
                f"its slices have mixed sizes: {first.path.name} has {first.rows} x {first.columns} pixels and "
                f"{header.path.name} {header.rows} x {header.columns}"
            )
        if not same_numbers(header.pixel_spacing, first.pixel_spacing, 1e-4):
            raise VolumeError(
                f"its slices have mixed pixel spacings: {first.path.name} has {first.pixel_spacing} mm and "
                f"{header.path.name} {header.pixel_spacing}"
            )
        if header.patient != first.patient:
            raise VolumeError(f"{first.path.name} and {header.path.name} are of different patients: give each a folder")
        # What find_series has taken apart, and read_series may be given together.
        if not same_numbers(header.orientation, first.orientation, SAME_DIRECTION):
            raise VolumeError(f"{first.path.name} and {header.path.name} have different orientations")
        if (header.series_uid, header.sop_class, header.modality) != (
            first.series_uid,
            first.sop_class,
            first.modality,
        ):
            raise VolumeError(f"{first.path.name} and {header.path.name} are of different series")


def _check_places(stack: Stack, ordered: Sequence[SliceHeader]) -> None:
    gaps = stack.gaps_mm
    same = np.flatnonzero(gaps < SAME_PLACE_MM)
    if len(same):
        one, other = ordered[same[0]].path.name, ordered[same[0] + 1].path.name
        raise VolumeError(
            f"{one} and {other} show different images of one place ({len(same)} such pairs): keep one of each"
        )
    holes = missing_slices(gaps, stack.thickness_mm)
    if holes:
        index, expected = holes[0]
        more = f" (the first of {len(holes)} such gaps)" if len(holes) > 1 else ""
        raise VolumeError(
            f"a slice is missing between {ordered[index].path.name} and {ordered[index + 1].path.name}: "
            f"{gaps[index]:.2f} mm apart where {expected:.2f} mm were expected{more}: export the series again"
        )


def _check_tilt(stack: Stack, ordered: Sequence[SliceHeader]) -> tuple[str, ...]:
    """Compare the gantry's tilt by its own tag with the slices' orientation."""
    tag = max((abs(header.tilt) for header in ordered if header.tilt is not None), default=0.0)
    along_table = float(np.degrees(np.arccos(np.clip(abs(stack.normal[2]), 0, 1))))
    if not 0.5 < tag < 60 or along_table > 0.5:
        return ()
    clause = f"its gantry was tilted by {tag:g} degrees by its tag and by its orientation not at all"
    if "ORIGINAL" in ordered[0].image_type:
        raise VolumeError(f"{clause}: its voxels would come out sheared")
    return (f"{named(ordered).name}: {clause}: it is a reformatted series, and taken to be straight",)
