"""A figure of merit against what it costs: AUROC against parameters, patch size or memory, a panel a question."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.infra.figures import style

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (4.3, 3.1)
_ASIDE_INCHES = 0.05
# Okabe and Ito's colours (2008) that stand out on white; each with a mark of its own, for grey print.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#1A1A1A", "v"))


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One model.

    Attributes:
        x: what it costs.
        y: how good it is.
        interval: of ``y``; None where there is none.
        marked: drawn as a star, as the paper marks the models that it goes on with.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Models of one kind, joined by a line.

    Attributes:
        name: for the legend.
        points: in any order.
        published: drawn faint and dashed: the paper's.
    """

    name: str
    points: tuple[CurvePoint, ...]
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """One question.

    Attributes:
        title: the question.
        curves: the kinds of models.
    """

    title: str
    curves: tuple[Curve, ...]


def draw_curves(
    panels: Sequence[CurvePanel],
    path: Path,
    *,
    title: str,
    caption: str,
    across: str,
    up: str = "AUROC",
    logarithmic: bool = False,
    chance: float | None = 0.5,
) -> Path:
    """Draw a panel a question, side by side, on one scale upwards.

    Args:
        panels: the questions.
        path: the PNG to write.
        title: says what is shown.
        caption: says how to read it.
        across: what x is, with its unit.
        up: what y is.
        logarithmic: x in powers of ten.
        chance: where a line marks what guessing gives; None draws none.
    """
    left, top, bottom, between, beside = 0.75, 0.85, 0.95, 0.35, 2.3
    width = left + beside + len(panels) * PANEL_INCHES[0] + (len(panels) - 1) * between
    height = top + bottom + PANEL_INCHES[1]
    values = [point.y for panel in panels for curve in panel.curves for point in curve.points]
    ends = [
        end
        for panel in panels
        for curve in panel.curves
        for point in curve.points
        if point.interval
        for end in point.interval
    ]
    lowest = min([*values, *ends, *([] if chance is None else [chance])], default=0.0)
    highest = max([*values, *ends, *([] if chance is None else [chance])], default=1.0)
    room = 0.06 * (highest - lowest or 1.0)
    with style.new_figure(width, height) as figure:
        for index, panel in enumerate(panels):
            start = left + index * (PANEL_INCHES[0] + between)
            axes = figure.add_axes((start / width, bottom / height, PANEL_INCHES[0] / width, PANEL_INCHES[1] / height))
            _draw(figure, axes, panel, chance, side_by_side=not logarithmic)
            _mark(axes, {point.x for curve in panel.curves for point in curve.points}, logarithmic=logarithmic)
            axes.set_ylim(lowest - room, highest + room)
            axes.set_xlabel(across)
            if index == 0:
                axes.set_ylabel(up)
            else:
                axes.tick_params(labelleft=False)
            if index == len(panels) - 1:
                # Beside the panels, where it covers nothing; the kinds are the same in all of them.
                axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
        lines = style.wrapped(figure, caption, width - 0.4, fontsize=8.5)
        figure.text(0.2 / width, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold", va="top")
        figure.text(0.2 / width, 0.12 / height, "\n".join(lines), fontsize=8.5, color=style.FAINT, va="bottom")
        return style.save(figure, path)


def _draw(figure: Figure, axes: Axes, panel: CurvePanel, chance: float | None, *, side_by_side: bool) -> None:
    from matplotlib.transforms import ScaledTranslation

    if chance is not None:
        axes.axhline(chance, color=style.FAINT, linewidth=0.8, linestyle=":")
    ours = 0
    for number, curve in enumerate(panel.curves):
        points = sorted(curve.points, key=lambda point: point.x)
        if curve.published:
            colour, mark, line = style.FAINT, "x", "--"
        else:
            (colour, mark), line = _LOOKS[ours % len(_LOOKS)], "-"
            ours += 1
        # Where curves share their x, their bars would lie on one another.
        aside = (number - (len(panel.curves) - 1) / 2) * _ASIDE_INCHES if side_by_side else 0.0
        look: dict[str, Any] = {
            "color": colour,
            "transform": axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans),
        }
        x, y = [point.x for point in points], [point.y for point in points]
        axes.plot(x, y, marker=mark, markersize=4.5, linewidth=1.5, linestyle=line, label=curve.name, **look)
        for point in points:
            if point.interval is not None:
                axes.plot([point.x, point.x], point.interval, linewidth=1.2, alpha=0.5, **look)
            if point.marked:
                axes.plot([point.x], [point.y], marker="*", markersize=13, linestyle="none", **look)
    axes.set_title(panel.title, loc="left")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _mark(axes: Axes, values: Collection[float], *, logarithmic: bool) -> None:
    """Mark the values themselves, or on a logarithmic axis the round numbers among them."""
    if not values:
        return
    low, high = min(values), max(values)
    if not logarithmic:
        axes.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
        room = 0.06 * (high - low or 1.0)
        axes.set_xlim(low - room, high + room)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.5, high * 1.5)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    ticks = [tick for tick in ticks if low / 1.5 <= tick <= high * 1.5]
    axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
