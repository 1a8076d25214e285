"""What a study learns from earlier ones: what is comparable, what is run again, and what a kill leaves of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
from sqlalchemy.exc import OperationalError

from vesalius.platform.errors import StudyError
from vesalius.tuning import PastStudy, PastTrial, analyse, create_study, learn, past_study
from vesalius.tuning.learning import settings_as_text
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.spaces import chosen
from vesalius.tuning.spec import Record, Start
from vesalius.tuning.storage import Patience
from vesalius.tuning.testing import BASE, complete, drawn, ledger_of, toy_spec, toy_study, worth

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.tuning import StudyFolder

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own

XS = (0.3, 0.31, 0.29, 0.9, 0.05, 0.95, 0.6, 0.32, 0.28, 0.7, 0.1, 0.33)


def past(**changes: Any) -> PastStudy:
    """Return a study whose trial of each number came to what its settings are worth."""
    trials = tuple(
        PastTrial(
            number=number,
            settings=settings_as_text(chosen(BASE, values)),
            figures={"average_precision": worth(values), "auroc": 1.0 - worth(values)},
        )
        for number, x in enumerate(XS)
        for values in [{"method.x": x, "method.k": 3 + number % 3}]
    )
    told: dict[str, Any] = {
        "name": "old",
        "method": "toy",
        "cohort_digest": "d" * 64,
        "objectives": ("average_precision",),
        "criterion": "validation_average_precision",
        "num_workers": 1,
        "trials": trials,
    }
    return PastStudy(**{**told, **changes})


def taught(home: Path, *studies: PastStudy, **changes: Any) -> StudyFolder:
    """Make a study that learns from earlier ones."""
    spec = toy_spec(home, **changes)
    learnt = tuple(one for study in studies for one in learn(study, spec, BASE).learnt)
    return toy_study(home, **{**changes, "learn_from": tuple(one.name for one in studies), "learnt": learnt})


# ---- what is comparable


def test_comparable_trials_teach_the_sampler_and_are_no_trials(tmp_path: Path) -> None:
    folder = taught(tmp_path, past(), space={"x": "0..1", "k": "1..8"}, trials=3)
    ledger = ledger_of(folder.spec)
    start = drawn(ledger)
    assert (start.number, start.is_start) == (0, True), "the paper's settings come first"
    complete(ledger, start)
    second = drawn(ledger)
    assert abs(second.values["method.x"] - 0.3) < 0.15, "drawn by what was learnt, with one trial of its own"
    assert ledger.counts() == (1, 1)
    complete(ledger, second)
    found = analyse(folder)
    assert found.learnt == {"old": 12}
    assert [row.number for row in found.trials] == [0, 13]
    assert found.counts == {"complete": 2}
    assert found.best in (0, 13), "what is best, this study has run"
    assert found.importance["average_precision"]["method.x"] > 0.5, "over what was learnt, too"


def test_a_trial_whose_writing_was_not_answered_is_learnt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = optuna.Study.add_trial
    written: list[optuna.trial.FrozenTrial] = []

    def unanswered(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        write(study, trial)
        written.append(trial)
        if len(written) == 3:  # after the start and one other
            raise OperationalError("INSERT", {}, ConnectionError("server closed the connection unexpectedly"))

    monkeypatch.setattr(optuna.Study, "add_trial", unanswered)
    spec = taught(tmp_path, past(), space={"x": "0..1", "k": "1..8"}).spec
    ledger = Ledger(spec, BASE, spec.storage, Patience(spec.storage, 30))
    assert len(ledger.trials()) == len(written) == 1 + 12


def test_a_draw_of_what_was_learnt_is_a_trial(tmp_path: Path) -> None:
    """The best settings of an earlier study have to be run to be this one's best."""
    ledger = ledger_of(taught(tmp_path, past(), space={"x": "0..1", "k": "1..8"}).spec)
    complete(ledger, drawn(ledger))
    ledger.study.enqueue_trial({"method.x": XS[0], "method.k": 3})
    assert drawn(ledger).values == {"method.x": XS[0], "method.k": 3}


def test_only_what_lies_in_the_spaces_is_learnt(tmp_path: Path) -> None:
    spec = toy_spec(tmp_path, space={"x": "0..0.5", "k": "4..8"})
    lesson = learn(past(), spec, BASE)
    inside = [number for number, x in enumerate(XS) if x <= 0.5 and 3 + number % 3 >= 4]
    assert [one.number for one in lesson.learnt] == inside
    assert lesson.caveat == ""
    nothing = learn(past(), toy_spec(tmp_path, space={"x": "0.96..1"}), BASE)
    assert nothing.learnt == ()
    assert nothing.caveat == "nothing is learnt from study 'old': no trial of it lies in the spaces"
    empty = learn(past(trials=()), spec, BASE)
    assert empty.caveat == "nothing is learnt from study 'old': none of its trials came to an end"


