"""The contract suite of the cohort store: what it must hold to, a kill at any point included.

Each check takes a factory, which opens or makes a store at a place, and an empty folder or URL to work in, and raises
``AssertionError`` where the contract is broken::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_store(check, tmp_path):
        check(lambda path: CohortStore.create(path, recipe={"name": "mine"}, channels=("T1w", "FLAIR")), tmp_path)
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vesalius.platform.errors import CohortError, InputError, StoreError
from vesalius.platform.store import CohortStore, Place, SubjectArrays, find_problems
from vesalius.platform.store.files import remove
from vesalius.platform.testing.store_at_url import (
    check_a_writer_that_lost_its_lock_commits_nothing,
    check_survives_a_kill_at_every_request,
    check_survives_an_outage_at_every_request,
)
from vesalius.platform.testing.store_cases import (
    SHAPE,
    Case,
    StoreFactory,
    add,
    assert_holds,
    assert_refused,
    example_case,
    files_in,
    written_at,
)
from vesalius.platform.testing.store_interruptions import (
    check_survives_a_full_disk_at_every_step,
    check_survives_a_kill_at_every_step,
    check_survives_a_power_cut_at_every_step,
)
from vesalius.platform.testing.store_meanwhile import (
    check_what_is_forgotten_meanwhile_is_no_damage,
    check_what_is_taken_in_anew_meanwhile_is_no_damage,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.platform.store import RemotePath


def check_reads_back_what_was_written(make: StoreFactory, folder: Place) -> None:
    """Every array, label and attribute comes back bit for bit, in an opening of its own."""
    path = folder / "store"
    store = make(path)
    cases = [example_case(number, store.channels, all_roles=number != 2) for number in range(3)]
    add(store, cases)
    again = CohortStore.open(path)
    assert again.digest == store.digest
    assert [record.subject_id for record in again.subjects()] == ["sub-00", "sub-01", "sub-02"]
    assert [record.subject_id for record in again.subjects("train", healthy=True)] == ["sub-00", "sub-02"]
    assert [record.subject_id for record in again.subjects(healthy=False)] == ["sub-01"]
    for case in cases:
        assert_holds(again, case)
    assert again.check() == []
    facts = again.facts()
    assert facts.subjects == ("sub-00", "sub-02")
    assert (facts.grid, facts.channels, facts.digest) == (SHAPE, store.channels, store.digest)


def check_nothing_shows_before_its_commit(make: StoreFactory, folder: Place) -> None:
    """What is written is invisible to readers until the commit, and a commit takes all of its subjects or none."""
    path = folder / "store"
    store = make(path)
    with store.lock():
        empty = store.digest
        first = store.write(*example_case(0, store.channels))
        second, _ = example_case(1, store.channels)
        assert CohortStore.open(path).subjects() == []
        assert CohortStore.open(path).digest == empty
        assert_refused(StoreError, lambda: store.commit([first, second]), "sub-01")
        assert CohortStore.open(path).subjects() == []
        store.commit([first])
    assert CohortStore.open(path).subjects() == [first]
    assert_refused(CohortError, lambda: store.image("sub-01"), "sub-01")


def check_the_same_input_gives_the_same_digest(make: StoreFactory, folder: Place) -> None:
    """The digest knows content only: not order, not the number of commits, not the place, not the notes."""
    forwards, backwards = make(folder / "forwards"), make(folder / "backwards")
    cases = [example_case(number, forwards.channels) for number in range(3)]
    add(forwards, cases)
    with backwards.lock():
        backwards.commit(
            [
                backwards.write(record.model_copy(update={"notes": {"hour": number}}), arrays)
                for number, (record, arrays) in enumerate(reversed(cases))
            ]
        )
    assert forwards.digest == backwards.digest
    record, arrays = cases[0]
    image = arrays.image.copy()
    image[-1, -1, -1, -1] = np.nextafter(image[-1, -1, -1, -1], np.float32(np.inf))
    changes: dict[str, Case] = {
        "voxel": (record, SubjectArrays(**{**vars(arrays), "image": image})),
        "split": (record.model_copy(update={"split": "gate"}), arrays),
        "label": (record.model_copy(update={"labels": {"bleed_left": True}}), arrays),
        "mask": (record, SubjectArrays(**{**vars(arrays), "head": None})),
    }
    for what, changed in changes.items():
        other = make(folder / f"other-{what}")
        add(other, [changed, *cases[1:]])
        assert other.digest != forwards.digest, f"another {what} gives the same digest"


def check_a_second_ingest_adds_and_changes_nothing_else(make: StoreFactory, folder: Place) -> None:
    """Committed files are never touched again; the same content is a silent no, other content is refused."""
    path = folder / "store"
    store = make(path)
    cases = [example_case(number, store.channels) for number in range(3)]
    add(store, cases[:2])
    before = files_in(path / "subjects")
    times = {name: written_at(path / "subjects" / name) for name in before}
    add(make(path), cases)
    after = files_in(path / "subjects")
    assert {name: after[name] for name in before} == before
    assert {name: written_at(path / "subjects" / name) for name in before} == times
    record, arrays = cases[0]
    changed = record.model_copy(update={"split": "test"})
    stale = make(path)
    assert_refused(StoreError, lambda: stale.write(changed, arrays), "sub-00")
    assert_refused(StoreError, lambda: stale.commit([changed]), "sub-00")
    assert files_in(path / "subjects") == after
    for case in cases:
        assert_holds(CohortStore.open(path), case)


def check_a_second_writer_is_refused_by_name(make: StoreFactory, folder: Place) -> None:
    """Whoever holds the lock is named; readers are not held up; the lock is free again afterwards."""
    path = folder / "store"
    first, second = make(path), CohortStore.open(path)
    case = example_case(0, first.channels)
    with first.lock():
        first.commit([first.write(*case)])
        assert_refused(StoreError, lambda: second.lock().__enter__(), f"process {os.getpid()}")
        assert_refused(StoreError, lambda: second.commit([case[0]]), f"process {os.getpid()}")
        assert_holds(CohortStore.open(path), case)
    # ``second`` was opened before the commit: taking the lock makes it see it.
    with second.lock():
        assert_holds(second, case)


def check_ids_cannot_leave_the_store(make: StoreFactory, folder: Place) -> None:
    """An id that is no plain folder name is refused before anything is written."""
    store = make(folder / "store")
    record, arrays = example_case(0, store.channels)
    before = _without_lock(files_in(folder))
    for text in ("../sub", "..", ".", "", "a/b", "a\\b", "/etc", ".hidden", "sub 01", "sub\n", "a" * 129, "süb"):
        # model_copy does not validate: a record may carry anything by the time it is written.
        forged = record.model_copy(update={"subject_id": text})
        assert_refused(CohortError, partial(store.write, forged, arrays), "subject id")
        assert_refused(CohortError, partial(store.commit, [forged]), "subject id")
    assert _without_lock(files_in(folder)) == before


def check_damage_is_named(make: StoreFactory, folder: Place) -> None:
    """A flipped byte anywhere, a missing file and a foreign one are each reported by the file's name."""
    path = folder / "store"
    store = make(path)
    # One subject that has every array: each of hundreds of damages costs a check of all there is.
    add(store, [example_case(1, store.channels)])
    for name, content in files_in(path).items():
        if name == ".lock":
            continue
        target = path / name
        for place in sorted({0, len(content) // 3, len(content) // 2, len(content) - 1}):
            target.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
            _assert_named(path, name, f"byte {place} of {name} flipped")
        target.write_bytes(content[:-1])
        _assert_named(path, name, f"{name} cut short")
        target.unlink()
        _assert_named(path, name, f"{name} removed")
        target.write_bytes(content)
        assert store.check() == [], f"{name} is restored and check still complains"
    inside = f"subjects/{store.folder('sub-01').name}"
    for name in ("stray.txt", "subjects/stray.txt", f"{inside}/stray.txt", f"{inside}/image/stray"):
        (path / name).write_text("x")
        _assert_named(path, name, f"{name} added")
        (path / name).unlink()
    store.write(*example_case(2, store.channels))
    _assert_named(path, "sub-02", "a subject that was never committed")


def check_repair_makes_way_for_the_same_ingest(make: StoreFactory, folder: Place) -> None:
    """Damaged subjects are forgotten, whole ones stay, and taking the same in again gives the same digest."""
    path = folder / "store"
    store = make(path)
    cases = [example_case(number, store.channels) for number in range(3)]
    add(store, cases)
    digest = store.digest
    remove(store.folder("sub-01"))
    (store.folder("sub-02") / "labels" / "brain" / "zarr.json").write_text("{}")
    (path / "zarr.json").unlink()
    assert store.repair() == ["sub-01", "sub-02"]
    assert CohortStore.open(path).check() == []
    assert_holds(CohortStore.open(path), cases[0])
    add(make(path), cases)
    assert CohortStore.open(path).digest == digest
    assert CohortStore.open(path).check() == []
    # A lost manifest: what is whole is taken in again without being prepared anew.
    (path / "manifest.json").unlink()
    assert_refused(InputError, lambda: CohortStore.open(path), "manifest.json")
    again = make(path)
    with again.lock():
        again.commit(again.uncommitted())
    assert CohortStore.open(path).digest == digest


def _without_lock(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.endswith(".lock")}


def _assert_named(path: Place, name: str, damage: str) -> None:
    sentences = CohortStore.check(CohortStore.open(path)) if _opens(path) else [p.sentence for p in find_problems(path)]
    named = name.rpartition("/")[2] if name.endswith(("manifest.json", "stray.txt", "stray")) else name
    assert any(named in sentence for sentence in sentences), f"{damage}: check says {sentences}"


def _opens(path: Place) -> bool:
    try:
        CohortStore.open(path)
    except StoreError:
        return False
    return True


CHECKS_ANYWHERE: tuple[Callable[[StoreFactory, Place], None], ...] = (
    check_reads_back_what_was_written,
    check_nothing_shows_before_its_commit,
    check_the_same_input_gives_the_same_digest,
    check_a_second_ingest_adds_and_changes_nothing_else,
    check_a_second_writer_is_refused_by_name,
    check_ids_cannot_leave_the_store,
    check_damage_is_named,
    check_repair_makes_way_for_the_same_ingest,
    check_what_is_forgotten_meanwhile_is_no_damage,
    check_what_is_taken_in_anew_meanwhile_is_no_damage,
)
"""What every store must hold to, wherever it lies."""

CHECKS_ON_DISK: tuple[Callable[[StoreFactory, Path], None], ...] = (
    check_survives_a_kill_at_every_step,
    check_survives_a_power_cut_at_every_step,
    check_survives_a_full_disk_at_every_step,
)
"""What a store in a folder must hold to beyond that: a kill, a power cut and a full disk before every step."""

CHECKS_AT_URL: tuple[Callable[[StoreFactory, RemotePath], None], ...] = (
    check_survives_a_kill_at_every_request,
    check_survives_an_outage_at_every_request,
    check_a_writer_that_lost_its_lock_commits_nothing,
)
"""What a store at a URL must hold to beyond that."""

CHECKS: tuple[Callable[[StoreFactory, Path], None], ...] = (*CHECKS_ANYWHERE, *CHECKS_ON_DISK)
"""All that hold for a store in a folder."""
