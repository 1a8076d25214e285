"""What is said of a study's trials."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
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
