"""One DICOM file's tags, read with distrust: the few that geometry and intensities need, by their raw bytes.

A file from elsewhere may be anything. Only named standard tags are looked at (no private ones), values are parsed here
from their bytes, sizes are bounded before anything is held, and whatever pydicom says about broken files becomes one
sentence. Names and birth dates are never read; a patient's ID is kept as a digest, to tell two patients apart, and goes
no further than this process.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

MAX_FILE_BYTES = 256 << 20
"""A single slice of 4096 x 4096 at 16 bit is 32 MiB; nothing that holds one slice comes near this."""

_TAGS: dict[str, int] = {
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "StudyDate": 0x00080020,
    "StudyTime": 0x00080030,
    "Modality": 0x00080060,
    "StudyDescription": 0x00081030,
    "SeriesDescription": 0x0008103E,
    "PatientID": 0x00100020,
    "ContrastBolusAgent": 0x00180010,
    "BodyPartExamined": 0x00180015,
    "SliceThickness": 0x00180050,
    "ProtocolName": 0x00181030,
    "GantryDetectorTilt": 0x00181120,
    "ConvolutionKernel": 0x00181210,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SeriesNumber": 0x00200011,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
}
_DEFLATED = "1.2.840.10008.1.2.1.99"
_UNCOMPRESSED = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
_RUN_LENGTH = "1.2.840.10008.1.2.5"
_MAGIC = b"DICM"
_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")

_REMOVED = re.compile(
    r"|[-x*?0]+|(anon|deident|de-ident|pseudon)\w*|removed|unknown|none|null|n/?a|patient|subject|test", re.IGNORECASE
)

# warnings.catch_warnings changes what belongs to the whole process: one thread at a time.
_QUIET = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """What one DICOM file says of itself. Empty text, or None, stands for a tag that is absent or no such value.

    Attributes:
        path: the file.
        pixel_bytes: its length from the pixels' tag on; 0 where it has none.
        transfer_syntax: UID of how it is encoded.
        sop_class: UID of what it is (a CT image, a structured report, ...).
        sop_uid: UID of this image.
        series_uid: UID of its series.
        study_uid: UID of its study.
        study_time: date and time of the study as the file writes them, for order alone.
        patient: digest of the patient's ID; never stored.
        modality: ``CT``, ``MR``, ...
        image_type: such as ``("ORIGINAL", "PRIMARY", "AXIAL")``.
        description: of the series.
        texts: further descriptions that tell a phantom or a report: study, protocol, body part.
        kernel: convolution kernel.
        contrast: a contrast agent is named.
        series_number: for order.
        acquisition: acquisition number.
        position: (x, y, z) of the first pixel's centre, mm, LPS.
        orientation: unit vectors of a row and of a column, LPS.
        pixel_spacing: mm between rows, mm between columns.
        thickness: nominal thickness in mm.
        tilt: degrees of the gantry by its tag.
        rows: pixels along a column.
        columns: pixels along a row.
        samples: values a pixel.
        frames: images in the file.
        bits: bits a value takes in the file.
        signed: values are signed.
        photometric: how values are to be shown.
        slope: factor to Hounsfield units.
        intercept: offset to Hounsfield units.
        rescale_type: unit after rescaling.
        padding: stored values from and to, both included, that mean no measurement.
    """

    path: Path
    pixel_bytes: int
    transfer_syntax: str
    sop_class: str
    sop_uid: str
    series_uid: str
    study_uid: str
    study_time: str
    patient: str
    modality: str
    image_type: tuple[str, ...]
    description: str
    texts: tuple[str, ...]
    kernel: str
    contrast: bool
    series_number: int | None
    acquisition: int | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    thickness: float | None
    tilt: float | None
    rows: int | None
    columns: int | None
    samples: int | None
    frames: int | None
    bits: int | None
    signed: bool
    photometric: str
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: tuple[int, int] | None


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file is named as DICOM or carries its mark behind the 128 bytes of preamble."""
    if path.suffix.lower() in {".dcm", ".dicom", ".ima"}:
        return True
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            return False
        with path.open("rb") as stream:
            return stream.read(132)[128:] == _MAGIC
    except OSError:
        return False


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file of bounded size.

    Raises:
        VolumeError: there is none, it cannot be read, or it is larger than one slice can be.
    """
    _check_file(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise VolumeError(f"{path} has more than {MAX_FILE_BYTES:,} bytes: expected one slice a file")
    return content


def read_header(path: Path) -> SliceHeader:
    """Read the tags of a DICOM file up to its pixels.

    Raises:
        VolumeError: there is no such file, it is no DICOM file, or its tags cannot be read.
    """
    size_bytes = _check_file(path)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror or error}") from None
    with stream:
        return parse_header(stream, path, size_bytes)


def parse_header(stream: Any, path: Path, size_bytes: int) -> SliceHeader:
    """Read the tags of an open DICOM file, as :func:`read_header` does.

    Raises:
        VolumeError: it is no DICOM file, or its tags cannot be read.
    """
    from pydicom import dcmread
    from pydicom.filereader import read_dataset

    if stream.read(132)[128:] != _MAGIC:
        raise VolumeError(f"{path} is not a DICOM file (it has no DICM mark): leave it out, or export it again")
    with quiet(path):
        # The file's own head alone, by the parser that reads the rest: is it worth going on?
        meta = read_dataset(
            stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag.group != 2
        )
        syntax = _meta_text(meta, 0x00020010)
        if syntax == _DEFLATED:
            # Inflating happens before any size is known, so a small file could fill the memory.
            raise VolumeError(f"{path} is a deflated DICOM file: expected plain or compressed images: export it again")
        if not syntax:
            raise VolumeError(f"{path} does not name its transfer syntax: export it again")
        stream.seek(0)
        dataset = dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS.values()))
        place = stream.tell()
        has_pixels = stream.read(4) in _PIXELS
    return _header(dataset, path, size_bytes - place if has_pixels else 0, syntax)


@contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Hold pydicom's warnings back and turn whatever it raises into one sentence.

    Raises:
        VolumeError: in place of any other exception.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except VolumeError:
            raise
        except MemoryError:
            raise VolumeError(f"{path} is damaged: its tags ask for more memory than there is: copy it again") from None
        except Exception as error:  # pydicom raises whatever the bytes lead it to
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise VolumeError(f"{path} is damaged: its tags cannot be read ({reason}): copy it again") from None


def syntax_problem(header: SliceHeader) -> str | None:
    """Return why the pixels cannot be decoded, by how the file says that they are encoded; None where they can."""
    if header.transfer_syntax in _UNCOMPRESSED or header.transfer_syntax == _RUN_LENGTH:
        return None
    name = uid_name(header.transfer_syntax) or "an unknown encoding"
    return f"its pixels are compressed as {name}, which cannot be decoded here: decompress them first (gdcmconv --raw)"


def uid_name(uid: str) -> str:
    """Return what the standard calls a UID; nothing where it does not know it."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    name = UID(uid, validation_mode=IGNORE).name
    return "" if name == uid else name


