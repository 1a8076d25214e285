"""Middle slices of every subject, small enough for a page that holds a thousand: a picture, and outlines as paths."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.infra.figures.style import across, plane_spacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.platform.store import SubjectArrays, SubjectRecord

    # Where each plane's picture stands: left and top, width and height in pixels.
    _Layout = tuple[tuple[int, int, int, int], ...]

_GAP_PIXELS = 4
_QUALITY = 72
_SAMPLE = 100_000
# The midline shows the gap between the hemispheres; a little beside it there is more to see.
_PLACES = (0.45, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Three slices side by side: sagittal, coronal, axial; up is up, and the patient's left is on the left.

    Attributes:
        picture: data URI of a grey WebP picture.
        width: its pixels across.
        height: its pixels down.
        brain: outline of the brain mask as an SVG path in the picture's pixels; empty where no slice meets it.
        lesion: likewise of the lesion mask.
    """

    picture: str
    width: int
    height: int
    brain: str
    lesion: str


def picture_width(num_subjects: int) -> int:
    """Return the width of a picture in pixels: a page of a thousand subjects must stay one that a browser opens."""
    if num_subjects <= 80:
        return 480
    return 330 if num_subjects <= 300 else 240


class Album:
    """Slices of a cohort, taken while each subject is in memory.

    Attributes:
        slices: by subject id.
    """

    def __init__(self, num_subjects: int) -> None:
        self.slices: dict[str, Slices] = {}
        self._width = picture_width(num_subjects)
        self._sum: NDArray[np.float64] | None = None
        self._one_size = True

    def add(self, record: SubjectRecord, arrays: SubjectArrays) -> None:
        """Take a subject's slices through the middle of its grid: the same for all, so that a shift is seen."""
        layout = _layout(record, self._width)
        low, high = _window(arrays.image[0], arrays.brain)
        picture = _paste(arrays.image[0], layout, low, high)
        brain = _paste(arrays.brain, layout, 0.0, 1.0)
        lesion = None if arrays.lesion is None else _paste(arrays.lesion, layout, 0.0, 1.0)
        self.slices[record.subject_id] = Slices(
            picture=_webp(picture),
            width=picture.shape[1],
            height=picture.shape[0],
            brain=outline(brain),
            lesion="" if lesion is None else outline(lesion),
        )
        if self._sum is None:
            self._sum = np.zeros(brain.shape)
        self._one_size = self._one_size and self._sum.shape == brain.shape
        if self._one_size:
            self._sum += brain

    def common_outline(self) -> str:
        """Return the outline of what is brain in half of the subjects; empty where their grids differ."""
        if self._sum is None or not self._one_size:
            return ""
        return outline(self._sum / max(1, len(self.slices)))


def outline(mask: NDArray[Any], level: float = 127.5) -> str:
    """Return the line where a picture of a mask (0 to 255) crosses ``level``, as an SVG path of tenths of a pixel."""
    from contourpy import contour_generator
    from matplotlib.path import Path as Polygon

    # A rim of background closes the line where a mask runs out of the picture.
    padded = np.pad(np.asarray(mask, dtype=np.float64), 1)
    parts = []
    for line in contour_generator(z=padded).lines(level):
        polygon = Polygon(np.asarray(line) - 0.5)
        polygon.should_simplify = True
        polygon.simplify_threshold = 0.25
        points = np.asarray(polygon.cleaned(simplify=True).vertices, dtype=np.float64)[:-1]
        if len(points) >= 3:
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(parts)


def _layout(record: SubjectRecord, width: int) -> _Layout:
    """Return where the three planes stand, all at one scale, on their common centre line."""
    sizes = []
    for axis in range(3):
        row_mm, column_mm = plane_spacing(record.spacing_mm, axis)
        columns, rows = (size for index, size in enumerate(record.shape) if index != axis)
        sizes.append((columns * column_mm, rows * row_mm))
    scale = (width - 2 * _GAP_PIXELS) / sum(across_mm for across_mm, _ in sizes)
    pixels = [(max(1, round(across_mm * scale)), max(1, round(down_mm * scale))) for across_mm, down_mm in sizes]
    height = max(down for _, down in pixels)
    places, left = [], 0
    for across_px, down_px in pixels:
        places.append((left, (height - down_px) // 2, across_px, down_px))
        left += across_px + _GAP_PIXELS
    return tuple(places)


def _paste(volume: NDArray[Any], layout: _Layout, low: float, high: float) -> NDArray[np.uint8]:
    """Return the three planes as one grey picture, black between them."""
    from PIL import Image

    width = layout[-1][0] + layout[-1][2]
    height = max(top + down for _, top, _, down in layout)
    sheet = np.zeros((height, width), dtype=np.uint8)
    for axis, (left, top, across_px, down_px) in enumerate(layout):
        place = round(_PLACES[axis] * (volume.shape[axis] - 1))
        plane = across(volume, axis, place)[::-1].astype(np.float32)
        grey = np.clip((plane - low) / (high - low) * 255.0, 0, 255).astype(np.uint8)
        resized = Image.fromarray(grey).resize((across_px, down_px), Image.Resampling.BILINEAR)
        sheet[top : top + down_px, left : left + across_px] = np.asarray(resized)
    return sheet


def _window(image: NDArray[Any], brain: NDArray[np.bool_]) -> tuple[float, float]:
    """Return black and white: the 1st and 99.5th percentile of the brain, and the image's minimum where that is near.

    Air far below (CT) would leave a brain without contrast; a background just below it (MR) is black already.
    """
    inside = image[brain] if brain.any() else image.ravel()
    low, high = np.percentile(inside[:: 1 + inside.size // _SAMPLE].astype(np.float64), (1.0, 99.5)).tolist()
    minimum = float(image.min())
    if low - minimum < 0.5 * (high - low):
        low = minimum
    return (low, high) if high > low else (low, low + 1.0)


def _webp(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
