"""The series of a folder: which files belong together, in which order, and what keeps a series from being a volume.

Nothing here reads a pixel, except where two files claim one place and it must be known whether one is a copy.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.checking import checked
from vesalius.datasets.dicom.decoding import Decoder
from vesalius.datasets.dicom.geometry import MIN_SLICES, SAME_DIRECTION, axes_of, same_numbers
from vesalius.datasets.dicom.headers import SliceHeader, looks_like_dicom, read_header
from vesalius.datasets.dicom.pixels import pixel_problem, read_slice
from vesalius.datasets.dicom.series import Series, left_out, named
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

_DIRECTORY = "1.2.840.10008.1.3.10"
_MIXED_DEGREES = 45.0


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
            parts.append(left_out(same_kind, mixed))
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
            if same_numbers(header.orientation, group[0].orientation, SAME_DIRECTION):
                group.append(header)
                break
        else:
            groups.append([header])
    return groups


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
        stack, odd = checked(kept)
    except VolumeError as error:
        return left_out(headers, str(error))
    ordered = tuple(kept[index] for index in stack.order)
    return replace(named(ordered), warnings=(*warnings, *odd))


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


def _without_copies(headers: list[SliceHeader]) -> tuple[list[SliceHeader], tuple[str, ...]]:
    """Leave out every file that repeats another one's image at the same place."""
    places: dict[Hashable, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        if header.position is not None:
            places[tuple(round(value, 2) for value in header.position)].append(header)
    copies: list[SliceHeader] = []
    names: list[str] = []
    with Decoder() as decoder:
        for group in places.values():
            if len(group) == 1 or any(pixel_problem(header) is not None for header in group):
                continue
            kept = [(group[0], read_slice(group[0].path, decoder).image)]
            for header in group[1:]:
                image = read_slice(header.path, decoder).image
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
    return left, (f"{named(left).name}: duplicated slices were left out: {shown}",)
