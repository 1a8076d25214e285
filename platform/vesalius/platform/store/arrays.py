"""Subject arrays as Zarr v3: how they are checked, laid out, written and read."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from pydantic import Field
from zarr.codecs import BloscCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

from vesalius.platform.config import Settings
from vesalius.platform.errors import VolumeError
from vesalius.platform.store.files import write_file
from vesalius.platform.store.ngff import AXES
from vesalius.platform.store.records import ArrayFacts, SubjectArrays, SubjectRecord
from vesalius.platform.store.remote import RemotePath
from vesalius.platform.store.shards import read_shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from zarr.core.buffer import Buffer

    from vesalius.platform.store.place import Place


class ChunkSettings(Settings):
    """How arrays are cut and compressed. No part of any digest: the same cohort may be stored in several ways.

    The defaults are measured, see ``tests/benchmarks/benchmark_store_chunks.py``.

    Attributes:
        chunk: edge of a chunk in voxels.
        shard: one file an array (all chunks in one shard) instead of one file a chunk.
        codec: compressor inside Blosc.
        level: its level.
        shuffle: Blosc's reordering before compression, by bytes or by bits.
    """

    chunk: int = Field(64, ge=8)
    shard: bool = True
    codec: Literal["zstd", "lz4"] = "zstd"
    level: int = Field(3, ge=1, le=9)
    shuffle: Literal["shuffle", "bitshuffle", "noshuffle"] = "shuffle"


def encode(record: SubjectRecord, arrays: SubjectArrays, image_dtype: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in the types they are stored in, after checking them against the record.

    Raises:
        VolumeError: a shape is not the record's, or the image is not finite or does not fit its type.
    """
    name, shape = record.subject_id, tuple(record.shape)
    image = np.asarray(arrays.image)
    expected = (len(record.channels), *shape)
    if image.shape != expected:
        raise VolumeError(f"subject {name}: the image has shape {image.shape}, expected {expected} (C, D, H, W)")
    if not np.isfinite(image).all():
        raise VolumeError(f"subject {name}: the image holds NaN or infinite voxels")
    if np.abs(image).max(initial=0.0) > np.finfo(image_dtype).max:
        raise VolumeError(
            f"subject {name}: the image holds values too large for {image_dtype}: scale it or choose float32"
        )
    encoded: dict[str, NDArray[Any]] = {"image": np.ascontiguousarray(image, dtype=image_dtype)}
    for role in ("brain", "head", "lesion"):
        mask = getattr(arrays, role)
        if mask is not None:
            encoded[role] = _of_shape(mask, shape, name, role).astype(np.bool_).astype(np.uint8)
    if arrays.structures is not None:
        encoded["structures"] = _labels(_of_shape(arrays.structures, shape, name, "structures"), name)
    return encoded


def array_facts(array: NDArray[Any]) -> ArrayFacts:
    """Return an array's type, shape and digest; the digest knows neither chunks nor byte order of the machine."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return ArrayFacts(dtype=array.dtype.name, shape=array.shape, sha256=hashlib.sha256(little.data).hexdigest())


def write_array(path: Path, array: NDArray[Any], chunks: ChunkSettings) -> None:
    """Write one array (3D, or 4D with channels in front) as a Zarr v3 array of its own."""
    _create(LocalStore(path), array, chunks)


def array_files(array: NDArray[Any], chunks: ChunkSettings) -> dict[str, bytes]:
    """Return the files that :func:`write_array` would write, by name."""
    held: dict[str, Buffer] = {}
    _create(MemoryStore(held), array, chunks)
    return {name: content.to_bytes() for name, content in held.items()}


def _create(store: LocalStore | MemoryStore, array: NDArray[Any], chunks: ChunkSettings) -> None:
    lead, space = array.shape[:-3], array.shape[-3:]
    # Channels are cut apart: whoever wants one modality decodes one modality.
    inner = (*(1 for _ in lead), *(min(chunks.chunk, size) for size in space))
    counts = [math.ceil(size / part) for size, part in zip(array.shape, inner, strict=True)]
    whole = tuple(count * part for count, part in zip(counts, inner, strict=True))
    zarr.create_array(
        store,
        data=array,
        chunks=inner,
        # A shard around a single chunk would add an index and a second decoding step for nothing.
        shards=whole if chunks.shard and math.prod(counts) > 1 else None,
        compressors=BloscCodec(cname=chunks.codec, clevel=chunks.level, shuffle=chunks.shuffle),
        fill_value=0,
        # "c.0.0.0" and not "c/0/0/0": every folder less is one less to make, to sync and to copy.
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=AXES[-array.ndim :],
    )


def write_group(path: Place, attributes: Mapping[str, Any], aside: Place) -> None:
    """Write a Zarr v3 group's metadata into an existing folder, whole or not at all.

    Zarr's own writer would leave its unfinished file in the folder when it is killed; ours leaves it in ``aside``.
    """
    write_file(path / "zarr.json", group_content(attributes), aside)


def group_content(attributes: Mapping[str, Any]) -> bytes:
    """Return a Zarr v3 group's metadata file."""
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(metadata, indent=2, allow_nan=False).encode()


def read_array(path: Place, box: Sequence[tuple[int, int]] | None = None) -> NDArray[Any]:
    """Read one array: whole, or the voxels ``[start, stop)`` of its last three axes.

    From a URL its files are fetched whole and side by side: Zarr would ask for every chunk of a shard on its own.
    """
    if isinstance(path, RemotePath):
        return array_of(path.read_many(path.files()), box)
    if box is None and (whole := read_shard(lambda name: (path / name).read_bytes())) is not None:
        return whole
    return _read(LocalStore(path, read_only=True), box)


def array_of(files: Mapping[str, bytes], box: Sequence[tuple[int, int]] | None = None) -> NDArray[Any]:
    """Decode one array from the content of its files, by name; see :func:`array_files` and :func:`read_array`."""
    if box is None and (whole := read_shard(files.__getitem__)) is not None:
        return whole
    make = default_buffer_prototype().buffer.from_bytes
    return _read(MemoryStore({name: make(content) for name, content in files.items()}, read_only=True), box)


def _read(store: LocalStore | MemoryStore, box: Sequence[tuple[int, int]] | None) -> NDArray[Any]:
    array = zarr.open_array(store, mode="r")
    if box is None:
        return np.asarray(array[...])
    lead = [slice(None)] * (array.ndim - len(box))
    return np.asarray(array[(*lead, *(slice(*side) for side in box))])


def _of_shape(array: NDArray[Any], shape: tuple[int, ...], name: str, role: str) -> NDArray[Any]:
    array = np.asarray(array)
    if array.shape != shape:
        raise VolumeError(f"subject {name}: the {role} array has shape {array.shape}, expected {shape}")
    return array


def _labels(labels: NDArray[Any], name: str) -> NDArray[Any]:
    if labels.dtype.kind not in "iub":
        raise VolumeError(f"subject {name}: structure labels have type {labels.dtype}, expected whole numbers")
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise VolumeError(f"subject {name}: structure labels reach from {low} to {high}, expected 0 to 65535")
    # The type follows from the values alone, so that the same labels give the same digest whatever type they came in.
    return labels.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
