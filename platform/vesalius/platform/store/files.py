"""Files that are either complete or absent, and their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path


def write_file(path: Path, content: bytes, aside: Path) -> None:
    """Write ``content`` so that after a crash at any moment ``path`` holds the old content or the new, whole.

    Args:
        path: where; an existing file is replaced.
        content: all of it.
        aside: an existing folder on the same disk for the unfinished file.
    """
    unfinished = aside / f"{path.name}.{uuid.uuid4().hex}"
    try:
        with unfinished.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a folder's entries (what was created in it or renamed into it) last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content last through a loss of power."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digests(folder: Path, *, sync: bool = False) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder`` by relative path, sorted; ``sync`` makes all of it last."""
    digests: dict[str, str] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            digests[path.relative_to(folder).as_posix()] = file_digest(path)
            if sync:
                sync_file(path)
        if sync:
            sync_folder(Path(parent))
    return dict(sorted(digests.items()))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all below it; what cannot be removed is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
