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
    cell_width, cell_height = 3.3, 1.42
    width, height = across * cell_width + 0.3, down * cell_height + 0.85
    shared = (None, None, None) if reference is None else middle_planes(reference)
    with style.new_figure(width, height) as figure:
        for index, tile in enumerate(tiles):
            column, row = index % across, index // across
            suspicious = tile.attention or (tile.overlap is not None and tile.overlap < SUSPICIOUS_OVERLAP)
            left = 0.15 + column * cell_width
            base = height - 0.62 - (row + 1) * cell_height
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
            colour = style.ATTENTION if suspicious else style.INK
            figure.text(
                left / width,
                (base + 1.2) / height,
                tile.label if tile.overlap is None else f"{tile.label}   overlap {tile.overlap:.2f}",
                fontsize=8,
                color=colour,
                fontweight="bold" if suspicious else "normal",
                va="bottom",
            )
        figure.text(0.15 / width, 1 - 0.15 / height, title, fontsize=12, fontweight="bold", va="top")
        orange = f"orange: overlap below {SUSPICIOUS_OVERLAP}, or a warning at ingest"
        legend = orange if reference is None else f"blue: outline of {reference_name}; {orange}"
        figure.text(0.15 / width, 1 - 0.38 / height, legend, fontsize=8.5, color=style.FAINT, va="top")
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
