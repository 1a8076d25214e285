"""What a method may know of a cohort, from its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
) -> CohortFacts:
    """Return the facts of the healthy subjects of a split; see :meth:`CohortStore.facts`.

    Raises:
        CohortError: there are none, or they do not share one grid.
    """
    from vesalius.platform.contracts import CohortFacts  # imports torch, which reading a store does not need

    if not records:
        raise CohortError(f"{path} holds no subject to learn from in the split '{split}': assign some when ingesting")
    first = records[0]
    for record in records[1:]:
        # Not the whole affine: where nothing was registered, each subject's grid lies around its own brain.
        if record.shape != first.shape or not np.allclose(record.spacing_mm, first.spacing_mm, rtol=0, atol=1e-4):
            raise CohortError(
                f"{path}: subjects {first.subject_id} ({first.shape} voxels of {first.spacing_mm} mm) and "
                f"{record.subject_id} ({record.shape} of {record.spacing_mm}) lie on different grids: "
                "prepare them with one grid"
            )
    return CohortFacts(
        subjects=tuple(record.subject_id for record in records),
        grid=first.shape,
        spacing_mm=first.spacing_mm,
        affine=first.affine,
        channels=channels,
        digest=digest,
        background=_background(recipe),
    )


def _background(recipe: Mapping[str, Any]) -> float:
    if recipe.get("scale", "none") == "none" or "output_range" not in recipe:
        return 0.0  # a recipe that leaves intensities alone, or one of another making
    return float(recipe["output_range"][0])
