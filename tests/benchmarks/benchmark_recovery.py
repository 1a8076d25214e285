"""Seconds from a death to the next training step: a worker's, a node's and a driver's, beside a start from nothing.

Two workers, each a node of one core on this machine; a method whose steps take 50 ms and which writes down when each
was done, and by which process. A step counts as the next one when a process takes it that was not there before.

- ``start``: from the driver's start to its first step, which is what recovery is measured against (the ratio);
- ``worker``: SIGKILL to one of two workers; the next group of two;
- ``node``: SIGKILL to the raylet of one node, ``training.wait_for_nodes_seconds = 0``; the next group is of one;
- ``driver``: SIGKILL to the driver, with a new one started at once.

    python tests/benchmarks/benchmark_recovery.py [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.phantom import CohortSettings, PhantomSettings
from vesalius.platform.store import CohortStore
from vesalius.platform.testing.nodes import NODE, cluster_of_nodes
from vesalius.platform.testing.steady import SteadyRun

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

VICTIMS = ("worker", "node", "driver")


class _Beats:
    """The steps of a run: when, and by which process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[tuple[float, int]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [(float(when), int(process)) for when, process in (line.split() for line in lines)]

    def first_of_others(self, known: set[int]) -> float | None:
        return next((when for when, process in self.read() if process not in known), None)

    def processes(self) -> set[int]:
        return {process for _, process in self.read()}


def _kill(victim: str, run: SteadyRun, beats: _Beats, driver: int, doomed: Any) -> None:
    if victim == "worker":
        # The second one: rank 0 is as good, and dies no other way.
        os.kill(max(beats.processes()), signal.SIGKILL)
    elif victim == "node":
        os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    else:
        os.kill(driver, signal.SIGKILL)
        psutil.Process(driver).wait(30)
        run.start()


def _one(victim: str, cluster: Cluster, store: CohortStore, home: Path) -> tuple[float, float]:
    """Kill once; returns seconds of the start and of the recovery."""
    doomed = cluster.add_node(**NODE)
    beats = _Beats(home / f"{victim}.txt")
    changes = {"epochs": 4000, "beats": str(beats.path)}
    run = SteadyRun(home, victim, store, settings=changes, wait_for_nodes_seconds=0)
    try:
        begun = time.time()
        driver = run.start().pid
        run.wait(lambda: run.last, 300)
        known = beats.processes()
        start = beats.read()[0][0] - begun
        killed = time.time()
        _kill(victim, run, beats, driver, doomed)
        run.wait(lambda: beats.first_of_others(known), 300)
        again = beats.first_of_others(known)
        assert again is not None
        return start, again - killed
    finally:
        run.end()
        cluster.remove_node(doomed, allow_graceful=False)


def measure(rounds: int) -> dict[str, Any]:
    """Kill each victim so many times; returns seconds and their ratio to a start from nothing."""
    seconds: dict[str, list[float]] = {"start": [], **{victim: [] for victim in VICTIMS}}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        splits = CohortSettings(
            num_train=6, num_validation=2, num_gate=0, num_test=0, phantom=PhantomSettings(shape=(16, 16, 16))
        )
        ingest("phantom", write_cohort(folder / "raw", splits), folder / "cohort", name="phantom", num_workers=0)
        store = CohortStore.open(folder / "cohort")
        for number in range(rounds):
            for victim in VICTIMS:
                with cluster_of_nodes() as cluster:
                    patch.setenv("RAY_ADDRESS", cluster.address)
                    start, recovery = _one(victim, cluster, store, folder / str(number))
                seconds["start"].append(start)
                seconds[victim].append(recovery)
    median = {what: statistics.median(values) for what, values in seconds.items()}
    return {
        "rounds": rounds,
        "seconds": {what: [round(value, 1) for value in values] for what, values in seconds.items()},
        "over_a_start": {victim: round(median[victim] / median["start"], 2) for victim in VICTIMS},
        "load": round(os.getloadavg()[0], 1),
    }


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_each_death_is_made_up_for() -> None:
    figures = measure(1)
    # How long it takes is read, not asserted: a busy machine would make a timed test of it.
    assert all(len(figures["seconds"][victim]) == 1 for victim in VICTIMS)


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    figures = measure(chosen.rounds)
    json.dump(figures, sys.stdout, indent=None if chosen.json else 1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
