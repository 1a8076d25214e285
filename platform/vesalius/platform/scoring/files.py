"""The files of a scored subject: OME-Zarr images of the values that float16 holds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.errors import DivergenceError, ModelError
from vesalius.platform.store.arrays import ChunkSettings, array_files, group_content
from vesalius.platform.store.ngff import map_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Score
    from vesalius.platform.scoring.records import ScoreRecord

MAP, RESTORATION, EXTRAS = "map", "restoration", "extras"
_EXTRA_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def is_extra_name(text: str) -> bool:
    """Say whether a further map may be called so: its name is a folder's, and it does not lead out of its subject."""
    return _EXTRA_NAME.fullmatch(text) is not None


def extra_name(name: str) -> str:
    """Return what a further map is called among a subject's arrays."""
    return f"{EXTRAS}/{name}"


def array_path(name: str) -> str:
    """Return where an array lies below its subject's group; the map beside the subject's metadata, which open it."""
    return MAP if name == MAP else f"{name}/0"


def score_arrays(score: Score, method: str, subject_id: str) -> dict[str, NDArray[np.float16]]:
    """Return a score's arrays by name: ``map``, ``restoration`` where there is one, ``extras/<name>``.

    Args:
        score: of one volume.
        method: whose, for the message.
        subject_id: of what, for the message.

    Raises:
        DivergenceError: a value is not finite as float16.
        ModelError: a further map's name cannot name a folder.
    """
    arrays = {MAP: as_float16(score.map.numpy(), f"{method}: its anomaly map of subject {subject_id}")}
    if score.restoration is not None:
        name = f"{method}: its restoration of subject {subject_id}"
        arrays[RESTORATION] = as_float16(score.restoration.numpy(), name)
    for extra, values in sorted(score.extras.items()):
        if not is_extra_name(extra):
            raise ModelError(
                f"{method}: it calls a further map {extra[:80]!r}: expected 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'"
            )
        arrays[extra_name(extra)] = as_float16(values.numpy(), f"{method}: its '{extra}' of subject {subject_id}")
    return arrays


def score_files(record: ScoreRecord, arrays: Mapping[str, NDArray[np.float16]]) -> dict[str, bytes]:
    """Return all files of a scored subject's group by relative path, the group's own metadata last.

    The values are those of float16 and are kept as float32, which every reader of OME-Zarr knows (neuroglancer knows
    no float16): a tenth more on the disk, since the bits that are added are zero.

    Raises:
        VolumeError: the axes do not run to the right, to the front and up.
    """
    files: dict[str, bytes] = {}
    for name, values in arrays.items():
        for file, content in array_files(values.astype(np.float32), ChunkSettings()).items():
            files[f"{array_path(name)}/{file}"] = content
        if name != MAP:
            files[f"{name}/zarr.json"] = group_content({"ome": _metadata(record, values, name)})
    if record.extras:
        files[f"{EXTRAS}/zarr.json"] = group_content({})
    ours = {"record": record.model_dump(mode="json")}
    files["zarr.json"] = group_content({"ome": _metadata(record, arrays[MAP], MAP), "vesalius": ours})
    return files


def as_float16(values: NDArray[np.floating[Any]], name: str) -> NDArray[np.float16]:
    """Round to float16, the type that maps are counted in.

    Args:
        values: any shape.
        name: what they are, for the message.

    Raises:
        DivergenceError: a value is NaN, infinite or beyond +-65504.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        if not np.isfinite(values).all():
            raise DivergenceError(f"{name} holds NaN or infinite values")
        raise DivergenceError(
            f"{name} reaches {float(np.abs(values).max()):.4g}, beyond the 65504 that float16 can hold: rescale it"
        )
    return rounded


def _metadata(record: ScoreRecord, values: NDArray[np.float16], name: str) -> dict[str, Any]:
    return map_metadata(record, values, MAP if name == MAP else "0", name.rpartition("/")[2])
