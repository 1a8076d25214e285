"""Every layout's example through every recipe: what is taken in is what the recipe says, what cannot be is refused.

Grids are coarser by eight, and registration is by the masks' centres and sizes alone: what it finds on ellipsoids
proves nothing and takes seconds (tests/unit/test_registration.py holds the real one to known transforms).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vesalius.datasets import LAYOUTS
from vesalius.datasets.prepare import prepare
from vesalius.datasets.recipes import RECIPES, Recipe, recipe_named
from vesalius.datasets.registration import Registration, Target
from vesalius.datasets.steps import world_points
from vesalius.platform.config import override
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import to_native
from vesalius.platform.tables import resolve

if TYPE_CHECKING:
    from pathlib import Path

COARSER = 8


def by_centres(image: Any, affine: Any, mask: Any, name: str, target: Target, kind: str) -> Registration:
    """Stand in for the registration: centre on centre, and for affine size on size."""
    theirs = target.level(6.0)
    points, goal = world_points(mask, affine), world_points(theirs.mask, theirs.affine)
    volume = np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3]))
    scale = (volume / (len(goal) * 6.0**3)) ** (1 / 3) if kind == "affine" else 1.0
    to_source = np.diag([scale, scale, scale, 1.0])
    to_source[:3, 3] = points.mean(axis=0) - scale * goal.mean(axis=0)
    return Registration(to_source=to_source, mutual_information=1.0, dice=1.0, share=1.0)


def coarse(name: str) -> Recipe:
    recipe = recipe_named(name)
    if recipe.spacing_mm is None:
        return recipe
    changes: dict[str, Any] = {"spacing_mm": [step * COARSER for step in recipe.spacing_mm]}
    if recipe.grid is not None:
        changes["grid"] = [math.ceil(size / COARSER) for size in recipe.grid]
    return override(recipe, changes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_recipe_on_a_layouts_example(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vesalius.datasets.registration.register", by_centres)
    monkeypatch.setattr("vesalius.datasets.foreground.stripping.register", by_centres)
    found = resolve(LAYOUTS[layout].path)()
    root = found.write_example(tmp_path / "raw")
    modalities = tuple(found.modalities(root))
    subjects = [raw for raw in found.discover(root, modalities[:1]) if raw.problem is None]
    assert subjects
    for name in RECIPES:
        recipe = coarse(name)
        if recipe.hounsfield and not modalities[0].startswith("CT"):
            with pytest.raises(VolumeError, match="does not look like CT in Hounsfield units"):
                prepare(subjects[0], recipe, modalities[:1])
            continue
        record, arrays = prepare(subjects[0], recipe, modalities[:1])
        case = f"{layout} by {name}"
        assert record.shape == (recipe.target_grid() or record.shape), case
        assert np.isfinite(arrays.image).all(), case
        assert arrays.brain.any(), case
        low, high = recipe.output_range
        if recipe.scale != "none":
            assert low <= arrays.image.min() < arrays.image.max() <= high, case
        if recipe.background == "brain":
            assert (arrays.image[0][~arrays.brain] == low).all(), case
        if recipe.head != "none":
            assert arrays.head is not None, case
            assert (arrays.brain & ~arrays.head).sum() < 0.02 * arrays.brain.sum(), case
        if recipe.structures == "ct":
            assert set(record.structures) >= {"skull", "left_hemisphere", "right_hemisphere"}, case
        assert record.source is not None
        back = to_native(arrays.brain.astype(np.float32), record.affine, record.source, order=0)
        assert back.shape == record.source.shape, case
        assert back.any(), case
