"""A surface seen from outside and coloured by the error below it: figure 5 of Bieder et al. 2022.

No mesh is made: along parallel rays the first voxel of the mask is looked up, so that what is seen is the mask itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from vesalius.infra.figures import style

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

View = Literal["front", "left", "right", "top"]
VIEWS: tuple[View, ...] = get_args(View)
_TILE_INCHES = 1.75
_STEP_MM = 1.0
_SMOOTH_MM = 1.5
_LIGHT = np.array([0.45, -0.35, 1.0])
"""Towards the light: upwards in the picture, to its left (so that this one stands to the right), and to the viewer."""


@dataclass(frozen=True, kw_only=True)
class SurfaceCase:
    """One subject.

    Attributes:
        label: subject id, with what is known of it.
        mask: (D, H, W) bool in RAS+ axes: what is seen, such as the skull.
        error: (D, H, W) map.
        spacing_mm: voxel size along D, H, W.
    """

    label: str
    mask: NDArray[np.bool_]
    error: NDArray[np.floating[Any]]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a view shows; NaN where a ray meets nothing.

    Attributes:
        light: (rows, columns) in [0, 1].
        error: (rows, columns) the highest error within the mask along the ray, from where it meets it to ``depth_mm``
            below. It is read between voxels, so that within a voxel of the surface what lies outside counts as well.
    """

    light: NDArray[np.float64]
    error: NDArray[np.float64]


def look(
    mask: NDArray[np.bool_],
    error: NDArray[np.floating[Any]],
    spacing_mm: tuple[float, float, float],
    view: View,
    *,
    depth_mm: float = 8.0,
) -> Seen:
    """Look at a mask along parallel rays.

    From the front, the left, the right or the top of the patient; the front of the head is up in a view from the top,
    and its top is up in the others.

    Args:
        mask: (D, H, W) in RAS+ axes.
        error: of the same shape.
        spacing_mm: voxel size along D, H, W.
        view: from where.
        depth_mm: how far below the surface errors show.
    """
    from scipy.ndimage import gaussian_filter, zoom

    # Cubes of a millimetre, so that a coarse grid does not look like a staircase; no finer grid is made coarser.
    factors = [max(1.0, edge / _STEP_MM) for edge in spacing_mm]
    steps_mm = [edge / factor for edge, factor in zip(spacing_mm, factors, strict=True)]
    box = style.bounding_box(mask, margin=2)
    soft = zoom(np.pad(mask[box], 1).astype(np.float32), factors, order=1)
    values = zoom(np.pad(error[box].astype(np.float32), 1, mode="edge"), factors, order=1)
    soft = gaussian_filter(soft, [_SMOOTH_MM / step for step in steps_mm])
    soft, values = _turned(soft, view), _turned(values, view)
    step = _turned_steps(steps_mm, view)
    inside = soft > 0.5
    met = inside.any(axis=2)
    first = inside.argmax(axis=2)[..., None]
    normal = np.stack(
        [-np.take_along_axis(np.gradient(soft, step[axis], axis=axis), first, 2)[..., 0] for axis in range(3)]
    )
    # Rows run down, columns to the right, rays away from the viewer.
    normal = normal * np.array([-1.0, -1.0, -1.0])[:, None, None]
    length = np.linalg.norm(normal, axis=0)
    light = np.einsum("i,ijk->jk", _LIGHT / np.linalg.norm(_LIGHT), normal) / np.where(length > 0, length, 1)
    count = max(1, round(depth_mm / step[2]))
    highest = np.full(met.shape, -np.inf)
    for below in range(count):
        at = np.minimum(first + below, soft.shape[2] - 1)
        within = np.take_along_axis(inside, at, 2)[..., 0]
        highest = np.where(within, np.maximum(highest, np.take_along_axis(values, at, 2)[..., 0]), highest)
    return Seen(light=np.where(met, np.clip(0.25 + 0.75 * light, 0, 1), np.nan), error=np.where(met, highest, np.nan))


