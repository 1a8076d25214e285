"""Colours, fonts and slices that all pictures share.

The two line colours are from Okabe and Ito's palette and the map is a perceptually even ramp: both are told
apart with every common form of colour blindness and in grey print.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TRUTH = "#56B4E9"
FOUND = "#FFFFFF"
ATTENTION = "#E69F00"
INK = "#1A1A1A"
FAINT = "#6B6B6B"
MAP_COLOURS = "inferno"

_FONTS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure of ``width`` by ``height`` inches that belongs to no window and no global state."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    with mpl.rc_context(_FONTS):
        figure = NewFigure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure


def text_inches(figure: Figure, text: str, **font: Any) -> float:
    """Return the width of a text drawn in ``figure``."""
    canvas: Any = figure.canvas
    drawn = figure.text(0, 0, text, **font)
    width = float(drawn.get_window_extent(canvas.get_renderer()).width) / figure.dpi
    drawn.remove()
    return width


def wrapped(figure: Figure, text: str, inches: float, **font: Any) -> list[str]:
    """Return a text in lines of whole words no wider than ``inches``; a word that is wider alone is shortened."""
    lines: list[str] = []
    for word in (shortened(figure, word, inches, **font) for word in text.split()):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_inches(figure, longer, **font) <= inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def shortened(figure: Figure, text: str, inches: float, **font: Any) -> str:
    """Return a text no wider than ``inches``, with an ellipsis for its middle where it is too long."""
    answer, kept = text, len(text)
    while kept > 2 and text_inches(figure, answer, **font) > inches:
        kept -= 1
        # Names of scans tend to differ at their ends.
        answer = f"{text[: kept // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (kept - kept // 2) :]}"
    return answer


def save(figure: Figure, path: Path, dots_per_inch: int = 150) -> Path:
    """Write ``figure`` as PNG, aside first and renamed at the end, and return ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=dots_per_inch)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def across(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """Return the slice of a (D, H, W) volume across ``axis`` as rows and columns to be drawn from below.

    Axis 2 is axial (left of the picture is the patient's left, top is anterior), 1 coronal (top is superior),
    0 sagittal (right is anterior, top is superior).
    """
    plane: NDArray[Any] = np.take(volume, index, axis=axis).T
    return plane


def plane_spacing(spacing_mm: tuple[float, float, float], axis: int) -> tuple[float, float]:
    """Return millimetres per row and per column of :func:`across`."""
    column, row = (s for i, s in enumerate(spacing_mm) if i != axis)
    return row, column


def grey_range(image: NDArray[Any], inside: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return black and white of a picture: the darkest value, and the 99.5th percentile inside the brain."""
    values = image[inside] if inside is not None and inside.any() else image
    low, high = float(image.min()), float(np.percentile(values, 99.5))
    return low, high if high > low else low + 1.0


def bounding_box(mask: NDArray[np.bool_], margin: int = 2) -> tuple[slice, slice, slice]:
    """Return slices around the true voxels of a (D, H, W) mask, the whole grid when there is none."""
    if not mask.any():
        return (slice(None), slice(None), slice(None))
    box = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(line[0]) - margin), min(mask.shape[axis], int(line[-1]) + 1 + margin)))
    return (box[0], box[1], box[2])


def tile(axes: Axes, *, frame: str | None = None) -> None:
    """Make ``axes`` a black tile without ticks, framed where ``frame`` names a colour."""
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    # The tile keeps its size and the slice its proportions: what is left over stays black.
    axes.set_adjustable("datalim")
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame or "none")
        spine.set_linewidth(1.5)


def outline(
    axes: Axes, mask: NDArray[Any], colour: str, *, level: float = 0.5, width: float = 1.0, dashed: bool = False
) -> None:
    """Draw the line round ``mask >= level``, in voxel units of the slice; nothing where it does not cross."""
    values = np.asarray(mask, dtype=np.float32)
    if values.min() < level <= values.max():
        styles = "dashed" if dashed else "solid"
        axes.contour(values, levels=[level], colors=[colour], linewidths=[width], linestyles=[styles])
