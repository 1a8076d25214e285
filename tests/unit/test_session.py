"""A Ray runtime that is to be held."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vesalius.platform import cluster
from vesalius.platform.cluster.capacity import GROWS_TO, capacity
from vesalius.platform.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_cluster_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "ray://nowhere:1")
    with (
        pytest.raises(RunError, match="no Ray cluster answers at RAY_ADDRESS=ray://nowhere:1: start it"),
        cluster.session(),
    ):
        pass


class Starts:
    """Begins runtimes as Ray 2.60 does on a machine that has no time for the first few of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        starts = self

        class Node:
            def __init__(self) -> None:
                self.number = len(starts.begun) + 1
                starts.begun.append(self.number)
                if self.number <= failing:
                    raise Exception("The current node timed out during startup. This could happen because of much.")

            def kill_all_processes(self, **_: bool) -> None:
                starts.ended.append(self.number)

        monkeypatch.setattr("ray.is_initialized", lambda: False)
        monkeypatch.setattr("ray._private.node.Node", Node)
        monkeypatch.setattr("ray.init", lambda **_: Node())
        monkeypatch.setattr("ray.shutdown", lambda: None)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_runtime_that_does_not_come_up_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, failing=2)
    wanted = (
        r"Ray did not start on this machine \(The current node timed out during startup\), twice: nothing was begun"
    )
    with pytest.raises(RunError, match=wanted), cluster.session():
        pass
    assert starts.begun == starts.ended == [1, 2]


def test_a_runtime_that_comes_up_at_the_second_try_is_held(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = Starts(monkeypatch, failing=1)
    with cluster.session():
        assert not cluster.joins_another()
        assert starts.begun == [1, 2]
        assert starts.ended == [1], "what was begun in vain takes no time from the next"
    assert [record.getMessage() for record in caplog.records] == [
        "Ray did not start on this machine (The current node timed out during startup): trying once more"
    ]


_OF_OTHER_VERSIONS = RuntimeError(
    "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1\n"
    "This process on node 10.0.0.1:6379 was started with:\n    Ray: 2.60.0\n    Python: 3.11.2\n"
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            _OF_OTHER_VERSIONS,
            "has Ray 2.9.0 on Python 3.9.1, and this process has Ray 2.60.0 on Python 3.11.2: install",
        ),
        ("token", "lets nobody in without its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"),
        (
            RuntimeError("Python minor versions differ: 3.9\nand more"),
            r"cannot be joined \(Python minor .* 3.9\): check",
        ),
    ],
)
def test_a_cluster_that_refuses_is_a_sentence(
    error: Exception | str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import AuthenticationError

    def init(**options: object) -> None:
        raise AuthenticationError("Token authentication is enabled") if isinstance(error, str) else error

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(RunError, match=f"the Ray cluster at RAY_ADDRESS=10.0.0.1:6379 {words}"), cluster.session():
        pass


def test_a_runtime_of_our_own_grows_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster elsewhere may grow to is said to whoever joins that, and not to a runtime that none will join."""
    seen: list[str | None] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: seen.append(os.environ.get(GROWS_TO)))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: None)
    monkeypatch.setenv(GROWS_TO, "CPU=64")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster.session():
        assert capacity() == {"CPU": 2.0}
    assert os.environ[GROWS_TO] == "CPU=64"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with cluster.session():
        assert capacity() == {"CPU": 64.0}
    assert seen == [None, "CPU=64"]


def test_a_runtime_of_our_own_is_none_that_others_may_join(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr("ray.is_initialized", lambda: bool(held))
    monkeypatch.setattr("ray.init", lambda **_: held.append(True))
    monkeypatch.setattr("ray.shutdown", held.clear)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster.session():
        assert not cluster.joins_another()
        with cluster.session():
            assert not cluster.joins_another()
        assert not cluster.joins_another()
    held.append(True)
    with cluster.session():
        assert cluster.joins_another(), "a runtime that somebody else began in this process"
    held.clear()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with cluster.session():
        assert cluster.joins_another()


@pytest.mark.parametrize("theirs", [None, "c" * 64])
def test_the_token_of_our_own_runtime_is_offered_to_no_cluster(
    no_access: pytest.MonkeyPatch, tmp_path: Path, theirs: str | None
) -> None:
    from ray._private.authentication import authentication_token_setup as setup
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    offered: list[str | None] = []

    def init(**options: object) -> None:  # as much of it as is about tokens
        if options.get("address") == "local":
            setup.enable_token_auth_by_default()
        setup.ensure_token_if_auth_enabled(None, create_token_if_missing=False)
        offered.append(get_auth_headers_if_auth_enabled({}).get("authorization"))

    no_access.setattr("ray.is_initialized", lambda: False)
    no_access.setattr("ray.init", init)
    no_access.setattr("ray.shutdown", lambda: None)
    for _ in range(2):
        with cluster.session():
            assert os.environ["RAY_AUTH_TOKEN"]
    assert offered[0] == offered[1] == f"Bearer {os.environ['RAY_AUTH_TOKEN']}"
    no_access.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    if theirs is not None:
        (tmp_path / "token").write_text(theirs)
        no_access.setenv("RAY_AUTH_MODE", "token")
        no_access.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with cluster.session():
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert offered[2] == (None if theirs is None else f"Bearer {theirs}")


def test_a_runtime_of_our_own_after_a_cluster_has_a_token_again(no_access: pytest.MonkeyPatch) -> None:
    no_access.setattr("ray.is_initialized", lambda: False)
    no_access.setattr("ray.init", lambda **_: None)
    no_access.setattr("ray.shutdown", lambda: None)
    tokens = []
    for address in ("", "10.0.0.1:6379", ""):
        no_access.setenv("RAY_ADDRESS", address)
        with cluster.session():
            tokens.append(os.environ.get("RAY_AUTH_TOKEN"))
    assert tokens[1] is None
    assert tokens[0] != tokens[2]
    assert None not in (tokens[0], tokens[2])


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 64),
    ],
)
def test_a_containers_share_of_time_bounds_its_cores(
    files: dict[str, str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cluster.available_cores(tmp_path) == most


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_cluster_that_runs_on_this_machine_is_not_joined_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    memory = 100 * 2**20
    others = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False}
    )
    try:
        with cluster.session(1):
            assert ray.get_runtime_context().gcs_address != others.address
    finally:
        others.shutdown()
