"""The code of this very process as a wheel: what a job computes with is what was here, and nothing else.

The five source roots (or the installed package, where it came as a wheel) are packed as they are. The version carries
the content's digest: Ray stores a wheel under its file name and would take an older one of the same name. The wheel
names no requirements, since Ray installs it with pip and would fetch torch anew for each job: what the cluster has is
compared before a job is submitted (:mod:`vesalius.infra.jobs.environment`).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.platform.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIGITS = 12
_LEFT_OUT = {"__pycache__"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """A wheel on disk.

    Attributes:
        path: of the file.
        sha256: of its content.
    """

    path: Path
    sha256: str


def current_wheel(folder: Path) -> Wheel:
    """Return the wheel of the code that runs, which is made in ``folder`` where it is not there yet.

    Raises:
        JobError: the package cannot be found.
    """
    files = _files()
    version = f"{_public_version()}+{_digest(files)[:_DIGITS]}"
    path = folder / f"vesalius-{version}-py3-none-any.whl"
    content = _packed(files, version)
    sha256 = hashlib.sha256(content).hexdigest()
    if not path.is_file() or path.read_bytes() != content:
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(content)
        aside.replace(path)
    return Wheel(path, sha256)


def kept_wheel(folder: Path, name: str, sha256: str) -> Wheel | None:
    """Return a wheel that an earlier attempt was submitted with, or None where it is gone or was changed."""
    path = folder / name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        return None
    return Wheel(path, sha256)


def _public_version() -> str:
    return importlib.metadata.version("vesalius").partition("+")[0]


def _files() -> dict[str, Path]:
    """Return every file of the package by its path in the wheel; of two roots with one name the first is imported."""
    import vesalius

    found: dict[str, Path] = {}
    for root in map(Path, vesalius.__path__):
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            if path.is_file() and not _LEFT_OUT & set(relative.parts) and path.suffix != ".pyc":
                found.setdefault(f"vesalius/{relative.as_posix()}", path)
    # A part that stands before another on the path hides the whole of it, and not file by file.
    first: dict[str, Path] = {}
    for root in map(Path, vesalius.__path__):
        for part in root.iterdir() if root.is_dir() else ():
            first.setdefault(part.name, root)
    chosen = {name: path for name, path in found.items() if _root_of(name, path) == first[name.split("/")[1]]}
    if "vesalius/infra/jobs/wheel.py" not in chosen:
        raise JobError("the installed package vesalius cannot be found on the disk: install it with pip")
    return dict(sorted(chosen.items()))


def _root_of(name: str, path: Path) -> Path:
    return path.parents[name.count("/") - 1]


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _packed(files: Mapping[str, Path], version: str) -> bytes:
    """Return the wheel's bytes, the same for the same files."""
    info = f"vesalius-{version}.dist-info"
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: vesalius\nVersion: {version}\n".encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: vesalius\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/entry_points.txt"] = b"[console_scripts]\nvesalius = vesalius.infra.cli:main\n"
    lines = [f"{name},sha256={_urlsafe(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = ("\n".join([*lines, f"{info}/RECORD,,"]) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
