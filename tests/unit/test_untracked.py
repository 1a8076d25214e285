"""Tracking turned off, on a machine with neither MLflow nor Ray: a run is trained and judged, and not tracked."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vesalius.platform.errors import RunError
from vesalius.platform.registry import history
from vesalius.platform.tracking import is_tracking_off

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

_WITHOUT = """
import importlib.abc, sys
from pathlib import Path

MISSING = ("ray", "mlflow")

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Missing())
from vesalius.infra import pipeline
from vesalius.platform.runs import find_run

store, home = map(Path, sys.argv[1:])
run = pipeline.start_run("healthy_atlas", store, home=home, num_workers=0, name="alone")
assert (run.spec.mlflow_tracking_uri, run.spec.mlflow_run_id) == (None, None)
pipeline.train(run)
figures = pipeline.evaluate_run(find_run(home, "alone"), "test", device="cpu")
print(figures["all"].num_subjects)
"""


def test_the_registry_says_that_tracking_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "Off")
    assert is_tracking_off()
    with pytest.raises(RunError, match="MLFLOW_TRACKING_URI is 'off': the registry lies where runs are tracked"):
        history("anything", home=tmp_path)


def test_a_run_needs_neither_mlflow_nor_ray(phantom_store: CohortStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT, str(phantom_store.path), str(tmp_path / "home")]
    env = {**os.environ, "MLFLOW_TRACKING_URI": "off"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(phantom_store.subjects("test"))
    assert not list((tmp_path / "home").glob("mlflow.db*"))
