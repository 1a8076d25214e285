"""The server's folder for uploads and kept answers: this user's alone, and cleared of what dead servers left."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from vesalius.platform.errors import SettingError

_LOCK = "lock"


class Scratch:
    """A folder that is this process's while it lives. The lock in it ends with the process, however that ends.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Make the folder.

        Args:
            parent: made with rights for this user alone; a folder of this user's in the system's by default.

        Raises:
            SettingError: the parent belongs to someone else.
        """
        parent = parent or Path(tempfile.gettempdir()) / f"vesalius-serving-{os.geteuid()}"
        _make_own(parent)
        _clear(parent)
        self.path = Path(tempfile.mkdtemp(prefix="server-", dir=parent))
        self._descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        shutil.rmtree(self.path, ignore_errors=True)


def _make_own(parent: Path) -> None:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = parent.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise SettingError(f"{parent} is not this user's alone: remove it, or set TMPDIR to a folder of your own")


def _clear(parent: Path) -> None:
    """Remove what servers left that were killed: nobody holds their locks."""
    for folder in parent.glob("server-*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # another server is making it at this moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
