"""Recipes: how a raw volume becomes a prepared one. Frozen settings; a named recipe is a function that returns them.

The same recipe runs at ingest and, from the model's own copy of it, on a single file to be scored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vesalius.platform.config import Settings, validate
from vesalius.platform.tables import TableEntry, lookup

if TYPE_CHECKING:
    from collections.abc import Mapping


def _three(value: Any) -> Any:
    """Let one number stand for three equal ones: ``--set recipe.spacing_mm=2``."""
    return (value, value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_Length = Annotated[float, Field(gt=0, le=1000)]
_Count = Annotated[int, Field(ge=1, le=2048)]
Lengths = Annotated[tuple[_Length, _Length, _Length], BeforeValidator(_three)]
Counts = Annotated[tuple[_Count, _Count, _Count], BeforeValidator(_three)]

TEMPLATE_CENTER_MM = (0.0, -17.0, 5.0)
"""Centre of the MNI152 brain's bounding box (measured on nilearn's template: x -72..72, y -107..73, z -72..82 mm)."""

TEMPLATE_BOX_MM = (160.0, 192.0, 160.0)
"""A box that holds that brain with 3 mm to spare, whose edges divide by 1, 2, 4 and 8."""


class Recipe(Settings):
    """How volumes are prepared. Stored in the cohort store and in every model trained on it.

    The steps, in order: canonical RAS+ orientation; ``clip_minimum``; brain mask; registration; background to the
    lower clip; smoothing against aliasing; resampling (linear, masks by nearest neighbour); clip and scaling over the
    brain; background to 0.
    """

    registration: Literal["none", "affine"] = Field(
        "none", description="affine takes the brain to MNI152 by 12 parameters; none leaves it where it is"
    )
    spacing_mm: Lengths | None = Field(None, description="voxel size of the grid; null keeps the source's own voxels")
    grid: Counts | None = Field(None, description="voxels of the grid; null takes box_mm, or the source's extent")
    box_mm: Lengths | None = Field(None, description="edges of the grid in mm, used where grid is null")
    center_mm: tuple[float, float, float] | None = Field(
        None,
        description="centre of the grid in world mm; null takes the MNI brain's centre with registration, and "
        "otherwise moves each brain's bounding-box centre to the origin",
    )
    brain: Literal["auto", "given", "nonzero", "otsu"] = Field(
        "auto",
        description="auto takes the mask given, else what differs from a constant background, else Otsu's threshold",
    )
    head: Literal["none", "given", "otsu"] = Field("none", description="whether a head mask is kept and from where")
    clip_minimum: float | None = Field(None, description="raise lower intensities to this: 0 removes negative ringing")
    percentile_low: float = Field(0.0, ge=0, lt=100, description="lower clip, a percentile over the brain")
    percentile_high: float = Field(98.0, gt=0, le=100, description="upper clip, a percentile over the brain")
    scale: bool = Field(True, description="clip at the percentiles and scale to [0, 1] over the brain")
    background: Literal["zero", "keep"] = Field("zero", description="zero sets everything outside the brain to 0")
    antialias: bool = Field(True, description="smooth before a coarser grid, so that noise is averaged and not picked")
    dtype: Literal["float32", "float16"] = Field("float32", description="type of the stored intensities")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.percentile_low >= self.percentile_high:
            raise ValueError(f"percentile_low must be below percentile_high ({self.percentile_high:g})")
        if self.registration == "affine" and self.spacing_mm is None:
            raise ValueError("registration 'affine' needs a spacing_mm: there is no source grid to keep")
        if self.spacing_mm is None and self.box_mm is not None and self.grid is None:
            raise ValueError("box_mm needs a spacing_mm")
        return self

    def target_grid(self) -> tuple[int, int, int] | None:
        """Return the voxels of the grid where the recipe fixes them, None where each source does."""
        if self.grid is not None:
            return self.grid
        box = self.box_mm or (TEMPLATE_BOX_MM if self.registration == "affine" else None)
        if box is None or self.spacing_mm is None:
            return None
        # A hair is taken off so that 160 mm in steps of 0.1 mm is 1600 voxels and not 1601.
        d, h, w = (math.ceil(edge / step - 1e-6) for edge, step in zip(box, self.spacing_mm, strict=True))
        return (d, h, w)


def mni_affine(spacing: float = 2.0) -> Recipe:
    """Affine registration to MNI152 and a 160 x 192 x 160 mm box: native scans of any head position."""
    return Recipe(
        registration="affine",
        spacing_mm=(spacing, spacing, spacing),
        box_mm=TEMPLATE_BOX_MM,
        center_mm=TEMPLATE_CENTER_MM,
    )


def mni_space(spacing: float = 2.0) -> Recipe:
    """The same box without registration: volumes that already lie in MNI space."""
    return mni_affine(spacing).model_copy(update={"registration": "none"})


def centered(spacing: float = 2.0) -> Recipe:
    """The same box around each brain's own centre, without registration."""
    return mni_affine(spacing).model_copy(update={"registration": "none", "center_mm": None})


def as_is() -> Recipe:
    """Grid and intensities left alone: volumes that are prepared already, such as the phantom's."""
    return Recipe(scale=False, background="keep", antialias=False)


RECIPES: dict[str, TableEntry] = {
    "mni_affine": TableEntry(
        path="vesalius.datasets.recipes:mni_affine",
        summary="affine registration to MNI152, 2 mm, 98th-percentile clip, [0, 1] over the brain",
    ),
    "mni_space": TableEntry(
        path="vesalius.datasets.recipes:mni_space",
        summary="the same grid and scaling for volumes that already lie in MNI space",
    ),
    "centered": TableEntry(
        path="vesalius.datasets.recipes:centered",
        summary="the same scaling, the box around each brain's own centre, no registration",
    ),
    "as_is": TableEntry(
        path="vesalius.datasets.recipes:as_is",
        summary="grid and intensities left alone: volumes that are prepared already",
    ),
}
"""Named recipes; ``--set recipe.x=...`` changes one."""


def recipe_named(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        SettingError: no such recipe; names the nearest one.
    """
    recipe: Recipe = lookup(RECIPES, name, "recipe")()
    return recipe


def recipe_of(recipe: Recipe | Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Return a recipe from the JSON kept in a store or a model.

    Raises:
        SettingError: a key is unknown or a value does not fit.
    """
    return recipe if isinstance(recipe, Recipe) else validate(Recipe, recipe, origin)
