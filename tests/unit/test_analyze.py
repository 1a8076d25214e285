"""Analyze pairs: byte orders, orientation, and headers that lie. The files are packed byte by byte, without nibabel."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vesalius.datasets.analyze import analyze_sha256, read_analyze
from vesalius.datasets.layouts.example_mr import write_oasis1_example
from vesalius.datasets.layouts.oasis1 import Oasis1Layout
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.reading import inspect, load
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import canonical

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (5, 7, 6)
SIZES = (1.0, 2.0, 3.0)
CODES = {"i2": 4, "u1": 2, "f4": 16, "i4": 8, "f8": 64}


def pack(
    path: Path,
    array: Any,
    order: str = ">",
    *,
    orient: int = 0,
    dims: tuple[int, ...] | None = None,
    sizes: tuple[float, float, float] = SIZES,
    magic: bytes = b"\0\0\0\0",
) -> Path:
    """Write a pair as Mayo's format description has it (dim at 40, datatype at 70, pixdim at 76, orient at 252)."""
    header = bytearray(348)
    struct.pack_into(order + "i", header, 0, 348)
    shape = (*array.shape, 1) if dims is None else dims
    struct.pack_into(order + f"{1 + len(shape)}h", header, 40, len(shape), *shape)
    kind = array.dtype.str[1:]
    struct.pack_into(order + "2h", header, 70, CODES[kind], array.dtype.itemsize * 8)
    struct.pack_into(order + "4f", header, 76, 0.0, *sizes)
    header[252] = orient
    header[344:348] = magic
    path.with_suffix(".hdr").write_bytes(bytes(header))
    path.with_suffix(".img").write_bytes(array.astype(order + kind).tobytes(order="F"))
    return path


def values(kind: str = "i2") -> Any:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(kind)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", list(CODES))
@pytest.mark.parametrize("named", [".hdr", ".img"])
def test_byte_orders_and_types(order: str, kind: str, named: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdr", values(kind), order)
    volume = read_analyze(path.with_suffix(named))
    np.testing.assert_array_equal(volume.array, values(kind).astype(np.float32))
    assert volume.array.shape == SHAPE  # one frame of a fourth dimension is dropped
    assert not volume.oriented


@pytest.mark.parametrize(("orient", "axes"), [(0, "LAS"), (1, "LSA"), (2, "ASL"), (3, "LPS"), (4, "LIA"), (5, "AIL")])
def test_where_the_axes_run(orient: int, axes: str, tmp_path: Path) -> None:
    """A step along each axis goes the way its letter says, by the header's voxel size; the grid's centre is at 0."""
    volume = read_analyze(pack(tmp_path / "a.hdr", values(), orient=orient))
    ways = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    for axis, letter in enumerate(axes):
        np.testing.assert_allclose(volume.affine[:3, axis], np.array(ways[letter]) * SIZES[axis])
    center = volume.affine @ [*((np.array(SHAPE) - 1) / 2), 1]
    np.testing.assert_allclose(center, [0, 0, 0, 1], atol=1e-12)


def test_transverse_files_are_right_to_left(tmp_path: Path) -> None:
    """In the first file order of a head seen from below, the voxel stored first lies right, behind, below."""
    array = np.zeros(SHAPE, np.int16)
    array[0, 0, 0] = 9
    volume = read_analyze(pack(tmp_path / "a.hdr", array))
    straight, affine = canonical(volume.array, volume.affine)
    assert straight[-1, 0, 0] == 9
    assert (affine @ [SHAPE[0] - 1, 0, 0, 1])[0] > 0  # +x is the patient's right


def test_the_digest_covers_both_files(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdr", values())
    before = analyze_sha256(path)
    assert read_analyze(path).sha256 == before == analyze_sha256(path.with_suffix(".img"))
    pack(path, values(), sizes=(1.0, 2.0, 4.0))
    assert analyze_sha256(path) != before
    pack(path, values() + 1)
    assert analyze_sha256(path) != before
    assert read_analyze(path).sha256 == analyze_sha256(path)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("an unknown orientation", {"orient": 7}, "orient is 7, expected 0 to 5"),
    ("several frames", {"dims": (5, 7, 2, 3)}, "4D"),
    ("a flat volume", {"dims": (5, 7)}, "at least 2 voxels"),
    ("more voxels than bytes", {"dims": (50, 7, 6, 1)}, "is truncated"),
    ("voxels without size", {"sizes": (1.0, 0.0, 1.0)}, "affine is singular"),
    ("half a NIfTI pair", {"magic": b"ni1\0"}, "header of a NIfTI pair"),
]


@pytest.mark.parametrize(("fields", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_headers_that_cannot_be_followed(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdr", values(), **fields)
    with pytest.raises(VolumeError, match=words) as caught:
        read_analyze(path)
    assert str(tmp_path / "a.") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_that_are_not_whole(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdr", values())
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(VolumeError, match=r"a\.hdr is truncated"):
        read_analyze(path)
    path.write_bytes(b"x" * 348)
    with pytest.raises(VolumeError, match=r"a\.hdr is not an Analyze header"):
        read_analyze(path)
    path.write_bytes(whole)
    path.with_suffix(".img").unlink()
    with pytest.raises(VolumeError, match=r"a\.img: there is no such file"):
        read_analyze(path)
    unknown = bytearray(whole)
    struct.pack_into(">h", unknown, 70, 777)
    pack(path, values())
    path.write_bytes(bytes(unknown))
    with pytest.raises(VolumeError, match=r"header is damaged|expected real numbers"):
        read_analyze(path)


def test_any_byte_of_the_header_changed_reads_or_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdr", values())
    whole = path.read_bytes()
    num_read = num_refused = 0
    for place in range(348):
        for bits in (0xFF, 0x80, 0x01):
            changed = bytearray(whole)
            changed[place] ^= bits
            path.write_bytes(bytes(changed))
            try:
                volume = read_analyze(path)
            except VolumeError:
                num_refused += 1
            else:
                num_read += 1
                assert np.isfinite(volume.array).all()
                assert np.isfinite(volume.affine).all()
    assert num_read > 100
    assert num_refused > 20


def test_oasis1_is_read_as_its_archive_has_it(tmp_path: Path) -> None:
    root = write_oasis1_example(tmp_path)
    raw = Oasis1Layout().discover(root, ["T1w"])[0]
    volumes = load(raw, ["T1w"])
    assert volumes.images["T1w"].oriented
    assert volumes.notes["analyze"] == {"T1w": {"orient": 0, "axes": "LAS"}}
    assert volumes.structures is not None
    assert set(np.unique(volumes.structures.array)) == {0, 1, 2, 3}
    assert dict(volumes.sha256) == inspect(raw, ["T1w"]).sha256
    array = volumes.images["T1w"].array.astype(np.int16)
    pack_at = root / "disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr"
    pack(pack_at, array, orient=2)
    with pytest.raises(VolumeError, match="its axes are ASL, expected LAS as in the archive"):
        load(raw, ["T1w"])


def test_any_layout_may_name_a_pair(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdr", values())
    raw = RawSubject(subject_id="a", images={"T1w": str(path)})
    assert not load(raw, ["T1w"]).images["T1w"].oriented
