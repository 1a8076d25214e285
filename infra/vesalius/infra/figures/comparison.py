"""Several subjects, several methods, one picture: what went in, what is true, what was restored, what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures import style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TILE_INCHES = 1.72
RAREST = 1e-3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row.

    Attributes:
        label: subject id.
        image: (D, H, W) first channel, as prepared.
        brain: (D, H, W) bool.
        lesion: (D, H, W) bool, or None for a healthy subject.
        spacing_mm: voxel size along D, H, W.
        maps: anomaly maps (D, H, W) by column name.
        restoration: (D, H, W), where a method made one.
        notes: a line below a map, by column name, such as its Dice.
    """

    label: str
    image: NDArray[Any]
    brain: NDArray[np.bool_]
    lesion: NDArray[np.bool_] | None
    spacing_mm: tuple[float, float, float]
    maps: Mapping[str, NDArray[Any]]
    restoration: NDArray[Any] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodColumn:
    """One column of maps: its name in :attr:`Case.maps`, its threshold, and a line for its head."""

    name: str
    threshold: float
    remark: str = ""


def draw_comparison(
    cases: Sequence[Case],
    columns: Sequence[MethodColumn],
    path: Path,
    *,
    title: str,
    caption: str,
    restored_by: str | None = None,
) -> Path:
    """Draw one row a subject: input, truth, restoration, and each method's map with its threshold as a line.

    Maps of different methods have different units, so the colour is how rare a score is among the brain voxels of
    all subjects shown: one colour bar serves all methods, none looks dim or saturated because of its scale, and a
    good one is bright on lesions and dark elsewhere. The line is the threshold, chosen on the validation split.

    Args:
        cases: the rows; each shows the axial slice with most lesion, or the middle of a healthy brain.
        columns: the methods.
        path: the PNG to write.
        title: says what is shown.
        caption: one line on how to read it.
        restored_by: the method whose restoration is shown; None leaves the column out.
    """
    heads = ["input", "truth"] + ([f"restored by\n{restored_by}"] if restored_by else [])
    heads += [f"{column.name}\n{column.remark}".rstrip() for column in columns]
    crops = [_crop(case) for case in cases]
    ratio = float(np.median([_height_over_width(case) for case in crops]))
    left, top, bottom = max(1.1, 0.35 + 0.083 * max(len(case.label) for case in cases)), 0.98, 0.95
    width = left + len(heads) * TILE_INCHES + 0.95
    height = top + len(cases) * TILE_INCHES * ratio + bottom
    with style.new_figure(width, height) as figure:
        grid = figure.add_gridspec(
            len(cases),
            len(heads),
            left=left / width,
            right=1 - 0.95 / width,
            top=1 - top / height,
            bottom=bottom / height,
            wspace=0.035,
            hspace=0.05,
        )
        among = {
            column.name: np.sort(np.concatenate([case.maps[column.name][case.brain] for case in crops]), axis=None)
            for column in columns
        }
        shown = None
        for row, case in enumerate(crops):
            axes = [figure.add_subplot(grid[row, column]) for column in range(len(heads))]
            shown = _draw_row(axes, case, columns, among, restored=restored_by is not None) or shown
            if row == 0:
                for head, axis in zip(heads, axes, strict=True):
                    axis.set_title(head, pad=5, linespacing=1.35)
            _label_row(axes[0], case)
        _dress(figure, shown, title=title, caption=caption, width=width, height=height, top=top, bottom=bottom)
        return style.save(figure, path)


def choose_slice(case: Case) -> int:
    """Return the axial slice with most lesion, or the one with most brain for a healthy subject."""
    mask = case.lesion if case.lesion is not None and case.lesion.any() else case.brain
    return int(np.argmax(mask.sum(axis=(0, 1))))


def rarity(values: NDArray[Any], among: NDArray[Any]) -> NDArray[np.float64]:
    """Return -log10 of the share of ``among`` that scores as high or higher: 0 is common, 3 is the top 0.1 %.

    Args:
        values: scores, any shape.
        among: (n,) scores in increasing order that they are compared with.
    """
    as_high = among.size - np.searchsorted(among, values, side="left")
    return -np.log10(np.clip(as_high / max(1, among.size), RAREST, 1.0))


