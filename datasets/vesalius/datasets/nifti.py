"""One NIfTI file -> one volume, or one sentence that says what is wrong with the file.

The file's bytes are read once: they are hashed, decompressed up to what the header promises, and viewed as voxels.
nibabel reads the header; what it says about broken ones never reaches the user.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.files import inflated, inflated_start, read_bytes, size_of
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import check_affine, spacing_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MAX_VOXELS = 1 << 30
"""4 GiB as float32, a cube of 1024: more is refused before it is inflated, since a small file can promise anything."""

_FURTHEST_OFFSET = 1 << 30
_HEADER_BYTES = 64 << 10
_SAME_PLACE_MM = 1.0
_OTHER_UNITS = {1: "metres", 3: "micrometres"}
_QUIET = logging.getLogger("vesalius.nifti")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


@dataclass(frozen=True, kw_only=True)
class RawVolume:
    """A volume as its file has it.

    Attributes:
        array: (D, H, W) float32 in the file's own axis order, finite.
        affine: (4, 4) voxel indices to mm (RAS+), invertible.
        name: for messages: the file's path.
        sha256: of the file's bytes; empty for what was never a file.
        oriented: the file says where it lies; otherwise the affine is a guess from the voxel size alone.
        warnings: what a person should know of how it was read, a sentence each.
        notes: further JSON for the subject's record, by kind.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    name: str
    sha256: str = ""
    oriented: bool = True
    warnings: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        d, h, w = self.array.shape
        return (d, h, w)


def read_nifti(path: Path) -> RawVolume:
    """Read a .nii or .nii.gz file (NIfTI-1 or NIfTI-2, either byte order, any real type) with its scaling applied.

    Trailing axes of length one are dropped.

    Raises:
        VolumeError: missing, empty, not NIfTI, truncated or damaged, not three-dimensional, not real numbers, holding
            NaN or infinite voxels, with an affine that cannot be inverted, or with lengths in metres or micrometres.
    """
    content = read_bytes(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if not content:
        raise VolumeError(f"{path} is empty: expected a .nii or .nii.gz file")
    header = _header(inflated(content, 1024, path), path)
    shape = volume_shape(header, path)
    dtype = voxel_type(header, path)
    start = _offset(header, path)
    expected = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data = inflated(content, expected, path)
    del content
    if len(data) < expected:
        raise VolumeError(
            f"{path} is truncated: its header promises {expected:,} bytes and {len(data):,} are there: copy it again"
        )
    stored = np.frombuffer(data, dtype=dtype, count=int(np.prod(shape)), offset=start).reshape(shape, order="F")
    array = _scaled(stored, header, path)
    check_finite(array, str(path))
    _check_units(header, path)
    affine, oriented = _affine(header, path)
    return RawVolume(
        array=array,
        affine=affine,
        name=str(path),
        sha256=sha256,
        oriented=oriented,
        warnings=_disagreement(header, shape, path),
    )


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a file's header says of its voxels, before one of them is read.

    Attributes:
        shape: (D, H, W).
        spacing_mm: voxel size along them.
        num_bytes: of the decompressed file, up to its last voxel.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    num_bytes: int


def promise_of(path: Path) -> Promise:
    """Read a file's header alone, to know what its voxels would take: a small file can promise anything.

    Raises:
        VolumeError: it is no NIfTI file, or its header is damaged.
    """
    size_of(path)
    with path.open("rb") as stream:
        header = _header(inflated_start(stream.read(_HEADER_BYTES), 1024, path), path)
    shape = volume_shape(header, path)
    affine, _ = _affine(header, path)
    num_bytes = _offset(header, path) + math.prod(shape) * voxel_type(header, path).itemsize
    return Promise(shape=shape, spacing_mm=spacing_of(affine), num_bytes=num_bytes)


def check_finite(array: NDArray[Any], name: str) -> None:
    """Check that every voxel is a finite number.

    Raises:
        VolumeError: some are not; the message counts them.
    """
    finite = np.isfinite(array)
    if finite.all():
        return
    num_nan = int(np.isnan(array).sum())
    num_infinite = int(finite.size - finite.sum()) - num_nan
    counts = [f"{count:,} {kind}" for count, kind in ((num_nan, "NaN"), (num_infinite, "infinite")) if count]
    raise VolumeError(f"{name} holds {' and '.join(counts)} voxels: replace them by numbers first")


def _header(start: bytes, path: Path) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    kind, length = (Nifti2Header, 540) if 540 in sizes else (Nifti1Header, 348)
    if not sizes & {348, 540}:
        looks = "text" if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start[:64]) else "something else"
        raise VolumeError(f"{path} is not a NIfTI file (it looks like {looks}): expected a .nii or .nii.gz volume")
    if len(start) < length:
        raise VolumeError(f"{path} is truncated: it ends within its header: copy it again")
    magic = start[4:8] if length == 540 else start[344:348]
    if magic in (b"ni1\0", b"ni2\0"):
        raise VolumeError(f"{path} is the header of a .hdr/.img pair: convert it to one .nii file")
    if magic not in (b"n+1\0", b"n+2\0"):
        raise VolumeError(
            f"{path} is not a NIfTI file (an Analyze header, perhaps): name it .hdr, with its .img beside it"
        )
    try:
        header = kind.from_fileobj(BytesIO(start), check=False)
        if np.isinf(header["scl_slope"]):  # nibabel would take it for none, and the voxels for what they are not
            raise ValueError("its scaling is infinite")
        header.check_fix(logger=_QUIET, error_level=45)
    except Exception as error:  # nibabel raises whatever the bytes lead it to, such as OverflowError at an infinity
        raise VolumeError(f"{path}: its NIfTI header is damaged ({_clause(error)}): repair or convert it") from None
    return header


