"""The contract suite of the cohort store: what it must hold to, a kill at any point included.

Each check takes a factory, which opens or makes a store at a path, and an empty folder to work in, and raises
``AssertionError`` where the contract is broken::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_store(check, tmp_path):
        check(lambda path: CohortStore.create(path, recipe={"name": "mine"}, channels=("T1w", "FLAIR")), tmp_path)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.errors import CohortError, DiskSpaceError, InputError, StoreError
from vesalius.platform.store import CohortStore, SourceFacts, SubjectArrays, SubjectRecord, find_problems
from vesalius.platform.testing.faults import Action, count_steps, faults

if TYPE_CHECKING:
    from numpy.typing import NDArray

StoreFactory = Callable[[Path], CohortStore]
Case = tuple[SubjectRecord, SubjectArrays]
_SHAPE = (9, 7, 11)


def example_case(number: int, channels: tuple[str, ...], *, all_roles: bool = True) -> Case:
    """Return a small subject whose values are hard to keep: signed zeros, denormals, extremes of float32."""
    random = np.random.default_rng(number)
    image = random.normal(size=(len(channels), *_SHAPE)).astype(np.float32)
    image[0, 0, 0, :6] = [0.0, -0.0, 1e-42, -1e-42, 3e38, 1 / 3]
    brain = random.random(_SHAPE) < 0.6
    lesion = np.zeros(_SHAPE, dtype=np.bool_)
    lesion[3:5, 2:4, 5:8] = number % 2 == 1
    arrays = SubjectArrays(
        image=image,
        brain=brain,
        head=brain | (random.random(_SHAPE) < 0.5) if all_roles else None,
        lesion=lesion if all_roles or lesion.any() else None,
        structures=random.integers(0, 300, _SHAPE) if all_roles else None,
    )
    affine = ((1.5, 0.0, 0.0, -6.0), (0.0, 1.5, 0.0, -4.5), (0.0, 0.0, 2.0, -10.0), (0.0, 0.0, 0.0, 1.0))
    record = SubjectRecord(
        subject_id=f"sub-{number:02d}",
        split="train" if number % 2 == 0 else "test",
        group="site A",
        channels=channels,
        shape=_SHAPE,
        spacing_mm=(1.5, 1.5, 2.0),
        affine=affine,
        source=SourceFacts(
            files={"T1w": f"sub-{number:02d}_T1w.nii.gz"},
            sha256={"T1w": f"{number:064x}"},
            shape=(20, 21, 22),
            affine=affine,
        ),
        demographics={"age": 30.5 + number, "sex": "F", "smoker": False, "weight": None},
        labels={"bleed_left": number % 2 == 1, "fracture": "none"},
        structures={"ventricles": 1, "cortex": 255},
        notes={"registration": {"metric": -0.7, "steps": [3, 2, 1]}},
    )
    return record, arrays


def add(store: CohortStore, cases: list[Case]) -> None:
    """Take subjects in as an ingest does: lock, take up what a killed writer left, write the others, commit each."""
    with store.lock():
        wanted = {record.subject_id for record, _ in cases}
        store.commit([record for record in store.uncommitted() if record.subject_id in wanted])
        for record, arrays in cases:
            store.commit([store.write(record, arrays)])


def assert_holds(store: CohortStore, case: Case) -> None:
    """Check that a committed subject reads back bit for bit."""
    record, arrays = case
    found = store.record(record.subject_id)
    filled = {"arrays": found.arrays, "recipe_digest": store.recipe_digest, "has_lesion": found.has_lesion}
    assert found == record.model_copy(update=filled), "the record is not what was written"
    assert found.has_lesion == bool(arrays.lesion is not None and arrays.lesion.any())
    _assert_same(store.image(record.subject_id), arrays.image, "image")
    _assert_same(store.brain(record.subject_id), arrays.brain, "brain")
    _assert_same(store.mask(record.subject_id, "head"), arrays.head, "head")
    _assert_same(store.mask(record.subject_id, "lesion"), arrays.lesion, "lesion")
    structures = store.structures(record.subject_id)
    if arrays.structures is None:
        assert structures is None
    else:
        assert structures is not None
        assert np.array_equal(structures, arrays.structures), "structures are not what was written"


def _assert_same(found: NDArray[Any] | None, written: NDArray[Any] | None, role: str) -> None:
    if found is None or written is None:
        assert found is None, f"{role} was never written and is there"
        assert written is None, f"{role} was written and is not there"
        return
    assert found.dtype == written.dtype, f"{role} comes back as {found.dtype}"
    assert found.shape == written.shape, f"{role} comes back as {found.shape}"
    assert found.tobytes() == written.tobytes(), f"{role} is not bit-equal"


# ----------------------------------------------------------------------------------------------------


def check_reads_back_what_was_written(make: StoreFactory, folder: Path) -> None:
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
    assert (facts.grid, facts.channels, facts.digest) == (_SHAPE, store.channels, store.digest)


def check_nothing_shows_before_its_commit(make: StoreFactory, folder: Path) -> None:
    """What is written is invisible to readers until the commit, and a commit takes all of its subjects or none."""
    path = folder / "store"
    store = make(path)
    with store.lock():
        empty = store.digest
        first = store.write(*example_case(0, store.channels))
        second, _ = example_case(1, store.channels)
        assert CohortStore.open(path).subjects() == []
        assert CohortStore.open(path).digest == empty
        _assert_refused(StoreError, lambda: store.commit([first, second]), "sub-01")
        assert CohortStore.open(path).subjects() == []
        store.commit([first])
    assert CohortStore.open(path).subjects() == [first]
    _assert_refused(CohortError, lambda: store.image("sub-01"), "sub-01")


def check_the_same_input_gives_the_same_digest(make: StoreFactory, folder: Path) -> None:
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


def check_a_second_ingest_adds_and_changes_nothing_else(make: StoreFactory, folder: Path) -> None:
    """Committed files are never touched again; the same content is a silent no, other content is refused."""
    path = folder / "store"
    store = make(path)
    cases = [example_case(number, store.channels) for number in range(3)]
    add(store, cases[:2])
    before = _files(path / "subjects")
    times = {name: (path / "subjects" / name).stat().st_mtime_ns for name in before}
    add(make(path), cases)
    after = _files(path / "subjects")
    assert {name: after[name] for name in before} == before
    assert {name: (path / "subjects" / name).stat().st_mtime_ns for name in before} == times
    record, arrays = cases[0]
    changed = record.model_copy(update={"split": "test"})
    stale = make(path)
    _assert_refused(StoreError, lambda: stale.write(changed, arrays), "sub-00")
    _assert_refused(StoreError, lambda: stale.commit([changed]), "sub-00")
    assert _files(path / "subjects") == after
    for case in cases:
        assert_holds(CohortStore.open(path), case)


def check_a_second_writer_is_refused_by_name(make: StoreFactory, folder: Path) -> None:
    """Whoever holds the lock is named; readers are not held up; the lock is free again afterwards."""
    path = folder / "store"
    first, second = make(path), CohortStore.open(path)
    case = example_case(0, first.channels)
    with first.lock():
        first.commit([first.write(*case)])
        _assert_refused(StoreError, lambda: second.lock().__enter__(), f"process {os.getpid()}")
        _assert_refused(StoreError, lambda: second.commit([case[0]]), f"process {os.getpid()}")
        assert_holds(CohortStore.open(path), case)
    # ``second`` was opened before the commit: taking the lock makes it see it.
    with second.lock():
        assert_holds(second, case)


def check_ids_cannot_leave_the_store(make: StoreFactory, folder: Path) -> None:
    """An id that is no plain folder name is refused before anything is written."""
    store = make(folder / "store")
    record, arrays = example_case(0, store.channels)
    before = _files(folder)
    for text in ("../sub", "..", ".", "", "a/b", "a\\b", "/etc", ".hidden", "sub 01", "sub\n", "a" * 129, "süb"):
        # model_copy does not validate: a record may carry anything by the time it is written.
        forged = record.model_copy(update={"subject_id": text})
        _assert_refused(CohortError, partial(store.write, forged, arrays), "subject id")
        _assert_refused(CohortError, partial(store.commit, [forged]), "subject id")
    assert _files(folder) == before


def check_damage_is_named(make: StoreFactory, folder: Path) -> None:
    """A flipped byte anywhere, a missing file and a foreign one are each reported by the file's name."""
    path = folder / "store"
    store = make(path)
    add(store, [example_case(0, store.channels), example_case(1, store.channels)])
    for name, content in _files(path).items():
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
    for name in ("stray.txt", "subjects/stray.txt", "subjects/sub-00/stray.txt", "subjects/sub-00/image/stray"):
        (path / name).write_text("x")
        _assert_named(path, name, f"{name} added")
        (path / name).unlink()
    store.write(*example_case(2, store.channels))
    _assert_named(path, "sub-02", "a subject that was never committed")


