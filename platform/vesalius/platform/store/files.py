"""Files that are either complete or absent, and their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_file(path: Path, content: bytes, aside: Path) -> None:
    """Write ``content`` so that after a crash at any moment ``path`` holds the old content or the new, whole.

    Args:
        path: where; an existing file is replaced.
        content: all of it.
        aside: an existing folder on the same disk for the unfinished file.
    """
    unfinished = aside / f"{path.name}.{uuid.uuid4().hex}"
    with unfinished.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(unfinished, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a folder's entries (what was created in it or renamed into it) last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path, *, sync: bool = False) -> str:
    """Return the SHA-256 of a file's bytes; ``sync`` also makes them last through a loss of power."""
    with path.open("rb") as handle:
        answer = hashlib.file_digest(handle, "sha256").hexdigest()
        if sync:
            os.fsync(handle.fileno())
    return answer


def folder_digests(folder: Path, *, sync: bool = False) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder`` by its relative path, sorted."""
    digests: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        here = folder.__class__(parent)
        for name in names:
            digests[(here / name).relative_to(folder).as_posix()] = file_digest(here / name, sync=sync)
        if sync:
            sync_folder(here)
    return dict(sorted(digests.items()))


def remove_folder(path: Path) -> None:
    """Remove a folder and all below it; what cannot be removed is left."""
    shutil.rmtree(path, ignore_errors=True)
