"""One writer at a time on a file system without locks: an object that says who writes, renewed while they live.

The object stays for good and says *held* or *free*; every change of it is conditional on what it was, so that of two
who take it at once one gets it. A holder renews it every :data:`BEAT_SECONDS`. One that has not been renewed for
:data:`EXPIRY_SECONDS` is watched for two beats (clocks of two machines may differ, a change does not) and taken over
where it does not change; a holder on this machine whose process is gone is taken over at once.

Nothing that is committed hangs on the clock: the manifest is replaced only if it is the one that was read, and subjects
lie under names that follow from their content. The lock keeps two ingests from wasting work, and names the first.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from vesalius.platform.config import Settings, canonical_json
from vesalius.platform.errors import StoreError
from vesalius.platform.store.connection import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.platform.store.remote import RemotePath

BEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0


class LockState(Settings):
    """What the lock object holds.

    Attributes:
        state: whether somebody writes.
        token: drawn by each holder.
        process: the holder's process id.
        host: its machine's name, for people.
        machine: its machine's boot and process namespace, to know whether the process id means one of ours.
        started: when its process started, as the kernel counts.
        since: when it took the lock.
        renewed: Unix time of the last beat, by the holder's clock.
    """

    state: Literal["held", "free"]
    token: str
    process: int
    host: str
    machine: str
    started: str
    since: str
    renewed: float

    @property
    def holder(self) -> str:
        """The holder in words."""
        return f"process {self.process} on {self.host} since {self.since}"

    @property
    def age_seconds(self) -> float:
        """Time since the last beat, by two clocks."""
        return time.time() - self.renewed


class Lease:
    """A lock that is held: renewed by a thread of its own until it is let go of."""

    def __init__(self, path: RemotePath, state: LockState, version: str) -> None:
        self._path = path
        self._state = state
        self._version = version
        self._renewed = time.monotonic()
        self._lost: str | None = None
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="store lock", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Renew the lock before a step that only the one writer may take.

        Raises:
            StoreError: somebody else has taken it over, or nothing answers.
        """
        if self._lost is None:
            self._renew()
        if self._lost is not None:
            raise StoreError(
                f"{self._path.parent} is no longer ours to write: {self._lost}; what was committed stays: "
                "run the same again"
            )

    def release(self) -> None:
        """Let go."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(Conflict, StoreError, FileNotFoundError):  # else it expires
            if self._lost is None:
                self._replace(self._state.model_copy(update={"state": "free"}))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(StoreError):
                self._renew()
            if self._lost is not None:
                return

    def _renew(self) -> None:
        with self._guard:
            state = self._state.model_copy(update={"renewed": time.time()})
            try:
                self._replace(state)
            except Conflict:
                other = read_lock(self._path)
                self._lost = f"{other.holder} took it over" if other is not None else "its lock was removed"
            except StoreError as error:
                if time.monotonic() - self._renewed > EXPIRY_SECONDS:
                    self._lost = str(error)
                raise
            else:
                self._renewed = time.monotonic()

    def _replace(self, state: LockState) -> None:
        try:
            self._version = self._path.replace(_content(state), self._version)
        except Conflict:
            # A change of ours may have arrived although we never heard so: then what stands there is still ours.
            try:
                found, version = self._path.read_versioned()
            except FileNotFoundError:
                raise Conflict(str(self._path)) from None
            standing = _parsed(found)
            if standing is None or standing.token != state.token:
                raise
            self._version = self._path.replace(_content(state), version)


@contextlib.contextmanager
def exclusive_remote(path: RemotePath) -> Iterator[Lease]:
    """Hold the lock object at ``path``.

    Raises:
        StoreError: another writer holds it (the message names that writer), the place may not be written, or its
            server takes no conditional writes.
    """
    lease = Lease(path, *_acquire(path))
    try:
        yield lease
    finally:
        lease.release()


def is_held_remotely(path: RemotePath) -> bool:
    """Say whether a living writer holds the lock."""
    state = read_lock(path)
    return state is not None and state.state == "held" and not _is_gone(state) and state.age_seconds < EXPIRY_SECONDS


def read_lock(path: RemotePath) -> LockState | None:
    """Return what the lock says, or None where there is none or it cannot be made out."""
    try:
        return _parsed(path.read_small())
    except FileNotFoundError:
        return None


def _acquire(path: RemotePath) -> tuple[LockState, str]:
    holder = None
    for _ in range(3):
        ours = this_process()
        content = _content(ours)
        try:
            found, version = path.read_versioned()
        except FileNotFoundError:
            try:
                version = path.create(content)
            except FileExistsError:
                continue
        else:
            holder = _parsed(found)
            _require_free(path, holder, version)
            try:
                version = path.replace(content, version)
            except Conflict:
                continue
        if not path.honours_conditions(content):
            path.write_bytes(_content(ours.model_copy(update={"state": "free"})))
            raise StoreError(
                f"{path.parent}: the server takes no conditional writes (If-None-Match, If-Match), without which two "
                "ingests would overwrite each other: use one that does"
            )
        return ours, version
    other = holder.holder if holder is not None else "others"
    raise StoreError(f"{path.parent} is being written by {other}: wait for it to end, or stop it")


def _require_free(path: RemotePath, holder: LockState | None, version: str) -> None:
    """Return where the lock is free or its holder is gone for certain; raise where it is not."""
    if holder is not None and (holder.state == "free" or _is_gone(holder)):
        return
    # Either way: a holder whose clock is an hour ahead, and who is dead, would look alive for an hour.
    if holder is None or abs(holder.age_seconds) > EXPIRY_SECONDS:
        time.sleep(2 * BEAT_SECONDS)
        try:
            if path.read_versioned()[1] == version:
                return
        except FileNotFoundError:
            return
        holder = read_lock(path) or holder
    name = "another process" if holder is None else holder.holder
    ago = 0 if holder is None else max(0, round(holder.age_seconds))
    raise StoreError(
        f"{path.parent} is being written by {name} (last heard of {ago} s ago): wait for it to end, or stop it; "
        f"one that was killed on another machine is forgotten after {EXPIRY_SECONDS:.0f} s"
    )


def _parsed(content: bytes) -> LockState | None:
    try:
        return LockState.model_validate_json(content)
    except ValidationError:
        return None


def _content(state: LockState) -> bytes:
    return canonical_json(state).encode()


def this_process() -> LockState:
    """Return a lock held by this process from now on."""
    return LockState(
        state="held",
        token=uuid.uuid4().hex,
        process=os.getpid(),
        host=socket.gethostname(),
        machine=_machine(),
        started=_started(os.getpid()),
        since=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        renewed=time.time(),
    )


def _is_gone(holder: LockState) -> bool:
    """Say whether the holder was a process of this machine that has ended; never where that cannot be known."""
    if not holder.machine or holder.machine != _machine():
        return False
    return _started(holder.process) != holder.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """Return when a process started, in the kernel's ticks; empty where there is no such process."""
    try:
        # The name in parentheses may hold anything, so the fields are counted from behind it; the 22nd of all.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
