"""What a table draws, writes and says of its data, whatever its rows found."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import DataRequest, load_protocol, protocol_names, reproduce, structures, table
from vesalius.infra.reproduce.cohort import make_cohorts
from vesalius.infra.reproduce.levels import Drawn
from vesalius.infra.reproduce.protocol import Row
from vesalius.infra.reproduce.sizes import Size
from vesalius.infra.reproduce.structures import StructureLevel
from vesalius.platform.evaluation import StructureFigures

if TYPE_CHECKING:
    from vesalius.infra.figures import CurvePanel
    from vesalius.platform.store import CohortStore


def drawn(label: str, kind: str, width: int, patch_size: int | None, auroc: float) -> Drawn:
    """Return a row of which the curves see its size and its AUROC alone."""
    size = Size(kind=kind, parameters=1000 * width, width=width, patch_size=patch_size)
    figures = StructureFigures(task="t", num_subjects=9, num_cases=9, num_anomalous=4, auroc=auroc)
    tasks = {task.name: figures for task in load_protocol("position_regression_2022").tasks}
    return Drawn(label=label, found=SimpleNamespace(size=size, tasks=tasks))


def test_a_curve_over_patches_is_of_one_kind_and_has_a_point_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels: dict[str, list[CurvePanel]] = {}

    def kept(given: list[CurvePanel], path: Path, **_: Any) -> Path:
        panels[path.stem] = given
        return path

    monkeypatch.setattr(structures, "draw_curves", kept)
    rows = [
        drawn("PPR m=4", "position regression", 4, 19, 0.5),
        drawn("PPR m=8", "position regression", 8, 19, 0.6),
        drawn("PPR s_p=19", "position regression", 8, 19, 0.61),
        drawn("PPR s_p=23", "position regression", 8, 23, 0.7),
        drawn("PPR s_p=27", "position regression", 8, 27, 0.8),
        drawn("PPR m=8 calibrated", "position regression, calibrated", 8, 19, 0.99),
        drawn("AE m=8", "autoencoder 3d", 8, None, 0.4),
    ]
    StructureLevel(load_protocol("position_regression_2022"))._curves(rows, tmp_path)
    (panel,) = panels["position_regression_2022-patches"]
    assert [curve.name for curve in panel.curves] == ["ICH", "left", "right", "fracture"]
    for curve in panel.curves:
        assert [(point.x, point.y) for point in curve.points] == [(19, 0.6), (23, 0.7), (27, 0.8)]
    ich = next(panel for panel in panels["position_regression_2022-parameters"] if panel.title == "ICH")
    assert {curve.name: [(point.x, point.y) for point in curve.points] for curve in ich.curves} == {
        "position regression": [(4000, 0.5), (8000, 0.6)],
        "position regression, calibrated": [(8000, 0.99)],
        "autoencoder 3d": [(8000, 0.4)],
    }


def test_a_picture_that_fails_leaves_the_figures(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(table, "draw_table", broken)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    row = Row(label="one", method="intensity_threshold", source="here")
    protocol = load_protocol("anovaegan_2018").model_copy(update={"rows": (row,), "name": "toy"})
    with pytest.raises(ZeroDivisionError), Terminal(True) as terminal:
        reproduce(terminal, protocol, tmp_path, DataRequest(data=toy_store.path), threads=1)
    rows = {row["label"]: row for row in json.loads((tmp_path / "toy.json").read_text())["rows"]}
    assert rows["healthy atlas"]["figures"]["brain"]["auroc"] is not None
    assert "| healthy atlas |" in (tmp_path / "toy.md").read_text()


@pytest.mark.parametrize("paper", protocol_names())
def test_what_is_said_of_phantoms_is_said_of_phantoms_alone(paper: str, toy_store: CohortStore) -> None:
    protocol = load_protocol(paper)
    assert not any("phantoms" in sentence for sentence in protocol.differs)
    assert not any("phantoms" in sentence for row in protocol.rows for sentence in row.differs)
    if protocol.judged != "voxels":
        return
    with Terminal(True) as terminal:
        given = make_cohorts(terminal, protocol, Path(), DataRequest(data=toy_store.path), finer=None)
    assert not set(protocol.phantom_differs) & set(given.differs)
