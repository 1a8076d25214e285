"""NIfTI files that no one should send, each distinct, and bytes that are none."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zlib
from typing import TYPE_CHECKING

import nibabel
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_FIELDS: dict[str, tuple[int, str]] = {
    "dim0": (40, "h"),
    "dim1": (42, "h"),
    "dim2": (44, "h"),
    "dim3": (46, "h"),
    "dim4": (48, "h"),
    "datatype": (70, "h"),
    "pixdim1": (80, "f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "srow_x0": (280, "f"),
    "srow_x3": (292, "f"),
    "srow_y1": (300, "f"),
}
_VALUES: dict[str, tuple[float, ...]] = {
    "dim0": (0, -1, 1, 2, 8, 9, 32767, -32768),
    "dim1": (0, -1, 1, 32767, -32768),
    "dim2": (0, -7, 1, 32767),
    "dim3": (0, -1, 1, 32766),
    "datatype": (0, 1, 3, 32, 128, 1792, 2048, 2304, 12345, -1),
    "vox_offset": (float("nan"), float("inf"), float("-inf"), 1e9, 1e38, 1e7),
    "scl_slope": (float("inf"), float("-inf"), 1e38),
    "scl_inter": (float("nan"), float("inf")),
    "xyzt_units": (1, 3),
    "srow_x0": (float("nan"), float("inf"), 1e30),
    "srow_x3": (float("nan"), float("inf"), 1e20),
    "srow_y1": (float("nan"), 1e38),
}


def good(array: NDArray[np.float32], affine: NDArray[np.float64]) -> bytes:
    """Return a volume as an uncompressed NIfTI file."""
    return bytes(nibabel.Nifti1Image(array, affine).to_bytes())


def hostile_volumes(array: NDArray[np.float32], affine: NDArray[np.float64]) -> Iterator[tuple[str, bytes]]:
    """Yield names and bodies, all of which are to be refused.

    Args:
        array: a volume that would be taken.
        affine: of it.
    """
    whole = good(array, affine)
    yield from _changed_headers(whole)
    yield from _broken_files(whole)
    yield from _odd_voxels(array, affine)
    yield from _second_kind(whole)
    yield from _gzips(whole)
    yield from _no_volumes()


def _changed_headers(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for field, values in _VALUES.items():
        place, code = _FIELDS[field]
        for value in values:
            number = int(value) if code in "hB" else value
            body = bytearray(whole)
            struct.pack_into(f"<{code}", body, place, number)
            yield f"header {field}={number}", bytes(body)
    body = bytearray(whole)
    struct.pack_into("<3h", body, 42, 32767, 32767, 32767)
    yield "a header that claims 3.5e13 voxels", bytes(body)
    body = bytearray(whole)
    struct.pack_into("<hhhhhhhh", body, 40, 7, 20, 18, 16, 9, 9, 9, 9)
    yield "seven axes", bytes(body)
    for magic in (b"ni1\0", b"nii\0", b"\0\0\0\0", b"n+3\0"):
        yield f"magic {magic!r}", whole[:344] + magic + whole[348:]
    zeroed = bytearray(whole)
    zeroed[252:256] = struct.pack("<2h", 0, 1)
    zeroed[280:328] = b"\0" * 48
    yield "an affine of zeros", bytes(zeroed)


def _broken_files(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for length in (1, 2, 3, 4, 100, 252, 347, 348, 351, 352, 353, 1000, len(whole) // 2, len(whole) - 1):
        yield f"cut after {length} bytes", whole[:length]


def _odd_voxels(array: NDArray[np.float32], affine: NDArray[np.float64]) -> Iterator[tuple[str, bytes]]:
    for value in (np.nan, np.inf, -np.inf):
        one = array.copy()
        one[3, 4, 5] = value
        yield f"one voxel of {value}", good(one, affine)
        yield f"all voxels {value}", good(np.full_like(array, value), affine)
    for value in (0.0, -3.0, 1e30):
        yield f"all voxels {value}", good(np.full_like(array, value), affine)
    yield "another grid than the model's", good(array[:7], affine)
    for scale in (1e-6, 1e6):
        yield f"voxels {scale:g} times as large", good(array, affine * np.array([scale, scale, scale, 1.0]))
    flat = affine.copy()
    flat[:3, 1] = flat[:3, 0]
    yield "two axes that are one", good(array, flat)
    far = affine.copy()
    far[0, 3] = 1e7
    yield "ten kilometres away", good(array, far)
    yield "four-dimensional", bytes(nibabel.Nifti1Image(np.stack([array] * 3, -1), affine).to_bytes())
    yield "complex", bytes(nibabel.Nifti1Image(array.astype(np.complex64), affine).to_bytes())


def _second_kind(whole: bytes) -> Iterator[tuple[str, bytes]]:
    image = nibabel.Nifti1Image.from_bytes(whole)
    second = bytes(nibabel.Nifti2Image(np.asarray(image.dataobj), image.affine).to_bytes())
    for size in (10**4, 10**12, 2**62, 2**63 - 1, -(2**63), 0):
        body = bytearray(second)
        struct.pack_into("<3q", body, 24, size, size, size)
        yield f"NIfTI-2 that claims {size} voxels along each axis", bytes(body)
    body = bytearray(second)
    struct.pack_into("<q", body, 16, 99)
    yield "NIfTI-2 with 99 axes", bytes(body)
    body = bytearray(second)
    struct.pack_into("<q", body, 168, 2**62)
    yield "NIfTI-2 whose voxels begin at 2^62", bytes(body)
    yield "NIfTI-2 cut in its header", second[:400]


def _gzips(whole: bytes) -> Iterator[tuple[str, bytes]]:
    packed = gzip.compress(whole)
    for length in (2, 9, 10, 18, 60, len(packed) // 2, len(packed) - 9):
        yield f"gzip cut after {length} bytes", packed[:length]
    yield "gzip with a wrong checksum", packed[:-8] + b"\1\2\3\4" + packed[-4:]
    yield "gzip with a wrong method", packed[:2] + b"\7" + packed[3:]
    yield "gzip with a flag that is none", packed[:3] + b"\xff" + packed[4:]
    middle = len(packed) // 2
    yield "gzip with a broken middle", packed[:middle] + bytes(64) + packed[middle + 64 :]
    yield "gzip of nothing", gzip.compress(b"")
    yield "gzip of gzip", gzip.compress(packed)
    yield "gzip of a text", gzip.compress(b"a volume, honestly" * 100)
    yield "gzip of 300 MB of zeros", _zeros(300 << 20)
    huge = bytearray(whole[:352])
    struct.pack_into("<3h", huge, 42, 1024, 1024, 256)
    yield "gzip of a header that claims 2^28 voxels, and of 300 MB of them", _zeros(300 << 20, bytes(huge))
    struct.pack_into("<f", huge, 108, float(1 << 29))
    struct.pack_into("<3h", huge, 42, 20, 18, 16)
    yield "gzip whose voxels begin after 512 MB of zeros", _zeros(300 << 20, bytes(huge))
    yield "gzip of ten thousand empty members", gzip.compress(b"") * 10_000
    yield "gzip with a name of 100 kB", packed[:3] + b"\x08" + packed[4:10] + b"x" * 100_000 + b"\0" + packed[10:]
    members = io.BytesIO()
    with tarfile.open(fileobj=members, mode="w:gz") as archive:
        entry = tarfile.TarInfo("../../etc/passwd")
        entry.size = len(whole)
        archive.addfile(entry, io.BytesIO(whole))
    yield "a tar.gz that leads out", members.getvalue()


def _no_volumes() -> Iterator[tuple[str, bytes]]:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit",)

    yield "empty", b""
    yield "one null byte", b"\0"
    yield "348 zeros", bytes(348)
    yield "a million zeros", bytes(1_000_000)
    yield "text", b"score this, please"
    yield "a pickle", pickle.dumps(Evil())
    yield "a shell script", b"#!/bin/sh\ntouch /tmp/owned\n"
    yield "an ELF file", b"\x7fELF" + bytes(400)
    yield "a PNG", b"\x89PNG\r\n\x1a\n" + bytes(400)
    yield "HTML", b"<script>alert(1)</script>" * 30
    yield "JSON", b'{"volume": [[1, 2], [3, 4]]}'
    yield "a lonely DICOM file", bytes(128) + b"DICM" + bytes(400)
    yield "an Analyze header", struct.pack("<i", 348) + bytes(344)
    yield "a MINC file", b"CDF\1" + bytes(400)
    yield "an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(400)
    yield "random bytes", np.random.default_rng(0).bytes(5000)
    yield "bzip2", b"BZh91AY&SY" + bytes(100)
    yield "zlib without gzip", zlib.compress(b"volume" * 100)


def _zeros(num_bytes: int, start: bytes = b"") -> bytes:
    """Return a gzip of zeros, made without holding them."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(start)]
    block = bytes(1 << 20)
    parts += [packer.compress(block) for _ in range(num_bytes >> 20)]
    return b"".join([*parts, packer.flush()])
