"""Pictures and tables: the right slice the right way round, the right numbers, nothing half-written."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from vesalius.infra import tables
from vesalius.infra.figures import (
    Case,
    GalleryCase,
    GalleryRow,
    MethodColumn,
    Tile,
    draw_comparison,
    draw_gallery,
    draw_montage,
    draw_overlay,
    style,
)
from vesalius.infra.figures.comparison import choose_slice, rarity
from vesalius.infra.figures.montage import common_brain, middle_planes, overlap
from vesalius.infra.figures.overlay import find_peak, relative
from vesalius.infra.pictures import choose_cases
from vesalius.platform.config import Settings
from vesalius.platform.evaluation import FIGURE_KEYS

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

SHAPE = (12, 10, 8)


def ball(center: tuple[int, int, int], radius: float) -> Any:
    grid = np.indices(SHAPE)
    return sum((grid[axis] - center[axis]) ** 2 for axis in range(3)) <= radius**2


def case(name: str = "a", *, lesion: bool = True) -> Case:
    brain = ball((6, 5, 4), 3.2)
    mark = ball((7, 5, 3), 1.5) if lesion else None
    image = brain * 0.5 + (0.4 * mark if mark is not None else 0.0)
    return Case(
        label=name,
        image=image.astype(np.float32),
        brain=brain,
        lesion=mark,
        spacing_mm=(2.0, 2.0, 3.0),
        maps={"one": image.astype(np.float32), "two": (image * 10 - 3).astype(np.float32)},
        restoration=(brain * 0.5).astype(np.float32),
    )


# ---- geometry of a picture


@pytest.mark.parametrize(
    ("axis", "voxel", "row", "column"),
    [(2, (9, 1, 4), 1, 9), (1, (9, 3, 6), 6, 9), (0, (5, 8, 6), 6, 8)],
)
def test_a_slice_has_the_second_axis_upwards(axis: int, voxel: tuple[int, int, int], row: int, column: int) -> None:
    # RAS+ voxels: columns run to the right (or to anterior), rows, drawn from below, to anterior (or superior).
    volume = np.zeros(SHAPE)
    volume[voxel] = 1
    plane = style.across(volume, axis, voxel[axis])
    assert np.argwhere(plane).tolist() == [[row, column]]


def test_spacing_follows_the_slice() -> None:
    assert style.plane_spacing((1.0, 2.0, 3.0), 2) == (2.0, 1.0)
    assert style.plane_spacing((1.0, 2.0, 3.0), 1) == (3.0, 1.0)
    assert style.plane_spacing((1.0, 2.0, 3.0), 0) == (3.0, 2.0)


def test_the_box_holds_the_mask_and_a_margin() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:6, 3, 7] = True
    assert style.bounding_box(mask, margin=2) == (slice(2, 8), slice(1, 6), slice(5, 8))
    assert style.bounding_box(np.zeros(SHAPE, dtype=bool)) == (slice(None),) * 3


def test_the_slice_with_most_lesion_is_chosen() -> None:
    assert choose_slice(case()) == 3
    assert choose_slice(case(lesion=False)) == 4


def test_colour_is_how_rare_a_score_is() -> None:
    among = np.arange(1000.0)
    assert rarity(np.array([0.0, 900.0, 990.0, 999.0, 5000.0]), among) == pytest.approx([0, 1, 2, 3, 3])
    # Any increasing change of units leaves it as it is.
    assert np.array_equal(rarity(np.exp(among / 100), np.exp(among / 100)), rarity(among, among))
    assert rarity(np.array([2.0]), np.array([2.0, 2.0])) == 0


def test_maps_are_shown_in_multiples_of_their_threshold() -> None:
    values = np.array([0.0, 2.0, 4.0])
    assert relative(values, 2.0, 0.0).tolist() == [0.0, 1.0, 2.0]
    # A log-likelihood below zero: its least value is 0 on the bar, its threshold 1.
    assert relative(np.array([-4.0, -1.0, 2.0]), -1.0, -4.0).tolist() == [0.0, 1.0, 2.0]
    assert np.isfinite(relative(values, 0.0, 0.0)).all()


def test_the_peak_is_looked_for_inside_the_brain() -> None:
    values = np.zeros(SHAPE)
    values[1, 2, 3], values[0, 0, 0] = 5.0, 9.0
    brain = np.zeros(SHAPE, dtype=bool)
    brain[1:4, 1:4, 1:4] = True
    assert find_peak(values, brain) == (1, 2, 3)
    assert find_peak(values, np.zeros(SHAPE, dtype=bool)) == (0, 0, 0)


def test_overlap_with_the_common_brain_is_dice() -> None:
    masks = [ball((6, 5, 4), 3.0)] * 3 + [ball((8, 5, 4), 3.0)]
    common = common_brain(masks)
    assert set(np.unique(common)) == {0.0, 0.25, 0.75, 1.0}
    assert overlap(masks[0], common) == 1.0
    shared = masks[0] & masks[3]
    assert overlap(masks[3], common) == pytest.approx(2 * shared.sum() / (masks[0].sum() + masks[3].sum()))


def test_cases_are_spread_over_lesion_sizes_and_one_is_healthy(toy_store: CohortStore) -> None:
    chosen = choose_cases(toy_store, "test")
    assert [record.has_lesion for record in chosen] == [True, True, False]
    assert [record.has_lesion for record in choose_cases(toy_store, "train", num=3)] == [False] * 3


# ---- files


def test_pictures_are_written_whole(tmp_path: Path) -> None:
    columns = [MethodColumn(name="one", threshold=0.6, remark="AP 0.50"), MethodColumn(name="two", threshold=2.0)]
    written = [
        draw_comparison(
            [case("a"), case("b", lesion=False)],
            columns,
            tmp_path / "deep" / "comparison.png",
            title="t",
            caption="c",
            restored_by="one",
        ),
        draw_montage(
            [Tile(label=str(n), planes=middle_planes(case().image), overlap=0.5 + 0.1 * n) for n in range(5)],
            common_brain([case().brain]),
            tmp_path / "montage.png",
            spacing_mm=(2.0, 2.0, 3.0),
            title="t",
        ),
        draw_overlay(
            case().image,
            case().maps["one"],
            tmp_path / "overlay.png",
            brain=case().brain,
            spacing_mm=(2.0, 2.0, 3.0),
            title="t",
            caption="c",
            threshold=None,
        ),
    ]
    for path in written:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 200
        assert pixels.std() > 0.1
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["comparison.png", "montage.png", "overlay.png"]


@pytest.mark.parametrize("num_tiles", [1, 2, 7])
def test_a_montage_cuts_no_words_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_tiles: int) -> None:
    """Every text lies within the sheet and no two of them on each other, for one subject with a long name too."""
    boxes: list[Any] = []

    def measured(figure: Any, path: Path, dots_per_inch: int = 150) -> Path:
        boxes.extend(text.get_window_extent(figure.canvas.get_renderer()) for text in figure.texts)
        sheet = figure.bbox
        assert all(sheet.x0 <= box.x0 and box.x1 <= sheet.x1 for box in boxes)
        assert all(sheet.y0 <= box.y0 and box.y1 <= sheet.y1 for box in boxes)
        return path

    monkeypatch.setattr(style, "save", measured)
    name = "sub-" + "0123456789" * 12
    draw_montage(
        [Tile(label=f"{name}  validation", planes=middle_planes(case().image), overlap=0.9)] * num_tiles,
        common_brain([case().brain]),
        tmp_path / "montage.png",
        spacing_mm=(2.0, 2.0, 3.0),
        title=f"{num_tiles} prepared subjects of {'a-cohort-with-a-long-name ' * 4}(T1w, T2w, FLAIR, T1post)",
        reference_name="the brain that at least half of the subjects share",
    )
    assert len(boxes) == num_tiles + 2
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])


def test_a_sheet_of_few_subjects_cuts_no_caption_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[Any] = []

    def measured(figure: Any, path: Path, dots_per_inch: int = 150) -> Path:
        renderer = figure.canvas.get_renderer()
        boxes.extend(part.get_window_extent(renderer) for part in (*figure.texts, *figure.legends))
        sheet = figure.bbox
        assert all(sheet.x0 <= box.x0 and box.x1 <= sheet.x1 for box in boxes)
        return path

    monkeypatch.setattr(style, "save", measured)
    plane = np.ones((8, 6))
    draw_gallery(
        [GalleryCase(label="a", image=plane, brain=plane > 0, lesion=None, pixel_mm=(1.0, 1.0))],
        [GalleryRow(name="one", remark="", threshold=None, maps=[plane], restorations=[None], among=np.ones(3))],
        tmp_path / "gallery.png",
        title="t",
        caption="Left of a pair the restoration, right the map; threshold: the best Dice on validation. " * 2,
    )
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])


def test_the_line_is_drawn_where_the_map_crosses_its_threshold() -> None:
    ramp = np.tile(np.arange(6.0), (5, 1))  # value = column, so the line x = level
    with style.new_figure(2, 2) as figure:
        axes = figure.add_subplot()
        style.outline(axes, ramp, style.FOUND, level=2.25)
        vertices = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
        assert vertices[:, 0] == pytest.approx(2.25)
        assert vertices[:, 1].min() == 0
        assert vertices[:, 1].max() == 4
        nowhere = figure.add_subplot()
        style.outline(nowhere, ramp, style.FOUND, level=70.0)
        style.outline(nowhere, ramp, style.FOUND, level=-1.0)
        assert not nowhere.collections


# ---- tables


def shown(table: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160, force_terminal=True, color_system="standard", markup=False).print(table)
    return stream.getvalue()


def row(method: str, **values: float | None) -> dict[str, Any]:
    keys: dict[str, Any] = dict.fromkeys(FIGURE_KEYS, 0.5)
    return {**keys, "method": method, **values}


def test_the_best_of_each_column_stands_out_and_undefined_is_a_dash() -> None:
    rows = [
        row("a", average_precision=0.75, fpr_at_95_recall=0.25, image_auroc=None),
        row("b", average_precision=0.25, fpr_at_95_recall=0.0625, image_auroc=None),
    ]
    lines = shown(tables.figures(rows, "test")).splitlines()
    line_a, line_b = [line for line in lines if "0.500 ± 0.500" in line]
    bold = "\x1b[1;32m"
    assert re.findall(r"\x1b\[1;32m *([0-9.]+)", line_a) == ["0.750"]
    assert re.findall(r"\x1b\[1;32m *([0-9.]+)", line_b) == ["0.0625"]
    assert " - " in line_a
    assert bold not in shown(tables.figures(rows[:1], "one run has no rival"))


def test_settings_are_described_with_their_values() -> None:
    class Inner(Settings):
        steps: tuple[int, ...] = (3, 4)

    class Outer(Settings):
        name: str = "x"
        inner: Inner = Inner()

    rows = tables.describe_settings(Outer(name="y"))
    assert [(r["key"], r["default"]) for r in rows] == [("name", "y"), ("inner.steps", [3, 4])]
    assert "inner.steps" in shown(tables.settings(rows, "method"))
