"""What is exported, and what the dashboard and the alerts ask for: the same names, and a bounded number of series."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from vesalius.platform.cluster import metrics
from vesalius.platform.errors import DivergenceError
from vesalius.platform.runs import RunFolder, RunSpec, create_run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "infra" / "monitoring"
OURS = {name: metric for metric in metrics.METRICS for name in metric.exported}


class _Instrument:
    """Stands in for Ray's."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, dict[str, str]]] = []

    def _hear(self, value: float, tags: dict[str, str]) -> None:
        self.heard.append((value, tags))

    inc = set = observe = _hear


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, _Instrument]:
    """Return what is recorded, by metric, in a process that is part of a runtime."""
    made = {metric.name: _Instrument() for metric in metrics.METRICS}
    monkeypatch.setattr(metrics, "_made", made)
    monkeypatch.setattr(metrics, "_values", {})
    monkeypatch.setitem(sys.modules, "ray", _Runtime())
    return made


class _Runtime:
    @staticmethod
    def is_initialized() -> bool:
        return True


def test_nothing_is_recorded_where_there_is_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_make", lambda _: pytest.fail("made an instrument"))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    metrics.count(metrics.TRAINING_STEPS, method="a", stage="b")
    assert "ray" not in sys.modules


def test_a_label_has_a_bounded_number_of_values(heard: dict[str, _Instrument]) -> None:
    for number in range(10 * metrics.MOST_VALUES):
        metrics.gauge(metrics.TRAINING_PROGRESS, 0.5, method="m", run=f"run-{number}" + "x" * 1000)
    runs = {tags["run"] for _, tags in heard["vesalius_training_progress"].heard}
    assert len(runs) == metrics.MOST_VALUES + 1
    assert metrics.OTHER in runs
    assert max(map(len, runs)) <= 128


def test_a_wrong_call_is_an_error_and_not_a_lost_metric(heard: dict[str, _Instrument]) -> None:
    with pytest.raises(TypeError, match="labels"):
        metrics.count(metrics.TRAINING_STEPS, method="a")
    with pytest.raises(TypeError, match="is a gauge"):
        metrics.count(metrics.TRAINING_PROGRESS, method="a", run="b")
    metrics.count(metrics.TRAINING_STEPS, 0, method="a", stage="b")
    assert not heard["vesalius_training_steps"].heard


def test_series_that_stay_carry_no_run() -> None:
    for metric in metrics.METRICS:
        assert "run" not in metric.labels or metric.kind == "gauge", metric.name
        assert bool(metric.boundaries) == (metric.kind == "histogram")
    assert len({metric.name for metric in metrics.METRICS}) == len(metrics.METRICS)


def _run(home: Path) -> RunFolder:
    digest = "0" * 64
    spec = RunSpec(run_id="a", method="vq_vae", settings={}, store="s", cohort_digest=digest, created="2026-01-01")
    return create_run(home, spec)


def test_a_worker_measures_its_run(heard: dict[str, _Instrument], tmp_path: Path) -> None:
    from vesalius.platform.cluster.measuring import RunMeter

    run = _run(tmp_path)
    for rank in (0, 1):
        meter = RunMeter(run, run.spec, rank)
        meter.begin()
        meter.trained("codes", 8)
        meter.step("codes", 3, 4)
        meter.failed(DivergenceError("x"))
    RunMeter(run, run.spec, 0).saved(0.5)
    said = {name: [(value, *tags.values()) for value, tags in one.heard] for name, one in heard.items()}
    assert said["vesalius_training_samples"] == [(8, "vq_vae", "codes")] * 2, "each rank counts its share"
    assert said["vesalius_training_steps"] == [(1, "vq_vae", "codes")], "a step is one, whatever the ranks"
    assert said["vesalius_training_progress"] == [(0.75, "vq_vae", "a")]
    assert said["vesalius_training_failures"] == [(1, "vq_vae", "DivergenceError")]
    assert said["vesalius_checkpoint_seconds"] == [(0.5, "vq_vae")]
    assert said["vesalius_training_restarts"] == [(0, "vq_vae", "a")]


def test_a_restart_is_a_loss_and_neither_a_return_nor_a_resume(heard: dict[str, _Instrument], tmp_path: Path) -> None:
    from vesalius.platform.cluster.measuring import RunMeter
    from vesalius.platform.runs import NODES_ARE_BACK

    run = _run(tmp_path)
    for lost in ("", "a node", NODES_ARE_BACK, "", "a worker"):
        run.note_group(2, 0, lost)
        RunMeter(run, run.spec, 0).begin()
    assert [value for value, _ in heard["vesalius_training_restarts"].heard] == [0, 1, 1, 1, 2]


def _names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:ray_\w+|up)\b(?=[\s{\[()]|$)", expression))


def _expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", []))
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


@functools.cache
def _rays_own() -> str:
    """Return the text of the dashboards that Ray itself writes."""
    import importlib.util

    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return "".join(path.read_text() for path in folder.glob("*.py"))


def test_what_is_asked_for_exists() -> None:
    asked = {name: place for place, expression in _expressions() for name in _names(expression)}
    assert len(asked) > 20
    for name, place in asked.items():
        assert name == "up" or name in OURS or re.search(rf"\b{name}\b", _rays_own()), f"{place}: {name}"
    assert "ray_vesalius_no_such" not in OURS
    # And the other way round: what is measured is looked at.
    for metric in metrics.METRICS:
        assert set(metric.exported) & set(asked), f"nobody looks at {metric.name}"


def test_labels_that_are_asked_for_exist() -> None:
    rays = {"instance", "Name", "State", "GpuIndex", "Location", "job", "le"}
    for place, expression in _expressions():
        known = {label for name in _names(expression) if name in OURS for label in OURS[name].labels}
        by = {
            label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in group.split(",")
        }
        matched = set(re.findall(r'(\w+)(?:=~|!=|=)"', expression))
        assert by | matched <= known | rays, f"{place}: {(by | matched) - known - rays}"


def test_the_dashboard_has_its_panels_side_by_side() -> None:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine: rules and settings of Prometheus are not checked")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_the_alerts_ring_when_they_should() -> None:
    done = _promtool("test", "rules", str(MONITORING / "alerts_test.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = {
        rule["alert"] for g in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in g["rules"]
    }
    played = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    rung = {one["alertname"] for test in played for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert rung == alerts


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus-compose.yaml"])
def test_prometheus_takes_its_settings(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = yaml.safe_load((MONITORING / name).read_text())
    for scrape in settings["scrape_configs"]:
        if "kubernetes_sd_configs" in scrape:  # Debian's promtool is built without it: the rest is checked
            assert scrape.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["vesalius"]}}]
    shutil.copy(MONITORING / "alerts.yaml", tmp_path)
    (tmp_path / name).write_text(yaml.safe_dump(settings))
    done = _promtool("check", "config", str(tmp_path / name))
    assert done.returncode == 0, done.stdout + done.stderr
    settings["scrape_configs"][0]["relable_configs"] = []
    (tmp_path / name).write_text(yaml.safe_dump(settings))
    assert _promtool("check", "config", str(tmp_path / name)).returncode != 0
