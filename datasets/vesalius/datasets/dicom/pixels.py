"""One slice's pixels in Hounsfield units (CT) or as rescaled (MR), decoded within bounds that its tags promise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.dicom.encodings import RUN_LENGTH, is_compressed, syntax_problem
from vesalius.datasets.dicom.headers import DICOM_FILE, MAX_FILE_BYTES, parse_header, quiet
from vesalius.datasets.files import read_bytes
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.datasets.dicom.decoding import Decoder
    from vesalius.datasets.dicom.headers import SliceHeader

AIR_HU = -1024.0
"""The lowest value of a 12-bit CT image: taken by what was not measured. Scanners write -1500, -2000 or -3024 there."""

MAX_SLICE_PIXELS = 1 << 26
_SLACK_BYTES = 64 << 10
_WHOLE = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice.

    Attributes:
        header: its tags.
        image: (rows, columns) float32, rescaled.
        num_unmeasured: pixels that hold the file's padding value, or lie below ``AIR_HU`` in CT; set to the fill.
        sha256: of the file's bytes.
    """

    header: SliceHeader
    image: NDArray[np.float32]
    num_unmeasured: int
    sha256: str


def fill_of(modality: str) -> float:
    """Return the value of what was not measured: air in CT, 0 elsewhere."""
    return AIR_HU if modality == "CT" else 0.0


def pixel_problem(header: SliceHeader) -> str | None:
    """Return why a slice's pixels cannot be used, by its tags, as a clause; None where they can."""
    if (header.frames or 1) != 1:
        return f"holds {header.frames} frames: convert multi-frame images with dcm2niix first"
    if header.rows is None or header.columns is None or min(header.rows, header.columns) < 2:
        return f"has {header.rows} rows and {header.columns} columns"
    if header.rows * header.columns > MAX_SLICE_PIXELS:
        return f"has {header.rows} x {header.columns} pixels, more than {MAX_SLICE_PIXELS:,}"
    if header.samples != 1 or header.photometric != "MONOCHROME2":
        return (
            f"holds {header.samples} values a pixel, shown as {header.photometric or 'nothing'}: expected grey values"
        )
    if header.bits not in (8, 16, 32):
        return f"has {header.bits} bits a pixel: expected 8, 16 or 32"
    if header.bits_stored is None or not 1 <= header.bits_stored <= header.bits:
        return f"says that {header.bits_stored} of {header.bits} bits are its values': export it again"
    if header.high_bit is not None and header.high_bit != header.bits_stored - 1:
        return (
            f"keeps its values in bits {header.high_bit - header.bits_stored + 1} to {header.high_bit}: expected the "
            "lowest ones: export it again"
        )
    if header.modality == "CT" and (header.slope is None or header.intercept is None):
        return "has no usable RescaleSlope and RescaleIntercept, so its Hounsfield units are unknown: export it again"
    if header.slope == 0:
        return "has a RescaleSlope of 0: export it again"
    if header.modality == "CT" and header.rescale_type not in ("", "HU", "US"):
        return f"is scaled to {header.rescale_type} and not to Hounsfield units"
    expected = header.rows * header.columns * header.bits // 8
    if not header.pixel_bytes:
        return "has no pixels: export it again"
    if not is_compressed(header.transfer_syntax) and header.pixel_bytes < expected:
        return (
            f"is truncated: its tags promise {expected:,} bytes of pixels and {header.pixel_bytes:,} are left: "
            "copy it again"
        )
    if is_compressed(header.transfer_syntax) and header.pixel_bytes > 2 * expected + _SLACK_BYTES:
        return f"holds {header.pixel_bytes:,} compressed bytes for an image of {expected:,}: export it again"
    return syntax_problem(header.transfer_syntax)


def read_slice(path: Path, decoder: Decoder) -> Slice:
    """Read one slice.

    Args:
        path: its file.
        decoder: for pixels that are compressed.

    Raises:
        VolumeError: the file is missing, damaged or truncated, or its pixels cannot be decoded.
    """
    content = read_bytes(path, DICOM_FILE, most_bytes=MAX_FILE_BYTES)
    header = parse_header(BytesIO(content), path, len(content))
    problem = pixel_problem(header)
    if problem is not None:
        raise VolumeError(f"{path} {problem}")
    words = _words(content, header, decoder)
    padded = np.zeros(words.shape, bool)
    if header.padding is not None:
        padded = (words >= header.padding[0]) & (words <= header.padding[1])
    image = _rescaled(_values(words, padded, header), header)
    fill = np.float32(fill_of(header.modality))
    unmeasured = padded | (image < fill) if header.modality == "CT" else padded
    image[unmeasured] = fill
    return Slice(
        header=header,
        image=image,
        num_unmeasured=int(unmeasured.sum()),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _rescaled(stored: NDArray[np.integer], header: SliceHeader) -> NDArray[np.float32]:
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if slope == 1 and intercept == int(intercept) and abs(intercept) < _WHOLE and stored.dtype.itemsize <= 2:
        # What nearly every CT has: whole numbers that float32 holds exactly, at a third of the time.
        return stored.astype(np.float32) + np.float32(intercept)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite and reported as such
        image: NDArray[np.float32] = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    if not np.isfinite(image).all():
        raise VolumeError(f"{header.path}: rescaling by {slope:g} and {intercept:g} gives numbers without bound")
    return image


def _words(content: bytes, header: SliceHeader, decoder: Decoder) -> NDArray[np.integer]:
    """Return the pixels as the file has them: all bits that are allocated, whether they are the values' or not."""
    if is_compressed(header.transfer_syntax) and header.transfer_syntax != RUN_LENGTH:
        words = decoder.decode(content, header)
    else:
        from pydicom.pixels.utils import pixel_array

        with quiet(header.path):
            words = pixel_array(BytesIO(content), raw=True, correct_unused_bits=False)
    if words.shape != (header.rows, header.columns) or words.dtype.kind not in "iu":
        raise VolumeError(f"{header.path} is damaged: its pixels have shape {words.shape}: copy it again")
    return words.view(np.dtype(f"{words.dtype.byteorder}{'i' if header.signed else 'u'}{words.dtype.itemsize}"))


def _values(words: NDArray[np.integer], padded: NDArray[np.bool_], header: SliceHeader) -> NDArray[np.integer]:
    """Return the values in the lowest bits.

    Raises:
        VolumeError: the bits above are neither zero nor the sign's: the values need more bits than the tags say, and to
            cut them off would make air of bone.
    """
    spare = words.dtype.itemsize * 8 - (header.bits_stored or 0)
    if spare == 0:
        return words
    measured = words[~padded]
    values = (words << spare) >> spare
    lowest = measured & ((1 << header.bits_stored) - 1 if header.bits_stored else 0)
    if not (np.array_equal(lowest, measured) or np.array_equal(values[~padded], measured)):
        raise VolumeError(
            f"{header.path} has values of more bits than the {header.bits_stored} its tags promise: export it again"
        )
    return values
