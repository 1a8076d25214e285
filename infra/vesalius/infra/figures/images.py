"""Figures of image scores: ROC curves, precision over recall by kind, scores by kind.

After Figs. 4, 5 and 7 of Simarro Viana et al. 2020.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures import style

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common form of colour blindness; lines differ in dashes as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("solid", "dashed", "dashdot", (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 3)), (0, (8, 2, 2, 2)))
_GROUPS = {"healthy": "#4D4D4D", "lesion": "#D55E00", "quality": "#0072B2"}
_PANEL = 3.3
_NAME = 0.175
"""Height of a line of the names beside ROC curves, in inches."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN, _DOWN = 0.75, 0.45, 0.85, 0.95, 0.75, 0.9
_COLUMNS = 3

Points = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RocRow:
    """One method's ROC curve.

    Attributes:
        name: of the row.
        x: false positive rates.
        y: true positive rates.
        auroc: area under it.
        interval: of the area.
        chosen: false and true positive rate at a threshold chosen elsewhere.
        own: the same at the Youden point of the curve itself.
    """

    name: str
    x: Points
    y: Points
    auroc: float | None = None
    interval: tuple[float, float] | None = None
    chosen: tuple[float, float] | None = None
    own: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class KindCurve:
    """Precision over recall for one kind of image against the healthy ones.

    Attributes:
        name: of the kind.
        recall: rising.
        precision: at each.
        average: the average precision.
        share: of images of the kind among all: what chance gives.
    """

    name: str
    recall: Points
    precision: Points
    average: float | None
    share: float


@dataclass(frozen=True, kw_only=True)
class KindScores:
    """Image scores of one kind.

    Attributes:
        name: of the kind.
        scores: of its images.
        group: ``healthy``, ``lesion`` or ``quality``: a colour.
        auroc: against the healthy images.
    """

    name: str
    scores: Points
    group: str
    auroc: float | None = None


def draw_roc(rows: Sequence[RocRow], path: Path, *, title: str, caption: str) -> Path:
    """Draw one ROC curve a method in one square, with its Youden points."""
    size, beside = 4.6, 3.4
    # The names beside the square may go on below it, and the caption stands below both.
    below = max(0.0, _NAME * (len(rows) + 2) - size)
    width, height = _LEFT + size + beside, _TOP + size + below + _BOTTOM
    with style.new_figure(width, height) as figure:
        axes = figure.add_axes((_LEFT / width, (_BOTTOM + below) / height, size / width, size / height))
        axes.plot([0, 1], [0, 1], color=style.FAINT, linewidth=0.8, linestyle="dotted")
        for number, row in enumerate(rows):
            colour, dashes = _look(number)
            label = row.name if row.auroc is None else f"{row.name}   {row.auroc:.2f}"
            if row.interval is not None:
                label += f" ({row.interval[0]:.2f} to {row.interval[1]:.2f})"
            axes.plot(row.x, row.y, color=colour, linestyle=dashes, linewidth=1.7, label=label, clip_on=False)
            for point, filled in ((row.own, False), (row.chosen, True)):
                if point is not None:
                    face = colour if filled else "white"
                    marks: dict[str, Any] = {"markerfacecolor": face, "markersize": 6 if filled else 10}
                    axes.plot(*point, "o", color=colour, zorder=3, clip_on=False, **marks)
        _square(axes, "false positive rate", "true positive rate")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0), title="AUROC (95 %)")
        _texts(figure, title, caption)
        return style.save(figure, path)


