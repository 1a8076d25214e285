"""A whole array out of its one shard, chunk by chunk, without Zarr's own machinery.

Zarr takes about half a millisecond a chunk to schedule it, which for a mask is ten times what decoding it costs, and
holds the decoded shard beside the array. Here a chunk is decoded and copied into the array. What is laid out in any
other way than ``write_array`` does, and whatever is damaged, is left to Zarr: so is what it has to say of it.

Source: Zarr v3 core specification; the sharding codec's section "Binary shard format"; the crc32c codec.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import google_crc32c
import numcodecs.blosc  # type: ignore[import-untyped]  # ships no types
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_ABSENT = 2**64 - 1
"""Offset and length, in the shard's index, of a chunk that holds the fill value alone and is not stored."""

_TYPES = {"float16", "float32", "uint8", "uint16"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_ENDINGS = (_LITTLE, {"name": "bytes"})
_INDEX = [_LITTLE, {"name": "crc32c"}]


def read_shard(content: Callable[[str], bytes]) -> NDArray[Any] | None:
    """Return a whole array, or None where Zarr should read it.

    Args:
        content: of a file of the array's folder, by its name.
    """
    try:
        return _decoded(json.loads(content("zarr.json")), content)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError):  # RuntimeError is Blosc's
        return None


def _decoded(metadata: Mapping[str, Any], content: Callable[[str], bytes]) -> NDArray[Any] | None:
    shape, codecs = metadata["shape"], metadata["codecs"]
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return None
    sharding = codecs[0]["configuration"]
    chunk = sharding["chunk_shape"]
    counts = [math.ceil(size / part) for size, part in zip(shape, chunk, strict=True)]
    inner = sharding["codecs"]
    is_ours = (
        metadata["data_type"] in _TYPES
        and metadata["fill_value"] == 0
        and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
        and metadata["chunk_grid"]["name"] == "regular"
        and metadata["chunk_grid"]["configuration"]["chunk_shape"]
        == [count * part for count, part in zip(counts, chunk, strict=True)]
        and not metadata.get("storage_transformers")
        and sharding["index_codecs"] == _INDEX
        and sharding.get("index_location", "end") == "end"
        and len(inner) == 2
        and inner[0] in _ENDINGS
        and inner[1]["name"] == "blosc"
    )
    if not is_ours:
        return None
    shard = memoryview(content(".".join(["c", *("0" for _ in shape)])))
    num = math.prod(counts)
    index, checksum = shard[-(16 * num + 4) : -4], shard[-4:]
    if len(index) != 16 * num or google_crc32c.value(bytes(index)) != int.from_bytes(checksum, "little"):
        return None
    dtype = np.dtype(metadata["data_type"])
    array = np.empty(shape, dtype)
    places = np.frombuffer(index, "<u8").reshape(num, 2).tolist()
    for (offset, length), at in zip(places, np.ndindex(*counts), strict=True):
        box = tuple(slice(i * part, (i + 1) * part) for i, part in zip(at, chunk, strict=True))
        target = array[box]
        if offset == length == _ABSENT:
            target[...] = 0
            continue
        part = numcodecs.blosc.decompress(shard[offset : offset + length])
        values = np.frombuffer(part, dtype.newbyteorder("<")).reshape(chunk)
        target[...] = values[tuple(slice(0, size) for size in target.shape)]
    return array
