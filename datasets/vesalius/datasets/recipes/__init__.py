"""Recipes: how a raw volume becomes a prepared one. Frozen settings; a named recipe is a function that returns them.

The same recipe runs at ingest and, from the model's own copy of it, on a single file to be scored. A recipe after a
paper is one file here: the function, and :class:`PaperStep` by step what the paper does and what becomes of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vesalius.datasets.recipes.general import as_is, centered, mni_affine, mni_positive, mni_space, mni_stripped
from vesalius.datasets.recipes.settings import MNI152, TEMPLATE_BOX_MM, TEMPLATE_CENTER_MM, PaperStep, Recipe
from vesalius.platform.config import validate
from vesalius.platform.tables import TableEntry, lookup

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MNI152",
    "RECIPES",
    "TEMPLATE_BOX_MM",
    "TEMPLATE_CENTER_MM",
    "PaperStep",
    "Recipe",
    "as_is",
    "centered",
    "mni_affine",
    "mni_positive",
    "mni_space",
    "mni_stripped",
    "recipe_named",
    "recipe_of",
    "steps_of",
]

RECIPES: dict[str, TableEntry] = {
    "mni_affine": TableEntry(
        path="vesalius.datasets.recipes.general:mni_affine",
        summary="affine registration to MNI152, 2 mm, 98th-percentile clip, [0, 1] over the brain",
    ),
    "mni_stripped": TableEntry(
        path="vesalius.datasets.recipes.general:mni_stripped",
        summary="mni_affine for whole MR heads: the brain is extracted first",
    ),
    "mni_space": TableEntry(
        path="vesalius.datasets.recipes.general:mni_space",
        summary="the same grid and scaling for volumes that already lie in MNI space",
    ),
    "mni_positive": TableEntry(
        path="vesalius.datasets.recipes.general:mni_positive",
        summary="mni_space with the negative ringing of an interpolation raised to 0",
    ),
    "centered": TableEntry(
        path="vesalius.datasets.recipes.general:centered",
        summary="the same scaling, the box around each brain's own centre, no registration",
    ),
    "as_is": TableEntry(
        path="vesalius.datasets.recipes.general:as_is",
        summary="grid and intensities left alone: volumes that are prepared already",
    ),
    "implicit_field_2021": TableEntry(
        path="vesalius.datasets.recipes.implicit_field_2021:implicit_field_2021",
        summary="MR, stripped: 160-cube of 210 mm, 98th-percentile clip, [0, 1] (Naval Marimont & Tarroni 2021)",
    ),
    "implicit_field_2021_full": TableEntry(
        path="vesalius.datasets.recipes.implicit_field_2021:implicit_field_2021_full",
        summary="the same at full resolution: 300-cube of 0.7 mm",
    ),
    "anovaegan_2018": TableEntry(
        path="vesalius.datasets.recipes.anovaegan_2018:anovaegan_2018",
        summary="MR: rigid to an atlas, skull strip, curvature flow, [0, 1], 20 axial slices of 256 (Baur et al. 2018)",
    ),
    "position_regression_2022": TableEntry(
        path="vesalius.datasets.recipes.position_regression_2022:position_regression_2022",
        summary="CT: rigid, 1 mm, 256-cube, equalised histogram, head, skull, hemispheres (Bieder et al. 2022)",
    ),
    "f_anogan_3d_2020": TableEntry(
        path="vesalius.datasets.recipes.f_anogan_3d_2020:f_anogan_3d_2020",
        summary="CT: affine to MNI152, brain alone, no border, 64-cube, -20..100 HU to [-1, 1] (Simarro Viana 2020)",
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
    """Return a recipe from the JSON kept in a store or a model, its reference file known by its digest.

    Raises:
        SettingError: a key is unknown or a value does not fit, or there is no such reference file.
    """
    from vesalius.datasets.reference import pinned

    return pinned(recipe if isinstance(recipe, Recipe) else validate(Recipe, recipe, origin))


def steps_of(name: str) -> tuple[PaperStep, ...]:
    """Return the steps of the paper that a named recipe follows; none where it follows no paper.

    Raises:
        SettingError: no such recipe; names the nearest one.
    """
    lookup(RECIPES, name, "recipe")
    module = importlib.import_module(RECIPES[name].path.partition(":")[0])
    steps: tuple[PaperStep, ...] = getattr(module, "STEPS", ())
    return steps