def draw_surfaces(
    cases: Sequence[SurfaceCase],
    path: Path,
    *,
    title: str,
    caption: str,
    views: Sequence[View] = VIEWS,
    limits: tuple[float, float] | None = None,
) -> Path:
    """Draw two rows a subject: its surface, and the same coloured by the error; all subjects on one scale.

    Args:
        cases: the subjects.
        path: the PNG to write.
        title: says what is shown.
        caption: says how to read it.
        views: from where.
        limits: errors at the ends of the colours; None takes the least and the greatest seen.
    """
    import matplotlib as mpl

    seen = [[look(case.mask, case.error, case.spacing_mm, view) for view in views] for case in cases]
    shown = np.concatenate([one.error[~np.isnan(one.error)] for row in seen for one in row])
    low, high = limits or ((float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0))
    colours = mpl.colormaps[style.MAP_COLOURS]
    norm = mpl.colors.Normalize(low, high if high > low else low + 1.0)
    left, top, bottom, right, named = 0.15, 0.75, 0.7, 0.85, 0.22
    width = left + len(views) * _TILE_INCHES + right
    height = top + bottom + len(cases) * (2 * _TILE_INCHES + named)
    with style.new_figure(width, height) as figure:
        for number, (case, row) in enumerate(zip(cases, seen, strict=True)):
            ceiling = height - top - number * (2 * _TILE_INCHES + named)
            label = style.shortened(figure, case.label, width - left - 0.1, fontsize=9, fontweight="bold")
            figure.text(left / width, (ceiling - 0.05) / height, label, fontsize=9, fontweight="bold", va="top")
            for column, one in enumerate(row):
                for line, picture in enumerate((_grey(one), _coloured(one, colours, norm))):
                    base = ceiling - named - (line + 1) * _TILE_INCHES
                    axes = figure.add_axes(
                        (
                            (left + column * _TILE_INCHES) / width,
                            base / height,
                            (_TILE_INCHES - 0.04) / width,
                            (_TILE_INCHES - 0.04) / height,
                        )
                    )
                    style.tile(axes)
                    axes.imshow(picture, interpolation="bilinear")
        bar = figure.add_axes(
            ((left + len(views) * _TILE_INCHES + 0.12) / width, (bottom + 0.3) / height, 0.12 / width, 1.6 / height)
        )
        figure.colorbar(mpl.cm.ScalarMappable(norm=norm, cmap=colours), cax=bar, label="error")
        figure.text(left / width, 1 - 0.2 / height, title, fontsize=12, fontweight="bold", va="top")
        lines = style.wrapped(figure, caption, width - 2 * left, fontsize=8.5)
        figure.text(left / width, 0.12 / height, "\n".join(lines), fontsize=8.5, color=style.FAINT, va="bottom")
        return style.save(figure, path)


def _grey(seen: Seen) -> NDArray[np.float64]:
    return np.repeat(np.nan_to_num(seen.light)[..., None], 3, axis=2)


def _coloured(seen: Seen, colours: Any, norm: Any) -> NDArray[np.float64]:
    # Light only darkens a little, so that a colour keeps its meaning.
    shade = 0.45 + 0.55 * np.nan_to_num(seen.light)
    picture: NDArray[np.float64] = colours(norm(np.nan_to_num(seen.error)))[..., :3] * shade[..., None]
    picture[np.isnan(seen.error)] = 0.0
    return picture


def _turned(volume: NDArray[Any], view: View) -> NDArray[Any]:
    """Return (rows down, columns to the right, rays away from the viewer) of a volume in RAS+ axes."""
    x, y, z = 0, 1, 2
    if view == "front":
        # The patient faces the viewer: their right is on the left of the picture.
        return volume.transpose(z, x, y)[::-1, ::-1, ::-1]
    if view == "left":
        return volume.transpose(z, y, x)[::-1, ::-1, :]
    if view == "right":
        return volume.transpose(z, y, x)[::-1, :, ::-1]
    return volume.transpose(y, x, z)[::-1, :, ::-1]


def _turned_steps(steps_mm: Sequence[float], view: View) -> tuple[float, float, float]:
    x, y, z = steps_mm
    if view == "front":
        return z, x, y
    return (z, y, x) if view in ("left", "right") else (y, x, z)
