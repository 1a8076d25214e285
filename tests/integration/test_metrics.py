"""What Prometheus would read from a node of a real Ray runtime while tasks, training and scoring go on."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from vesalius.methods import METHODS
from vesalius.platform import cluster
from vesalius.platform.cluster import metrics
from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.scoring import ScoreInfo, score_store
from vesalius.platform.tables import lookup
from vesalius.platform.testing.methods import training_settings
from vesalius.platform.testing.training_runs import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.store import CohortStore

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings
_SERIES = re.compile(r"^(ray_vesalius_\w+)\{(.*)\} (\S+)$")


@pytest.fixture(scope="module")
def export_port() -> Iterator[int]:
    """Hold a runtime whose processes report every second, and return the port that Prometheus would read."""
    import ray

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.delenv("RAY_enable_metrics_collection", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=128 * 2**20,
            log_to_driver=False,
            dashboard_host="127.0.0.1",
            _metrics_export_port=port,
        )
        yield port
        ray.shutdown()


def _read(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the values of our own series by name and our own labels, summed over Ray's."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    ours = {label for metric in metrics.METRICS for label in metric.labels}
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for name, labels, value in (match.groups() for line in text.splitlines() if (match := _SERIES.match(line))):
        pairs = frozenset(pair for pair in re.findall(r'(\w+)="([^"]*)"', labels) if pair[0] in ours)
        found[name, pairs] = found.get((name, pairs), 0.0) + float(value)
    return found


def _wait(port: int, name: str, at_least: float = 0.0, **labels: str) -> float:
    """Return a series' value once it stands and is large enough."""
    wanted = name, frozenset(labels.items())
    deadline = time.monotonic() + 60
    while True:
        found = _read(port)
        if found.get(wanted, -1.0) >= at_least:
            return found[wanted]
        if time.monotonic() > deadline:
            raise AssertionError(f"{wanted} is not at {at_least} after a minute: {sorted(found.items(), key=str)}")
        time.sleep(0.5)


def _run(home: Path, name: str, store: CohortStore) -> tuple[RunFolder, type[Method]]:
    kind: type[Method] = lookup(METHODS, "implicit_field", "method")
    spec = RunSpec(
        run_id=name,
        method="implicit_field",
        settings=kind.presets()["tiny"].model_dump(mode="json"),
        training=training_settings(threads=1),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=1,
        created="2026-01-01T00:00:00Z",
    )
    return create_run(home, spec), kind


def test_training_is_counted(toy_store: CohortStore, tmp_path: Path, export_port: int) -> None:
    run, kind = _run(tmp_path, "counted", toy_store)
    cluster.train(run, kind)
    assert run.state == "finished"
    total = run.progress.total
    seen = {name: value for (name, _), value in _read(export_port).items()}
    steps = sum(v for (name, _), v in _read(export_port).items() if name == metrics.TRAINING_STEPS.exported[0])
    assert steps == total, seen
    for metric in (metrics.TRAINING_SAMPLES, metrics.CHECKPOINT_SECONDS):
        assert set(metric.exported) <= set(seen), sorted(seen)


def test_tasks_are_counted(export_port: int) -> None:
    most = 0.0
    for _ in cluster.map_tasks(_nap, range(8), num_workers=1, total=8):
        most = max(most, _read(export_port).get(("ray_vesalius_tasks_waiting", frozenset({("function", "nap")})), 0.0))
    assert 0 < most < 8
    deadline = time.monotonic() + 30
    while _read(export_port).get(("ray_vesalius_tasks_waiting", frozenset({("function", "nap")}))) != 0.0:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _nap(value: int) -> int:
    time.sleep(1.0)
    return value


def test_scoring_is_counted(toy_store: CohortStore, tmp_path: Path, export_port: int) -> None:
    kind: type[Method] = lookup(METHODS, "intensity_threshold", "method")
    method = kind(kind.presets()["tiny"], toy_store.facts())
    info = ScoreInfo(
        method="intensity_threshold", model_digest="0" * 64, cohort_digest=toy_store.digest, store="", split="test"
    )
    score_store(method, toy_store, "test", tmp_path / "scores", info=info)
    number = len(toy_store.subjects("test"))
    labels = {"method": "intensity_threshold", "source": "batch"}
    assert _wait(export_port, metrics.VOLUMES_SCORED.exported[0], number, **labels) == number
    assert _wait(export_port, "ray_vesalius_scoring_seconds_count", number, **labels) == number
