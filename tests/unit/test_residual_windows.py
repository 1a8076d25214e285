"""Windows of residuals: what the page of tables says of the mean head is what the method of that name finds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vesalius.methods import METHODS
from vesalius.platform.config import override
from vesalius.platform.scoring import score_volume, volume_of
from vesalius.platform.tables import lookup
from vesalius.platform.testing.training_runs import trained

if TYPE_CHECKING:
    from vesalius.platform.contracts import Method
    from vesalius.platform.store import CohortStore

_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "residual_windows.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("residual_windows", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("voxels", "window", "edges"),
    [
        ("all", "1, 1", {"average_pool": 1}),
        ("all", "3, 7", {"min_pool": 3, "average_pool": 7}),
        ("brain", "median 5", {"average_pool": 1, "median_pool": 5}),
    ],
)
def test_the_mean_head_in_deviations_is_the_healthy_atlas(
    voxels: str, window: str, edges: dict[str, int], phantom_store: CohortStore, script: Any
) -> None:
    kind: type[Method] = lookup(METHODS, "healthy_atlas", "method")
    atlas = trained(kind, override(kind.presets()["paper"], {"map": edges}), phantom_store)
    maps, lesions = [], []
    for record in phantom_store.subjects("test"):
        volume = volume_of(phantom_store, record)
        score, _ = score_volume(atlas, volume)
        judged = volume.brain.numpy() if voxels == "brain" else np.ones(volume.shape, bool)
        maps.append(score.map.numpy().astype(np.float16)[judged])
        lesion = phantom_store.mask(record.subject_id, "lesion")  # None of a healthy subject
        lesions.append((np.zeros(volume.shape, bool) if lesion is None else lesion)[judged])
    exact = average_precision_score(np.concatenate(lesions), np.concatenate(maps))
    rows = script.table(phantom_store, voxels, 2, {})
    assert rows["size of volume - mean head, in deviations"][window] == pytest.approx(exact, rel=0.01)
    assert rows["size of volume - mean head"][window] != pytest.approx(exact, rel=0.01)


def test_two_runs_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Any) -> None:
    with pytest.raises(SystemExit):
        script.main(["store", "--run", str(tmp_path / "a" / "run"), "--run", str(tmp_path / "b" / "run")])
    assert "two runs are called run" in capsys.readouterr().err
