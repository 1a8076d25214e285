"""The best beside the start over other seeds: pairs, their interval, what is left out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from scipy.stats import ttest_rel

from vesalius.platform.errors import StudyError
from vesalius.tuning import Analysis, TrialRow, compare_seeds, compared, other_seeds
from vesalius.tuning.seeds import mean_interval
from vesalius.tuning.spec import Record
from vesalius.tuning.testing import toy_study

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.tuning import StudyFolder

AP = "average_precision"


def analysis(**changes: Any) -> Analysis:
    rows = tuple(TrialRow(number=number, state="complete", is_start=number == 0) for number in range(4))
    told: dict[str, Any] = {
        "study": "toy", "method": "toy", "store": "s", "objectives": {AP: "maximize"}, "criterion": None, "wanted": 4,
        "counts": {"complete": 4}, "trials": rows, "best": 3, "start": 0, "importance": {}, "front": (3,), **changes,
    }  # fmt: skip
    return Analysis(**told)


def keep(study: StudyFolder, number: int, values: dict[int, float], name: str = AP) -> None:
    for seed, value in values.items():
        run_id = study.spec.run_id(number, seed)
        study.keep(Record(number=number, ending="complete", run_id=run_id, figures={name: value}), seed)


def test_the_interval_is_that_of_a_paired_t_test(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    best, start = [0.31, 0.42, 0.38, 0.29], [0.22, 0.37, 0.30, 0.28]
    keep(study, 3, dict(enumerate(best, 1)))
    keep(study, 0, dict(enumerate(start, 1)))
    found = compare_seeds(study, analysis())
    assert found is not None
    assert found.means == pytest.approx((0.35, 0.2925))
    reference = ttest_rel(best, start).confidence_interval(0.95)
    assert found.interval == pytest.approx((reference.low, reference.high))
    assert found.mean == pytest.approx(0.0575)
    assert found.rows[0].best is not None
    assert found.rows[0].best.run_id == "toy-0003-seed1"
    assert not list((study.path / "trials").glob("*")), "they are no trials"


def test_a_seed_that_a_trial_has_drawn_since_is_no_other_one(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    for number in (0, 3):
        keep(study, number, {1: 0.1 + number, 2: 0.2 + number, 3: 0.4})
    rows = analysis().trials
    later = TrialRow(number=4, state="pruned", values={"training.seed": 3})
    found = compare_seeds(study, analysis(trials=(*rows, later)))
    assert found is not None
    assert [row.seed for row in found.rows] == [1, 2]
    assert found.differences == pytest.approx((3.0, 3.0))


@pytest.mark.parametrize(
    ("name", "best", "said"),
    [
        (AP, 0.5, "the best is better"),
        (AP, 0.1, "the best is worse"),
        (AP, 0.3, "they cannot be told apart"),
        ("seconds_per_volume", 0.1, "the best is better"),
        ("seconds_per_volume", 0.5, "the best is worse"),
    ],
)
def test_the_sign_is_said_whichever_it_is(tmp_path: Path, name: str, best: float, said: str) -> None:
    study = toy_study(tmp_path)
    keep(study, 3, {1: best, 2: best + 0.011, 3: best - 0.01}, name)
    keep(study, 0, {1: 0.3, 2: 0.3, 3: 0.301}, name)
    direction = "maximize" if name == AP else "minimize"
    found = compare_seeds(study, analysis(objectives={name: direction}))
    assert found is not None
    assert said in found.sentence
    assert "over 3 other seeds" in found.sentence


def test_what_does_not_hang_on_the_seed_has_no_interval_over_seeds(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    keep(study, 3, dict.fromkeys((1, 2, 3), 0.5))
    keep(study, 0, dict.fromkeys((1, 2, 3), 0.3))
    found = compare_seeds(study, analysis())
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    assert found.interval is None
    assert "difference +0.2 with every seed: nothing hangs on it" in found.sentence
    assert "is better" not in found.sentence


def test_what_failed_or_is_not_there_yet_is_no_pair(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    assert compare_seeds(study, analysis()) is None
    keep(study, 3, {1: 0.5, 2: 0.6, 3: 0.4})
    found = compare_seeds(study, analysis())
    assert found is not None
    assert (found.differences, found.means, found.interval) == ((), None, None)
    assert "no other seed yet" in found.sentence
    keep(study, 0, {1: 0.4})
    study.keep(Record(number=0, ending="failed", reason="diverged", run_id="r"), 2)
    found = compare_seeds(study, analysis())
    assert found is not None
    assert found.differences == pytest.approx((0.1,))
    assert found.interval is None
    assert "one seed has no interval" in found.sentence
    assert [row.seed for row in found.rows] == [1, 2, 3]
    # Another best has other runs.
    assert compare_seeds(study, analysis(best=2)) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"objectives": {AP: "maximize", "seconds_per_volume": "minimize"}, "best": None}, "several objectives"),
        ({"best": None}, "no complete trial"),
        ({"start": None}, "so nothing is compared with them"),
        ({"best": 0}, "has the settings that it started from"),
    ],
)
def test_where_there_is_nothing_to_compare_it_is_said(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(StudyError, match=match):
        compared(analysis(**changes))


def test_seeds_that_were_chosen_with_have_no_part() -> None:
    assert other_seeds([0], 3) == [1, 2, 3]
    assert other_seeds([2, 5], 4) == [0, 1, 3, 4]
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)
