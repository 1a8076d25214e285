"""Reading a shard without Zarr: what Zarr reads, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from vesalius.platform.store import ChunkSettings
from vesalius.platform.store.arrays import read_array, write_array
from vesalius.platform.store.shards import read_shard

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHARD = "c.0.0.0.0"


def _array(dtype: str = "float32") -> NDArray[Any]:
    """Return an array with chunks that are cut off, one that is all fill, and one of negative zeros."""
    array = np.random.default_rng(0).normal(0, 50, (2, 20, 17, 9)).astype(dtype)
    array[0, :8, :8, :8] = 0
    array[1, 8:16, :8, :8] *= 0
    return array


def _read(path: Path) -> NDArray[Any] | None:
    return read_shard(lambda name: (path / name).read_bytes())


def _by_zarr(path: Path) -> NDArray[Any]:
    return np.asarray(zarr.open_array(path, mode="r")[...])


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "uint16"])
@pytest.mark.parametrize("changes", [{}, {"codec": "lz4"}, {"shuffle": "bitshuffle"}], ids=str)
def test_a_shard_of_ours_is_read_as_zarr_reads_it(tmp_path: Path, dtype: str, changes: dict[str, Any]) -> None:
    with np.errstate(invalid="ignore"):  # negative numbers in an unsigned type
        array = _array(dtype)
    write_array(tmp_path / "a", array, ChunkSettings(chunk=8, **changes))
    found = _read(tmp_path / "a")
    assert found is not None
    assert found.dtype == array.dtype
    assert found.flags.writeable
    assert found.tobytes() == array.tobytes() == _by_zarr(tmp_path / "a").tobytes()


@pytest.mark.parametrize(
    "foreign",
    [
        {"shards": None},
        {"shards": (2, 8, 24, 16)},
        {"compressors": zarr.codecs.ZstdCodec()},
        {"compressors": None},
        {"filters": zarr.codecs.TransposeCodec(order=(3, 2, 1, 0))},
        {"fill_value": 1},
        {"chunk_key_encoding": {"name": "default", "separator": "/"}},
        {"dtype": "float64"},
    ],
    ids=str,
)
def test_what_is_laid_out_otherwise_is_left_to_zarr(tmp_path: Path, foreign: dict[str, Any]) -> None:
    array = _array()
    given = {
        "shape": array.shape,
        "dtype": "float32",
        "chunks": (1, 8, 8, 8),
        "shards": (2, 24, 24, 16),
        "compressors": zarr.codecs.BloscCodec(),
        "chunk_key_encoding": {"name": "default", "separator": "."},
        "fill_value": 0,
    }
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path, changes in ((ours, {}), (theirs, foreign)):
        zarr.create_array(path, **{**given, **changes})[...] = array
    assert _read(ours) is not None
    assert _read(theirs) is None
    assert np.array_equal(read_array(theirs), array)


def test_damage_is_left_to_zarr_to_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_array(path, _array(), ChunkSettings(chunk=8))
    genuine = (path / SHARD).read_bytes()
    num_left = 0
    for place in [*range(0, len(genuine), len(genuine) // 150), *range(len(genuine) - 40, len(genuine))]:
        damaged = bytearray(genuine)
        damaged[place] ^= 0x5A
        (path / SHARD).write_bytes(damaged)
        found = _read(path)
        if found is None:
            num_left += 1
        else:
            assert found.tobytes() == _by_zarr(path).tobytes(), "Blosc has no checksum: both see the same other values"
    assert num_left > 40, "the index has one"
    for length in (0, 3, 40, len(genuine) - 1):
        (path / SHARD).write_bytes(genuine[:length])
        assert _read(path) is None
    (path / SHARD).unlink()
    assert _read(path) is None
    assert not read_array(path).any(), "a shard that is all fill is not stored"
    (path / "zarr.json").write_text("[]")
    assert _read(path) is None