def check_repair_makes_way_for_the_same_ingest(make: StoreFactory, folder: Path) -> None:
    """Damaged subjects are forgotten, whole ones stay, and taking the same in again gives the same digest."""
    path = folder / "store"
    store = make(path)
    cases = [example_case(number, store.channels) for number in range(3)]
    add(store, cases)
    digest = store.digest
    shutil.rmtree(path / "subjects" / "sub-01")
    (path / "subjects" / "sub-02" / "brain" / "zarr.json").write_text("{}")
    (path / "zarr.json").unlink()
    assert store.repair() == ["sub-01", "sub-02"]
    assert CohortStore.open(path).check() == []
    assert_holds(CohortStore.open(path), cases[0])
    add(make(path), cases)
    assert CohortStore.open(path).digest == digest
    assert CohortStore.open(path).check() == []
    # A lost manifest: what is whole is taken in again without being prepared anew.
    (path / "manifest.json").unlink()
    _assert_refused(InputError, lambda: CohortStore.open(path), "manifest.json")
    again = make(path)
    with again.lock():
        again.commit(again.uncommitted())
    assert CohortStore.open(path).digest == digest


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
            except BaseException as error:
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
    refusal = None
    with faults(path, action, step) as watch:
        refusal = _refusal(DiskSpaceError, lambda: work(path))
    assert watch.reached, "the chosen step never came"
    assert refusal is None or (action == "disk_full" and str(path) in refusal)
    if action == "disk_full" and refusal is None:
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


