"""Stopping a writer at every file-system step.

Python tells an audit hook of everything it is about to do to the file system, in any thread and any library, before
doing it: each file opened for writing, folder made, name moved or removed below a watched folder is one *step*, and so
is every ``os.fsync``. :class:`Faults` counts the steps and, at a chosen one, does what the test asks:

- ``killed``: this step and all later ones raise :class:`Killed`, so that nothing can be tidied up either, as in a
  process that is gone;
- ``power_lost``: the same, and every file that was written and not synced loses half its bytes, under whatever name it
  has by then;
- ``disk_full``: this step and all later ones that need room fail with "no space left"; removing still works;
- ``sigkill``: the process ends itself by SIGKILL. For a forked or spawned process only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Action = Literal["count", "killed", "power_lost", "disk_full", "sigkill"]

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEEDS_ROOM = frozenset({"open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.fsync"})
_EVENTS = _NEEDS_ROOM | {"os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"}


class Killed(BaseException):
    """Stands for the death of the process: no ``except Exception`` may catch it."""


class Faults:
    """Counts the file-system steps below a folder and interferes at one of them. Use :func:`faults`.

    Attributes:
        steps: what was seen so far, as "event path".
    """

    def __init__(self, folder: Path, action: Action, at: int) -> None:
        self.steps: list[str] = []
        self._folder = os.path.realpath(folder)
        self._action = action
        self._at = at
        self._unsynced: set[str] = set()
        self._lock = threading.Lock()
        self._over = False

    @property
    def reached(self) -> bool:
        """Whether the chosen step came."""
        return len(self.steps) > self._at

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """Take in one audit event; raises what the action asks for."""
        path = self._place(event, args)
        if path is None:
            return
        with self._lock:
            if self._over:
                raise Killed(f"after death: {event} {path}")
            self.steps.append(f"{event} {path}")
            hit = len(self.steps) > self._at
            if hit and self._action in ("killed", "power_lost", "sigkill"):
                self._over = True
            elif not (hit and event in _NEEDS_ROOM):
                self._note(event, path, args)
        if not hit or self._action == "count":
            return
        if self._action == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._action == "disk_full":
            if event in _NEEDS_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return
        raise Killed(f"{event} {path}")

    def lose_power(self) -> None:
        """Cut every file that was written and not synced to half its length."""
        for path in self._unsynced:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, os.path.getsize(path) // 2)

    def _note(self, event: str, path: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self._unsynced.add(path)
        elif event == "os.fsync":
            self._unsynced.discard(path)
        elif event == "os.rename":
            target = os.path.abspath(os.fsdecode(args[1]))
            # A replaced file's bytes are gone; what is moved keeps its state, and so does everything below it.
            self._unsynced.discard(target)
            self._unsynced = {target + name[len(path) :] if _below(name, path) else name for name in self._unsynced}
        elif event == "os.remove":
            self._unsynced.discard(path)

    def _place(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Return the absolute path of a step below the watched folder, or None for any other event."""
        if event not in _EVENTS or not args:
            return None
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return None
        subject = args[0]
        if isinstance(subject, int):
            path = _path_of(subject)
        else:
            path = os.fsdecode(subject)
            folder = args[-1] if event in ("os.remove", "os.rmdir", "shutil.rmtree") else None
            if not os.path.isabs(path):
                path = os.path.join(_path_of(folder) if isinstance(folder, int) and folder >= 0 else os.getcwd(), path)
        return path if _below(path, self._folder) else None


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


_active: Faults | None = None
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _active is not None and event in _EVENTS:
        _active.see(event, args)


@contextlib.contextmanager
def faults(folder: Path, action: Action = "count", at: int = sys.maxsize) -> Iterator[Faults]:
    """Watch everything below ``folder`` and interfere at step number ``at`` (from 0).

    Needs Linux (``/proc``). One at a time in a process. :class:`Killed` does not leave the block; whether the step
    came, ``reached`` says.
    """
    global _active, _hooked
    if not _hooked:
        # An audit hook cannot be taken away again; without an active watch it returns at once.
        sys.addaudithook(_hook)
        _hooked = True
    watch = Faults(folder, action, at)
    sync = os.fsync

    def watched_sync(descriptor: int) -> None:
        watch.see("os.fsync", (descriptor,))
        sync(descriptor)

    os.fsync = watched_sync  # type: ignore[assignment]  # the watch takes the function's place
    _active = watch
    try:
        yield watch
    except Killed:
        pass
    finally:
        _active = None
        os.fsync = sync
        if action == "power_lost" and watch.reached:
            watch.lose_power()


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """Give an empty folder in memory where there is one: for making, syncing and removing hundreds of small files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="vesalius-") as name:
        yield Path(name)
