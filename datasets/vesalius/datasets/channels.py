"""One channel on the grid: bias field, background, smoothing, sampling, denoising, scaling, in this order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets import steps
from vesalius.datasets.intensities import curvature_flow, equalise, smoothed, to_range, window, without_bias
from vesalius.datasets.placing import Canonical, Masks, Placement, shape_of
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import resample, spacing_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.datasets.recipes import Recipe

_MARGIN_VOXELS = 4


def clipped(image: Canonical, recipe: Recipe) -> Canonical:
    """Return a volume clipped at ``clip_minimum`` and ``clip_maximum``."""
    values = steps.raise_minimum(image.image, recipe.clip_minimum)
    if recipe.clip_maximum is not None:
        values = np.minimum(values, np.float32(recipe.clip_maximum))
    return replace(image, image=values)


def channel_of(
    image: Canonical, masks: Masks, first: Canonical, masks_out: Masks, grid: Placement, recipe: Recipe
) -> NDArray[np.float32]:
    """Return one modality as it will be stored.

    Args:
        image: the modality, clipped.
        masks: brain and head on the first image's voxels.
        first: that image.
        masks_out: brain and head on the grid.
        grid: where it goes.
        recipe: what to do.

    Raises:
        VolumeError: the masks miss it, or its intensities cannot be scaled.
    """
    over, over_out = masks.of(recipe.scale_over), masks_out.of(recipe.scale_over)
    kept = kept_out = None
    if recipe.background != "keep":
        kept, kept_out = masks.of(recipe.background), masks_out.of(recipe.background)
    if image is not first:
        over = _on_own_grid(over, first, image)
        kept = None if kept is None else _on_own_grid(kept, first, image)
    values, affine = image.image, image.affine
    if recipe.bias == "n4":
        field = (recipe.bias_shrink, recipe.bias_iterations)
        values = without_bias(values, over if kept is None else kept, spacing_of(affine), *field, image.name)
    if kept is None:
        fill = float(values.min())
    else:
        # Set before sampling: a background far below the tissue would otherwise bleed into the brain's edge.
        fill = _low_end(values, over, recipe)
        box = steps.bounding_box(kept, _MARGIN_VOXELS)
        values = steps.outside_to(values[box], kept[box], fill)
        affine = _cropped(affine, box)
    if recipe.antialias and recipe.spacing_mm is not None:
        values = steps.smooth_for(values, spacing_of(affine), recipe.spacing_mm)
    if recipe.smoothing_mm > 0:
        values = smoothed(values, spacing_of(affine), recipe.smoothing_mm)
    placed = _denoised(values, affine, fill, grid, recipe)
    scaled = _scaled(placed, over_out, recipe, image.name)
    return scaled if kept_out is None else steps.outside_to(scaled, kept_out, _outside(recipe))


def _outside(recipe: Recipe) -> float:
    """Return what stands outside the brain, or the head, in the end."""
    return recipe.output_range[0] if recipe.scale != "none" else recipe.clip_minimum or 0.0


def _low_end(values: NDArray[np.float32], over: NDArray[np.bool_], recipe: Recipe) -> float:
    """Return the intensity that scaling will take to the low end of the output."""
    if recipe.scale == "window":
        assert recipe.window_hu is not None  # checked by the recipe
        return recipe.window_hu[0]
    if recipe.scale == "none":
        return _outside(recipe)
    return float(np.percentile(values[over], recipe.percentile_low if recipe.scale == "percentile" else 0.0))


def _denoised(
    values: NDArray[np.float32], affine: NDArray[np.float64], fill: float, grid: Placement, recipe: Recipe
) -> NDArray[np.float32]:
    """Sample on the grid and denoise there; on a margin around it too, so that a slab is part of the whole."""
    if recipe.denoise == "none":
        return grid.place(values, affine, fill=fill, order=1)
    margin = recipe.denoise_iterations
    wide = grid.widened(margin)
    placed = wide.place(values, affine, fill=fill, order=1)
    flowed = curvature_flow(placed, spacing_of(grid.affine), recipe.denoise_time_step, recipe.denoise_iterations)
    return np.ascontiguousarray(flowed[margin:-margin, margin:-margin, margin:-margin])


def _scaled(placed: NDArray[np.float32], over: NDArray[np.bool_], recipe: Recipe, name: str) -> NDArray[np.float32]:
    if recipe.scale == "none":
        return placed
    if not over.any():
        raise VolumeError(
            f"{name}: its {recipe.scale_over} lies outside the grid: register it, or set recipe.center_mm"
        )
    if recipe.scale == "window":
        assert recipe.window_hu is not None  # checked by the recipe
        unit = window(placed, recipe.window_hu)
    elif recipe.scale == "histogram":
        unit = equalise(placed, over, recipe.histogram_bins, name)
    else:
        unit = steps.scale_over(placed, over, recipe.percentile_low, recipe.percentile_high, name)
    return to_range(unit, recipe.output_range)


def _on_own_grid(mask: NDArray[np.bool_], first: Canonical, image: Canonical) -> NDArray[np.bool_]:
    """Return a mask on another modality's grid; both are in one scanner's world."""
    there = resample(mask.astype(np.float32), first.affine, shape_of(image.image), image.affine, order=0) > 0.5
    if not there.any():
        raise VolumeError(
            f"{image.name} does not overlap the brain of {first.name} by their affines: register them to each other"
        )
    return there


def _cropped(affine: NDArray[np.float64], box: steps.Box) -> NDArray[np.float64]:
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ [part.start for part in box] + affine[:3, 3]
    return moved
