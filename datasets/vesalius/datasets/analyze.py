"""One Analyze 7.5 pair (.hdr with its .img) -> one volume, or one sentence that says what is wrong with it.

The format has no affine. Where a voxel lies is known from the header's ``orient`` alone, whose value 0 is also what
programs write that do not know: so the volume is marked as not oriented, unless its layout knows better.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.files import file_sha256, read_bytes
from vesalius.datasets.nifti import RawVolume, check_finite, volume_shape, voxel_type
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import Affine, check_affine

if TYPE_CHECKING:
    from pathlib import Path

ORIENTATIONS = {0: "LAS", 1: "LSA", 2: "ASL", 3: "LPS", 4: "LIA", 5: "AIL"}
"""Where each array axis runs to, by the header's ``orient`` (Mayo's ANALYZE 7.5: transverse, coronal, sagittal; from 3
on with the second axis flipped). The first is the radiological order: right to left, back to front, feet to head."""

_HEADER_BYTES = 348
_ORIENT_BYTE = 252
_WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
_NIFTI_MAGIC = (b"ni1\0", b"n+1\0")


def is_analyze(path: Path) -> bool:
    """Return whether the name is that of an Analyze pair's header or image."""
    return path.name.lower().endswith((".hdr", ".img"))


def analyze_sha256(path: Path) -> str:
    """Return one digest for header and image: another header makes another volume of the same image.

    Raises:
        VolumeError: either is missing or cannot be read.
    """
    return _together(*(file_sha256(part) for part in pair_of(path)))


def read_analyze(path: Path) -> RawVolume:
    """Read a pair in either byte order, of any real type; trailing axes of length one are dropped.

    The affine has the header's voxel size along the axes that its ``orient`` names, and the world's origin at the
    grid's centre.

    Args:
        path: the header or the image; the other has its name.

    Raises:
        VolumeError: one of the two is missing, truncated or no Analyze file, not three-dimensional, not real numbers,
            holding NaN or infinite voxels, or of an unknown ``orient`` or voxel size.
    """
    from nibabel.analyze import AnalyzeHeader
    from nibabel.spatialimages import HeaderDataError

    header_path, image_path = pair_of(path)
    start, content = read_bytes(header_path), read_bytes(image_path)
    if len(start) < _HEADER_BYTES:
        raise VolumeError(f"{header_path} is truncated: an Analyze header has {_HEADER_BYTES} bytes: copy it again")
    if _HEADER_BYTES not in {int.from_bytes(start[:4], order) for order in ("little", "big")}:
        raise VolumeError(f"{header_path} is not an Analyze header: expected one of {_HEADER_BYTES} bytes")
    if start[344:348] in _NIFTI_MAGIC:
        raise VolumeError(f"{header_path} is the header of a NIfTI pair: convert it to one .nii file")
    try:
        header: Any = AnalyzeHeader(start[:_HEADER_BYTES], check=False)
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(f"{header_path}: its header is damaged ({error}): repair or convert it") from None
    shape, dtype = volume_shape(header, header_path), voxel_type(header, header_path)
    offset = max(0.0, float(np.nan_to_num(header["vox_offset"])))
    num_voxels = int(np.prod(shape, dtype=np.int64))
    expected = int(min(offset, 2**40)) + num_voxels * dtype.itemsize
    if len(content) < expected:
        raise VolumeError(
            f"{image_path} is truncated: its header promises {expected:,} bytes and {len(content):,} are there: "
            "copy it again"
        )
    stored = np.frombuffer(content, dtype=dtype, count=num_voxels, offset=int(offset)).reshape(shape, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite and reported as such
        array = stored.astype(np.float32)
    check_finite(array, str(image_path))
    orient = start[_ORIENT_BYTE]
    if orient not in ORIENTATIONS:
        raise VolumeError(f"{header_path}: its orient is {orient}, expected 0 to 5: repair or convert it")
    sizes_mm = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    affine = check_affine(_affine(shape, sizes_mm, ORIENTATIONS[orient]), str(header_path))
    return RawVolume(
        array=array,
        affine=affine,
        name=str(image_path),
        sha256=_together(*(hashlib.sha256(part).hexdigest() for part in (start, content))),
        oriented=False,
        notes={"analyze": {"orient": orient, "axes": ORIENTATIONS[orient]}},
    )


def _affine(shape: tuple[int, int, int], sizes_mm: Any, axes: str) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for axis, letter in enumerate(axes):
        world, sign = _WORLD[letter]
        affine[world, axis] = sign * sizes_mm[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def pair_of(path: Path) -> tuple[Path, Path]:
    """Return header and image, whichever was named, in the case that the names have."""
    upper = path.suffix.isupper()
    header, image = (path.with_suffix(ending.upper() if upper else ending) for ending in (".hdr", ".img"))
    return header, image


def _together(*digests: str) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
