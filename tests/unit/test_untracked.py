"""A machine with neither MLflow nor Ray: a run is trained and judged, and not tracked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

_WITHOUT = """
import importlib.abc, importlib.util, sys
from pathlib import Path

MISSING = ("ray", "mlflow")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in MISSING else find(name, package)

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


def test_a_run_needs_neither_mlflow_nor_ray(phantom_store: CohortStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT, str(phantom_store.path), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(phantom_store.subjects("test"))
    assert not list((tmp_path / "home").glob("mlflow.db*"))
