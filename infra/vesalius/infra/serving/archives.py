"""A zip of a DICOM series, unpacked with distrust: by number and not by name, into a folder of ours, within bounds.

The directory at the archive's end is looked at before it is read: a few hundred megabytes of it would become as many
gigabytes of objects. What an entry claims to hold counts against the limits before, and what it really holds while it
is unpacked.
"""

from __future__ import annotations

import errno
import stat
import zipfile
import zlib
from typing import TYPE_CHECKING

from vesalius.infra.serving.refusals import FULL, Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.infra.serving.settings import Limits

_END = b"PK\x05\x06"
_END_BYTES = 22
_MOST_COMMENT = 65_535
_ZIP64 = b"PK\x06\x07"
_ENTRY_BYTES = 1024
"""A directory entry is 46 bytes and a name; a thousand leave room for any honest path."""
_SMALL_BYTES = 16 << 20
"""What unpacks to less is no bomb, whatever its ratio: an empty slice packs a thousandfold."""
_CHUNK_BYTES = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NESTED = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zX")


def unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack a zip archive's files into a new folder, as ``file-0001`` and on.

    Raises:
        Refusal: it is damaged, encrypted or a bomb, it leads out of its folder, or it holds links or archives.
    """
    _check_directory(archive, limits)
    folder.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_entries(entries, archive, limits)
            left = limits.unpacked_bytes
            for number, entry in enumerate(entries, 1):
                left -= _write(opened, entry, folder / f"file-{number:04d}", number, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in {*FULL, errno.EIO}):
            raise  # a disk that is full or fails is not the archive's fault
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise Refusal(400, f"the zip archive is damaged ({said}): pack the series again") from None


def _check_directory(archive: Path, limits: Limits) -> None:
    size = archive.stat().st_size
    with archive.open("rb") as stream:
        stream.seek(max(0, size - _END_BYTES - _MOST_COMMENT - 20))
        tail = stream.read()
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + _END_BYTES:
        raise Refusal(400, "the zip archive is damaged (its directory is missing): pack the series again")
    if _ZIP64 in tail[:place]:
        raise Refusal(413, "the zip archive is of the kind for more than 4 GB: pack one series alone, without zip64")
    if int.from_bytes(tail[place + 12 : place + 16], "little") > limits.entries * _ENTRY_BYTES:
        raise Refusal(413, f"the zip archive holds too many files: expected {limits.entries:,} at most")


def _check_entries(entries: list[zipfile.ZipInfo], archive: Path, limits: Limits) -> None:
    if not entries:
        raise Refusal(400, "the zip archive is empty: pack the files of one DICOM series")
    if len(entries) > limits.entries:
        raise Refusal(413, f"the zip archive holds {len(entries):,} files: expected {limits.entries:,} at most")
    for number, entry in enumerate(entries, 1):
        problem = _problem(entry)
        if problem:
            raise Refusal(400, f"the zip archive's file {number} {problem}: pack the plain files of one DICOM series")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > limits.unpacked_bytes:
        raise Refusal(413, f"the zip archive unpacks to {claimed:,} bytes: expected {limits.unpacked_bytes:,} at most")
    if claimed > _SMALL_BYTES and claimed > limits.ratio * archive.stat().st_size:
        raise Refusal(
            413, f"the zip archive unpacks to more than {limits.ratio:g} times its size: no series of images does"
        )


def _problem(entry: zipfile.ZipInfo) -> str:
    name = entry.orig_filename.replace("\\", "/")
    parts = name.split("/")
    if "\0" in name or name.startswith("/") or ".." in parts or (len(name) > 1 and name[1] == ":"):
        return "has a path that leads out of the archive"
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link or a device"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in _METHODS:
        return "is packed by another method than deflate"
    return ""


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, number: int, left: int) -> int:
    """Unpack one file and return its bytes."""
    written = 0
    with opened.open(entry) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            if not written and chunk.startswith(_NESTED):
                raise Refusal(400, f"the zip archive's file {number} is an archive itself: unpack it first")
            written += len(chunk)
            if written > left:
                raise Refusal(413, "the zip archive unpacks to more than it claims: pack the series again")
            target.write(chunk)
    return written
