"""A series' files -> one volume in Hounsfield units on a rectangular grid, and a word on all that was resampled."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.dicom.checking import check_series
from vesalius.datasets.dicom.decoding import Decoder
from vesalius.datasets.dicom.geometry import stack_of
from vesalius.datasets.dicom.headers import read_header
from vesalius.datasets.dicom.pixels import fill_of, read_slice
from vesalius.datasets.dicom.resampling import grid_of, resample_stack
from vesalius.datasets.files import file_sha256
from vesalius.datasets.nifti import RawVolume
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from vesalius.datasets.dicom.geometry import Stack
    from vesalius.datasets.dicom.headers import SliceHeader
    from vesalius.datasets.dicom.resampling import Grid
    from vesalius.datasets.dicom.series import Series

_AIR_BELOW_HU = -500.0


def series_sha256(files: Sequence[Path]) -> str:
    """Return one digest for the files of a series: of their contents, whatever their names and order.

    Raises:
        VolumeError: a file is missing or cannot be read.
    """
    return _together(file_sha256(path) for path in files)


def promised_grid(series: Series) -> Grid:
    """Return the grid that a series without a problem will be brought onto: from its tags, before a pixel is read."""
    return grid_of(stack_of(series.headers))


def read_series(files: Sequence[Path]) -> RawVolume:
    """Read the slices of one volume, in any order, and bring them onto a rectangular grid.

    Every check of :func:`vesalius.datasets.dicom.find_series` is made again on what is read. Slices of a tilted gantry
    are moved within their planes (linear interpolation); uneven gaps are filled by linear interpolation along the
    normal; a regular series is not resampled. What was done stands in ``warnings``, with numbers in ``notes``.

    Returns:
        (columns, rows, planes) float32, Hounsfield units for CT; planes in the direction of the slices' normal. What
        was not measured is -1024 in CT and 0 elsewhere.

    Raises:
        VolumeError: a file cannot be read, or the files make no volume.
    """
    if not files:
        raise VolumeError("a DICOM series without files was asked for")
    headers = [read_header(path) for path in files]
    name = str(files[0].parent)
    stack, odd = check_series(headers, name)
    columns, rows = stack.size
    slices = np.empty((len(files), rows, columns), np.float32)
    digests, num_unmeasured = [], 0
    with Decoder() as decoder:
        for place, index in enumerate(stack.order):
            found = read_slice(files[index], decoder)
            if found.header != headers[index]:
                raise VolumeError(f"{files[index]} changed while it was read: run it again")
            slices[place] = found.image
            digests.append(found.sha256)
            num_unmeasured += found.num_unmeasured
    modality = headers[0].modality
    grid = grid_of(stack)
    array = resample_stack(slices, stack, grid, fill_of(modality))
    warnings = (*odd, *_warnings(name, stack, grid, modality, float(slices.min())))
    return RawVolume(
        array=array.transpose(2, 1, 0),
        affine=grid.affine,
        name=name,
        sha256=_together(digests),
        warnings=warnings,
        notes={"dicom": _notes(headers, stack, grid, num_unmeasured)},
    )


def _together(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _warnings(name: str, stack: Stack, grid: Grid, modality: str, lowest: float) -> list[str]:
    warnings = []
    if stack.is_sheared:
        furthest = float(np.hypot(*stack.shifts_mm.T).max())
        warnings.append(
            f"{name}: the gantry was tilted by {stack.tilt_degrees:.1f} degrees: slices were moved within their planes "
            f"by up to {furthest:.1f} mm onto a rectangular grid of {grid.shape[0]} x {grid.shape[1]} pixels"
        )
    if not stack.is_even:
        warnings.append(
            f"{name}: {len(stack.order)} slices lie unevenly ({_said(stack)}): they were resampled linearly to "
            f"{grid.shape[2]} planes {grid.offsets_mm[1]:.3f} mm apart"
        )
    if modality == "CT" and lowest > _AIR_BELOW_HU:
        warnings.append(f"{name}: its lowest value is {lowest:g} HU: expected air near -1000: look at its rescaling")
    return warnings


def _said(stack: Stack) -> str:
    """Return the gaps between slices in words, in order, equal ones together."""
    parts: list[tuple[int, str]] = []
    for gap in stack.gaps_mm:
        text = f"{gap:.2f}"
        if parts and parts[-1][1] == text:
            parts[-1] = (parts[-1][0] + 1, text)
        else:
            parts.append((1, text))
    if len(parts) > 8:
        return f"gaps of {stack.gaps_mm.min():.2f} to {stack.gaps_mm.max():.2f} mm"
    return "gaps of " + ", ".join(f"{count} x {text}" for count, text in parts) + " mm"


def _notes(headers: Sequence[SliceHeader], stack: Stack, grid: Grid, num_unmeasured: int) -> dict[str, Any]:
    first = headers[0]
    return {
        "modality": first.modality,
        "series_description": first.description,
        "num_slices": len(headers),
        "gaps_mm": {
            "lowest": round(float(stack.gaps_mm.min()), 3),
            "median": round(float(np.median(stack.gaps_mm)), 3),
            "highest": round(float(stack.gaps_mm.max()), 3),
        },
        "tilt_degrees": round(stack.tilt_degrees, 3) if stack.is_sheared else 0.0,
        "resampled": [
            *(["in the slices' planes, against the gantry's tilt"] if stack.is_sheared else []),
            *(["along the slices' normal, to even gaps"] if not stack.is_even else []),
        ],
        "shape": list(grid.shape),
        "plane_distance_mm": round(float(grid.offsets_mm[1]), 6),
        "num_unmeasured_voxels": num_unmeasured,
    }
