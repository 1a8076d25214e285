"""What a table draws, writes and says of its data, whatever its rows found."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import DataRequest, load_protocol, over_models, protocol_names, reproduce, table
from vesalius.infra.reproduce.budget import paper_settings, scaled_settings
from vesalius.infra.reproduce.cohort import make_cohorts
from vesalius.infra.reproduce.images import _kinds
from vesalius.infra.reproduce.levels import Drawn, level_of
from vesalius.infra.reproduce.protocol import Published, Row
from vesalius.infra.reproduce.sizes import Size
from vesalius.infra.reproduce.structures import StructureLevel
from vesalius.infra.reproduce.without_structures import SizedImages, WithoutStructures
from vesalius.platform.config import flatten
from vesalius.platform.evaluation import ImageFigures, StructureFigures

if TYPE_CHECKING:
    from vesalius.infra.figures import CurvePanel
    from vesalius.platform.store import CohortStore, SubjectRecord


def drawn(label: str, kind: str, width: int, patch_size: int | None, auroc: float) -> Drawn:
    """Return a row of which the curves see its size and its AUROC alone."""
    size = Size(kind=kind, parameters=1000 * width, width=width, patch_size=patch_size)
    figures = StructureFigures(task="t", num_subjects=9, num_cases=9, num_anomalous=4, auroc=auroc)
    tasks = {task.name: figures for task in load_protocol("position_regression_2022").tasks}
    return Drawn(label=label, found=SimpleNamespace(size=size, tasks=tasks))


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[CurvePanel]]:
    """Return what is drawn of curves over models from now on, by the name of its file."""
    found: dict[str, list[CurvePanel]] = {}

    def kept(given: list[CurvePanel], path: Path, **_: Any) -> Path:
        found[path.stem] = given
        return path

    monkeypatch.setattr(over_models, "draw_curves", kept)
    return found


def test_a_curve_over_patches_is_of_one_kind_and_has_a_point_a_size(
    tmp_path: Path, panels: dict[str, list[CurvePanel]]
) -> None:
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


# ---- a table of structures where there are none

STRUCTURES = "left_hemisphere, right_hemisphere, skull"


def with_records(store: CohortStore, **changes: Any) -> Any:
    """Return what a level asks of a store, each of its records with these changes."""

    def subjects(*asked: Any, **options: Any) -> list[SubjectRecord]:
        return [record.model_copy(update=changes) for record in store.subjects(*asked, **options)]

    return SimpleNamespace(subjects=subjects, path=store.path)


def test_a_cohort_without_structures_is_judged_by_its_whole_images(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    published = Published(figures={"structure/ICH": 0.81}, seconds_per_volume=90.0)
    row = Row(label="one", method="healthy_atlas", published=published, source="here")
    paper = load_protocol("position_regression_2022").model_copy(update={"rows": (row,), "name": "toy"})

    def play() -> tuple[dict[str, Any], str]:
        with Terminal(True) as terminal:
            reproduce(terminal, paper, tmp_path, DataRequest(data=toy_store.path), threads=1)
        said = capsys.readouterr()
        return json.loads(said.out), " ".join(said.err.split())

    document, said = play()
    (why,) = document["data"]["differs"]
    assert why.startswith(f"the test split has none of the structures that the paper judges ({STRUCTURES}), so that")
    assert why in said
    assert document["evaluation"]["judged"].startswith("Whole images by their score")
    # Of what nobody knows no table is left: neither kinds of lesion nor faults.
    assert [section["title"] for section in document["sections"]] == ["Screening", "Screening at the Youden points"]
    rows = {one["label"]: one for one in document["rows"]}
    assert list(rows) == ["one", "intensity threshold", "healthy atlas"]
    for one in rows.values():
        assert (one["error"], one["judged"]["parameters"], one["judged"]["memory_mib"]) == (None, 0, None)
        assert 0 <= one["judged"]["auroc"] <= 1
        assert {"auroc", "map_auroc", "own_sensitivity"} <= set(one["judged"]["intervals"])
        assert 0 <= one["judged"]["sensitivity"] <= 1, "validation has both kinds"
        assert 0 < one["figures"]["brain"]["auroc"] < 1
    assert set(document["pictures"]) == {"roc", "quality"}
    assert all(Path(path).stat().st_size > 5000 for path in document["pictures"].values())
    text = (tmp_path / "toy.md").read_text()
    assert "0.81" not in text.split("Screening:")[0]
    # The paper's AUROC of structures stands beside nothing of ours; its seconds do.
    assert "| one |  | paper |  |  |  |  |  | 90.0 |  |" in text
    again, _ = play()
    assert again["rows"] == document["rows"]


def test_some_of_the_structures_are_not_none(toy_store: CohortStore) -> None:
    level = level_of(load_protocol("position_regression_2022"))
    assert isinstance(level, StructureLevel)
    assert isinstance(level.on(toy_store), WithoutStructures)
    # Labels of other names are no help.
    assert isinstance(level.on(with_records(toy_store, structures={"cerebellum": 1})), WithoutStructures)
    some = with_records(toy_store, structures={"left_hemisphere": 2, "right_hemisphere": 3})
    assert level.on(some) is level
    assert level.instead is None
    assert "holds no skull in its test split: prepare it with recipe.structures=ct" in str(level.lacks(some))
    images = level_of(load_protocol("f_anogan_3d_2020"))
    assert images is not None
    assert images.on(toy_store) is images


def test_patches_and_maps_are_of_the_brain_where_no_head_is_kept(toy_store: CohortStore) -> None:
    paper = load_protocol("position_regression_2022")
    level = StructureLevel(paper)
    every = (*paper.rows, *paper.trivial())
    assert level.rows(every) == every
    arrays = toy_store.subjects("train")[0].arrays
    heads = with_records(toy_store, arrays={**arrays, "head": arrays["brain"]})
    assert level.on(heads).rows(every) == every
    brains = level.on(toy_store).rows(every)
    assert [row.label for row in brains] == [row.label for row in every]
    for row, before in zip(brains, every, strict=True):
        assert row.differs[:-1] == before.differs
        assert row.differs[-1].endswith("map.voxels is brain, since the cohort keeps no head's mask")
        for settings in (flatten(paper_settings(row)), flatten(scaled_settings(row))):
            assert settings["map.voxels"] == "brain"
            assert settings.get("patches.foreground", "brain") == "brain"


def test_curves_and_dots_of_whole_images(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, panels: dict[str, list[CurvePanel]]
) -> None:
    def found(width: int, auroc: float) -> SizedImages:
        of = {"num_positive": 2, "num_negative": 2, "auroc": auroc, "intervals": {"auroc": (0.1, 0.9)}}
        figures = {
            "method": "position_regression", "split": "test", "healthy": (0.1, 0.2), "anomalous": (0.15, 0.3),
            "screening": of, "by_map": {**of, "auroc": auroc / 2}, "roc": {"x": (0, 1), "y": (0, 1)},
        }  # fmt: skip
        size = Size(kind="position regression", parameters=1000 * width, width=width, patch_size=19)
        return SizedImages(size=size, images=ImageFigures.model_validate(figures))

    level = WithoutStructures(load_protocol("position_regression_2022"), toy_store)
    rows = [Drawn(label=f"PPR m={m}", found=found(m, auroc)) for m, auroc in ((4, 0.6), (8, 0.8))]
    assert set(level.draw(rows, tmp_path)) == {"parameters", "roc", "quality"}
    by_score, by_map = panels["position_regression_2022-parameters"]
    assert [(point.x, point.y, point.interval) for point in by_score.curves[0].points] == [
        (4000, 0.6, (0.1, 0.9)),
        (8000, 0.8, (0.1, 0.9)),
    ]
    assert [point.y for point in by_map.curves[0].points] == [0.3, 0.4]
    # One width is no curve.
    assert set(level.draw(rows[:1], tmp_path)) == {"roc", "quality"}
    healthy, anomalous = _kinds(rows[0].found.images)
    assert (healthy.scores, anomalous.scores, anomalous.auroc) == ((0.1, 0.2), (0.15, 0.3), 0.6)
