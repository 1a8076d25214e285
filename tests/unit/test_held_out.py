"""What is refused before a study's best is judged on the test split, and before anything is trained for that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.pipeline import held_out
from vesalius.platform.errors import StudyError
from vesalius.tuning import Analysis, TrialRow, keep_held_out, seed_comparison
from vesalius.tuning.spec import Start
from vesalius.tuning.testing import toy_study

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.tuning import StudyFolder

AP = "average_precision"
SCORED = Start(run="first", stages=("one",), weights_sha256="a" * 64, trains=False, has_passes=False)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let a study have found what a test says; of the test split half has an outlined lesion."""
    told: dict[str, Any] = {"objectives": {AP: "maximize"}, "best": 3, "counts": {"complete": 6}}
    subjects = [SimpleNamespace(has_lesion=number > 2, arrays={"image", "lesion"}) for number in range(6)]
    store = SimpleNamespace(path="cohort", subjects=lambda split: told.get("subjects", subjects))

    def analyse(study: StudyFolder) -> Analysis:
        rows = tuple(TrialRow(number=number, state="complete", is_start=number == 0) for number in range(6))
        given = {name: told[name] for name in ("objectives", "best", "counts")}
        return Analysis(
            study="toy", method="toy", store="s", criterion=None, wanted=6, trials=rows, start=0, importance={},
            front=(3,), **given,
        )  # fmt: skip

    monkeypatch.setattr(held_out, "check_resumed", lambda *arguments: None)
    monkeypatch.setattr(held_out, "analyse", analyse)
    monkeypatch.setattr("vesalius.infra.pipeline.held_out.CohortStore.open", lambda place: store)
    return told


def test_a_study_that_has_all_its_trials_may_be_judged(tmp_path: Path, found: dict[str, Any]) -> None:
    assert held_out.check_held_out(toy_study(tmp_path), tmp_path).best == 3


@pytest.mark.parametrize(
    ("changes", "told", "match"),
    [
        ({}, {"counts": {"complete": 5, "repeated": 1}}, "has 5 of 6 trials"),
        ({}, {"objectives": {AP: "maximize", "seconds_per_volume": "minimize"}, "best": None}, "several objectives"),
        ({}, {"best": 0}, "has the settings that it started from"),
        ({"start": SCORED}, {}, "`vesalius evaluate toy-0003 toy-0000` judges the best and the start"),
        ({}, {"subjects": [SimpleNamespace(has_lesion=True, arrays={"image"})]}, "no subject with an outlined lesion"),
        (
            {"objectives": ("image_auroc",)},
            {"objectives": {"image_auroc": "maximize"}, "subjects": [SimpleNamespace(has_lesion=True, arrays=set())]},
            "has no healthy subject",
        ),
    ],
)
def test_what_cannot_be_judged_is_a_sentence(
    tmp_path: Path, found: dict[str, Any], changes: dict[str, Any], told: dict[str, Any], match: str
) -> None:
    found.update(told)
    with pytest.raises(StudyError, match=match):
        held_out.check_held_out(toy_study(tmp_path, **changes), tmp_path)


def test_one_choice_is_judged_and_no_other_after_it(tmp_path: Path, found: dict[str, Any]) -> None:
    study = toy_study(tmp_path)
    keep_held_out(study, seed_comparison(AP, 3, 0, (), "test"))
    held_out.check_held_out(study, tmp_path)  # the same once more, with more seeds
    found["best"] = 4
    with pytest.raises(StudyError, match=r"trial 3 of study 'toy' was judged on the test split .* and trial 4 is now"):
        held_out.check_held_out(study, tmp_path)


def test_a_refusal_comes_before_seeds_are_trained(
    tmp_path: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from vesalius.infra.cli.app import app

    toy_study(tmp_path)
    found["counts"] = {"complete": 5}
    trained: list[int] = []
    monkeypatch.setattr("vesalius.infra.pipeline.repeat_best", lambda study, seeds, **options: trained.append(seeds))
    result = CliRunner().invoke(app, ["study", "toy", "--seeds", "3", "--test", "--home", str(tmp_path)])
    assert result.exit_code == 2
    assert "has 5 of 6 trials" in " ".join(result.stderr.split())
    assert trained == []
