"""One writer at a time."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING

from vesalius.platform.errors import StoreError
from vesalius.platform.store.space import space_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``; the operating system lets go of it when the process dies, however it dies.

    Raises:
        StoreError: another writer holds it (the message names that writer), or the folder may not be written.
        DiskSpaceError: there is no room for the lock file.
    """
    with space_errors(path.parent):
        descriptor = _acquire(path)
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Say whether a writer holds the lock file at this moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
        raise StoreError(f"{path.parent} may not be written ({error.strerror}): choose another folder") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 512, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise StoreError(f"{path.parent} is being written by {holder}: wait for it to end, or stop it") from None
    except BaseException:  # the descriptor is closed whatever happens
        os.close(descriptor)
        raise
    return descriptor
