"""The cohort store at a URL under interruption: killed or cut off before and after every one of its requests.

The checks here are part of the suite in :mod:`vesalius.platform.testing.store`. Every request that changes something
goes through one fsspec file system, which :func:`requests` replaces by one that counts and interferes:

- ``killed``: this request is not sent, and nothing after it is, as from a process that is gone;
- ``answer_lost``: this request is carried out, and the process is gone before it hears so;
- ``cut_off``: this request and all later ones fail, as when the network is gone; the process lives.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Literal

from vesalius.platform.errors import StoreError
from vesalius.platform.store import CohortStore, RemotePath, connection, remote_lock
from vesalius.platform.store.checking import uncommitted_folders
from vesalius.platform.store.manifest import read_manifest
from vesalius.platform.testing.faults import Killed
from vesalius.platform.testing.store_cases import add, assert_holds, assert_refused, example_case, files_in
from vesalius.platform.testing.store_interruptions import Hazard, interrupt_everywhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from vesalius.platform.testing.store_cases import StoreFactory
    from vesalius.platform.testing.store_interruptions import Watch

Interference = Literal["count", "killed", "answer_lost", "cut_off"]
_CHANGING = frozenset({"pipe_file", "rm_file"})
_NO_PROCESS = 2**22 + 1  # above what Linux gives out


class Requests:
    """Counts the requests that change something, and interferes at one of them. Use :func:`requests`.

    Attributes:
        steps: what was asked for so far, as "method URL".
    """

    def __init__(self, interference: Interference, at: int) -> None:
        self.steps: list[str] = []
        self._interference = interference
        self._at = at
        self._over = False
        self._lock = threading.Lock()

    @property
    def reached(self) -> bool:
        """Whether the chosen request came."""
        return len(self.steps) > self._at

    def ask(self, method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Carry out a request, or what is left of it."""
        with self._lock:
            self._check_alive()
            if method not in _CHANGING:
                return call(*args, **kwargs)
            self.steps.append(f"{method} {args[0]}")
            self._over = len(self.steps) > self._at and self._interference != "count"
            if self._over and self._interference == "answer_lost":
                call(*args, **kwargs)
            self._check_alive()
            return call(*args, **kwargs)

    def _check_alive(self) -> None:
        if self._over:
            raise ConnectionError("cut off") if self._interference == "cut_off" else Killed("no such process")


class _Watched:
    def __init__(self, system: Any, watch: Requests) -> None:
        self._system = system
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._system, name)
        if name not in (*_CHANGING, "cat_file", "cat", "info", "ls", "find"):
            return found
        return lambda *args, **kwargs: self._watch.ask(name, found, *args, **kwargs)


@contextlib.contextmanager
def requests(interference: Interference = "count", at: int = 2**31) -> Iterator[Requests]:
    """Watch every request of this process's stores at URLs, and interfere at request number ``at`` (from 0).

    :class:`Killed` does not leave the block. What is locked in it is locked by a process that does not exist.
    """
    watch = Requests(interference, at)
    real, real_process = connection.file_system, remote_lock.this_process

    def dying() -> remote_lock.LockState:
        return real_process().model_copy(update={"process": _NO_PROCESS, "started": "before"})

    connection.file_system = lambda path: _Watched(real(path), watch)
    remote_lock.this_process = dying
    try:
        yield watch
    except Killed:
        pass
    finally:
        connection.file_system, remote_lock.this_process = real, real_process


def check_survives_a_kill_at_every_request(make: StoreFactory, folder: RemotePath, *, stride: int = 1) -> None:
    """A writer that dies before or after any one of its requests leaves what was committed, and can be continued.

    Args:
        make: opens or makes a store.
        folder: an empty place.
        stride: try each request that is a multiple of this, where a server is slow.
    """
    interrupt_everywhere(make, folder, _by_requests("killed"), stride=stride)
    interrupt_everywhere(make, folder, _by_requests("answer_lost"), stride=stride)


def check_survives_an_outage_at_every_request(make: StoreFactory, folder: RemotePath, *, stride: int = 1) -> None:
    """A writer whose network goes away says so in one sentence, and nothing half-written shows."""
    interrupt_everywhere(make, folder, _by_requests("cut_off"), stride=stride)


def check_a_writer_that_lost_its_lock_commits_nothing(make: StoreFactory, folder: RemotePath) -> None:
    """One that slept past its lock's end and wakes up beside the next writer changes nothing that counts."""
    path = folder / "store"
    sleeper, other = make(path), CohortStore.open(path)
    cases = [example_case(number, sleeper.channels, all_roles=False) for number in range(3)]
    with requests(), sleeper.lock():  # its process is one that is gone, so that the other may take over at once
        late = sleeper.write(*cases[0])
        worker = CohortStore.join(path, sleeper.session)
        add(other, [cases[1]])
        held = CohortStore.open(path).digest
        assert_refused(StoreError, lambda: sleeper.commit([late]), str(path))
        assert_refused(StoreError, lambda: sleeper.forget(["sub-01"]), str(path))
        assert_refused(StoreError, lambda: worker.write(*cases[2]), "has ended")
    store = CohortStore.open(path)
    assert store.digest == held
    assert_holds(store, cases[1])
    assert not any("sub-01" in sentence for sentence in store.check()), "what is committed was damaged"
    add(make(path), cases)
    assert CohortStore.open(path).check() == []


def _by_requests(interference: Interference) -> Hazard[RemotePath]:
    def watch(path: RemotePath, step: int) -> AbstractContextManager[Watch]:
        return requests(interference, step)

    def judge(watch: Watch, step: int, message: str | None, path: RemotePath) -> None:
        # A lock that cannot be let go of expires; all else that is cut off has to be said.
        assert message is not None or interference != "cut_off" or watch.steps[step].endswith("/.lock"), (
            "an outage was passed over in silence"
        )

    def spoil(path: RemotePath) -> None:
        # Half of what is to be added, and half of something else under the same id.
        found = next(entry for entry in (path / "subjects").iterdir() if entry.name.startswith("sub-01@"))
        (found / "zarr.json").unlink()
        (path / "subjects" / "sub-01@0123456789abcdef" / "image" / "zarr.json").write_text("{}")

    def leftovers(path: RemotePath) -> list[str]:
        return [entry.name for entry in uncommitted_folders(path, read_manifest(path))]

    return Hazard(
        name=interference,
        watch=watch,
        refused_by=StoreError,
        judge=judge,
        copy=_copy,
        spoil=spoil,
        leftovers=leftovers,
    )


def _copy(source: RemotePath, target: RemotePath) -> None:
    for name, content in files_in(source).items():
        (target / name).write_bytes(content)
