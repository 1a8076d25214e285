"""What a study draws, and goes on drawing after a kill: repeats that count for nothing, samplers past their start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vesalius.platform.tables import lookup
from vesalius.tuning import analyse
from vesalius.tuning.samplers import SAMPLERS, make_sampler
from vesalius.tuning.testing import complete, drawn, ledger_of, toy_study

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own

SMALL: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 3},
    "gp": {"n_startup_trials": 3},
    "nsgaii": {"population_size": 3},
}
"""Samplers that soon draw by what they have learnt."""


@pytest.mark.parametrize("sampler", [*SMALL, "qmc"])
def test_a_broken_study_draws_what_an_unbroken_one_does_where_the_sampler_has_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    learnt: list[bool] = []

    def small(name: str, seed: int, **decided: int) -> Any:
        if name in SMALL:
            made = lookup(SAMPLERS, name, "sampler")(seed=seed, **SMALL[name])
        else:
            made = make_sampler(name, seed, **decided)
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


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_a_draw_that_is_killed_half_way_goes_on_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """One value is stored, the others are not; of quasi-random draws all are of one point."""
    whole, broken = (toy_study(tmp_path / name, sampler=sampler).spec for name in ("whole", "broken"))
    ledger, again = ledger_of(whole), ledger_of(broken)
    for number in range(3):
        one = drawn(ledger)
        if number:
            stored = again.study._storage.set_trial_param
            calls: list[str] = []

            def killed(*arguments: Any, stored: Any = stored, calls: list[str] = calls) -> None:
                calls.append(arguments[1])
                if len(calls) > 1:
                    raise KeyboardInterrupt
                stored(*arguments)

            monkeypatch.setattr(again.study._storage, "set_trial_param", killed)
            with pytest.raises(KeyboardInterrupt):
                again.draw()
            again = ledger_of(broken)
            (other,) = again.left_behind() or (drawn(again),)  # what the settings refuse is put back and drawn anew
        else:
            other = drawn(again)
        assert one.values == other.values
        complete(ledger, one)
        complete(again, other)


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
