"""What is sent back: JSON, a map in the file's own space, both, or what the page's viewer draws."""

from __future__ import annotations

import gzip
import json
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.scoring import write_native

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vesalius.infra.application import Answer

NIFTI = "application/x-nifti"
KINDS = ("json", "map", "both")


def kind_wanted(accept: str, asked: str | None) -> str | None:
    """Return ``json``, ``map`` or ``both``: as the query says, else as ``Accept`` says; None for another word.

    Args:
        accept: header of the request.
        asked: ``answer=...`` of its query.
    """
    if asked is not None:
        return asked if asked in KINDS else None
    types = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if "multipart/mixed" in types:
        return "both"
    return "map" if types & {NIFTI, "application/gzip"} else "json"


def map_file(answer: Answer, folder: Path) -> bytes:
    """Return the map as .nii.gz in the file's own shape and affine, by the code of ``vesalius score``."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "map.nii.gz"
        write_native(path, answer.score.map.numpy(), answer.record)
        return path.read_bytes()


def both(document: Mapping[str, Any], nifti: bytes) -> tuple[bytes, str]:
    """Return JSON and map as one multipart body, and its type."""
    boundary = secrets.token_hex(16)
    parts = [("application/json", "score.json", json.dumps(document).encode()), (NIFTI, "map.nii.gz", nifti)]
    body = b"".join(
        f"--{boundary}\r\nContent-Type: {kind}\r\nContent-Disposition: attachment; "
        f'filename="{name}"\r\nContent-Length: {len(content)}\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for kind, name, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/mixed; boundary={boundary}"


def view(answer: Answer) -> bytes:
    """Return what the viewer draws, gzipped: the volume as the model saw it, and the map on the same grid.

    A little-endian uint32 with the length of a JSON header, the header (padded to an even length), the image as
    uint16 and the map as uint8, both (D, H, W) with the last axis fastest. The header says what 0 and the largest
    number stand for.
    """
    image, found = answer.arrays.image[0], answer.score.map.numpy()
    low, high = _range(image)
    top = max(float(found.max()), 1e-12)
    header = {
        "shape": list(found.shape),
        "spacing_mm": list(answer.record.spacing_mm),
        "image": {"low": low, "high": high},
        "map": {"low": 0.0, "high": top},
        "threshold": answer.threshold,
    }
    text = json.dumps(header).encode()
    text += b" " * (len(text) % 2)
    body = len(text).to_bytes(4, "little") + text + _quantised(image, low, high, np.dtype("<u2"))
    return gzip.compress(body + _quantised(found, 0.0, top, np.dtype("u1")), compresslevel=1)


def _range(image: NDArray[Any]) -> tuple[float, float]:
    low, high = float(image.min()), float(image.max())
    return (low, high) if high > low else (low, low + 1.0)


def _quantised(values: NDArray[Any], low: float, high: float, dtype: np.dtype[Any]) -> bytes:
    most = int(np.iinfo(dtype).max)
    scaled = (values.astype(np.float32) - low) * np.float32(most / (high - low))
    whole: NDArray[Any] = np.clip(np.rint(scaled), 0, most).astype(dtype)
    return whole.tobytes()
