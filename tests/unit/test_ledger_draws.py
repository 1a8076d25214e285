"""What a study draws, and goes on drawing after a kill: repeats that count for nothing, samplers past their start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vesalius.platform.tables import lookup
from vesalius.tuning import analyse
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.samplers import SAMPLERS
from vesalius.tuning.spec import Record
from vesalius.tuning.storage import Patience
from vesalius.tuning.testing import BASE, toy_study, worth

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.tuning import StudySpec
    from vesalius.tuning.noted import Begun

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own

SMALL: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 3},
    "gp": {"n_startup_trials": 3},
    "nsgaii": {"population_size": 3},
    "qmc": {},
}
"""Samplers that soon draw by what they have learnt; of quasi-random draws each takes the sequence's next point."""


def ledger_of(spec: StudySpec) -> Ledger:
    return Ledger(spec, BASE, spec.storage, Patience(spec.storage, 0))


def drawn(ledger: Ledger) -> Begun:
    begun = ledger.draw()
    assert begun is not None
    return begun


def complete(ledger: Ledger, begun: Begun) -> None:
    figures = {"average_precision": worth(begun.values)}
    ledger.end(begun, Record(number=begun.number, ending="complete", figures=figures))


@pytest.mark.parametrize("sampler", list(SMALL))
def test_a_broken_study_draws_what_an_unbroken_one_does_where_the_sampler_has_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    learnt: list[bool] = []

    def small(name: str, seed: int, **decided: int) -> Any:
        made = lookup(SAMPLERS, name, "sampler")(seed=seed, **SMALL.get(name, {}))
        relative = made.sample_relative

        def heard(*arguments: Any) -> Any:
            found = relative(*arguments)
            learnt.append(bool(found))
            return found

        made.sample_relative = heard
        return made

    monkeypatch.setattr("vesalius.tuning.ledger.make_sampler", small)
    whole, broken = (toy_study(tmp_path / name, sampler=sampler).spec for name in ("whole", "broken"))
    ledger = ledger_of(whole)
    for number in range(9):
        one = drawn(ledger)
        again = ledger_of(broken)
        if number % 3 == 2:  # killed between the draw and the end, too
            drawn(again)
            again = ledger_of(broken)
            (other,) = again.left_behind()
        else:
            other = drawn(again)
        assert one.values == other.values
        complete(ledger, one)
        complete(again, other)
    assert sum(learnt) >= 4, "some of them were drawn by what was learnt"


def test_repeats_are_no_trials_to_samplers_and_pruners(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, pruner="median")
    ledger = ledger_of(folder.spec)
    start = drawn(ledger)
    for percent in (25, 100):
        ledger.report(start.number, percent, 0.9)
    complete(ledger, start)
    for _ in range(8):
        ledger.study.enqueue_trial(start.values)
    worse = drawn(ledger)
    assert analyse(folder).counts == {"complete": 1, "repeated": 8, "running": 1}
    known = [trial for trial in ledger.trials() if trial.state.name in ("COMPLETE", "PRUNED")]
    assert [trial.number for trial in known] == [0], "what samplers count before they draw by what they have learnt"
    assert not ledger.report(worse.number, 25, 0.1), "the median of one trial stops none"


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_that_asks_for_the_same_again_leaves_nothing_untried(tmp_path: Path, sampler: str) -> None:
    ledger = ledger_of(toy_study(tmp_path, space={"k": "1..8", "kind": "a,b"}, sampler=sampler).spec)
    for _ in range(15):  # of 16 combinations the settings refuse one
        complete(ledger, drawn(ledger))
    assert ledger.draw() is None