_MOST_AXES = 7
"""A NIfTI or Analyze header has room for the sizes of seven."""


def volume_shape(header: Any, path: Path) -> tuple[int, int, int]:
    """Return the three sizes that a nibabel header promises, without trailing axes of length one.

    Raises:
        VolumeError: there are not three, or one is below 2.
    """
    num_axes = int(header["dim"][0])
    if not 0 <= num_axes <= _MOST_AXES:  # nibabel adds one to it, which overflows at the largest
        raise VolumeError(f"{path} has {num_axes} axes by its header: expected one 3D volume: repair or convert it")
    shape = tuple(int(size) for size in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise VolumeError(f"{path} is {len(shape)}D, of shape {shape}: expected one 3D volume: split it first")
    if math.prod(max(0, size) for size in shape) > MAX_VOXELS:
        raise VolumeError(
            f"{path} has shape {shape}: expected {MAX_VOXELS:,} voxels at most: crop or resample it first"
        )
    if len(shape) < 3 or min(shape) < 2:
        raise VolumeError(f"{path} has shape {shape}: expected a volume with at least 2 voxels along each of 3 axes")
    d, h, w = shape
    return (d, h, w)


def _offset(header: Any, path: Path) -> int:
    """Return where the voxels begin; a file may say anything."""
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _FURTHEST_OFFSET:
        raise VolumeError(f"{path}: its voxels begin at byte {offset:g} by its header: repair or convert it")
    return int(header.get_data_offset())


def voxel_type(header: Any, path: Path) -> np.dtype[Any]:
    """Return the type and byte order of the voxels that a nibabel header promises.

    Raises:
        VolumeError: the header's code is none, or stands for what is no real number.
    """
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, ValueError, KeyError) as error:
        raise VolumeError(f"{path}: its header is damaged ({_clause(error)}): repair or convert it") from None
    if dtype.kind not in "iuf" or dtype.itemsize == 0:
        raise VolumeError(f"{path} holds {dtype} voxels: expected real numbers: convert it first")
    return dtype


def _scaled(stored: NDArray[Any], header: Any, path: Path) -> NDArray[np.float32]:
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, inter = header.get_slope_inter()
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(f"{path}: its NIfTI header is damaged ({_clause(error)}): repair or convert it") from None
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite and reported as such
        if slope is None or (slope == 1 and inter == 0):
            return stored.astype(np.float32)
        scaled: NDArray[np.float32] = (stored.astype(np.float64) * slope + inter).astype(np.float32)
        return scaled


def _check_units(header: Any, path: Path) -> None:
    """Check that lengths are in millimetres, or in units that the file does not tell.

    Raises:
        VolumeError: they are not: nobody converts them, neither here nor in the libraries that read such files.
    """
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is not None:
        raise VolumeError(f"{path} says that its lengths are in {unit}: expected millimetres: convert its header first")


def _affine(header: Any, path: Path) -> tuple[NDArray[np.float64], bool]:
    from nibabel.spatialimages import HeaderDataError

    try:
        affine = header.get_best_affine()
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(f"{path}: its NIfTI header is damaged ({_clause(error)}): repair or convert it") from None
    return check_affine(affine, str(path)), bool(header["sform_code"] > 0 or header["qform_code"] > 0)


def _disagreement(header: Any, shape: tuple[int, int, int], path: Path) -> tuple[str, ...]:
    """Return a warning where the file's two transforms claim one space and do not agree on it.

    Two spaces (the scanner's and a template's) may differ as they like, but for left and right.
    """
    from nibabel.spatialimages import HeaderDataError

    codes = int(header["sform_code"]), int(header["qform_code"])
    if min(codes) <= 0:
        return ()
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return (f"{path}: its qform is damaged: its sform is taken",)
    if not np.isfinite(qform).all() or np.linalg.det(qform) == 0:
        return (f"{path}: its qform is damaged: its sform is taken",)
    if np.linalg.det(sform) * np.linalg.det(qform) < 0:
        return (f"{path}: its sform and its qform are mirror images: its sform is taken; check left and right",)
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)]).T
    corners[:3] *= (np.array(shape) - 1)[:, None]
    apart = float(np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max())
    if codes[0] == codes[1] and apart > _SAME_PLACE_MM:
        return (f"{path}: its sform and its qform lie up to {apart:.3g} mm apart: its sform is taken",)
    return ()


def _clause(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
