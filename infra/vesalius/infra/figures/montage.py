"""Every prepared subject on one sheet, so that a person can look at every registration."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures import style

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SUSPICIOUS_OVERLAP = 0.9

_LEAST_WIDTH = 5.2
_TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}
_LEGEND: dict[str, Any] = {"fontsize": 8.5, "color": style.FAINT}
# Inches from line to line.
_TITLE_LINE, _LEGEND_LINE = 0.23, 0.17


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One subject: three middle slices of it, with its brain's overlap with the reference's.

    Attributes:
        label: subject id.
        planes: sagittal, coronal and axial slice (2D), to be drawn from below.
        overlap: Dice between this brain and the reference's, in [0, 1]; None where there is no reference.
        attention: there is a warning about this subject.
    """

    label: str
    planes: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    overlap: float | None
    attention: bool = False


def middle_planes(volume: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the sagittal, coronal and axial slice through the middle of a (D, H, W) volume.

    The sagittal one is a twentieth of the grid off the midline, where there is more to see than the gap
    between the hemispheres.
    """
    d, h, w = volume.shape
    return (
        style.across(volume, 0, round(0.45 * (d - 1))),
        style.across(volume, 1, round(0.5 * (h - 1))),
        style.across(volume, 2, round(0.5 * (w - 1))),
    )


def draw_montage(
    tiles: Sequence[Tile],
    reference: NDArray[Any] | None,
    path: Path,
    *,
    spacing_mm: tuple[float, float, float],
    title: str,
    reference_name: str = "",
    columns: int | None = None,
) -> Path:
    """Draw all subjects with the outline of a reference brain: a template's, or the one that most of them share.

    A brain that is shifted, turned or ill-masked leaves the outline. Its name stands in orange where its overlap is
    below :data:`SUSPICIOUS_OVERLAP` or a warning was written about it.

    Args:
        tiles: the subjects.
        reference: (D, H, W) in [0, 1], the reference brain where it is 0.5 or more; None where grids differ.
        path: the PNG to write.
        spacing_mm: voxel size along D, H, W.
        title: what is shown.
        reference_name: what the outline is, for the legend.
        columns: subjects side by side; by default what makes a sheet of common proportions.
    """
    across = columns or max(1, min(len(tiles), ceil((len(tiles) / 2.2) ** 0.5)))
    down = ceil(len(tiles) / across)
    cell_width, cell_height, rim = 3.3, 1.42, 0.15
    # A sheet of one column would leave no room for what stands above it.
    width = max(across * cell_width + 2 * rim, _LEAST_WIDTH)
    shared = (None, None, None) if reference is None else middle_planes(reference)
    orange = f"orange: overlap below {SUSPICIOUS_OVERLAP}, or a warning at ingest"
    legend = orange if reference is None else f"blue: outline of {reference_name}; {orange}"
    with style.new_figure(width, 1) as figure:
        titles = style.wrapped(figure, title, width - 2 * rim, **_TITLE)
        legends = style.wrapped(figure, legend, width - 2 * rim, **_LEGEND)
        head = 0.21 + _TITLE_LINE * len(titles) + _LEGEND_LINE * len(legends)
        height = down * cell_height + head + 0.23
        figure.set_size_inches(width, height)
        for index, tile in enumerate(tiles):
            column, row = index % across, index // across
            suspicious = tile.attention or (tile.overlap is not None and tile.overlap < SUSPICIOUS_OVERLAP)
            left = rim + column * cell_width
            base = height - head - (row + 1) * cell_height
            for place, (plane, line) in enumerate(zip(tile.planes, shared, strict=True)):
                axes = figure.add_axes(
                    ((left + place * 1.05) / width, (base + 0.02) / height, 1.03 / width, 1.16 / height)
                )
                style.tile(axes, frame=style.ATTENTION if suspicious else None)
                row_mm, column_mm = style.plane_spacing(spacing_mm, place)
                low, high = style.grey_range(plane, None)
                axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=row_mm / column_mm)
                if line is not None:
                    style.outline(axes, line, style.TRUTH, width=0.8)
            font: dict[str, Any] = {"fontsize": 8, "fontweight": "bold" if suspicious else "normal"}
            said = "" if tile.overlap is None else f"   overlap {tile.overlap:.2f}"
            room = cell_width - 0.1 - style.text_inches(figure, said, **font)
            label = style.shortened(figure, tile.label, room, **font) + said
            colour = style.ATTENTION if suspicious else style.INK
            figure.text(left / width, (base + 1.2) / height, label, color=colour, va="bottom", **font)
        top = rim
        for lines, font, step in ((titles, _TITLE, _TITLE_LINE), (legends, _LEGEND, _LEGEND_LINE)):
            figure.text(rim / width, 1 - top / height, "\n".join(lines), va="top", linespacing=1.15, **font)
            top += step * len(lines)
        return style.save(figure, path, dots_per_inch=120)


def common_brain(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Return the share of masks, in [0, 1], that hold each voxel; all masks have one shape."""
    total = np.zeros(masks[0].shape, dtype=np.float32)
    for mask in masks:
        total += mask
    return total / np.float32(len(masks))


def overlap(mask: NDArray[np.bool_], reference: NDArray[np.float32]) -> float:
    """Return the Dice overlap of ``mask`` with the voxels where ``reference`` is 0.5 or more."""
    shared = reference >= 0.5
    total = int(mask.sum()) + int(shared.sum())
    return 2.0 * int((mask & shared).sum()) / total if total else 0.0