def draw_precision_recall(
    panels: Sequence[tuple[str, Sequence[KindCurve]]], path: Path, *, title: str, caption: str
) -> Path:
    """Draw a panel a method with one curve a kind."""
    with _panels(len(panels)) as (figure, every):
        for (name, kinds), axes in zip(panels, every, strict=True):
            for number, kind in enumerate(kinds):
                colour, dashes = _look(number)
                label = kind.name if kind.average is None else f"{kind.name}   AP {kind.average:.2f}"
                recall, precision = (0.0, *kind.recall), (kind.precision[0], *kind.precision)
                # Precision between two points is not on their line: steps, as the average precision counts.
                axes.step(recall, precision, where="pre", color=colour, linestyle=dashes, linewidth=1.6, label=label)
                axes.axhline(kind.share, color=colour, linewidth=0.9, linestyle="dotted")
            _square(axes, "recall", "precision")
            axes.set_title(name, loc="left")
            axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=7.5, loc="lower left")
        _texts(figure, title, caption)
        return style.save(figure, path)


def draw_kinds(panels: Sequence[tuple[str, Sequence[KindScores]]], path: Path, *, title: str, caption: str) -> Path:
    """Draw a panel a method with a row a kind: every image's score as a dot, by its logarithm if all are positive."""
    deepest = max(len(kinds) for _, kinds in panels)
    with _panels(len(panels), height=0.34 * deepest + 0.3, left=1.6, between=2.1) as (figure, every):
        for (name, kinds), axes in zip(panels, every, strict=True):
            positive = all(score > 0 for kind in kinds for score in kind.scores)
            for row, kind in enumerate(kinds):
                values = np.asarray(kind.scores, dtype=np.float64)
                values = np.log10(values) if positive else values
                # Where a dot lies within its row says nothing: spread evenly, so that none hides another.
                spread = row + 0.5 * (((np.arange(len(values)) * 0.618) % 1) - 0.5)
                axes.plot(values, spread, "o", color=_GROUPS[kind.group], markersize=3.6, alpha=0.6, markeredgewidth=0)
                middle = float(np.median(values))
                axes.plot([middle, middle], [row - 0.36, row + 0.36], color=style.INK, linewidth=1.8)
                if kind.auroc is not None:
                    axes.annotate(
                        f"{kind.auroc:.2f}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=7.5
                    )
            axes.set_yticks(range(len(kinds)), [f"{kind.name} ({len(kind.scores)})" for kind in kinds], fontsize=8)
            axes.set_ylim(len(kinds) - 0.4, -0.6)
            axes.set_title(name, loc="left")
            axes.set_xlabel("image score, log10" if positive else "image score")
            axes.locator_params(axis="x", nbins=5)  # numbers of four digits would run into each other
            _open(axes)
        _texts(figure, title, caption)
        return style.save(figure, path)


@contextlib.contextmanager
def _panels(
    num: int, *, height: float = _PANEL, left: float = _LEFT, between: float = _BETWEEN
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Give a figure of ``num`` panels, up to three in a row, and these."""
    num_columns = min(num, _COLUMNS)
    num_rows = -(-num // num_columns)
    across = left + _RIGHT + num_columns * _PANEL + (num_columns - 1) * between
    down = _TOP + _BOTTOM + num_rows * height + (num_rows - 1) * _DOWN
    with style.new_figure(across, down) as figure:
        grid = figure.add_gridspec(
            num_rows,
            num_columns,
            left=left / across,
            right=1 - _RIGHT / across,
            top=1 - _TOP / down,
            bottom=_BOTTOM / down,
            wspace=between / _PANEL,
            hspace=_DOWN / height,
        )
        yield figure, [figure.add_subplot(grid[divmod(index, num_columns)]) for index in range(num)]


def _look(number: int) -> tuple[str, Any]:
    """Return colour and dashes of a curve: colours come again with other dashes."""
    return COLOURS[number % len(COLOURS)], _DASHES[(number + number // len(COLOURS)) % len(_DASHES)]


def _texts(figure: Figure, title: str, caption: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.22 / width, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold", va="top")
    lines = style.wrapped(figure, caption, width - 0.44, fontsize=8.5)
    figure.text(0.22 / width, 0.12 / height, "\n".join(lines), fontsize=8.5, color=style.FAINT, va="bottom")


def _square(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _open(axes)


def _open(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
