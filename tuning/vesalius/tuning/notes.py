"""What is noted of a trial in a study's storage, beside what Optuna notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.tuning.folder import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import FrozenTrial, Trial

START = "start"
RECORD = "record"
PARENT = "parent"


def objective_values(names: tuple[str, ...], figures: Mapping[str, float]) -> list[float] | None:
    """Return a trial's objectives in order, or None where it lacks one."""
    values = [figures.get(name) for name in names]
    return None if any(value is None for value in values) else [float(value) for value in values if value is not None]


def record_of(trial: FrozenTrial) -> Record | None:
    """Return what was noted of a trial, or None where it is under way."""
    noted = trial.user_attrs.get(RECORD)
    return None if noted is None else Record.model_validate(noted)


def noted_parent(parent: Record) -> dict[str, Any]:
    """Return what is noted of the trial whose run a trial's goes on from; see :func:`parent_of`."""
    return {"number": parent.number, "weights_sha256": parent.weights_sha256}


def parent_of(trial: FrozenTrial) -> tuple[int, str] | None:
    """Return the number of the trial whose run a trial's goes on from, and the SHA-256 of its weights there."""
    noted = trial.user_attrs.get(PARENT)
    return None if noted is None else (int(noted["number"]), str(noted["weights_sha256"]))


def is_start(trial: FrozenTrial | Trial) -> bool:
    """Say whether a trial is the settings that the study starts from."""
    return bool(trial.user_attrs.get(START))