def test_another_setting_that_is_not_searched_makes_a_trial_another_one(tmp_path: Path) -> None:
    spec = toy_spec(tmp_path, space={"x": "0..1"})  # all of k but the base's 3 is another method to this study
    assert {one.number % 3 for one in learn(past(), spec, BASE).learnt} == {0}
    seeded = chosen(BASE, {"training.seed": 7})
    lesson = learn(past(), spec, seeded)
    assert not any(one.is_known for one in lesson.learnt)
    assert "it has other settings besides those that are searched" in lesson.caveat
    local = chosen(BASE, {"training.threads": 5, "training.device": "cpu"})
    assert all(one.is_known for one in learn(past(), spec, local).learnt), "each machine's own affair"


def test_trials_after_other_weights_are_not_comparable(tmp_path: Path) -> None:
    """The same settings, but what the first stages had learnt was of another seed, or of other training settings."""
    start = Start(run="first", stages=("one",), weights_sha256="a" * 64, trains=True, has_passes=True)
    spaces = {"x": "0..1", "k": "1..8"}
    later, whole = toy_spec(tmp_path, space=spaces, start=start), toy_spec(tmp_path, space=spaces)
    assert all(one.is_known for one in learn(past(start_sha256="a" * 64), later, BASE).learnt)
    for study, spec in ((past(start_sha256="b" * 64), later), (past(), later), (past(start_sha256="a" * 64), whole)):
        lesson = learn(study, spec, BASE)
        assert not any(one.is_known for one in lesson.learnt)
        assert "its trials took over other weights, or none" in lesson.caveat


def test_conditions_and_choices_are_read_from_text(tmp_path: Path) -> None:
    spec = toy_spec(tmp_path, space={"kind": "a,b", "x": "0..1 if kind=b", "k": "1,2,3"})
    values = ({"method.kind": "b", "method.x": 0.25, "method.k": 2}, {"method.kind": "a", "method.x": 0.25})
    trials = tuple(
        PastTrial(number=number, settings=settings_as_text(chosen(BASE, one)), figures={"average_precision": 0.5})
        for number, one in enumerate(values)
    )
    (found,) = learn(past(trials=trials), spec, BASE).learnt
    assert found.values == {"method.kind": "b", "method.x": 0.25, "method.k": 2}, "of kind a another x is not searched"
    told = spec.model_copy(update={"learnt": (found,)})
    assert ledger_of(create_study(tmp_path, told).spec).trials()[1].params == found.values


def test_stopped_trials_teach_where_they_were_stopped(tmp_path: Path) -> None:
    old = toy_study(tmp_path / "old", name="old")
    ledger = ledger_of(old.spec)
    complete(ledger, drawn(ledger))
    stopped = drawn(ledger)
    ledger.report(stopped.number, 25, 0.2)
    ledger.report(stopped.number, 33, 0.3)
    ledger.end(stopped, Record(number=stopped.number, ending="pruned", percent=33, passed=0.3))
    failed = drawn(ledger)
    ledger.end(failed, Record(number=failed.number, ending="failed", reason="diverged"))
    drawn(ledger)
    earlier = past_study(old, BASE)
    assert [one.number for one in earlier.trials] == [0, 1]
    folder = taught(tmp_path / "new", earlier)
    (_, one, other) = ledger_of(folder.spec).trials()
    assert (one.state.name, one.values) == ("COMPLETE", [worth({})])
    assert (other.state.name, other.intermediate_values) == ("PRUNED", {33: 0.3})
    for changes in ({"criterion": None}, {"objectives": ("average_precision", "seconds_per_volume")}):
        learnt = learn(earlier, toy_spec(tmp_path, **changes), BASE).learnt
        assert not any(one.passed for one in learnt), "of another criterion a pass says nothing"


def test_what_was_learnt_stops_no_trial_of_the_median_pruner(tmp_path: Path) -> None:
    ledger = ledger_of(taught(tmp_path, past(), space={"x": "0..1", "k": "1..8"}, pruner="median").spec)
    start = drawn(ledger)
    ledger.report(start.number, 25, 0.9)
    complete(ledger, start)
    assert not ledger.report(drawn(ledger).number, 25, 0.1), "one pass is no median"


# ---- what is not


