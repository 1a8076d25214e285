"""How many workers go on where nodes are missing or others are at work on them, and what ends a run and what not."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.platform import cluster
from vesalius.platform.cluster import nodes, training
from vesalius.platform.errors import DiskSpaceError, DivergenceError, RunError, UnreachableError
from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.testing.methods import training_settings
from vesalius.platform.testing.steady import Steady, SteadySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vesalius.platform.store import CohortStore

_BUNDLE = {"CPU": 1.0, "GPU": 0.0}


@dataclass
class Machines:
    """What stands in for a cluster.

    Attributes:
        cores: of each node, and how many of them are free.
        most: cores that it may have at all; None as many as there are.
        seconds: that were waited for.
        queued: workers whose place in Ray's queue is held, one entry a place.
        made: whether such a place is given.
        meanwhile: called at each look, after a second.
    """

    cores: list[tuple[int, int]]
    most: int | None = None
    seconds: float = 0.0
    queued: list[int] = field(default_factory=list)
    places: int = 0
    made: bool = False
    meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.meanwhile()

    @contextlib.contextmanager
    def place(self, bundle: dict[str, float], num_workers: int) -> Iterator[object]:
        self.places += 1
        self.queued.append(num_workers)
        try:
            yield object()
        finally:
            self.queued.pop()


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    made = Machines([])
    monkeypatch.setattr(
        "ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(all_)}} for all_, _ in made.cores]
    )
    monkeypatch.setattr(
        "ray._private.state.available_resources_per_node",
        lambda: {str(number): {"CPU": float(free)} for number, (_, free) in enumerate(made.cores)},
    )
    monkeypatch.setattr(nodes, "capacity", lambda: {"CPU": float(made.most or sum(all_ for all_, _ in made.cores))})
    monkeypatch.setattr(nodes, "joins_another", lambda: True)
    monkeypatch.setattr(nodes, "_place_in_queue", made.place)
    monkeypatch.setattr(nodes, "_is_made", lambda _: made.made)
    monkeypatch.setattr("time.sleep", made.sleep)
    monkeypatch.setattr("time.monotonic", lambda: made.seconds)
    return made


def _run(home: Path, num_workers: int = 2, **settings: Any) -> RunFolder:
    spec = RunSpec(
        run_id="run",
        method="steady",
        settings=SteadySettings().model_dump(mode="json"),
        training=training_settings(**settings),
        store="s",
        cohort_digest="d",
        num_workers=num_workers,
        created="2026-01-01T00:00:00Z",
    )
    return create_run(home, spec)


def test_what_others_use_is_room_the_first_time_and_not_later(tmp_path: Path, machines: Machines) -> None:
    run = _run(tmp_path, wait_for_nodes_seconds=20)
    machines.cores = [(1, 1), (1, 0)]
    assert nodes.await_nodes(run, _BUNDLE, again=False) == 2
    assert (machines.seconds, machines.places) == (0, 0), "Ray's own queue is where a turn is waited for"
    assert nodes.await_nodes(run, _BUNDLE, again=True) == 1
    assert machines.seconds == 20
    machines.cores = [(1, 0), (1, 0)]
    assert nodes.await_nodes(run, _BUNDLE, again=True) == 1, "as few as are allowed wait for their turn"
    assert machines.queued == []


def test_a_run_that_may_go_on_with_fewer_takes_what_is_free_in_time(tmp_path: Path, machines: Machines) -> None:
    machines.cores = [(1, 1), (1, 0)]

    def leaves() -> None:
        if machines.seconds >= 7:
            machines.cores = [(1, 1), (1, 1)]

    machines.meanwhile = leaves
    assert nodes.await_nodes(_run(tmp_path, wait_for_nodes_seconds=20), _BUNDLE, again=True) == 2
    assert machines.seconds == 7


def test_nodes_are_wished_for_while_they_are_waited_for_and_no_longer(tmp_path: Path, machines: Machines) -> None:
    run = _run(tmp_path, num_workers=3)
    machines.most = 4

    def comes() -> None:
        assert machines.queued == [3]
        if machines.seconds >= 1000:
            machines.cores = [(4, 0)]

    machines.meanwhile = comes
    assert nodes.await_nodes(run, _BUNDLE, again=False) == 3
    assert machines.seconds == 1000, "a node that a cluster may add is waited for however long it takes"
    assert (machines.queued, machines.places) == ([], 1)


def test_a_place_that_is_given_is_room(tmp_path: Path, machines: Machines) -> None:
    machines.cores, machines.made = [(2, 0)], True
    assert nodes.await_nodes(_run(tmp_path), _BUNDLE, again=True) == 2
    assert machines.queued == []


def test_a_wait_that_is_broken_off_wishes_for_nothing_more(tmp_path: Path, machines: Machines) -> None:
    machines.most = 2

    def stop() -> None:
        raise KeyboardInterrupt

    machines.meanwhile = stop
    with pytest.raises(KeyboardInterrupt):
        nodes.await_nodes(_run(tmp_path), _BUNDLE, again=False)
    assert (machines.queued, machines.places) == ([], 1)


@pytest.mark.parametrize(("joins", "seconds"), [(True, 20), (False, 0)])
def test_a_runtime_that_no_node_will_join_is_not_waited_for(
    joins: bool, seconds: int, tmp_path: Path, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "joins_another", lambda: joins)
    machines.cores = [(1, 1)]
    with pytest.raises(RunError, match="2 workers need 2 cores and the cluster has 1: use fewer workers, or use a"):
        nodes.await_nodes(_run(tmp_path, wait_for_nodes_seconds=20), _BUNDLE, again=False)
    assert machines.seconds == seconds


def test_nodes_that_may_come_and_did_not_are_no_limit_of_the_cluster(tmp_path: Path, machines: Machines) -> None:
    machines.cores, machines.most = [(1, 1)], 32
    run = _run(tmp_path, wait_for_nodes_seconds=20, min_workers=2)
    with pytest.raises(RunError) as error:
        nodes.await_nodes(run, _BUNDLE, again=True)
    assert str(error.value) == (
        "2 workers need 2 cores, and in 20 s the cluster had no more than 1: go on with `vesalius train --resume run` "
        "when its nodes are there"
    )


def test_how_large_a_cluster_may_become_is_said_where_that_is_too_small(tmp_path: Path, machines: Machines) -> None:
    machines.cores, machines.most = [(1, 1)], 2
    with pytest.raises(RunError, match="3 workers need 3 cores and the cluster has 1 and may grow to 2: use fewer"):
        nodes.await_nodes(_run(tmp_path, num_workers=3, wait_for_nodes_seconds=20), _BUNDLE, again=False)


def test_a_node_that_another_run_has_taken_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(nodes, "num_possible", lambda _: 2)
    monkeypatch.setattr(nodes, "num_free", lambda _: free[0])
    monkeypatch.setattr(nodes, "_BETWEEN_SECONDS", 0.01)
    monkeypatch.setattr(nodes, "_STEADY_SECONDS", 0.02)
    run = _run(tmp_path)
    with nodes.RoomWatch(run, _BUNDLE, 1) as watch:
        time.sleep(0.5)
        assert not watch.has_asked, "one node is this run's and the other another's"
        free[0] = 1
        deadline = time.monotonic() + 10
        while not watch.has_asked:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@dataclass
class Groups:
    """What becomes of one group of workers after the other: each raises, leaves a word, or comes to the end (None)."""

    outcomes: list[Exception | None]
    again: list[bool] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def await_nodes(self, run: RunFolder, bundle: dict[str, float], *, again: bool) -> int:
        self.again.append(again)
        return run.spec.num_workers

    def fit(self, run: RunFolder, config: dict[str, Any], name: str, *_: Any, **__: Any) -> Exception | None:
        (run.path / "ray" / name).mkdir(parents=True)
        assert not (run.path / "failure.json").exists(), "workers that find one begin nothing"
        assert config["attempt"] == run.attempt
        self.lost.append(config["lost"])
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, RunError | DivergenceError | UnreachableError):
            word = {"kind": type(outcome).__name__, "message": str(outcome)}
            (run.path / "failure.json").write_text(json.dumps(word))
            return RuntimeError("the controller's word")
        return outcome


@pytest.fixture
def train(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Groups, int], RunFolder]:
    def with_groups(groups: Groups, max_failures: int) -> RunFolder:
        run = _run(tmp_path, max_failures=max_failures)
        run.rewrite(run.spec.model_copy(update={"store": str(toy_store.path), "cohort_digest": toy_store.digest}))
        monkeypatch.setattr(training, "session", contextlib.nullcontext)
        monkeypatch.setattr(training, "free_reserved", lambda _: None)
        monkeypatch.setattr(training, "capacity", lambda: {"CPU": 2.0})
        monkeypatch.setattr(training, "await_nodes", groups.await_nodes)
        monkeypatch.setattr(training, "_fit", lambda *args, **options: groups.fit(run, *args, **options))
        return cluster.train(run, Steady)

    return with_groups


def _busy() -> Exception:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    error: Exception = ControllerError(WorkerGroupStartupTimeoutError(2))
    return error


def test_a_busy_cluster_is_waited_for(
    train: Callable[[Groups, int], RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    groups = Groups([*(_busy() for _ in range(6)), None])
    with caplog.at_level(logging.WARNING):
        assert train(groups, 0).state == "finished"
    assert caplog.messages == ["waiting for 2 cores that others use"]
    assert groups.again == [False] * 7, "nothing was lost"


def test_waiting_is_no_loss_between_losses(train: Callable[[Groups, int], RunFolder]) -> None:
    groups = Groups([RuntimeError("one"), _busy(), _busy(), RuntimeError("two"), None])
    run = train(groups, 2)
    assert run.state == "finished"
    assert len(list((run.path / "ray").iterdir())) == 3, "of a group that only waited no folder is left"
    assert groups.again == [False, True, True, True, True]
    assert groups.lost == ["", "one", "one", "one", "two"]


_SENTENCE = "s3://bucket/store: nothing answers within 25 seconds: check the network"


def test_a_store_that_is_out_of_reach_for_a_while_costs_a_group(train: Callable[[Groups, int], RunFolder]) -> None:
    groups = Groups([UnreachableError(_SENTENCE), None])
    assert train(groups, 1).state == "finished"
    assert groups.lost == ["", _SENTENCE]


def test_a_store_that_stays_out_of_reach_is_named(train: Callable[[Groups, int], RunFolder]) -> None:
    groups = Groups([UnreachableError(_SENTENCE), UnreachableError(_SENTENCE), None])
    with pytest.raises(RunError, match=f"training of 'run' failed on the cluster: {_SENTENCE}; go on with"):
        train(groups, 1)


def test_what_a_worker_says_of_its_training_ends_it(train: Callable[[Groups, int], RunFolder]) -> None:
    with pytest.raises(DivergenceError, match="not finite"):
        train(Groups([DivergenceError("not finite"), None]), 3)


def test_what_a_worker_cannot_write_down_ends_it_too(train: Callable[[Groups, int], RunFolder]) -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    said = DiskSpaceError("/disk/runs/run: the disk or quota is full: make room and run the same again")
    error = WorkerGroupError("[Rank 0]", {0: RuntimeError("Connection closed by peer"), 1: said})
    with pytest.raises(DiskSpaceError, match="the disk or quota is full"):
        train(Groups([error, None]), 3)


def test_of_two_words_the_one_that_no_other_try_would_mend_ends_it(train: Callable[[Groups, int], RunFolder]) -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    away, full = UnreachableError(_SENTENCE), DiskSpaceError("/disk: the disk or quota is full")
    with pytest.raises(DiskSpaceError, match="the disk or quota is full"):
        train(Groups([WorkerGroupError("[Rank 0]", {0: away, 1: full}), None]), 3)


def test_a_word_of_what_is_out_of_reach_is_tried_again(train: Callable[[Groups, int], RunFolder]) -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    groups = Groups([WorkerGroupError("[Rank 0]", {0: UnreachableError(_SENTENCE)}), None])
    assert train(groups, 3).state == "finished"
    assert groups.lost == ["", _SENTENCE]


def test_what_is_no_word_of_ours_costs_a_group(train: Callable[[Groups, int], RunFolder]) -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    lost = WorkerGroupError("[Rank 0]", {0: RuntimeError("Connection closed by peer")})
    assert train(Groups([lost, None]), 1).state == "finished"