def _assert_named(path: Path, name: str, damage: str) -> None:
    sentences = CohortStore.check(CohortStore.open(path)) if _opens(path) else [p.sentence for p in find_problems(path)]
    named = Path(name).name if name.endswith(("manifest.json", "stray.txt", "stray")) else name
    assert any(named in sentence for sentence in sentences), f"{damage}: check says {sentences}"


def _opens(path: Path) -> bool:
    try:
        CohortStore.open(path)
    except StoreError:
        return False
    return True


def _assert_refused(kind: type[InputError], work: Callable[[], object], named: str) -> None:
    message = _refusal(kind, work)
    assert message is not None, f"expected a {kind.__name__} naming {named}"
    assert named in message, f"the message does not name {named}: {message}"
    assert "\n" not in message, f"the message is more than one sentence: {message}"


def _refusal(kind: type[InputError], work: Callable[[], object]) -> str | None:
    try:
        work()
    except kind as error:
        return str(error)
    return None


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


CHECKS: tuple[Callable[[StoreFactory, Path], None], ...] = (
    check_reads_back_what_was_written,
    check_nothing_shows_before_its_commit,
    check_the_same_input_gives_the_same_digest,
    check_a_second_ingest_adds_and_changes_nothing_else,
    check_a_second_writer_is_refused_by_name,
    check_ids_cannot_leave_the_store,
    check_damage_is_named,
    check_repair_makes_way_for_the_same_ingest,
    check_survives_a_kill_at_every_step,
    check_survives_a_power_cut_at_every_step,
    check_survives_a_full_disk_at_every_step,
)