def is_compressed(header: SliceHeader) -> bool:
    """Return whether the pixels are stored in another form than as plain numbers."""
    return header.transfer_syntax not in _UNCOMPRESSED


def _check_file(path: Path) -> int:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise VolumeError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise VolumeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise VolumeError(f"{path} is not a regular file: expected a DICOM file")
    if status.st_size > MAX_FILE_BYTES:
        raise VolumeError(f"{path} has {status.st_size:,} bytes: expected one slice of {MAX_FILE_BYTES:,} at most")
    return status.st_size


def _meta_text(meta: Dataset, tag: int) -> str:
    return str(meta[tag].value).strip(" \0") if tag in meta else ""


def _header(dataset: Dataset, path: Path, pixel_bytes: int, syntax: str) -> SliceHeader:
    raw = {name: _raw(dataset, tag) for name, tag in _TAGS.items()}
    little = syntax != "1.2.840.10008.1.2.2"

    def text(name: str) -> str:
        return _text(raw[name])

    def number(name: str) -> int | None:
        return _whole(raw[name], little=little)

    signed = number("PixelRepresentation") == 1
    return SliceHeader(
        path=path,
        pixel_bytes=pixel_bytes,
        transfer_syntax=syntax,
        sop_class=text("SOPClassUID"),
        sop_uid=text("SOPInstanceUID"),
        series_uid=text("SeriesInstanceUID"),
        study_uid=text("StudyInstanceUID"),
        study_time=f"{text('StudyDate')} {text('StudyTime')}".strip(),
        patient=_patient(text("PatientID")),
        modality=text("Modality").upper(),
        image_type=tuple(part.strip().upper() for part in text("ImageType").split("\\")) if raw["ImageType"] else (),
        description=text("SeriesDescription"),
        texts=(
            *filter(None, map(text, ("StudyDescription", "ProtocolName", "BodyPartExamined"))),
            *(["a phantom's patient ID"] if "phantom" in text("PatientID").lower() else []),
        ),
        kernel=text("ConvolutionKernel"),
        contrast=text("ContrastBolusAgent").upper() not in {"", "NONE", "NO", "N", "W/O"},
        series_number=_integer(text("SeriesNumber")),
        acquisition=_integer(text("AcquisitionNumber")),
        position=_numbers(text("ImagePositionPatient"), 3),
        orientation=_numbers(text("ImageOrientationPatient"), 6),
        pixel_spacing=_numbers(text("PixelSpacing"), 2),
        thickness=_first(_numbers(text("SliceThickness"), 1)),
        tilt=_first(_numbers(text("GantryDetectorTilt"), 1)),
        rows=number("Rows"),
        columns=number("Columns"),
        samples=number("SamplesPerPixel"),
        frames=_integer(text("NumberOfFrames")),
        bits=number("BitsAllocated"),
        signed=signed,
        photometric=text("PhotometricInterpretation").upper(),
        slope=_first(_numbers(text("RescaleSlope"), 1)),
        intercept=_first(_numbers(text("RescaleIntercept"), 1)),
        rescale_type=text("RescaleType").upper(),
        padding=_padding(raw, signed=signed, little=little),
    )


