"""Surfaces seen from outside, and curves over models: the right way round, the right colour, in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from vesalius.infra.figures import Curve, CurvePanel, CurvePoint, SurfaceCase, draw_curves, draw_surfaces
from vesalius.infra.figures.curves import PANEL_INCHES
from vesalius.infra.figures.surface import _TILE_INCHES as TILE_INCHES
from vesalius.infra.figures.surface import VIEWS, View, look

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (40, 44, 36)
# Axes are RAS+: x to the patient's right, y to the front, z upwards.
MIDDLE = np.array([20.0, 22.0, 18.0])


def ball() -> NDArray[np.bool_]:
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    inside: NDArray[np.bool_] = np.linalg.norm(grid - MIDDLE, axis=-1) <= 14
    return inside


def spot(direction: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return an error that is high near the ball's surface in one direction."""
    towards = MIDDLE + 13 * np.array(direction) / np.linalg.norm(direction)
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    error: NDArray[np.float64] = np.exp(-np.square(np.linalg.norm(grid - towards, axis=-1) / 4))
    return error


@pytest.mark.parametrize(
    ("view", "direction", "down", "right"),
    [
        ("front", (1, 1, 0), 0, -1),  # the patient faces the viewer: their right is on the left of the picture
        ("front", (0, 1, 1), -1, 0),
        ("left", (-1, 1, 0), 0, -1),  # seen from their left, the face looks to the left
        ("left", (-1, 0, 1), -1, 0),
        ("right", (1, 1, 0), 0, 1),
        ("right", (1, 0, -1), 1, 0),
        ("top", (0, 1, 1), -1, 0),  # the front of the head is up
        ("top", (1, 0, 1), 0, 1),
    ],
)
def test_a_spot_is_seen_where_it_is(view: View, direction: tuple[int, int, int], down: int, right: int) -> None:
    seen = look(ball(), spot(direction), (1.0, 1.0, 1.0), view)
    row, column = np.unravel_index(int(np.nanargmax(seen.error)), seen.error.shape)
    met = np.argwhere(~np.isnan(seen.error))
    middle = (met.min(axis=0) + met.max(axis=0)) / 2
    found = np.sign(np.round((np.array([row, column]) - middle) / 6))
    assert found.tolist() == [down, right]
    assert np.nanmax(seen.error) > 0.9


@pytest.mark.parametrize(("view", "behind"), [("front", (0, -1, 0)), ("left", (1, 0, 0)), ("top", (0, 0, -1))])
def test_what_lies_behind_is_not_seen(view: View, behind: tuple[int, int, int]) -> None:
    assert np.nanmax(look(ball(), spot(behind), (1.0, 1.0, 1.0), view).error) < 0.1


def test_light_comes_from_the_viewer_and_rays_that_meet_nothing_show_nothing() -> None:
    seen = look(ball(), np.zeros(SHAPE), (1.0, 1.0, 1.0), "front")
    rows, columns = seen.light.shape
    assert seen.light[rows // 2, columns // 2] > 0.85
    assert np.nanmin(seen.light) < 0.5
    # It stands above them and to the viewer's right.
    up, down, left, right = (round(where * size) for size in (rows, columns) for where in (0.3, 0.7))
    lit = [seen.light[place] for place in ((up, right), (up, left), (down, right), (down, left))]
    assert lit == sorted(lit, reverse=True)
    assert np.diff(lit).max() < -0.04, lit
    assert np.isnan(seen.light[0, 0])
    assert np.array_equal(np.isnan(seen.light), np.isnan(seen.error))
    # As large as the ball.
    assert (~np.isnan(seen.light)).sum() == pytest.approx(np.pi * 14**2, rel=0.05)


def test_a_coarse_grid_is_shown_as_large_as_a_fine_one() -> None:
    coarse = look(ball()[::2, ::2, ::2], spot((0, 1, 0))[::2, ::2, ::2], (2.0, 2.0, 2.0), "front")
    assert (~np.isnan(coarse.light)).sum() == pytest.approx(np.pi * 14**2, rel=0.12)


def test_errors_deeper_than_asked_for_do_not_show() -> None:
    deep = np.zeros(SHAPE)
    deep[20, 22 + 14 - 9, 18] = 1.0  # nine voxels below the front
    assert np.nanmax(look(ball(), deep, (1.0, 1.0, 1.0), "front", depth_mm=5).error) == 0
    assert np.nanmax(look(ball(), deep, (1.0, 1.0, 1.0), "front", depth_mm=12).error) == 1


def test_surfaces_are_drawn(tmp_path: Path) -> None:
    cases = [
        SurfaceCase(label=name, mask=ball(), error=spot((0, 1, 0)), spacing_mm=(1.0, 1.0, 1.0)) for name in ("a", "b")
    ]
    path = draw_surfaces(cases, tmp_path / "surface.png", title="t", caption="c")
    picture = imread(path)[..., :3]
    # Grey above, colours below: of both cases, in every view.
    colourful = np.ptp(picture, axis=2) > 0.2
    assert len(VIEWS) == 4
    # From the top left: a title, then for each case its name and two rows of tiles.
    inch = picture.shape[1] / (0.15 + 4 * TILE_INCHES + 0.85)
    for case in range(2):
        for line in range(2):
            top = 0.75 + case * (2 * TILE_INCHES + 0.22) + 0.22 + line * TILE_INCHES
            for column in range(4):
                left = 0.15 + column * TILE_INCHES
                ends = (round(end * inch) for start in (top, left) for end in (start + 0.05, start + TILE_INCHES - 0.1))
                first, last, west, east = ends
                tile = colourful[first:last, west:east]
                assert tile.mean() > 0.02 if line else not tile.any(), (case, line, column)


def test_curves_are_drawn_with_a_point_a_model(tmp_path: Path) -> None:
    points = tuple(CurvePoint(x=10.0**n, y=0.5 + 0.1 * n, interval=(0.4, 0.95), marked=n == 2) for n in range(4))
    panels = [CurvePanel(title=title, curves=(Curve(name="ours", points=points),)) for title in ("ICH", "fracture")]
    one = draw_curves(panels[:1], tmp_path / "one.png", title="t", caption="c", across="x", logarithmic=True)
    two = draw_curves(panels, tmp_path / "two.png", title="t", caption="c", across="x", logarithmic=True)
    assert imread(two).shape[1] > 1.5 * imread(one).shape[1]
    # A rising line in each of the panels, its star the largest mark of all.
    for path, num in ((one, 1), (two, 2)):
        ours = np.abs(imread(path)[..., :3] - np.array(to_rgb("#0072B2"))).max(-1) < 0.02
        legend = round(2.3 * ours.shape[1] / (0.75 + 2.3 + num * PANEL_INCHES[0] + (num - 1) * 0.35))
        for panel in np.array_split(ours[:, : ours.shape[1] - legend], num, axis=1):
            columns = np.flatnonzero(panel.any(axis=0))
            heights = [np.flatnonzero(panel[:, column]).mean() for column in (columns[2], columns[-3])]
            assert heights[0] > heights[1] + 50
            thickest = columns[panel[:, columns].sum(axis=0).argmax()]
            assert (thickest - columns[0]) / (columns[-1] - columns[0]) == pytest.approx(2 / 3, abs=0.06)
    empty = [CurvePanel(title="none", curves=(Curve(name="ours", points=()),))]
    assert imread(draw_curves(empty, tmp_path / "none.png", title="t", caption="c", across="x")).size
