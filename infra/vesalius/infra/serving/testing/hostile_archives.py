"""Zip archives that no one should send, each distinct."""

from __future__ import annotations

import io
import stat
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.dicom.writing import SeriesPlan, write_series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PLACES = tuple(5.0 * index for index in range(6))
_TAGS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("65535 rows", {"Rows": 65535}),
    ("65535 x 65535 pixels", {"Rows": 65535, "Columns": 65535}),
    ("no rows", {"Rows": 0}),
    ("100000 frames", {"NumberOfFrames": 100_000}),
    ("three samples a pixel", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
    ("7 bits allocated", {"BitsAllocated": 7}),
    ("no orientation", {"ImageOrientationPatient": None}),
    ("no position", {"ImagePositionPatient": None}),
    ("one position for all", {"ImagePositionPatient": ["0", "0", "0"]}),
    ("an orientation of zeros", {"ImageOrientationPatient": ["0"] * 6}),
    ("pixels of no size", {"PixelSpacing": ["0", "0"]}),
    ("pixels of 1e9 mm", {"PixelSpacing": ["1e9", "1e9"]}),
    ("a slope of 1e300", {"RescaleSlope": "1e300"}),
    ("a scout", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    ("a structured report", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.22", "Modality": "SR"}),
)


def series(tags: Mapping[str, Any] | None = None, *, key: str = "series", study: str = "study") -> dict[str, bytes]:
    """Return the files of a small series, by name."""
    plan = SeriesPlan(places_mm=_PLACES, size=(16, 16), tags=tags or {}, key=key, study=study)
    with tempfile.TemporaryDirectory() as folder:
        files = write_series(Path(folder), plan, lambda points: 40.0 + 0.1 * points.sum(-1))
        return {path.name: path.read_bytes() for path in files}


def packed(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return files as a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def hostile_archives() -> Iterator[tuple[str, bytes]]:
    """Yield names and bodies, all of which are to be refused."""
    files = series()
    whole = packed(files)
    yield from _names(files)
    yield from _broken(whole)
    yield from _bombs(files)
    for name, tags in _TAGS:
        yield f"DICOM with {name}", packed(series(tags))
    yield "two studies", packed({**files, **{f"b{n}": c for n, c in series(key="b", study="other").items()}})
    yield "one slice", packed(dict(list(files.items())[:1]))
    yield "DICOM cut in half", packed({name: content[: len(content) // 2] for name, content in files.items()})
    yield "DICOM without pixels", packed({name: content[:-512] for name, content in files.items()})
    yield "files that only look like DICOM", packed({f"{n}.dcm": bytes(128) + b"DICM" + bytes(99) for n in range(9)})
    yield "a NIfTI file in a zip", packed({"volume.nii": struct.pack("<i", 348) + bytes(2000)})


def _names(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    content = next(iter(files.values()))
    for name in (
        "../evil.dcm",
        "../../../../etc/cron.d/evil",
        "/etc/passwd",
        "a/../../b.dcm",
        "..\\..\\evil.dcm",
        "C:\\windows\\evil.dcm",
        "\\\\server\\share\\evil.dcm",
        "..",
    ):
        yield f"zip path {name}", packed({**files, name: content})
    for kind, name in ((stat.S_IFLNK, "link"), (stat.S_IFIFO, "pipe"), (stat.S_IFCHR, "device"), (stat.S_IFSOCK, "so")):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (kind | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
        yield f"zip with a {name}", stream.getvalue()
    for name in ("; rm -rf ~", "$(reboot)", "\u202egnp.exe", "☠" * 100, "a" * 60_000, "con", " "):
        yield f"zip with a file called {name[:20]!a}", packed({name: b"no image"})


def _broken(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for length in (2, 4, 30, 100, len(whole) // 2, len(whole) - 1, len(whole) - 22):
        yield f"zip cut after {length} bytes", whole[:length]
    yield "zip of nothing", packed({})
    yield "zip of folders alone", packed({"a/": b"", "a/b/": b""})
    yield "zip whose files are all damaged", whole[:60] + bytes(len(whole) // 2) + whole[60 + len(whole) // 2 :]
    end = whole.rfind(b"PK\5\6")
    for name, place, value in (("offset", end + 16, 2**31), ("size", end + 12, 2**31), ("disk", end + 4, 7)):
        body = bytearray(whole)
        struct.pack_into("<I" if name != "disk" else "<H", body, place, value)
        yield f"zip with a wrong directory's {name}", bytes(body)
    first = whole.find(b"PK\1\2")
    for name, place, code, value in (
        ("encrypted", 8, "<H", 1),
        ("packed by lzma", 10, "<H", 14),
        ("packed by method 99", 10, "<H", 99),
        ("of a wrong checksum", 16, "<I", 1),
        ("said to be of 0 bytes", 24, "<I", 0),
        ("said to be of 3 GB", 24, "<I", 3 << 30),
        ("at an offset beyond the end", 42, "<I", 1 << 30),
    ):
        body = bytearray(whole)
        struct.pack_into(code, body, first + place, value)
        yield f"zip with a file {name}", bytes(body)
    yield "a zip64 archive", whole[:end] + b"PK\6\7" + bytes(16) + whole[end:]


def _bombs(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    yield "zip bomb of 100 MB of zeros", packed({"zeros.dcm": bytes(100 << 20)})
    yield "zip bomb of 40 files of 8 MB", packed({f"{number}.dcm": bytes(8 << 20) for number in range(40)})
    yield "zip in a zip", packed({"inner.zip": packed(files)})
    yield "zip in a zip in a zip", packed({"a.dcm": packed({"b.dcm": packed(files)})})
    yield "gzip in a zip", packed({"a.dcm": b"\x1f\x8b\x08" + bytes(100)})
    yield "zip of 6000 files", packed({f"{number}": b"" for number in range(6000)}, zipfile.ZIP_STORED)
    yield "bzip2 in a zip", packed(files, zipfile.ZIP_BZIP2)
    yield "zip whose files overlap", _overlapping(200)


def _overlapping(num_files: int) -> bytes:
    """Return an archive whose directory names one compressed run of zeros again and again."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0", np.zeros(4 << 20, np.uint8).tobytes())
    whole = stream.getvalue()
    first, end = whole.find(b"PK\1\2"), whole.rfind(b"PK\5\6")
    directory = whole[first:end] * num_files
    tail = bytearray(whole[end:])
    struct.pack_into("<HHI", tail, 8, num_files, num_files, len(directory))
    return whole[:first] + directory + bytes(tail)
