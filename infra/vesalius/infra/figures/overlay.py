"""One scored volume in three planes: what went in, what was restored, what stands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures import style

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

SHOWN_UP_TO = 2.5
PLANES = ((2, "axial"), (1, "coronal"), (0, "sagittal"))
_EDGES = {2: ("L", "R"), 1: ("L", "R"), 0: ("P", "A")}


def draw_overlay(
    image: NDArray[Any],
    values: NDArray[Any],
    path: Path,
    *,
    brain: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    title: str,
    caption: str,
    threshold: float | None,
    restoration: NDArray[Any] | None = None,
) -> Path:
    """Draw input, restoration and map in the three planes through the map's highest point inside the brain.

    Args:
        image: (D, H, W) first channel.
        values: (D, H, W) anomaly map.
        path: the PNG to write.
        brain: (D, H, W) bool; the picture is cut to it.
        spacing_mm: voxel size along D, H, W.
        title: the volume and the model.
        caption: one line below.
        threshold: drawn as a line; without one the colour runs to the map's 99.9th percentile.
        restoration: (D, H, W), where the method makes one.
    """
    box = style.bounding_box(brain, margin=3)
    image, values, brain = image[box], np.asarray(values, dtype=np.float32)[box], brain[box]
    peak = find_peak(values, brain)
    scale = threshold if threshold is not None else float(np.percentile(values, 99.9))
    shown = relative(values, scale, float(values.min()))
    low, high = style.grey_range(image, brain)
    rows: list[tuple[str, NDArray[Any], bool]] = [("input", image, False)]
    if restoration is not None:
        rows.append(("restored", restoration[box], False))
    rows.append(("anomaly map", shown, True))
    left, top, bottom, side, inches = 1.3, 0.82, 0.55, 0.95, 2.3
    width, height = left + 3 * inches + side, top + len(rows) * inches + bottom
    with style.new_figure(width, height) as figure:
        grid = figure.add_gridspec(
            len(rows),
            3,
            left=left / width,
            right=1 - side / width,
            top=1 - top / height,
            bottom=bottom / height,
            wspace=0.03,
            hspace=0.03,
        )
        drawn = None
        for row, (name, volume, is_map) in enumerate(rows):
            for column, (axis, plane_name) in enumerate(PLANES):
                axes: Axes = figure.add_subplot(grid[row, column])
                style.tile(axes)
                plane = style.across(volume, axis, peak[axis])
                row_mm, column_mm = style.plane_spacing(spacing_mm, axis)
                options: dict[str, Any] = {"origin": "lower", "aspect": row_mm / column_mm}
                if is_map:
                    drawn = axes.imshow(plane, cmap=style.MAP_COLOURS, vmin=0.0, vmax=SHOWN_UP_TO, **options)
                else:
                    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, **options)
                if threshold is not None and name != "restored":
                    found = style.across(shown, axis, peak[axis])
                    style.outline(axes, found, style.FOUND if is_map else style.ATTENTION, level=1.0, width=1.1)
                if row == 0:
                    axes.set_title(plane_name)
                    for place, letter, where in zip((0.03, 0.97), _EDGES[axis], ("left", "right"), strict=True):
                        axes.text(
                            place, 0.97, letter, transform=axes.transAxes, color="white", fontsize=8, va="top", ha=where
                        )
                if column == 0:
                    axes.text(
                        -0.06,
                        0.5,
                        name,
                        transform=axes.transAxes,
                        ha="right",
                        va="center",
                        fontsize=9,
                        fontweight="bold",
                    )
        figure.text(0.2 / width, 1 - 0.2 / height, title, fontsize=12, fontweight="bold", va="top")
        figure.text(0.2 / width, 0.2 / height, caption, fontsize=8.5, color=style.FAINT, va="bottom")
        if drawn is not None:
            bar = figure.add_axes((1 - 0.75 / width, (bottom + 0.1) / height, 0.13 / width, (inches - 0.2) / height))
            colours = figure.colorbar(drawn, cax=bar, extend="max")
            colours.set_ticks([0.0, 1.0, 2.0], labels=["0", "1", "2"])
            unit = "multiples of the threshold" if threshold is not None else "multiples of the 99.9th percentile"
            colours.set_label(f"score in {unit}", fontsize=8.5)
            if threshold is not None:
                bar.axhline(1.0, color=style.FOUND, linewidth=1.4)
        return style.save(figure, path)


def relative(values: NDArray[Any], threshold: float, lowest: float) -> NDArray[Any]:
    """Return a map in multiples of its threshold: 0 at ``lowest`` (or at zero, if lower), 1 at the threshold."""
    zero = min(0.0, lowest)
    span = threshold - zero
    return (np.asarray(values, dtype=np.float32) - zero) / (span if span > 0 else 1.0)


def find_peak(values: NDArray[Any], brain: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return the voxel with the highest value inside the brain, or of the whole grid where there is no brain."""
    held = np.where(brain, values, -np.inf) if brain.any() else values
    i, j, k = np.unravel_index(int(np.argmax(held)), values.shape)
    return int(i), int(j), int(k)
