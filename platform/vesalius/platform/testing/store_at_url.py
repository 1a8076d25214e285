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
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from vesalius.platform.errors import StoreError
from vesalius.platform.store import CohortStore, RemotePath, connection, remote_lock
from vesalius.platform.store.files import remove
from vesalius.platform.testing.faults import Killed
from vesalius.platform.testing.store_cases import add, assert_holds, assert_refused, example_case, files_in, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vesalius.platform.testing.store_cases import Case, StoreFactory

Interference = Literal["count", "killed", "answer_lost", "cut_off"]
_CHANGING = frozenset({"pipe_file", "rm_file"})
_NO_PROCESS = 2**22 + 1  # above what Linux gives out


class Requests:
    """Counts the requests that change something, and interferes at one of them. Use :func:`requests`.

    Attributes:
        seen: what was asked for so far, as "method URL".
    """

    def __init__(self, interference: Interference, at: int) -> None:
        self.seen: list[str] = []
        self._interference = interference
        self._at = at
        self._over = False
        self._lock = threading.Lock()

    @property
    def reached(self) -> bool:
        """Whether the chosen request came."""
        return len(self.seen) > self._at

    def ask(self, method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Carry out a request, or what is left of it."""
        with self._lock:
            self._check_alive()
            if method not in _CHANGING:
                return call(*args, **kwargs)
            self.seen.append(f"{method} {args[0]}")
            self._over = len(self.seen) > self._at and self._interference != "count"
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
    _interrupt_everywhere(make, folder, "killed", stride)
    _interrupt_everywhere(make, folder, "answer_lost", stride)


def check_survives_an_outage_at_every_request(make: StoreFactory, folder: RemotePath, *, stride: int = 1) -> None:
    """A writer whose network goes away says so in one sentence, and nothing half-written shows."""
    _interrupt_everywhere(make, folder, "cut_off", stride)


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


def _interrupt_everywhere(make: StoreFactory, folder: RemotePath, interference: Interference, stride: int) -> None:
    base, unbroken, damaged, trial = (
        folder / f"{name}-{interference}" for name in ("base", "whole", "damaged", "trial")
    )
    kept, new = (example_case(number, make(base).channels, all_roles=False) for number in (0, 1))
    add(make(base), [kept])
    add(make(unbroken), [kept, new])
    digest = CohortStore.open(unbroken).digest

    def making(path: RemotePath) -> None:
        add(make(path), [kept])

    def adding(path: RemotePath) -> None:
        add(make(path), [kept, new])

    def forgetting(path: RemotePath) -> None:
        CohortStore.open(path).forget(["sub-01"])

    # Half of what is to be added lies there already, and half of something else under the same id.
    _copy(base, damaged)
    CohortStore.open(damaged).write(*new)
    found = next(entry for entry in (damaged / "subjects").iterdir() if entry.name.startswith("sub-01@"))
    (found / "zarr.json").unlink()
    (damaged / "subjects" / "sub-01@0123456789abcdef" / "image" / "zarr.json").write_text("{}")
    stages: list[tuple[Callable[[RemotePath], None], RemotePath | None, list[Case]]] = [
        (making, None, []),
        (adding, damaged, [kept]),
        (forgetting, unbroken, [kept]),
    ]
    for work, start, committed in stages:
        for step in range(0, _count(work, start, trial), stride):
            if start is not None:
                _copy(start, trial)
            try:
                message = None
                with requests(interference, step) as watch:
                    message = refusal(StoreError, partial(work, trial))
                assert watch.reached, "the chosen request never came"
                assert message is None or "\n" not in message
                assert message is not None or interference != "cut_off" or watch.seen[step].endswith("/.lock"), (
                    "an outage was passed over in silence"
                )
                _assert_sound(trial, committed, [kept, new], started_empty=start is None)
                add(make(trial), [kept, new])
                store = CohortStore.open(trial)
                assert store.digest == digest, "continuing gives another digest than an unbroken write"
                assert store.check() == []
            except BaseException as error:  # raised again, with the step
                error.add_note(f"{work.__name__}, {interference} at request {step}")
                raise
            remove(trial)


def _count(work: Callable[[RemotePath], None], start: RemotePath | None, path: RemotePath) -> int:
    if start is not None:
        _copy(start, path)
    with requests() as watch:
        work(path)
    remove(path)
    assert watch.seen
    return len(watch.seen)


def _copy(source: RemotePath, target: RemotePath) -> None:
    for name, content in files_in(source).items():
        (target / name).write_bytes(content)


def _assert_sound(path: RemotePath, committed: list[Case], possible: list[Case], *, started_empty: bool) -> None:
    """Check that an interrupted store opens and holds whole subjects only, those committed among them."""
    try:
        store = CohortStore.open(path)
    except StoreError:
        assert started_empty, "a store that was there cannot be opened any more"
        return
    held = {record.subject_id for record in store.subjects()}
    assert held >= {record.subject_id for record, _ in committed}, "a committed subject is gone"
    for case in possible:
        if case[0].subject_id in held:
            assert_holds(store, case)
