"""Which subjects a stage learns from, and whether it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.platform.contracts import Points
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.store.facts import another_grid

if TYPE_CHECKING:
    from vesalius.platform.contracts import CohortFacts, Stage
    from vesalius.platform.store import CohortStore, SubjectRecord

_TRAINING_SPLITS = ("train", "validation")


def stage_subjects(stage: Stage, store: CohortStore, cohort: CohortFacts) -> list[SubjectRecord]:
    """Return the subjects of a stage's split that it may see, sorted by id.

    Raises:
        SettingError: the split is not one to learn from.
        CohortError: a subject is not on the cohort's grid, and the stage takes more than points.
    """
    if stage.split not in _TRAINING_SPLITS:
        raise SettingError(
            f"stage '{stage.name}' asks for the split '{stage.split}': only {' and '.join(_TRAINING_SPLITS)} may "
            "be learnt from; gate and test are for judging"
        )
    # Whoever stands in the training split is trained on: anomalous subjects get there only by the user's word.
    healthy = True if stage.healthy_only and stage.split != "train" else None
    records = store.subjects(stage.split, healthy=healthy)
    other = another_grid(records, cohort.grid, cohort.spacing_mm)
    # Points have a place in millimetres; slices and volumes of several grids would not even stack.
    if other is not None and not isinstance(stage.view, Points):
        raise CohortError(
            f"subject {other.subject_id} ({other.shape} voxels of {other.spacing_mm} mm) is not on the cohort's "
            f"grid ({cohort.grid} of {cohort.spacing_mm}) and stage '{stage.name}' takes "
            f"{type(stage.view).__name__}: prepare all subjects with one grid"
        )
    return records
