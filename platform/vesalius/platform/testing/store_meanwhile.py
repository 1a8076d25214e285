"""A check of a store beside a writer that changes it: what the writer does is no damage."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest import mock

from vesalius.platform.store import CohortStore, check_store, cohort
from vesalius.platform.store.files import remove
from vesalius.platform.testing.store_cases import StoreFactory, add, assert_holds, example_case

if TYPE_CHECKING:
    from vesalius.platform.store import Place

_SECONDS = 60.0


def check_what_is_forgotten_meanwhile_is_no_damage(make: StoreFactory, folder: Place) -> None:
    """A subject of which half is removed as it is looked at, whether the removal ends before the check or after it."""
    for ends_first in (False, True):
        path = folder / f"store-{ends_first}"
        store = make(path)
        add(store, [example_case(number, store.channels) for number in range(3)])
        sentences = _checked_beside_forgetting(path, ends_first=ends_first)
        assert sentences == [], f"a check beside a subject's removal says {sentences}"
        assert CohortStore.open(path).check() == []
        assert [record.subject_id for record in CohortStore.open(path).subjects()] == ["sub-00", "sub-02"]


def _checked_beside_forgetting(path: Place, *, ends_first: bool) -> list[str]:
    half, rest = threading.Event(), threading.Event()

    def in_two_steps(place: Place) -> None:
        remove(place / "labels")
        half.set()
        assert rest.wait(_SECONDS)
        remove(place)

    forgetting: list[Future[None]] = []
    with ThreadPoolExecutor(1) as pool, mock.patch.object(cohort, "remove", in_two_steps):

        def meanwhile(done: int, total: int, subject_id: str) -> None:
            if subject_id == "sub-01":
                forgetting.append(pool.submit(CohortStore.open(path).forget, ["sub-01"]))
                assert half.wait(_SECONDS)
            elif done == total and ends_first:
                rest.set()
                forgetting[0].result(_SECONDS)

        sentences = check_store(path, meanwhile)
        rest.set()
        forgetting[0].result(_SECONDS)
    return sentences


def check_what_is_taken_in_anew_meanwhile_is_no_damage(make: StoreFactory, folder: Place) -> None:
    """A subject that is forgotten and taken in again with other content is judged by what is committed now."""
    path = folder / "store"
    store = make(path)
    add(store, [example_case(number, store.channels) for number in range(3)])
    record, arrays = example_case(1, store.channels)
    other = (record.model_copy(update={"split": "gate"}), arrays)

    def meanwhile(done: int, total: int, subject_id: str) -> None:
        if subject_id == "sub-01":
            writer = CohortStore.open(path)
            writer.forget(["sub-01"])
            add(writer, [other])

    sentences = check_store(path, meanwhile)
    assert sentences == [], f"a check beside another ingest says {sentences}"
    assert_holds(CohortStore.open(path), other)
