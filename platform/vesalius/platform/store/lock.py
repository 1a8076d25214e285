"""One writer at a time."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import time
from typing import TYPE_CHECKING

from vesalius.platform.errors import StoreError
from vesalius.platform.store.remote import RemotePath
from vesalius.platform.store.remote_lock import exclusive_remote, is_held_remotely
from vesalius.platform.store.space import space_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vesalius.platform.store.place import Place

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_TRIES = 5
_BETWEEN_SECONDS = 0.02


@contextlib.contextmanager
def exclusive(path: Place) -> Iterator[Callable[[], None]]:
    """Hold the lock file at ``path``; the operating system lets go of it when the process dies, however it dies.

    At a URL the lock is an object that is renewed; see :mod:`vesalius.platform.store.remote_lock`.

    Yields:
        A function that raises :class:`StoreError` where the lock is ours no more, as only a URL's can come to be.

    Raises:
        StoreError: another writer holds it (the message names that writer), or the folder may not be written.
        DiskSpaceError: there is no room for the lock file.
    """
    if isinstance(path, RemotePath):
        with exclusive_remote(path) as lease:
            yield lease.confirm
        return
    with space_errors(path.parent):
        descriptor = _acquire(path)
    try:
        yield _ours
    finally:
        os.close(descriptor)


def _ours() -> None:
    """Find nothing wrong: what the operating system locked for us stays ours."""


def is_held(path: Place) -> bool:
    """Say whether a writer holds the lock file at this moment."""
    if isinstance(path, RemotePath):
        return is_held_remotely(path)
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
    except FileNotFoundError:
        raise StoreError(_removed(path)) from None
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
        raise StoreError(f"{path.parent} may not be written ({error.strerror}): choose another folder") from None
    try:
        _take(descriptor)
        if not os.path.exists(path) or not os.path.samestat(os.stat(path), os.fstat(descriptor)):
            # Whoever held it took nothing in and removed the store that it had made: this is the lock of nothing.
            raise StoreError(_removed(path))
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


def _take(descriptor: int) -> None:
    """Lock an open file; whoever only looks whether it is held (:func:`is_held`) has it for a moment, too."""
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_BETWEEN_SECONDS)
        else:
            return


def _removed(path: Path) -> str:
    return f"{path.parent} was removed by another process at this very moment: run the same again"
