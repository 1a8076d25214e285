"""The cohort store under interruption: killed, cut from power, out of room, before every one of its steps.

The checks here are part of the suite in :mod:`vesalius.platform.testing.store`.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from vesalius.platform.errors import DiskSpaceError, StoreError
from vesalius.platform.store import CohortStore
from vesalius.platform.testing.faults import Action, count_steps, faults
from vesalius.platform.testing.store_cases import add, assert_holds, example_case, refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.platform.testing.store_cases import Case, StoreFactory


def check_survives_a_kill_at_every_step(make: StoreFactory, folder: Path) -> None:
    """A writer that dies before any one of its file-system steps leaves what was committed, and can be continued."""
    _interrupt_everywhere(make, folder, "killed")


def check_survives_a_power_cut_at_every_step(make: StoreFactory, folder: Path) -> None:
    """The same, when every file that was written and not synced loses half its bytes."""
    _interrupt_everywhere(make, folder, "power_lost")


def check_survives_a_full_disk_at_every_step(make: StoreFactory, folder: Path) -> None:
    """Where a step finds no room, one sentence says so, nothing half-written shows, and it goes on later."""
    _interrupt_everywhere(make, folder, "disk_full")


def _interrupt_everywhere(make: StoreFactory, folder: Path, action: Action) -> None:
    base, unbroken = folder / "base", folder / "unbroken"
    kept, new = (example_case(number, make(base).channels, all_roles=False) for number in (0, 1))
    add(make(base), [kept])
    add(make(unbroken), [kept, new])
    digest = CohortStore.open(unbroken).digest

    def making(path: Path) -> None:
        add(make(path), [kept])

    def adding(path: Path) -> None:
        add(make(path), [kept, new])

    def forgetting(path: Path) -> None:
        CohortStore.open(path).forget(["sub-01"])

    # What is to be added lies there already, written by a killed writer and damaged since: it has to make way.
    damaged = folder / "damaged"
    shutil.copytree(base, damaged)
    CohortStore.open(damaged).write(*new)
    (damaged / "subjects" / "sub-01" / "image" / "zarr.json").write_text("{}")
    stages: list[tuple[Callable[[Path], None], Path | None, list[Case]]] = [
        (making, None, []),
        (adding, damaged, [kept]),
        (forgetting, unbroken, [kept]),
    ]
    for work, start, committed in stages:
        for step in range(_count(work, start, folder)):
            path = folder / "trial"
            if start is not None:
                shutil.copytree(start, path)
            try:
                _interrupt(work, path, action, step)
                _assert_sound(path, committed, [kept, new], started_empty=start is None)
                add(make(path), [kept, new])
                store = CohortStore.open(path)
                assert store.digest == digest, "continuing gives another digest than an unbroken write"
                assert store.check() == []
                assert not list((path / ".partial").iterdir()), "something unfinished is left behind"
            except BaseException as error:  # raised again, with the step
                error.add_note(f"{work.__name__}, {action} at step {step}")
                raise
            shutil.rmtree(path)


def _count(work: Callable[[Path], None], start: Path | None, folder: Path) -> int:
    path = folder / "counted"
    if start is not None:
        shutil.copytree(start, path)
    num_steps = count_steps(path, lambda: work(path))
    shutil.rmtree(path)
    assert num_steps > 0
    return num_steps


def _interrupt(work: Callable[[Path], None], path: Path, action: Action, step: int) -> None:
    message = None
    with faults(path, action, step) as watch:
        message = refusal(DiskSpaceError, lambda: work(path))
    assert watch.reached, "the chosen step never came"
    assert message is None or (action == "disk_full" and str(path) in message)
    if action == "disk_full" and message is None:
        # A full disk hinders only what needs room: from here on nothing did.
        assert all(not _needs_room(seen) for seen in watch.steps[step:]), "a full disk was passed over in silence"


def _needs_room(step: str) -> bool:
    return step.split(" ", 1)[0] not in ("os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.chmod")


def _assert_sound(path: Path, committed: list[Case], possible: list[Case], *, started_empty: bool) -> None:
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
