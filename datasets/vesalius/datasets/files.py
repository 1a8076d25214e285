"""The bytes of a file from elsewhere: of regular files alone, of bounded size, and every failure one sentence."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from typing import TYPE_CHECKING

from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from pathlib import Path

NIFTI = "a .nii or .nii.gz file"

_MOST_BYTES = 1 << 35
"""More than the largest volume that is taken (2^30 voxels) needs in any type."""

_MEMBER_BYTES = 8 << 10
_SLACK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


def size_of(path: Path, expected: str = NIFTI, *, most_bytes: int = _MOST_BYTES) -> int:
    """Return the size in bytes of a regular file: of a pipe, which would be waited for without end, there is none.

    Args:
        path: the file.
        expected: what it is to be, for the message.
        most_bytes: it may have.

    Raises:
        VolumeError: there is no such file, it is no regular one, or it is too large.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise VolumeError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise VolumeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise VolumeError(f"{path} is a folder: expected {expected}")
    if not stat.S_ISREG(status.st_mode):
        raise VolumeError(f"{path} is not a regular file: expected {expected}")
    if status.st_size > most_bytes:
        raise VolumeError(f"{path} has {status.st_size:,} bytes: expected {expected} of {most_bytes:,} at most")
    return status.st_size


def read_bytes(path: Path, expected: str = NIFTI, *, most_bytes: int = _MOST_BYTES) -> bytes:
    """Return a file's bytes; its arguments are those of :func:`size_of`.

    Raises:
        VolumeError: as :func:`size_of`, or it cannot be read.
    """
    size_of(path, expected, most_bytes=most_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise VolumeError(f"{path} is larger than the memory: crop it, or read it on a larger machine") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        VolumeError: there is no such file, it is no regular one, or it cannot be read.
    """
    size_of(path, "a file")
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror or error}") from None


def inflated(content: bytes, num_bytes: int, path: Path) -> bytes:
    """Return at least ``num_bytes`` of the decompressed content, or all there is; checksums are checked on the way."""
    if not content.startswith(_GZIP):
        return content
    parts: list[bytes] = []
    wanted = num_bytes + _SLACK_BYTES if num_bytes > 1024 else num_bytes
    place, step = 0, len(content)
    try:
        # A gzip file may be several members one after another; what follows the last one is padding.
        while wanted > 0 and content.startswith(_GZIP, place):
            member = zlib.decompressobj(wbits=31)
            while wanted > 0 and not member.eof:
                if place >= len(content):
                    raise VolumeError(f"{path} is truncated: its compressed data ends too early: copy it again")
                chunk = content[place : place + step]  # the whole of it, and no copy, for the first member
                part = member.decompress(chunk, wanted)
                place += len(chunk) - len(member.unconsumed_tail) - len(member.unused_data)
                parts.append(part)
                wanted -= len(part)
            # zlib hands back a copy of all that it was given and did not use: of many members, a little at a time.
            step = _MEMBER_BYTES
    except zlib.error as error:
        reason = str(error).split(": ", 1)[-1]
        raise VolumeError(f"{path} is damaged: it cannot be decompressed ({reason}): copy it again") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def inflated_start(start: bytes, num_bytes: int, path: Path) -> bytes:
    """Return up to ``num_bytes`` of what a file's first bytes decompress to, or the bytes where they are not gzip.

    Raises:
        VolumeError: they look like gzip and cannot be decompressed.
    """
    if not start.startswith(_GZIP):
        return start[:num_bytes]
    try:
        return zlib.decompressobj(wbits=31).decompress(start, num_bytes)
    except zlib.error as error:
        reason = str(error).split(": ", 1)[-1]
        raise VolumeError(f"{path} is damaged: it cannot be decompressed ({reason}): copy it again") from None
