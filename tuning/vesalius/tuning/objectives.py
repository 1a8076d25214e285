"""What a study makes better: a figure of the validation split, or what a trial takes.

No objective names a split: figures are those that a run has on validation, and nothing here can ask for another. Gate
and test stay what they are for, judging what was chosen.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vesalius.platform.errors import SettingError
from vesalius.platform.training.selection import AVERAGE_PRECISION, HEALTHY, validation_subjects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.store import CohortStore

Direction = Literal["maximize", "minimize"]
Needs = Literal["lesions", "images", "healthy", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A figure that a study makes better.

    Attributes:
        summary: one sentence.
        direction: which way is better.
        needs: what the validation split must hold: outlined lesions, healthy and anomalous subjects, healthy ones.
        of_process: whether it is measured of the process, in which no other trial may have been before.
    """

    summary: str
    direction: Direction
    needs: Needs = "nothing"
    of_process: bool = False


_DETECTION: dict[str, Objective] = {
    "average_precision": Objective(summary="average precision over voxels", direction="maximize", needs="lesions"),
    "best_dice": Objective(summary="Dice at the best threshold over voxels", direction="maximize", needs="lesions"),
    "auroc": Objective(summary="area under the ROC curve over voxels", direction="maximize", needs="lesions"),
}

OBJECTIVES: dict[str, Objective] = {
    **_DETECTION,
    **{
        f"brain/{name}": Objective(summary=f"{one.summary} inside the brain", direction=one.direction, needs=one.needs)
        for name, one in _DETECTION.items()
    },
    "image_auroc": Objective(
        summary="area under the ROC curve over whole images", direction="maximize", needs="images"
    ),
    "healthy_image_score": Objective(
        summary="minus the mean image score of healthy subjects: how well healthy anatomy is explained",
        direction="maximize",
        needs="healthy",
    ),
    "seconds_per_volume": Objective(summary="seconds to score a volume", direction="minimize"),
    "training_seconds": Objective(summary="seconds to train", direction="minimize"),
    "peak_memory": Objective(
        summary="the most memory held in training and scoring, in MiB", direction="minimize", of_process=True
    ),
}

_WHY_HEALTHY = (
    "no validation subject has outlined lesions, so the study judges by healthy_image_score: how well healthy anatomy "
    "is explained. Scores of other scales (another k, another window) are not comparable by it: set synthetic lesions "
    "into the validation volumes with --lesions MASKS, and it judges by what is found"
)


def choose_objectives(
    names: Sequence[str], store: CohortStore, *, num_workers: int, planted: bool = False
) -> tuple[tuple[str, ...], str]:
    """Return the objectives of a study on a cohort, and a sentence where they are not what one would wish for.

    Args:
        names: as given; empty takes ``average_precision`` where the cohort's validation has outlined lesions, else
            ``healthy_image_score``.
        store: the cohort.
        num_workers: of a trial.
        planted: whether validation is to have synthetic lesions, which the cohort does not have yet.

    Raises:
        SettingError: a name is unknown, given twice, of a split that is never chosen on, or cannot be measured.
    """
    subjects = store.subjects("validation")
    outlined = [one for one in subjects if one.has_lesion and "lesion" in one.arrays]
    healthy = [one for one in subjects if not one.has_lesion]
    if not names:
        if outlined or planted:
            return ("average_precision",), ""
        _require(bool(healthy), "healthy_image_score", store, "healthy subjects")
        return ("healthy_image_score",), _WHY_HEALTHY
    for name in names:
        one = objective(name)
        if one.needs == "lesions":
            _require(
                bool(outlined) or planted,
                name,
                store,
                "subjects with outlined lesions; --lesions MASKS sets synthetic ones",
            )
        elif one.needs == "images":
            anomalous = planted or any(record.has_lesion for record in subjects)
            _require(anomalous and bool(healthy), name, store, "healthy and anomalous subjects")
        elif one.needs == "healthy":
            _require(bool(healthy), name, store, "healthy subjects")
        else:  # what a trial takes is measured while validation is scored
            _require(bool(subjects), name, store, "subjects")
        if name == "peak_memory" and num_workers > 1:
            raise SettingError("peak_memory is measured of trials of one worker: use --workers 1, or leave it out")
    if len(set(names)) < len(names):
        raise SettingError("an objective is given twice: give each once")
    return tuple(names), ""


def objective(name: str) -> Objective:
    """Return an objective by its name.

    Raises:
        SettingError: there is none (names the nearest one), or it is of a split that is never chosen on.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if any(word in ("test", "gate") for word in name.replace("_", "/").replace(":", "/").split("/")):
        raise SettingError(
            f"objective '{name}': gate and test subjects are for judging what was chosen, and a study never sees them; "
            "it judges by validation"
        )
    near = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"the known ones are {', '.join(OBJECTIVES)}"
    raise SettingError(f"unknown objective '{name}': {hint}")


def intermediate(names: Sequence[str], store: CohortStore, num: int, *, planted: bool = False) -> str | None:
    """Return the criterion by which a trial may be stopped early, or None where it says nothing of the objectives.

    Args:
        names: the objectives.
        store: the cohort.
        num: validation subjects of a pass, ``training.validate_subjects``.
        planted: whether validation is to have synthetic lesions, which the cohort does not have yet.
    """
    if len(names) != 1:
        return None
    criterion, records = validation_subjects(store, num)
    if planted:
        criterion = AVERAGE_PRECISION
    needs = OBJECTIVES[names[0]].needs
    fitting = {AVERAGE_PRECISION: ("lesions", "images"), HEALTHY: ("healthy",)}[criterion]
    return criterion if records and needs in fitting else None


def _require(there: bool, name: str, store: CohortStore, what: str) -> None:
    if not there:
        raise SettingError(f"objective '{name}': {store.path} has in its validation split no {what}")
