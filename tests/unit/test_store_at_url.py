"""The store at a URL (in memory): what is fetched, and what a lost lock, answer or worker may not cost."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.platform.errors import StoreError, UnreachableError
from vesalius.platform.store import CohortStore, RemotePath, connection, place_of, remote_lock
from vesalius.platform.store.checking import uncommitted_folders
from vesalius.platform.store.manifest import read_manifest
from vesalius.platform.testing.store_at_url import requests
from vesalius.platform.testing.store_cases import add, assert_holds, example_case, files_in

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNELS = ("T1w",)
CASES = [example_case(number, CHANNELS, all_roles=False) for number in range(3)]


@pytest.fixture
def store(request: pytest.FixtureRequest) -> CohortStore:
    return CohortStore.create(
        RemotePath("memory", f"unit/{request.node.name}"), recipe={"name": "url"}, channels=CHANNELS
    )


def uncommitted(store: CohortStore) -> list[str]:
    return [entry.name for entry in uncommitted_folders(store.path, read_manifest(store.path))]


def lock_of(store: CohortStore) -> RemotePath:
    lock = store.path / ".lock"
    assert isinstance(lock, RemotePath)
    return lock


class Counting:
    """A file system that notes which objects are fetched."""

    def __init__(self, system: Any, fetched: Counter[str]) -> None:
        self._system, self._fetched = system, fetched

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._system, name)
        if name not in ("cat", "cat_file"):
            return found

        def fetch(paths: Any, **options: Any) -> Any:
            self._fetched.update([paths] if isinstance(paths, str) else paths)
            return found(paths, **options)

        return fetch


def test_check_fetches_every_file_of_a_subject_once(store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, CASES)
    num_files = sum(len(files_in(store.folder(record.subject_id))) for record in store.subjects())
    fetched: Counter[str] = Counter()
    genuine = connection.file_system
    monkeypatch.setattr(connection, "file_system", lambda path: Counting(genuine(path), fetched))
    assert store.check() == []
    of_subjects = {name: num for name, num in fetched.items() if "@" in name}
    assert len(of_subjects) == num_files
    assert set(of_subjects.values()) == {1}


# ---- a lock that was lost


def overtaken(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, other: Callable[[], None], *, before: bool
) -> None:
    """Let ``other`` happen once, just before or after a step of the store's."""
    genuine = getattr(target, name)

    def step(*given: Any) -> Any:
        monkeypatch.setattr(target, name, genuine)
        if before:
            other()
        answer = genuine(*given)
        if not before:
            other()
        return answer

    monkeypatch.setattr(target, name, step)


def test_whoever_lost_the_lock_removes_nothing_that_the_next_one_committed(
    store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between forgetting a subject and removing it, another writer takes over and takes the very subject in again."""
    add(store, CASES)
    sleeper = CohortStore.open(store.path)
    overtaken(monkeypatch, CohortStore, "_replace", lambda: add(store, CASES), before=False)
    with requests(), pytest.raises(StoreError, match="no longer ours to write"):  # by a process that is gone
        sleeper.forget(["sub-01"])
    again = CohortStore.open(store.path)
    assert again.check() == []
    for case in CASES:
        assert_holds(again, case)


def test_whoever_lost_the_lock_clears_and_abandons_nothing(store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written = store.write(*CASES[0])
    (store.path / "subjects" / uncommitted(store)[0] / "zarr.json").unlink()
    sleeper = CohortStore.open(store.path)
    overtaken(
        monkeypatch,
        CohortStore,
        "_still_ours",
        lambda: add(CohortStore.open(store.path), [CASES[0]]),
        before=True,
    )
    with requests(), pytest.raises(StoreError, match="no longer ours"), sleeper.lock():
        pytest.fail("the lock is not held")
    assert CohortStore.open(store.path).record("sub-00") == written
    assert store.check() == []
    empty = CohortStore.create(store.path / "empty", recipe={"name": "url"}, channels=CHANNELS)
    other = CohortStore.open(empty.path)
    overtaken(monkeypatch, CohortStore, "_still_ours", lambda: add(other, [CASES[0]]), before=True)
    with requests(), pytest.raises(StoreError, match="no longer ours"):
        empty.abandon()
    assert_holds(CohortStore.open(empty.path), CASES[0])


def test_a_renewal_whose_answer_was_lost_does_not_cost_the_lock(
    store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise UnreachableError("no answer")

    with store.lock():
        written = store.write(*CASES[0])
        overtaken(monkeypatch, RemotePath, "replace", lost, before=False)
        with pytest.raises(UnreachableError):
            store.commit([written])
        store.commit([written])
        overtaken(monkeypatch, RemotePath, "replace", lost, before=False)
        with pytest.raises(UnreachableError):
            store.forget(["sub-00"])
    state = remote_lock.read_lock(lock_of(store))
    assert state is not None
    assert state.state == "free"
    assert_holds(CohortStore.open(store.path), CASES[0])


def test_a_dead_holder_whose_clock_was_ahead_is_forgotten_as_soon(
    store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = remote_lock.this_process().model_copy(update={"machine": "another", "renewed": time.time() + 3600})
    lock = lock_of(store)
    lock.replace(foreign.model_dump_json().encode(), lock.read_versioned()[1])
    waited: list[float] = []
    monkeypatch.setattr("vesalius.platform.store.remote_lock.time.sleep", waited.append)
    add(store, [CASES[0]])
    assert waited == [2 * remote_lock.BEAT_SECONDS]


# ---- what is left lying about


def test_the_other_copy_of_a_committed_subject_is_cleared_by_the_next_writer(store: CohortStore) -> None:
    """Two workers were given one subject, and their notes differ: at a URL both copies lie there."""
    record, arrays = CASES[0]
    with store.lock():
        first = CohortStore.join(store.path, store.session).write(record, arrays)
        twin = record.model_copy(update={"notes": {"metric": 0.1}})
        CohortStore.join(store.path, store.session).write(twin, arrays)
        store.commit([first])
    assert len(uncommitted(store)) == 1
    assert ["the next ingest clears it" in sentence for sentence in store.check()] == [True]
    assert store.repair() == []
    assert uncommitted(store) == []
    assert_holds(CohortStore.open(store.path), CASES[0])


def test_what_a_worker_wrote_beside_the_clearing_is_cleared_by_the_next_writer(store: CohortStore) -> None:
    """Its first files were cleared as unfinished, and it went on: the metadata are there and some files are not."""
    store.write(*CASES[0])
    folder = store.path / "subjects" / uncommitted(store)[0]
    (folder / "image" / "zarr.json").unlink()
    (store.path / "subjects" / "sub-00@mine" / "notes.txt").write_text("a person's")
    assert any("the next ingest clears it" in sentence for sentence in store.check())
    with store.lock():
        pass
    assert uncommitted(store) == ["sub-00@mine"]


# ---- addresses


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("s3://AKIA:se/cret@bucket/cohort", "a password in a URL would be written into runs and logs"),
        ("https://host/cohort?X-Amz-Signature=secret", r"names no place for a store: .* without any of \? # \* \["),
        ("s3://bucket/cohort[1]", "names no place for a store"),
        ("simplecache::s3://AKIA:secret@bucket/cohort", "a chain of file systems holds no store"),
        ("s3:/bucket/cohort", "a URL has two slashes"),
    ],
)
def test_addresses_that_are_no_store_s_are_refused_and_secrets_not_repeated(where: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        place_of(where)
    assert "cret" not in str(caught.value)
    assert "AKIA" not in str(caught.value)