def _crop(case: Case) -> Case:
    held = case.brain if case.lesion is None else case.brain | case.lesion
    box = style.bounding_box(held, margin=3)
    return Case(
        label=case.label,
        image=case.image[box],
        brain=case.brain[box],
        lesion=None if case.lesion is None else case.lesion[box],
        spacing_mm=case.spacing_mm,
        maps={name: values[box] for name, values in case.maps.items()},
        restoration=None if case.restoration is None else case.restoration[box],
        notes=case.notes,
    )


def _height_over_width(case: Case) -> float:
    d, h, _ = case.image.shape
    return float((h * case.spacing_mm[1]) / (d * case.spacing_mm[0]))


def _draw_row(
    axes: Sequence[Axes],
    case: Case,
    columns: Sequence[MethodColumn],
    among: Mapping[str, NDArray[Any]],
    *,
    restored: bool,
) -> Any:
    index = choose_slice(case)
    row_mm, column_mm = style.plane_spacing(case.spacing_mm, 2)
    low, high = style.grey_range(case.image, case.brain)
    lesion = None if case.lesion is None else style.across(case.lesion, 2, index)

    def grey(axis: Axes, volume: NDArray[Any]) -> None:
        plane = style.across(volume, 2, index)
        axis.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=row_mm / column_mm)

    for axis in axes:
        style.tile(axis)
    remaining = list(axes)
    grey(remaining.pop(0), case.image)
    truth = remaining.pop(0)
    grey(truth, case.image)
    if lesion is not None:
        style.outline(truth, lesion, style.TRUTH, width=1.4)
    if restored:
        axis = remaining.pop(0)
        if case.restoration is not None:
            grey(axis, case.restoration)
    shown = None
    for axis, column in zip(remaining, columns, strict=True):
        plane = style.across(case.maps[column.name], 2, index)
        shown = axis.imshow(
            rarity(plane, among[column.name]),
            cmap=style.MAP_COLOURS,
            vmin=0.0,
            vmax=-np.log10(RAREST),
            origin="lower",
            aspect=row_mm / column_mm,
            interpolation="nearest",
        )
        style.outline(axis, plane, style.FOUND, level=column.threshold, width=0.9)
        if lesion is not None:
            style.outline(axis, lesion, style.TRUTH, width=1.2, dashed=True)
        if column.name in case.notes:
            axis.text(
                0.04,
                0.04,
                case.notes[column.name],
                transform=axis.transAxes,
                color="white",
                fontsize=7.5,
                va="bottom",
                bbox={"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1.5},
            )
    return shown


def _label_row(axis: Axes, case: Case) -> None:
    axis.text(-0.08, 0.56, case.label, transform=axis.transAxes, ha="right", va="center", fontsize=9, fontweight="bold")
    state = "healthy"
    if case.lesion is not None and case.lesion.any():
        millilitres = float(case.lesion.sum()) * float(np.prod(case.spacing_mm)) / 1000.0
        state = f"lesion {millilitres:.1f} ml"
    axis.text(-0.08, 0.43, state, transform=axis.transAxes, ha="right", va="center", fontsize=8, color=style.FAINT)
    for place, letter, side in ((0.03, "L", "left"), (0.97, "R", "right")):
        axis.text(place, 0.97, letter, transform=axis.transAxes, color="white", fontsize=7, va="top", ha=side)


def _dress(
    figure: Figure, shown: Any, *, title: str, caption: str, width: float, height: float, top: float, bottom: float
) -> None:
    from matplotlib.lines import Line2D

    figure.text(0.22 / width, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold", va="top")
    figure.text(0.22 / width, 0.2 / height, caption, fontsize=8.5, color=style.FAINT, va="bottom")
    lines = [
        Line2D([], [], color=style.TRUTH, linewidth=1.6, label="true outline (dashed on the maps)"),
        Line2D([], [], color="#9A9A9A", linewidth=1.4, label="found: above the threshold (white on the maps)"),
    ]
    figure.legend(
        handles=lines,
        loc="lower left",
        bbox_to_anchor=(0.14 / width, 0.52 / height),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        handlelength=1.8,
    )
    if shown is None:
        return
    tall = height - top - bottom
    bar = figure.add_axes((1 - 0.78 / width, (bottom + 0.1 * tall) / height, 0.13 / width, 0.8 * tall / height))
    colours = figure.colorbar(shown, cax=bar)
    colours.set_ticks([0.0, 1.0, 2.0, 3.0], labels=["any", "10 %", "1 %", "0.1 %"])
    colours.set_label("anomaly score: in the top ... of all brain voxels shown", fontsize=8.5)
