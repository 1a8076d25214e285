"""Actors that hold a model: which of them is handed a job, where some cannot start, die, or run out of memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from vesalius.platform.cluster import holding
from vesalius.platform.cluster.holding import map_held
from vesalius.platform.cluster.queueing import ShortOfMemory
from vesalius.platform.errors import WorkerLostError, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class DeathError(BaseException):
    """Ends the process that a job runs in."""


class Cluster:
    """As much of Ray as a driver sees, with room for so many actors and a clock of its own."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.now = 0.0
        self.actors: list[Actor] = []
        self.most = 0
        self.fail_starts = 0

    @property
    def living(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.state == "alive"]

    def start(self) -> None:
        for actor in self.actors:
            if actor.state != "pending" or len(self.living) >= self.room:
                continue
            actor.state = "alive" if self.fail_starts <= 0 else "dead"
            self.fail_starts -= 1
            self.most = max(self.most, len(self.living))

    def wait(self, references: Sequence[Reference], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert references, "there is nothing to wait for"
        assert num_returns == 1
        self.start()
        for reference in references:
            if reference.actor.state != "pending":
                return [reference], []
        self.now += timeout
        assert self.now < 3600, "it waits for what never comes"
        return [], list(references)

    def get(self, reference: Reference) -> Any:
        if reference.actor.state == "dead":
            raise ActorDiedError
        try:
            return reference.call()
        except DeathError:
            reference.actor.state = "dead"
            raise ActorDiedError from None
        except Exception as error:  # as Ray wraps whatever a job raises
            raise RayTaskError("do", "", error) from error


class Actor:
    def __init__(self, cluster: Cluster, held: Any) -> None:
        self.state = "pending"
        self._held = holding._Held(held)
        self.do = SimpleNamespace(remote=lambda item: Reference(self, lambda: self._held.do(item)))
        self.answer = SimpleNamespace(remote=lambda: Reference(self, self._held.answer))
        cluster.actors.append(self)


class Reference:
    def __init__(self, actor: Actor, call: Callable[[], Any]) -> None:
        self.actor = actor
        self.call = call


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(room=4)
    kind = SimpleNamespace(remote=lambda held: Actor(made, held))
    patches: dict[str, Any] = {
        "remote": lambda _: SimpleNamespace(options=lambda **_: kind),
        "put": lambda value: value,
        "get": made.get,
        "wait": made.wait,
        "kill": lambda actor: setattr(actor, "state", "dead"),
        "is_initialized": lambda: True,
    }
    for name, value in patches.items():
        monkeypatch.setattr(ray, name, value)
    monkeypatch.setattr(holding, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(holding, "capacity", lambda: {"CPU": 16.0, "GPU": float(made.room)})
    return made


def squares() -> Callable[[int], int]:
    return lambda item: item * item


@pytest.mark.parametrize("room", [1, 2, 4, 9])
def test_all_is_done_by_those_that_can_start(cluster: Cluster, room: int) -> None:
    cluster.room = room
    outcomes = dict(map_held(squares, range(10), num_workers=4, num_gpus=1))
    assert outcomes == {item: item * item for item in range(10)}
    assert cluster.most == min(room, 4)
    assert not cluster.living


def test_work_goes_on_where_a_dead_actor_cannot_be_replaced(cluster: Cluster) -> None:
    cluster.room = 2
    outcomes: Iterator[tuple[int, Any]] = map_held(squares, range(10), num_workers=2)
    done = [next(outcomes)]
    cluster.room = 1
    cluster.living[0].state = "dead"
    done += outcomes
    assert sorted(done) == [(item, item * item) for item in range(10)]


def test_no_room_at_all_is_one_sentence_that_names_what_lacks(cluster: Cluster) -> None:
    cluster.room = 0
    with pytest.raises(WorkerLostError, match="no GPU for a worker for 60 s: add a node with one"):
        list(map_held(squares, range(10), num_workers=4, num_gpus=1))
    assert 60 < cluster.now < 70
    assert {actor.state for actor in cluster.actors} == {"dead"}


def test_a_cluster_that_others_use_or_that_grows_is_waited_for(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.room = 0

    def capacity() -> dict[str, float]:
        cluster.room = 2 if cluster.now > 600 else 0
        return {"CPU": 2.0}

    monkeypatch.setattr(holding, "capacity", capacity)
    assert len(list(map_held(squares, range(10), num_workers=2))) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "0 of 2 workers have started so far: each needs 1 core"
    ]


def test_those_that_die_as_they_start_are_replaced_and_not_for_ever(cluster: Cluster) -> None:
    cluster.fail_starts = 5
    assert len(list(map_held(squares, range(10), num_workers=2))) == 10
    cluster.fail_starts = 10**6
    with pytest.raises(
        WorkerLostError, match="6 workers in a row died as they started, the last one so: The actor died"
    ):
        list(map_held(squares, range(10), num_workers=2))


def test_the_third_time_a_job_has_no_other_actor_beside_it(cluster: Cluster) -> None:
    beside: list[int] = []

    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            if item == 3:
                beside.append(len(cluster.living) - 1)
                raise DeathError
            return item

        return work

    outcomes = dict(map_held(make, range(8), num_workers=3))
    assert isinstance(outcomes.pop(3), WorkerLostError)
    assert outcomes == {item: item for item in range(8) if item != 3}
    assert len(beside) == 3
    assert beside[0] == 2
    assert beside[2] == 0


def test_where_memory_runs_out_the_actors_become_fewer(cluster: Cluster) -> None:
    living: list[int] = []

    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            living.append(len(cluster.living))
            if item == 4 and len(cluster.living) > 2:
                raise MemoryError
            return item

        return work

    assert dict(map_held(make, range(40), num_workers=4)) == {item: item for item in range(40)}
    assert living[0] > 2
    assert set(living[-20:]) == {2}


@pytest.mark.parametrize("num_workers", [0, 4])
def test_what_is_short_of_memory_is_tried_with_fewer_and_then_taken_as_it_is(
    cluster: Cluster, num_workers: int
) -> None:
    beside: dict[int, list[int]] = {4: [], 20: []}

    def make() -> Callable[[int], int | ShortOfMemory]:
        def work(item: int) -> int | ShortOfMemory:
            if item in beside:
                beside[item].append(len(cluster.living) - 1)
            return ShortOfMemory(-item) if item == 20 or (item == 4 and len(cluster.living) > 1) else item

        return work

    outcomes = dict(map_held(make, range(40), num_workers=num_workers))
    assert outcomes == {**{item: item for item in range(40)}, 20: -20}
    if num_workers:
        assert beside[4][0] == 3
        assert beside[20][-1] == 0
        assert len(beside[20]) == 3
        assert sum(actor.state == "dead" for actor in cluster.actors) == len(cluster.actors) == 4


def test_nothing_to_do_starts_nothing(cluster: Cluster) -> None:
    assert list(map_held(squares, [], num_workers=2)) == []
    assert cluster.actors == []


def test_an_error_is_told_in_one_line() -> None:
    assert told(WorkerLostError("it is\ngone")) == "it is gone"
    assert told(KeyError("a")) == "KeyError: 'a'"
