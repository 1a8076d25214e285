"""One DICOM file's tags, read with distrust: the few that geometry and intensities need, by their raw bytes.

A file from elsewhere may be anything. Only named standard tags are looked at (no private ones), values are parsed here
from their bytes, sizes are bounded before anything is held, and whatever pydicom says about broken files becomes one
sentence. Names and birth dates are never read; a patient's ID is kept as a digest, to tell two patients apart, and goes
no further than this process.
"""

from __future__ import annotations

import stat
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.datasets.dicom.encodings import BIG_ENDIAN, DEFLATED
from vesalius.datasets.dicom.values import first_of, integer_of, numbers_of, padding_of, patient_of, text_of, whole_of
from vesalius.datasets.files import size_of
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

DICOM_FILE = "a DICOM file of one slice"

MAX_FILE_BYTES = 256 << 20
"""A single slice of 4096 x 4096 at 16 bit is 32 MiB; nothing that holds one slice comes near this."""

_TAGS: dict[str, int] = {
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
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
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
}
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_MAGIC = b"DICM"
_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")

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
        bits_stored: bits of these that are the value's.
        high_bit: the highest of these, from 0.
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
    bits_stored: int | None
    high_bit: int | None
    signed: bool
    photometric: str
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: tuple[int, int] | None


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file is named as DICOM or carries its mark behind the 128 bytes of preamble.

    The index of an exported disc (``DICOMDIR``) is none, and neither is what a Mac leaves beside each file that it puts
    into an archive (``._IM0001.dcm``).
    """
    if path.name.startswith("._") or path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in {".dcm", ".dicom", ".ima"}:
        return True
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            return False
        with path.open("rb") as stream:
            return stream.read(132)[128:] == _MAGIC
    except OSError:
        return False


def read_header(path: Path) -> SliceHeader:
    """Read the tags of a DICOM file up to its pixels.

    Raises:
        VolumeError: there is no such file, it is no DICOM file, or its tags cannot be read.
    """
    size_bytes = size_of(path, DICOM_FILE, most_bytes=MAX_FILE_BYTES)
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
        if syntax == DEFLATED:
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


def _meta_text(meta: Dataset, tag: int) -> str:
    return str(meta[tag].value).strip(" \0") if tag in meta else ""


def _header(dataset: Dataset, path: Path, pixel_bytes: int, syntax: str) -> SliceHeader:
    raw = {name: _raw(dataset, tag) for name, tag in _TAGS.items()}
    little = syntax != BIG_ENDIAN

    def text(name: str) -> str:
        return text_of(raw[name])

    def number(name: str) -> int | None:
        return whole_of(raw[name], little=little)

    signed = number("PixelRepresentation") == 1
    return SliceHeader(
        path=path,
        pixel_bytes=pixel_bytes,
        transfer_syntax=syntax,
        sop_class=text("SOPClassUID"),
        series_uid=text("SeriesInstanceUID"),
        study_uid=text("StudyInstanceUID"),
        study_time=f"{text('StudyDate')} {text('StudyTime')}".strip(),
        patient=patient_of(text("PatientID")),
        modality=text("Modality").upper(),
        image_type=tuple(part.strip().upper() for part in text("ImageType").split("\\")) if raw["ImageType"] else (),
        description=text("SeriesDescription"),
        texts=(
            *filter(None, map(text, ("StudyDescription", "ProtocolName", "BodyPartExamined"))),
            *(["a phantom's patient ID"] if "phantom" in text("PatientID").lower() else []),
        ),
        kernel=text("ConvolutionKernel"),
        contrast=text("ContrastBolusAgent").upper() not in {"", "NONE", "NO", "N", "W/O"},
        series_number=integer_of(text("SeriesNumber")),
        acquisition=integer_of(text("AcquisitionNumber")),
        position=numbers_of(text("ImagePositionPatient"), 3),
        orientation=numbers_of(text("ImageOrientationPatient"), 6),
        pixel_spacing=numbers_of(text("PixelSpacing"), 2),
        thickness=first_of(numbers_of(text("SliceThickness"), 1)),
        tilt=first_of(numbers_of(text("GantryDetectorTilt"), 1)),
        rows=number("Rows"),
        columns=number("Columns"),
        samples=number("SamplesPerPixel"),
        frames=integer_of(text("NumberOfFrames")),
        bits=number("BitsAllocated"),
        bits_stored=number("BitsStored"),
        high_bit=number("HighBit"),
        signed=signed,
        photometric=text("PhotometricInterpretation").upper(),
        slope=first_of(numbers_of(text("RescaleSlope"), 1)),
        intercept=first_of(numbers_of(text("RescaleIntercept"), 1)),
        rescale_type=text("RescaleType").upper(),
        padding=padding_of(*(whole_of(raw[name], little=little, signed=signed) for name in _PADDING)),
    )


def _raw(dataset: Dataset, tag: int) -> bytes:
    """Return a value's bytes as the file has them: nothing is converted, so nothing can fail or warn."""
    if tag not in dataset:
        return b""
    value = dataset.get_item(tag).value
    if isinstance(value, bytes):
        return value
    return str(value).encode("latin-1", "replace") if isinstance(value, str) else b""
