"""The series of a folder: which files belong together, in which order, and what keeps a series from being a volume.

Nothing here reads a pixel, except where two files claim one place and it must be known whether one is a copy.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.geometry import (
    MAX_VOXELS,
    MIN_SLICES,
    SAME_DIRECTION,
    SAME_PLACE_MM,
    Stack,
    axes_of,
    grid_of,
    missing_slices,
    stack_of,
)
from vesalius.datasets.dicom.headers import SliceHeader, looks_like_dicom, read_header, uid_name
from vesalius.datasets.dicom.pixels import pixel_problem, read_slice
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

_CT, _MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
_DIRECTORY = "1.2.840.10008.1.3.10"
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
_MIXED_DEGREES = 45.0
_MAX_TILT_DEGREES = 45.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """Files that make one volume, or that were to make one.

    Attributes:
        uid: SeriesInstanceUID; empty for a file that cannot be read.
        files: by position along the normal, from the patient's lowest to the highest where that is defined.
        description: SeriesDescription.
        modality: ``CT`` or ``MR``; whatever the file says for what is neither.
        problem: why it is no volume, as a sentence that names the series; None where it is one.
        warnings: what was left out of it or is odd about it, a sentence each.
        name: for messages.
        headers: the files' tags, in the same order.
    """

    uid: str
    files: tuple[Path, ...]
    description: str = ""
    modality: str = ""
    problem: str | None = None
    warnings: tuple[str, ...] = ()
    name: str = ""
    headers: tuple[SliceHeader, ...] = ()


class _NoVolumeError(Exception):
    """Why a part of a series is no volume: a clause to follow its name."""


def find_series(folder: Path, *, root: Path | None = None) -> list[Series]:
    """Return the series in a folder and all folders below it, sorted by series number and UID.

    Files are grouped by SeriesInstanceUID. A series that mixes image types, or orientations that are far apart (an
    axial, a coronal and a sagittal stack), is taken apart; so is one that holds several whole acquisitions of one
    place. What is no volume stays in the list with its ``problem``: a localiser, a phantom, a dose report, a secondary
    capture, a document, a multi-frame image; a series with a missing slice, with different images at one place, with
    mixed sizes, pixel spacings or neighbouring orientations, with tags missing, or with pixels that cannot be decoded;
    and a single file that cannot be read. A file that is an exact copy of another is left out with a warning.

    Files that are no DICOM files are passed over. Folders that are links are not followed, and a link to a file is
    followed only to within ``root``.

    Args:
        folder: where to look.
        root: the tree that links must stay in; ``folder`` itself when None.

    Raises:
        VolumeError: there is no such folder.
    """
    if not folder.is_dir():
        raise VolumeError(f"{folder}: there is no such folder")
    inside = (root or folder).resolve()
    headers: list[SliceHeader] = []
    broken: list[Series] = []
    for path in _files(folder):
        try:
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise VolumeError(f"{path} is a link to a place outside {inside}: copy the file there")
            header = read_header(path)
        except VolumeError as error:
            broken.append(
                Series(uid="", files=(path,), description="", modality="", problem=str(error), name=str(path))
            )
            continue
        if header.sop_class != _DIRECTORY:
            headers.append(header)
    damaged = {series.files[0].parent: series.files[0] for series in reversed(broken)}
    found = [
        _mark_incomplete(part, damaged)
        for group in _grouped(headers, lambda header: header.series_uid).values()
        for part in _parts(group)
    ]
    return sorted(found, key=_order) + broken


def check_series(headers: Sequence[SliceHeader], name: str) -> tuple[Stack, tuple[str, ...]]:
    """Return where the slices of one volume lie, with what is odd about them, after every check of :func:`find_series`.

    Raises:
        VolumeError: they make no volume; the message begins with ``name``.
    """
    try:
        return _checked(headers)
    except (_NoVolumeError, VolumeError) as error:
        raise VolumeError(f"{name}: {error}") from None


def _files(folder: Path) -> Iterable[Path]:
    for place, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if looks_like_dicom(path):
                yield path


def _grouped(
    headers: Iterable[SliceHeader], key: Callable[[SliceHeader], Hashable]
) -> dict[Hashable, list[SliceHeader]]:
    groups: dict[Hashable, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        groups[key(header)].append(header)
    return dict(groups)


def _parts(headers: list[SliceHeader]) -> list[Series]:
    """Take one SeriesInstanceUID apart where it mixes what cannot be one volume."""
    parts = []
    for same_kind in _grouped(headers, _kind).values():
        stacks = _by_orientation(same_kind)
        mixed = _mixed_orientations(stacks)
        if mixed is not None:
            parts.append(_left_out(same_kind, mixed))
            continue
        for stack in stacks:
            parts.extend(_by_acquisition(stack))
    return parts


def _kind(header: SliceHeader) -> tuple[str, str, tuple[str, ...]]:
    # Values behind the third are the maker's own: a real scanner marks the slices that it added up from thinner ones.
    return (header.sop_class, header.modality, header.image_type[:3])


def _by_orientation(headers: list[SliceHeader]) -> list[list[SliceHeader]]:
    groups: list[list[SliceHeader]] = []
    for header in headers:
        for group in groups:
            if _same_numbers(header.orientation, group[0].orientation, SAME_DIRECTION):
                group.append(header)
                break
        else:
            groups.append([header])
    return groups


def _same_numbers(one: tuple[float, ...] | None, other: tuple[float, ...] | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= tolerance


def _mixed_orientations(groups: list[list[SliceHeader]]) -> str | None:
    """Return a clause where two stacks of one series are neighbours in angle: one scan whose gantry was moved."""
    try:
        normals = [axes_of(group[0])[2] for group in groups]
    except VolumeError:
        return None
    for index, one in enumerate(normals):
        for other, group in zip(normals[index + 1 :], groups[index + 1 :], strict=True):
            degrees = float(np.degrees(np.arccos(np.clip(abs(one @ other), 0, 1))))
            if degrees < _MIXED_DEGREES:
                return (
                    f"its slices have mixed orientations, {degrees:.1f} degrees apart "
                    f"({groups[index][0].path.name} and {group[0].path.name})"
                )
    return None


def _by_acquisition(headers: list[SliceHeader]) -> list[Series]:
    """Make one series of a stack, or several where several whole ones fill the same places.

    Only parts that are volumes on their own were wrongly put together: blocks of one head, which scanners number as
    acquisitions of their own and give types of their own, are not.
    """
    whole = _series(headers)
    if whole.problem is None:
        return [whole]
    for key in (lambda header: header.image_type, lambda header: header.acquisition):
        groups = _grouped(headers, key)
        if len(groups) == 1 or min(map(len, groups.values())) < MIN_SLICES or not _overlap(list(groups.values())):
            continue
        split = [_series(group) for group in groups.values()]
        if all(series.problem is None for series in split):
            return split
    return [whole]


def _overlap(groups: list[list[SliceHeader]]) -> bool:
    """Return whether two groups of slices share a place."""
    seen: set[tuple[float, ...]] = set()
    for group in groups:
        places = {tuple(round(value, 1) for value in header.position) for header in group if header.position}
        if places & seen:
            return True
        seen |= places
    return False


def _series(headers: list[SliceHeader]) -> Series:
    try:
        kept, warnings = _without_copies(headers)
        stack, odd = _checked(kept)
    except (_NoVolumeError, VolumeError) as error:
        return _left_out(headers, str(error))
    ordered = tuple(kept[index] for index in stack.order)
    return replace(_named(ordered), warnings=(*warnings, *odd))


def _left_out(headers: Sequence[SliceHeader], clause: str) -> Series:
    series = _named(headers)
    return replace(series, problem=f"{series.name} is left out: {clause}")


def _named(headers: Sequence[SliceHeader]) -> Series:
    first = headers[0]
    number = "without a number" if first.series_number is None else str(first.series_number)
    title = f" '{first.description}'" if first.description else ""
    count = "1 file" if len(headers) == 1 else f"{len(headers)} files"
    return Series(
        uid=first.series_uid,
        files=tuple(header.path for header in headers),
        description=first.description,
        modality=first.modality,
        name=f"{first.path.parent}: series {number}{title} ({count})",
        headers=tuple(headers),
    )


def _order(series: Series) -> tuple[int, str, str]:
    number = series.headers[0].series_number
    return (2**31 if number is None else number, series.uid, str(min(series.files)))


def _mark_incomplete(series: Series, damaged: dict[Path, Path]) -> Series:
    if series.problem is not None:
        return series
    for place in sorted({path.parent for path in series.files}):
        if place in damaged:
            problem = f"{series.name} is left out: {damaged[place].name} beside it cannot be read and may belong to it"
            return replace(series, problem=problem)
    return series


def _checked(headers: Sequence[SliceHeader]) -> tuple[Stack, tuple[str, ...]]:
    """Return where slices lie and what is odd about them.

    Raises:
        _NoVolumeError: they make no volume.
        VolumeError: likewise; the clause names a file.
    """
    _check_kind(headers)
    if len(headers) < MIN_SLICES:
        raise _NoVolumeError(f"it holds {len(headers)} images: expected {MIN_SLICES} slices at least")
    _check_alike(headers)
    for header in headers:
        problem = pixel_problem(header)
        if problem is not None:
            raise _NoVolumeError(f"{header.path.name} {problem}")
    stack = stack_of(headers)
    columns, rows = stack.size
    if columns * rows * len(headers) > MAX_VOXELS:
        raise _NoVolumeError(f"it holds {columns} x {rows} x {len(headers)} voxels, more than {MAX_VOXELS:,}")
    ordered = [headers[index] for index in stack.order]
    _check_places(stack, ordered)
    if stack.tilt_degrees > _MAX_TILT_DEGREES:
        raise _NoVolumeError(
            f"its slices drift sideways by {stack.tilt_degrees:.1f} degrees: their positions are damaged"
        )
    warnings = _check_tilt(stack, ordered)
    grid_of(stack)
    return stack, warnings


def _check_kind(headers: Sequence[SliceHeader]) -> None:
    first = headers[0]
    if not first.series_uid:
        raise _NoVolumeError(f"{first.path.name} has no SeriesInstanceUID")
    if first.sop_class not in (_CT, _MR):
        kind = _CLASSES.get(first.sop_class) or uid_name(first.sop_class) or "of an unknown class"
        raise _NoVolumeError(f"it is {kind}")
    if first.modality not in ("CT", "MR"):
        raise _NoVolumeError(f"its modality is '{first.modality}': expected CT or MR")
    told = " ".join((first.description, *first.image_type))
    if _LOCALISER.search(told):
        raise _NoVolumeError("it is a localiser (scout)")
    if _DOSE.search(told.replace("_", " ")):
        raise _NoVolumeError("it is a dose report")
    for text in (first.description, *first.texts):
        if _PHANTOM.search(text.replace("_", " ")):
            raise _NoVolumeError(f"it shows a phantom, by its description '{text}'")


def _check_alike(headers: Sequence[SliceHeader]) -> None:
    first = headers[0]
    for header in headers[1:]:
        if (header.rows, header.columns) != (first.rows, first.columns):
            raise _NoVolumeError(
                f"its slices have mixed sizes: {first.path.name} has {first.rows} x {first.columns} pixels and "
                f"{header.path.name} {header.rows} x {header.columns}"
            )
        if not _same_numbers(header.pixel_spacing, first.pixel_spacing, 1e-4):
            raise _NoVolumeError(
                f"its slices have mixed pixel spacings: {first.path.name} has {first.pixel_spacing} mm and "
                f"{header.path.name} {header.pixel_spacing}"
            )
        if header.patient != first.patient:
            raise _NoVolumeError(f"{first.path.name} and {header.path.name} are of different patients")
        # What find_series has taken apart, and read_series may be given together.
        if not _same_numbers(header.orientation, first.orientation, SAME_DIRECTION):
            raise _NoVolumeError(f"{first.path.name} and {header.path.name} have different orientations")
        if (header.series_uid, header.sop_class, header.modality) != (
            first.series_uid,
            first.sop_class,
            first.modality,
        ):
            raise _NoVolumeError(f"{first.path.name} and {header.path.name} are of different series")


def _check_places(stack: Stack, ordered: Sequence[SliceHeader]) -> None:
    gaps = stack.gaps_mm
    same = np.flatnonzero(gaps < SAME_PLACE_MM)
    if len(same):
        one, other = ordered[same[0]].path.name, ordered[same[0] + 1].path.name
        raise _NoVolumeError(f"{one} and {other} show different images of one place ({len(same)} such pairs)")
    holes = missing_slices(gaps, stack.thickness_mm)
    if holes:
        index, expected = holes[0]
        more = f" (the first of {len(holes)} such gaps)" if len(holes) > 1 else ""
        raise _NoVolumeError(
            f"a slice is missing between {ordered[index].path.name} and {ordered[index + 1].path.name}: "
            f"{gaps[index]:.2f} mm apart where {expected:.2f} mm were expected{more}"
        )


def _check_tilt(stack: Stack, ordered: Sequence[SliceHeader]) -> tuple[str, ...]:
    """Compare the gantry's tilt by its own tag with the slices' orientation."""
    tag = max((abs(header.tilt) for header in ordered if header.tilt is not None), default=0.0)
    along_table = float(np.degrees(np.arccos(np.clip(abs(stack.normal[2]), 0, 1))))
    if not 0.5 < tag < 60 or along_table > 0.5:
        return ()
    clause = f"its gantry was tilted by {tag:g} degrees by its tag and by its orientation not at all"
    if "ORIGINAL" in ordered[0].image_type:
        raise _NoVolumeError(f"{clause}: its voxels would come out sheared")
    return (f"{_named(ordered).name}: {clause}: it is a reformatted series, and taken to be straight",)


def _without_copies(headers: list[SliceHeader]) -> tuple[list[SliceHeader], tuple[str, ...]]:
    """Leave out every file that repeats another one's image at the same place."""
    places: dict[Hashable, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        if header.position is not None:
            places[tuple(round(value, 2) for value in header.position)].append(header)
    copies: list[SliceHeader] = []
    names: list[str] = []
    for group in places.values():
        if len(group) == 1 or any(pixel_problem(header) is not None for header in group):
            continue
        kept = [(group[0], read_slice(group[0].path).image)]
        for header in group[1:]:
            image = read_slice(header.path).image
            same = [first for first, other in kept if np.array_equal(image, other)]
            if same:
                copies.append(header)
                names.append(f"{header.path.name} of {same[0].path.name}")
            else:
                kept.append((header, image))
    if not copies:
        return headers, ()
    left = [header for header in headers if not any(header is copy for copy in copies)]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return left, (f"{_named(left).name}: duplicated slices were left out: {shown}",)