def _raw(dataset: Dataset, tag: int) -> bytes:
    """Return a value's bytes as the file has them: nothing is converted, so nothing can fail or warn."""
    if tag not in dataset:
        return b""
    value = dataset.get_item(tag).value
    if isinstance(value, bytes):
        return value
    return str(value).encode("latin-1", "replace") if isinstance(value, str) else b""


def _text(value: bytes) -> str:
    """Return bytes as one line of printable text of bounded length; letters beyond ASCII become question marks."""
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in value[:256].strip(b" \0\t\r\n"))


def _whole(value: bytes, *, little: bool, signed: bool = False) -> int | None:
    """Return an unsigned or signed short, of which the first counts where there are several."""
    if len(value) < 2:
        return None
    return int.from_bytes(value[:2], "little" if little else "big", signed=signed)


def _integer(text: str) -> int | None:
    number = _first(_numbers(text, 1))
    return int(number) if number is not None and abs(number) < 2**31 else None


def _numbers(text: str, count: int) -> tuple[float, ...] | None:
    """Return that many finite numbers, or None: of one wanted the first counts where there are several."""
    parts = text.split("\\")
    if count == 1:
        parts = parts[:1]
    if len(parts) != count:
        return None
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _first(numbers: tuple[float, ...] | None) -> float | None:
    return numbers[0] if numbers else None


def _padding(raw: dict[str, bytes], *, signed: bool, little: bool) -> tuple[int, int] | None:
    start = _whole(raw["PixelPaddingValue"], little=little, signed=signed)
    if start is None:
        return None
    stop = _whole(raw["PixelPaddingRangeLimit"], little=little, signed=signed)
    return (start, start) if stop is None else (min(start, stop), max(start, stop))


def _patient(identifier: str) -> str:
    """Return a digest of a patient's ID; nothing where it is one of the words that stand for a removed one."""
    return "" if _REMOVED.fullmatch(identifier) else hashlib.sha256(identifier.encode()).hexdigest()
