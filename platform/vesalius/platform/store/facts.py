"""What a method may know of a cohort, from its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.errors import CohortError
from vesalius.platform.geometry import as_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.config import Matrix4
    from vesalius.platform.contracts import CohortFacts
    from vesalius.platform.store.place import Place
    from vesalius.platform.store.records import SubjectRecord


def cohort_facts(
    path: Place,
    records: Sequence[SubjectRecord],
    split: str,
    channels: tuple[str, ...],
    digest: str,
    recipe: Mapping[str, Any],
    *,
    any_grid: bool = False,
) -> CohortFacts:
    """Return the facts of the healthy subjects of a split; see :meth:`CohortStore.facts`.

    Raises:
        CohortError: there are none, or they do not share one grid and ``any_grid`` is not said.
    """
    from vesalius.platform.contracts import CohortFacts  # imports torch, which reading a store does not need

    if not records:
        raise CohortError(f"{path} holds no subject to learn from in the split '{split}': assign some when ingesting")
    first = records[0]
    grid, spacing_mm, affine = first.shape, first.spacing_mm, first.affine
    other = another_grid(records, grid, spacing_mm)
    if other is not None and not any_grid:
        raise CohortError(
            f"{path}: subjects {first.subject_id} ({first.shape} voxels of {first.spacing_mm} mm) and "
            f"{other.subject_id} ({other.shape} of {other.spacing_mm}) lie on different grids: "
            "prepare them with one grid"
        )
    if other is not None:
        grid, spacing_mm, affine = _around_all(records)
    background, ceiling = _range(recipe)
    return CohortFacts(
        subjects=tuple(record.subject_id for record in records),
        grid=grid,
        spacing_mm=spacing_mm,
        affine=affine,
        channels=channels,
        digest=digest,
        background=background,
        ceiling=ceiling,
    )


def another_grid(
    records: Sequence[SubjectRecord], grid: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> SubjectRecord | None:
    """Return the first subject whose voxels are not of this number and size, or None where all are.

    Not the whole affine: where nothing was registered, each subject's grid lies around its own brain.
    """
    for record in records:
        if record.shape != grid or not np.allclose(record.spacing_mm, spacing_mm, rtol=0, atol=1e-4):
            return record
    return None


def _around_all(
    records: Sequence[SubjectRecord],
) -> tuple[tuple[int, int, int], tuple[float, float, float], Matrix4]:
    """Return shape, spacing and affine of the grid that stands for several: the finest voxels, the largest extent.

    All grids of a cohort share the centre of one box, so that positions in it mean the same place for each of them.
    """
    spacing = np.min([record.spacing_mm for record in records], axis=0)
    extent = np.max([np.multiply(record.shape, record.spacing_mm) for record in records], axis=0)
    # A hair of rounding in a spacing must not cost a voxel.
    shape = np.ceil(extent / spacing - 1e-3).astype(int)
    first = np.array(records[0].affine)
    centre = first @ [*((np.array(records[0].shape) - 1) / 2), 1.0]
    affine = np.eye(4)
    affine[:3, :3] = first[:3, :3] / np.array(records[0].spacing_mm) * spacing
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ ((shape - 1) / 2)
    d, h, w = shape.tolist()
    x, y, z = spacing.tolist()
    return (d, h, w), (x, y, z), as_matrix(affine)


def _range(recipe: Mapping[str, Any]) -> tuple[float, float | None]:
    """Return the background's intensity, and the highest that there is where the recipe sets one."""
    if recipe.get("scale", "none") == "none" or "output_range" not in recipe:
        return 0.0, None  # a recipe that leaves intensities alone, or one of another making
    low, high = recipe["output_range"]
    return float(low), float(high)
