"""Many methods on few subjects: a row a method, and for each subject its restoration beside its map."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures import style
from vesalius.infra.figures.comparison import RAREST, rarity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TILE_INCHES = 1.5


@dataclass(frozen=True, kw_only=True)
class GalleryCase:
    """One subject's axial slice, as :func:`vesalius.infra.figures.style.across` gives it.

    Attributes:
        label: subject id.
        image: (h, w) of the first channel.
        brain: (h, w) bool.
        lesion: (h, w) bool, or None for a healthy subject.
        pixel_mm: millimetres a row and a column.
        remark: below the label, such as the lesion's size.
    """

    label: str
    image: NDArray[Any]
    brain: NDArray[np.bool_]
    lesion: NDArray[np.bool_] | None
    pixel_mm: tuple[float, float]
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """One method.

    Attributes:
        name: as it stands beside the row.
        remark: a line below the name, such as its average precision.
        threshold: of the maps; None where there is none.
        maps: (h, w) a case, in the cases' order.
        restorations: (h, w) a case, or None where the method has none.
        among: (n,) scores in increasing order that colours are taken from: those inside the brains of all cases.
        notes: a line on a map by the case's label, such as its Dice.
    """

    name: str
    remark: str
    threshold: float | None
    maps: Sequence[NDArray[Any]]
    restorations: Sequence[NDArray[Any] | None]
    among: NDArray[Any]
    notes: Mapping[str, str] = field(default_factory=dict)


def draw_gallery(
    cases: Sequence[GalleryCase], rows: Sequence[GalleryRow], path: Path, *, title: str, caption: str
) -> Path:
    """Draw the input and the truth of each case, and below them each method's restoration and map.

    The sheet grows downwards with the methods, so that it is read as easily with ten as with two. Colours are those of
    :func:`vesalius.infra.figures.comparison.draw_comparison`: how rare a score is among the brain voxels shown.

    Args:
        cases: two columns each.
        rows: the methods.
        path: the PNG to write.
        title: says what is shown.
        caption: says how to read it.
    """
    num_columns = 2 * len(cases)
    tall = float(np.median([_height_over_width(case) for case in cases]))
    left, right, top, bottom = 2.35, 0.95, 1.05, 1.0
    width = left + num_columns * TILE_INCHES + right
    height = top + (1 + len(rows)) * TILE_INCHES * tall + bottom
    with style.new_figure(width, height) as figure:
        grid = figure.add_gridspec(
            1 + len(rows),
            num_columns,
            left=left / width,
            right=1 - right / width,
            top=1 - top / height,
            bottom=bottom / height,
            wspace=0.03,
            hspace=0.04,
        )
        heads = [[figure.add_subplot(grid[0, column]) for column in range(num_columns)]]
        lines = [
            [figure.add_subplot(grid[number, column]) for column in range(num_columns)]
            for number in range(1, 1 + len(rows))
        ]
        _draw_head(heads[0], cases)
        shown = None
        for axes, row in zip(lines, rows, strict=True):
            shown = _draw_row(axes, cases, row)
        _dress(figure, shown, title=title, caption=caption, margins=(width, height, top, bottom))
        return style.save(figure, path)


def _height_over_width(case: GalleryCase) -> float:
    rows, columns = case.image.shape
    return float(rows * case.pixel_mm[0] / (columns * case.pixel_mm[1]))


def _beside(axes: Axes, name: str, remark: str) -> None:
    axes.text(-0.07, 0.56, name, transform=axes.transAxes, ha="right", va="center", fontsize=9, fontweight="bold")
    axes.text(-0.07, 0.42, remark, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color=style.FAINT)


def _grey(axes: Axes, case: GalleryCase, plane: NDArray[Any]) -> None:
    low, high = style.grey_range(case.image, case.brain)
    aspect = case.pixel_mm[0] / case.pixel_mm[1]
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)


def _draw_head(axes: Sequence[Axes], cases: Sequence[GalleryCase]) -> None:
    for axis in axes:
        style.tile(axis)
    for case, image, truth in zip(cases, axes[::2], axes[1::2], strict=True):
        _grey(image, case, case.image)
        _grey(truth, case, case.image)
        if case.lesion is not None:
            style.outline(truth, case.lesion, style.TRUTH, width=1.4)
        image.set_title(f"{case.label}\n{case.remark}", loc="left", pad=4, fontsize=8.5)
    _beside(axes[0], "input, truth", "")


def _draw_row(axes: Sequence[Axes], cases: Sequence[GalleryCase], row: GalleryRow) -> Any:
    shown = None
    for number, case in enumerate(cases):
        restored, found = axes[2 * number], axes[2 * number + 1]
        style.tile(restored)
        style.tile(found)
        plane = row.restorations[number]
        if plane is not None:
            _grey(restored, case, plane)
        else:
            restored.text(0.5, 0.5, "none", transform=restored.transAxes, color="#9A9A9A", ha="center", fontsize=8)
        shown = found.imshow(
            rarity(row.maps[number], row.among),
            cmap=style.MAP_COLOURS,
            vmin=0.0,
            vmax=-np.log10(RAREST),
            origin="lower",
            aspect=case.pixel_mm[0] / case.pixel_mm[1],
            interpolation="nearest",
        )
        if row.threshold is not None:
            style.outline(found, row.maps[number], style.FOUND, level=row.threshold, width=0.9)
        if case.lesion is not None:
            style.outline(found, case.lesion, style.TRUTH, width=1.2, dashed=True)
        if case.label in row.notes:
            box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1.5}
            note = row.notes[case.label]
            found.text(0.04, 0.04, note, transform=found.transAxes, color="white", fontsize=7.5, bbox=box)
    _beside(axes[0], row.name, row.remark)
    return shown


def _dress(figure: Figure, shown: Any, *, title: str, caption: str, margins: tuple[float, float, float, float]) -> None:
    from matplotlib.lines import Line2D

    width, height, top, bottom = margins
    figure.text(0.22 / width, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold", va="top")
    said = style.wrapped(figure, caption, width - 0.44, fontsize=8.5)
    figure.text(0.22 / width, 0.16 / height, "\n".join(said), fontsize=8.5, color=style.FAINT, va="bottom")
    lines = [
        Line2D([], [], color=style.TRUTH, linewidth=1.6, label="true outline (dashed on the maps)"),
        Line2D([], [], color="#9A9A9A", linewidth=1.4, label="found: above the threshold (white on the maps)"),
    ]
    place = (0.14 / width, (0.41 + 0.14 * len(said)) / height)
    figure.legend(handles=lines, loc="lower left", bbox_to_anchor=place, ncols=2, frameon=False, fontsize=8.5)
    if shown is None:
        return
    tall = height - top - bottom
    long = min(4.5, 0.8 * tall)
    bar = figure.add_axes((1 - 0.78 / width, 1 - (top + 0.1 + long) / height, 0.13 / width, long / height))
    colours = figure.colorbar(shown, cax=bar)
    colours.set_ticks([0.0, 1.0, 2.0, 3.0], labels=["any", "10 %", "1 %", "0.1 %"])
    colours.set_label("score: in the top ... of the brain voxels shown", fontsize=8.5)