@pytest.mark.parametrize(
    ("changes", "of_new", "why"),
    [
        ({"cohort_digest": "e" * 64}, {}, "it is of another cohort"),
        ({"num_workers": 2}, {}, "its trials had 2 workers, not 1"),
        ({}, {"sampler": "random"}, "sampler random does not learn"),
        ({}, {"sampler": "nsgaii"}, "sampler nsgaii does not learn"),
    ],
)
def test_the_best_of_what_is_not_comparable_are_run_right_after_the_start(
    tmp_path: Path, changes: dict[str, Any], of_new: dict[str, Any], why: str
) -> None:
    told = {"space": {"x": "0..1", "k": "1..8"}, **of_new}
    lesson = learn(past(**changes), toy_spec(tmp_path, **told), BASE)
    assert why in lesson.caveat
    folder = taught(tmp_path, past(**changes), **told)
    ledger = ledger_of(folder.spec)
    values = []
    for _ in range(5):
        begun = drawn(ledger)
        values.append((begun.number, begun.values["method.x"], begun.values["method.k"]))
        complete(ledger, begun)
    assert values[:4] == [(0, 0.5, 3), (1, 0.29, 5), (2, 0.28, 5), (3, 0.33, 5)], "the start, and the best three"
    found = analyse(folder)
    assert [row.source for row in found.trials] == ["", "old/2", "old/8", "old/11", ""]
    assert found.learnt == {}
    assert found.counts == {"complete": 5}


def test_another_objective_is_learnt_from_where_the_figure_is_there(tmp_path: Path) -> None:
    spec = toy_spec(tmp_path, space={"x": "0..1", "k": "1..8"}, objectives=("auroc",))
    learnt = learn(past(), spec, BASE).learnt
    assert len(learnt) == len(XS)
    assert learnt[0].figures == {"auroc": pytest.approx(1 - worth({"method.x": 0.3}))}
    other = toy_spec(tmp_path, space={"x": "0..1", "k": "1..8"}, objectives=("peak_memory",))
    lesson = learn(past(), other, BASE)
    assert [one.number for one in lesson.learnt] == [2, 8, 11], "best by its own objective"
    assert not any(one.is_known for one in lesson.learnt)


# ---- kills and drivers


def test_a_kill_while_a_study_is_filled_puts_nothing_in_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"x": "0..1", "k": "1..8"}
    folder = taught(tmp_path, past(), past(name="far", cohort_digest="e" * 64), space=space)
    whole = [dict(one.user_attrs) for one in ledger_of(taught(tmp_path / "whole", past(), past(name="far",
        cohort_digest="e" * 64), space=space).spec).trials()]  # fmt: skip
    assert len(whole) == 1 + len(XS) + 3
    killed_at = [1, 5, len(XS) + 2, len(whole)]
    add_trial = optuna.Study.add_trial
    for most in killed_at:

        def killed(self: Any, *arguments: Any, most: int = most, **options: Any) -> None:
            if len(self.get_trials(deepcopy=False)) >= most:
                raise KeyboardInterrupt
            add_trial(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "add_trial", killed)  # by which what is enqueued is added, too
            if most == len(whole):  # all is in, and the terms are not noted yet
                patch.setattr(optuna.Study, "set_user_attr", killed)
            with pytest.raises(KeyboardInterrupt):
                ledger_of(folder.spec)
    ledger = ledger_of(folder.spec)
    assert [dict(one.user_attrs) for one in ledger.trials()] == whole
    drawn(ledger)
    assert len(ledger_of(folder.spec).trials()) == len(whole)


def test_drivers_that_share_a_study_learn_once(tmp_path: Path) -> None:
    space = {"x": "0..1", "k": "1..8"}
    one = taught(tmp_path / "one", past(), space=space, shared=True).spec
    more = {"space": space, "shared": True, "storage": one.storage}
    same = taught(tmp_path / "two", past(), **more).spec
    silent = toy_spec(tmp_path / "three", **more)
    numbers = [len(ledger_of(spec).trials()) for spec in (one, same, silent)]
    assert numbers == [1 + len(XS)] * 3
    with pytest.raises(StudyError, match="of another list of studies to learn from"):
        ledger_of(taught(tmp_path / "four", past(name="other"), **more).spec)


def test_a_broken_study_that_has_learnt_draws_what_an_unbroken_one_does(tmp_path: Path) -> None:
    space = {"x": "0..1", "k": "1..8"}
    whole, broken = (taught(tmp_path / name, past(), space=space).spec for name in ("whole", "broken"))
    ledger = ledger_of(whole)
    for _ in range(4):
        one, again = drawn(ledger), ledger_of(broken)
        other = drawn(again)
        assert one.values == other.values
        complete(ledger, one)
        complete(again, other)
