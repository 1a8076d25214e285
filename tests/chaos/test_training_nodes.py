"""Nodes that die, come back, or cannot be reached for a while: training goes on, and nothing is computed wrongly."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest
import torch

from vesalius.platform.testing.nodes import NODE
from vesalius.platform.testing.steady import SteadyRun
from vesalius.platform.testing.training_runs import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ray.cluster_utils import Cluster

    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own


def test_fewer_workers_go_on_and_as_many_as_before_once_the_node_is_back(
    toy_store: CohortStore, tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = SteadyRun(tmp_path, "whole", toy_store, num_workers=0, settings={"pause_seconds": 0})
    whole.start()
    assert whole.ends() == 0
    doomed = cluster.add_node(**NODE)
    run = SteadyRun(tmp_path, "run", toy_store, wait_for_nodes_seconds=8)
    run.start()
    try:
        run.wait(lambda: run.last)
        killed = time.monotonic()
        os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        run.wait(lambda: len(run.folder.groups) == 2)
        stood = run.last
        run.wait(lambda: run.last > stood)
        seconds = time.monotonic() - killed
        cluster.add_node(**NODE)
        run.wait(lambda: len(run.folder.groups) == 3 or run.folder.state == "finished")
        assert run.ends() == 0, run.log[-3000:]
    finally:
        run.end()
    groups = run.folder.groups
    assert [group.num_workers for group in groups] == [2, 1, 2]
    assert groups[2].lost == "nodes are back: more workers go on"
    assert run.folder.state == "finished"
    with capsys.disabled():
        print(f"\na node killed: {seconds:.1f} s until the next checkpoint by fewer workers")
    kept = run.weights
    for name, value in whole.weights.items():
        torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-6, msg=f"{name} differs beyond rounding")


def test_fewer_than_allowed_is_one_sentence_and_costs_nothing(
    toy_store: CohortStore, tmp_path: Path, cluster: Cluster
) -> None:
    doomed = cluster.add_node(**NODE)
    run = SteadyRun(tmp_path, "run", toy_store, wait_for_nodes_seconds=5, min_workers=2)
    run.start()
    try:
        run.wait(lambda: run.last)
        os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        assert run.ends() != 0
        assert "2 workers need 2 cores and the cluster has 1" in run.log
        stood = run.last
        cluster.add_node(**NODE)
        run.start()
        assert run.ends() == 0, run.log[-3000:]
    finally:
        run.end()
    assert run.folder.state == "finished"
    assert run.last > stood


def test_a_worker_out_of_memory_costs_one_group(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    memory = psutil.virtual_memory()
    if memory.available < 8 * 2**30:
        pytest.skip("8 GiB of free memory are needed, to take 4 of them")
    # As Ray counts: what is not available of the whole.
    limit = (memory.total - memory.available + 2.5 * 2**30) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    made = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 2, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    glutton = tmp_path / "glutton"
    run = SteadyRun(tmp_path, "run", toy_store, settings={"glutton": str(glutton), "glutton_mib": 4096})
    try:
        run.start()
        run.wait(lambda: run.last)
        glutton.touch()
        assert run.ends() == 0, run.log[-3000:]
    finally:
        run.end()
        made.shutdown()
    groups = run.folder.groups
    assert [group.num_workers for group in groups] == [2, 2]
    assert "ran out of memory" in groups[1].lost
    assert groups[1].step > 0


def test_a_busy_cluster_is_waited_for(
    toy_store: CohortStore, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    from vesalius.platform.cluster import session

    # Ray Train gives up waiting for its workers after a minute: here after three seconds, to see it happen often.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    run = SteadyRun(tmp_path, "run", toy_store, num_workers=1, max_failures=0, settings={"epochs": 40})
    tries: set[str] = set()

    def has_tried(times: int) -> bool:
        tries.update(path.name for path in (run.folder.path / "ray").iterdir())
        return len(tries) >= times

    with session():
        others = placement_group([{"CPU": 1}])
        assert others.wait(60)
        try:
            run.start()
            run.wait(lambda: "waiting for 1 cores that others use" in run.log)
            run.wait(lambda: has_tried(3))
            assert run.folder.groups == [], "a group that did not begin is none"
            remove_placement_group(others)
            assert run.ends() == 0, run.log[-3000:]
        finally:
            run.end()
    assert run.folder.state == "finished"
    assert [group.num_workers for group in run.folder.groups] == [1]
    assert run.log.count("that others use") == 1, "it is said once"
    assert len(list((run.folder.path / "ray").iterdir())) == 1, "the tries before it have left nothing"


class Partition:
    """A second node in a network of its own, and the cable between them."""

    def __init__(self, folder: Path) -> None:
        self._name = f"vsl{os.getpid() % 10_000}"
        net = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._head, self._node = f"{net}.1", f"{net}.2"
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.address = f"{self._head}:{free_port()}"

    def lay(self) -> bool:
        """Lay the cable; say whether that is allowed here."""
        if shutil.which("ip") is None:
            return False
        name, inside = self._name, ["netns", "exec", self._name, "ip"]
        if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
            return False
        self._ip("link", "add", name, "type", "veth", "peer", "name", f"{name}n", "netns", name)
        self._ip("addr", "add", f"{self._head}/24", "dev", name)
        self._ip("link", "set", name, "up")
        self._ip(*inside, "addr", "add", f"{self._node}/24", "dev", f"{name}n")
        self._ip(*inside, "link", "set", f"{name}n", "up")
        self._ip(*inside, "link", "set", "lo", "up")
        return True

    def start(self, **environment: str) -> None:
        """Start a Ray head on this side, and a node on the other one."""
        port = self.address.rpartition(":")[2]
        self._ray(
            [],
            self._name,
            ["--head", "--include-dashboard=false", f"--port={port}", f"--node-ip-address={self._head}"],
            environment,
        )
        deadline = time.monotonic() + 60
        while (
            subprocess.run(["ip", "netns", "exec", self._name, "true"], check=False).returncode or not self._listens()
        ):
            assert time.monotonic() < deadline, "the head did not come up"
            time.sleep(0.2)
        inside = ["ip", "netns", "exec", self._name]
        self._ray(
            inside, f"{self._name}n", [f"--address={self.address}", f"--node-ip-address={self._node}"], environment
        )

    def cut(self) -> None:
        self._ip("link", "set", self._name, "down")

    def mend(self) -> None:
        self._ip("link", "set", self._name, "up")

    def remove(self) -> None:
        for process in reversed(self._started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        subprocess.run(["ip", "link", "del", self._name], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True, check=False)

    def _listens(self) -> bool:
        import socket

        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return True
        return False

    def _ray(self, inside: list[str], interface: str, options: list[str], environment: dict[str, str]) -> None:
        command = [*inside, sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--num-cpus=1", "--block"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        with (self._folder / f"ray-{len(self._started)}.log").open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, "RAY_AUTH_MODE": "disabled", "GLOO_SOCKET_IFNAME": interface, **environment},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture
def partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Partition]:
    made = Partition(tmp_path)
    if not made.lay():
        pytest.skip("laying a cable between two networks needs root and `ip`")
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    try:
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize(
    ("patience", "groups"),
    [({}, None), ({"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}, 2)],
    ids=["patient", "given up"],
)
def test_thirty_seconds_without_a_network(
    toy_store: CohortStore, tmp_path: Path, partition: Partition, patience: dict[str, str], groups: int | None
) -> None:
    whole = SteadyRun(tmp_path, "whole", toy_store, num_workers=0, settings={"pause_seconds": 0})
    whole.start()
    assert whole.ends() == 0
    partition.start(**patience, RAY_health_check_timeout_ms="3000") if patience else partition.start()
    beats = tmp_path / "beats"
    run = SteadyRun(tmp_path, "run", toy_store, wait_for_nodes_seconds=60, settings={"beats": str(beats)})
    try:
        run.start(GLOO_SOCKET_IFNAME="lo")
        run.wait(lambda: run.last)
        partition.cut()
        cut = time.time()
        time.sleep(30)
        partition.mend()
        mended = time.time()
        assert run.ends() == 0, run.log[-3000:]
    finally:
        run.end()
    assert run.folder.state == "finished"
    taken = [float(line.split()[0]) for line in beats.read_text().splitlines()]
    assert [at for at in taken if at > mended], "the network was away while there were steps to take"
    if groups is None:
        during = [at for at in taken if cut + 5 < at < mended]
        assert not during, f"{len(during)} steps were taken by workers that cannot have known of each other"
    else:
        assert len(run.folder.groups) >= groups, "a node that was given up is gone on without"
    kept = run.weights
    for name, value in whole.weights.items():
        torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-6, msg=f"{name} differs beyond rounding")
