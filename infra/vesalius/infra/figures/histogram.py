"""How the scores of healthy voxels lie to those of lesion voxels: Fig. 6 of Baur et al. 2018, from exact counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures import style
from vesalius.platform.evaluation.histogram import VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from vesalius.platform.evaluation import Histogram

NUM_BARS = 80
PANEL_INCHES = (5.4, 2.5)
HEALTHY, LESION = "#4D4D4D", style.ATTENTION


@dataclass(frozen=True, kw_only=True)
class HistogramPanel:
    """One method's scores.

    Attributes:
        name: of the method or run.
        counts: healthy and lesion voxels by score, over all subjects.
        threshold: marked by a line; None where there is none.
        how: how the threshold was chosen.
    """

    name: str
    counts: Histogram
    threshold: float | None = None
    how: str = ""


def draw_histogram(panels: Sequence[HistogramPanel], path: Path, *, title: str, caption: str) -> Path:
    """Draw a panel a method: the share of healthy and of lesion voxels in equal steps of the score, on a log axis.

    Each kind of voxel is divided by its own number, so that a rare lesion stands as high as the healthy brain. Bars
    are sums of exact counts; a kind that has no voxel is left out.

    Args:
        panels: the methods.
        path: the PNG to write.
        title: says what is shown.
        caption: says what is counted.
    """
    num_columns = 1 if len(panels) == 1 else 2
    num_rows = -(-len(panels) // num_columns)
    left, right, top, bottom, between = 0.85, 0.25, 0.95, 0.95, 0.85
    width = left + right + num_columns * PANEL_INCHES[0] + (num_columns - 1) * between
    height = top + bottom + num_rows * PANEL_INCHES[1] + (num_rows - 1) * between
    with style.new_figure(width, height) as figure:
        grid = figure.add_gridspec(
            num_rows,
            num_columns,
            left=left / width,
            right=1 - right / width,
            top=1 - top / height,
            bottom=bottom / height,
            wspace=between / PANEL_INCHES[0],
            hspace=between / PANEL_INCHES[1],
        )
        for index, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(grid[divmod(index, num_columns)]), panel)
        figure.text(0.22 / width, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold", va="top")
        figure.text(0.22 / width, 0.18 / height, caption, fontsize=8.5, color=style.FAINT, va="bottom")
        return style.save(figure, path)


def bars(counts: NDArray[Any], values: NDArray[Any], edges: NDArray[Any]) -> NDArray[np.float64]:
    """Return what share of the voxels lies between neighbouring edges; the last edge belongs to the last bar.

    Args:
        counts: (B,) voxels by score.
        values: (B,) the scores, within the edges.
        edges: (n + 1,) rising, evenly spaced.
    """
    found, _ = np.histogram(values, bins=edges, weights=counts)
    return np.asarray(found, dtype=np.float64) / max(1, int(counts.sum()))


def share_above(counts: NDArray[Any], values: NDArray[Any], threshold: float) -> float:
    """Return what share of the voxels has ``score >= threshold``."""
    return float(counts[values >= threshold].sum()) / max(1, int(counts.sum()))


def _draw_panel(axes: Axes, panel: HistogramPanel) -> None:
    values = VALUES[panel.counts.bins]
    low, high = (float(values[0]), float(values[-1])) if values.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, NUM_BARS + 1)
    least = 1.0
    for kind, counts, colour in (
        ("healthy", panel.counts.negative_counts, HEALTHY),
        ("lesion", panel.counts.positive_counts, LESION),
    ):
        if not counts.sum():
            continue
        shares = bars(counts, values, edges)
        least = min(least, float(shares[shares > 0].min()))
        said = f"{kind} ({int(counts.sum()):,} voxels)"
        if panel.threshold is not None:
            said += f", {share_above(counts, values, panel.threshold):.2%} above"
        axes.stairs(shares, edges, color=colour, linewidth=1.5, label=said)
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.22)
    if panel.threshold is not None and panel.threshold <= edges[-1]:
        axes.axvline(panel.threshold, color=style.TRUTH, linewidth=1.8, label=f"threshold {panel.threshold:.4g}")
    axes.set_yscale("log")
    axes.set_ylim(least / 2, 2.0)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_title(f"{panel.name}   {panel.how}".rstrip(), loc="left")
    axes.set_xlabel("anomaly score")
    axes.set_ylabel("share of the kind's voxels")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
