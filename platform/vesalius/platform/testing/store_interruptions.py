"""The cohort store under interruption: one walk over every step that a writer takes, whatever befalls it there.

The checks here are part of the suite in :mod:`vesalius.platform.testing.store`: for a store in a folder, killed, cut
from power or out of room before every one of its file-system steps. Stores at URLs take the same walk by their requests
(:mod:`vesalius.platform.testing.store_at_url`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vesalius.platform.errors import DiskSpaceError, InputError, StoreError
from vesalius.platform.store import CohortStore, RemotePath
from vesalius.platform.store.files import remove
from vesalius.platform.testing.faults import Action, faults
from vesalius.platform.testing.store_cases import add, assert_holds, example_case, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from vesalius.platform.testing.store_cases import Case, StoreFactory

Where = TypeVar("Where", Path, RemotePath)
_NEVER = 2**31


class Watch(Protocol):
    """What watches a writer."""

    @property
    def steps(self) -> Sequence[str]:
        """The steps that were seen so far."""
        ...

    @property
    def reached(self) -> bool:
        """Whether the chosen step came."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hazard(Generic[Where]):
    """What befalls a writer at one of its steps, and what the places are like where it can.

    Attributes:
        name: such as ``killed``.
        watch: watch what is done at a place, and interfere at step number n (from 0).
        refused_by: what a writer that lives on may raise.
        judge: raise ``AssertionError`` where what the writer said (None: nothing) does not fit what befell it; takes
            the watch, the step, the message and the place.
        copy: copy a store.
        spoil: damage the uncommitted subject ``sub-01`` of a store, as a killed writer may have left it.
        leftovers: name what an interrupted writer left unfinished.
    """

    name: str
    watch: Callable[[Where, int], AbstractContextManager[Watch]]
    refused_by: type[InputError]
    judge: Callable[[Watch, int, str | None, Where], None]
    copy: Callable[[Where, Where], object]
    spoil: Callable[[Where], object]
    leftovers: Callable[[Where], Sequence[str]]


def interrupt_everywhere(make: StoreFactory, folder: Where, hazard: Hazard[Where], *, stride: int = 1) -> None:
    """Interrupt the making of a store, an addition and a forgetting at every step; each can be continued.

    Args:
        make: opens or makes a store.
        folder: an empty place.
        hazard: what befalls the writer.
        stride: try each step that is a multiple of this.
    """
    base, unbroken, damaged, trial = (
        folder / f"{name}-{hazard.name}" for name in ("base", "unbroken", "damaged", "trial")
    )
    kept, new = (example_case(number, make(base).channels, all_roles=False) for number in (0, 1))
    add(make(base), [kept])
    add(make(unbroken), [kept, new])
    digest = CohortStore.open(unbroken).digest

    def making(path: Where) -> None:
        add(make(path), [kept])

    def adding(path: Where) -> None:
        add(make(path), [kept, new])

    def forgetting(path: Where) -> None:
        CohortStore.open(path).forget(["sub-01"])

    # What is to be added lies there already, written by a killed writer and damaged since: it has to make way.
    hazard.copy(base, damaged)
    CohortStore.open(damaged).write(*new)
    hazard.spoil(damaged)
    stages: list[tuple[Callable[[Where], None], Where | None, list[Case]]] = [
        (making, None, []),
        (adding, damaged, [kept]),
        (forgetting, unbroken, [kept]),
    ]
    for work, start, committed in stages:
        if start is not None:
            hazard.copy(start, trial)
        with hazard.watch(trial, _NEVER) as watch:
            work(trial)
        remove(trial)
        assert watch.steps
        for step in range(0, len(watch.steps), stride):
            if start is not None:
                hazard.copy(start, trial)
            try:
                _interrupt(work, trial, hazard, step)
                _assert_sound(trial, committed, [kept, new], started_empty=start is None)
                add(make(trial), [kept, new])
                store = CohortStore.open(trial)
                assert store.digest == digest, "continuing gives another digest than an unbroken write"
                assert store.check() == []
                assert not hazard.leftovers(trial), "something unfinished is left behind"
            except BaseException as error:  # raised again, with the step
                error.add_note(f"{work.__name__}, {hazard.name} at step {step}")
                raise
            remove(trial)


def check_survives_a_kill_at_every_step(make: StoreFactory, folder: Path) -> None:
    """A writer that dies before any one of its file-system steps leaves what was committed, and can be continued."""
    interrupt_everywhere(make, folder, _on_disk("killed"))


def check_survives_a_power_cut_at_every_step(make: StoreFactory, folder: Path) -> None:
    """The same, when every file that was written and not synced loses half its bytes."""
    interrupt_everywhere(make, folder, _on_disk("power_lost"))


def check_survives_a_full_disk_at_every_step(make: StoreFactory, folder: Path) -> None:
    """Where a step finds no room, one sentence says so, nothing half-written shows, and it goes on later."""
    interrupt_everywhere(make, folder, _on_disk("disk_full"))


def _on_disk(action: Action) -> Hazard[Path]:
    def watch(path: Path, step: int) -> AbstractContextManager[Watch]:
        return faults(path, action, step)

    def judge(watch: Watch, step: int, message: str | None, path: Path) -> None:
        assert message is None or (action == "disk_full" and str(path) in message)
        if action == "disk_full" and message is None:
            # A full disk hinders only what needs room: from here on nothing did.
            assert all(not _needs_room(seen) for seen in watch.steps[step:]), "a full disk was passed over in silence"

    def leftovers(path: Path) -> list[str]:
        return [entry.name for entry in (path / ".partial").iterdir()]

    return Hazard(
        name=action,
        watch=watch,
        refused_by=DiskSpaceError,
        judge=judge,
        copy=shutil.copytree,
        spoil=lambda path: (path / "subjects" / "sub-01" / "image" / "zarr.json").write_text("{}"),
        leftovers=leftovers,
    )


def _needs_room(step: str) -> bool:
    return step.split(" ", 1)[0] not in ("os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.chmod")


def _interrupt(work: Callable[[Where], None], path: Where, hazard: Hazard[Where], step: int) -> None:
    message = None
    with hazard.watch(path, step) as watch:
        message = refusal(hazard.refused_by, partial(work, path))
    assert watch.reached, "the chosen step never came"
    assert message is None or "\n" not in message, f"the message is more than one sentence: {message}"
    hazard.judge(watch, step, message, path)


def _assert_sound(path: Where, committed: list[Case], possible: list[Case], *, started_empty: bool) -> None:
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
