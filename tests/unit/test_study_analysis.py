"""What is said of a study's trials."""

from __future__ import annotations

from typing import Literal

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import create_trial

from vesalius.tuning.analysis import importance
from vesalius.tuning.folder import Record

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.mark.parametrize(("ending", "said"), [("repeated", set()), ("complete", {"x"})])
def test_repeats_tell_nothing_of_what_matters(ending: str, said: set[str]) -> None:
    study = optuna.create_study()
    for number, x in enumerate((0.1, 0.9, 0.1, 0.9)):
        record = Record(number=number, ending="complete" if number < 2 else ending)
        study.add_trial(
            create_trial(
                value=x,
                params={"x": x},
                distributions={"x": FloatDistribution(0, 1)},
                user_attrs={"record": record.model_dump(mode="json")},
            )
        )
    assert set(importance(study)) == said


def test_repeats_change_nothing_of_what_matters() -> None:
    study = optuna.create_study()
    spaces: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}

    def add(x: float, y: float, ending: Literal["complete", "repeated"]) -> None:
        record = Record(number=len(study.trials), ending=ending)
        params, noted = {"x": x, "y": y}, {"record": record.model_dump(mode="json")}
        study.add_trial(create_trial(value=x + 0.6 * y, params=params, distributions=spaces, user_attrs=noted))

    for number in range(12):
        add(number % 4 / 4, number % 3 / 3, "complete")
    before = importance(study)
    assert set(before) == {"x", "y"}
    for number in range(20):
        add(number % 4 / 4, 0.0, "repeated")
    assert importance(study) == before
