"""A study in its storage: what is drawn, what is noted, what another process finds again."""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError

from vesalius.platform.errors import DiskSpaceError, SettingError, StudyError
from vesalius.tuning import analyse, check_address, check_sampler
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.samplers import make_sampler
from vesalius.tuning.spec import Record
from vesalius.tuning.storage import VARIABLE, Patience, whole_address
from vesalius.tuning.testing import BASE, complete, drawn, ledger_of, toy_spec, toy_study, worth

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.tuning import StudyFolder, StudySpec
    from vesalius.tuning.searcher import LedgerSearch

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # SQLite's connections end with the process


def search_of(folder: StudyFolder) -> LedgerSearch:
    from vesalius.platform.progress import silent
    from vesalius.tuning.searcher import LedgerSearch

    ledger = ledger_of(folder.spec)
    return LedgerSearch(ledger, folder.spec, folder, deadline=None, progress=silent, abandon=lambda record: None)


def ends(search: LedgerSearch, ending: str) -> None:
    config = search.suggest("tune's")
    assert isinstance(config, dict)
    figures = {"average_precision": 0.5} if ending == "complete" else {}
    record = Record.model_validate(
        {"number": config["number"], "ending": ending, "reason": "diverged", "figures": figures}
    )
    search.on_trial_complete("tune's", {"record": record.model_dump_json()})


# ---- drawing


def test_the_start_comes_first_and_only_once(tmp_path: Path) -> None:
    spec = toy_study(tmp_path).spec
    ledger = ledger_of(spec)
    first = drawn(ledger)
    assert first.is_start
    assert not first.outside
    assert first.values == {"method.x": 0.5, "method.k": 3, "method.kind": "a"}
    assert not drawn(ledger).is_start
    assert not any(one.is_start for one in (drawn(ledger_of(spec)), drawn(ledger_of(spec))))


def test_a_start_outside_of_the_spaces_is_run_and_kept_from_the_sampler(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, space={"k": "5..8", "x": "0..1"})
    ledger = ledger_of(folder.spec)
    first = drawn(ledger)
    assert first.is_start
    assert first.outside
    assert first.values == {}
    complete(ledger, first)
    for _ in range(3):
        complete(ledger, drawn(ledger))
    states = [trial.state.name for trial in ledger.trials()]
    assert states == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"], "to a sampler it is no trial of these spaces"
    rows = analyse(folder).trials
    assert rows[0].state == "complete"
    assert rows[0].figures == {"average_precision": pytest.approx(worth({}))}
    assert analyse(folder).start == 0


def test_values_lie_in_their_spaces_and_are_of_their_type(tmp_path: Path) -> None:
    space = {"x": "log:1e-3..1e-1 if kind=b", "k": "2..4", "kind": "a,b"}
    ledger = ledger_of(toy_study(tmp_path, space=space).spec)
    assert ledger.draw() is not None
    both = set()
    for _ in range(12):
        values = drawn(ledger).values
        assert isinstance(values["method.k"], int)
        assert 2 <= values["method.k"] <= 4
        assert ("method.x" in values) == (values["method.kind"] == "b")
        assert 1e-3 <= values.get("method.x", 1e-2) <= 1e-1
        both.add(values["method.kind"])
    assert both == {"a", "b"}


def test_what_the_settings_refuse_together_is_put_back(tmp_path: Path) -> None:
    spec = toy_study(tmp_path, space={"k": "7,8", "kind": "a,b"}).spec
    ledger = ledger_of(spec)
    for _ in range(3):
        values = drawn(ledger).values
        assert (values.get("method.k"), values.get("method.kind")) != (8, "b")


def test_a_repeat_takes_the_figures_and_does_not_count(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, space={"kind": "a,b"}, sampler="random")
    ledger = ledger_of(folder.spec)
    complete(ledger, drawn(ledger))
    complete(ledger, drawn(ledger))
    assert ledger.draw() is None, "two choices are tried: the spaces are exhausted"
    assert ledger.counts() == (2, 0)
    found = analyse(folder)
    assert [row.values["method.kind"] for row in found.trials] == ["a", "b"]
    assert found.counts["repeated"] > 10
    assert len({tuple(trial.values) for trial in ledger.trials() if trial.values}) == 2, "with their figures"


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsgaii", "qmc"])
def test_samplers_draw_by_name(tmp_path: Path, sampler: str) -> None:
    ledger = ledger_of(toy_study(tmp_path, sampler=sampler).spec)
    for _ in range(4):
        complete(ledger, drawn(ledger))
    assert ledger.counts() == (4, 0)


def test_a_sampler_that_cannot_be_had_says_so_beforehand() -> None:
    with pytest.raises(SettingError, match=r"did you mean 'tpe'\?"):
        check_sampler("tpee", shared=False)
    with pytest.raises(SettingError, match="sampler 'cmaes' needs the package cmaes: pip install cmaes"):
        check_sampler("cmaes", shared=False)
    with pytest.raises(SettingError, match="whoever writes to --storage runs code here: leave --storage out"):
        check_sampler("cmaes", shared=True)
    with pytest.raises(SettingError, match="'cmaes' is for one objective"):
        check_sampler("cmaes", shared=False, num_objectives=2)


def test_quasi_random_draws_are_the_seeds_own_and_fill_the_space(tmp_path: Path) -> None:
    found: dict[int, list[float]] = {}
    for seed in (0, 1):
        spec = toy_study(tmp_path / str(seed), sampler="qmc", seed=seed, space={"x": "0..1"}).spec
        ledger = ledger_of(spec)
        complete(ledger, drawn(ledger))
        found[seed] = []
        for _ in range(8):
            begun = drawn(ledger)
            found[seed].append(begun.values["method.x"])
            complete(ledger, begun)
        # Points of a Sobol sequence lie one in each eighth, and random ones hardly ever do.
        assert sorted(int(8 * x) for x in found[seed]) == list(range(8))
    assert found[0] != found[1]


def test_what_a_condition_brings_in_is_drawn_anew_for_each_quasi_random_trial(tmp_path: Path) -> None:
    spec = toy_study(tmp_path, sampler="qmc", space={"kind": "a,b", "x": "0..1 if kind=b"}).spec
    ledger = ledger_of(spec)
    values = []
    for _ in range(8):
        begun = drawn(ledger)
        values.append(begun.values.get("method.x"))
        complete(ledger, begun)
    given = [value for value in values if value is not None]
    assert len(given) >= 3
    assert len(set(given)) == len(given)


@pytest.mark.parametrize(("trials", "size"), [(6, 4), (20, 5), (1000, 50)])
def test_a_genetic_search_has_several_generations(trials: int, size: int) -> None:
    assert make_sampler("nsgaii", 0, study_seed=0, trials=trials).population_size == size


# ---- draws whose answer was lost


def lose_an_answer(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next draw be made, and its answer be lost."""
    ask = ledger.study.ask
    draws: list[Any] = []

    def asked() -> Any:
        draws.append(ask())
        if len(draws) == 1:
            raise OperationalError("INSERT", {}, ConnectionError("connection reset"))
        return draws[-1]

    monkeypatch.setattr(ledger.study, "ask", asked)


def patient(spec: StudySpec) -> Ledger:
    return Ledger(spec, BASE, spec.storage, Patience(spec.storage, 30))


def test_a_draw_whose_answer_was_lost_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = toy_study(tmp_path)
    ledger = patient(study.spec)
    lose_an_answer(ledger, monkeypatch)
    assert [drawn(ledger).number for _ in range(2)] == [1, 0], "the lost one is the start"
    assert ledger.counts() == (0, 2)
    assert [row.is_start for row in analyse(study).trials] == [True, False]


def test_a_draw_that_nobody_signs_is_closed_for_all_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = toy_spec(tmp_path, space={"x": "0..1"}, shared=True, storage=f"sqlite:///{tmp_path}/shared.db")
    ledger, other = patient(spec), patient(spec.model_copy(update={"token": "other"}))
    lose_an_answer(ledger, monkeypatch)
    first = drawn(ledger)
    assert first.number == 1
    assert drawn(other).number == 2, "whoever drew it may be about to sign"
    monkeypatch.setattr("vesalius.tuning.ledger._SIGNING_SECONDS", 0.0)
    again = drawn(other)
    assert (again.number, again.is_start) == (3, True), "the start is put up once more"
    assert not drawn(ledger).is_start
    assert ledger.trials()[0].state == optuna.trial.TrialState.FAIL
    assert ledger.counts() == (0, 4)
    complete(ledger, first)


def test_a_driver_that_signs_too_late_draws_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = toy_spec(tmp_path, space={"x": "0..1"}, shared=True, storage=f"sqlite:///{tmp_path}/shared.db")
    ledger, other = patient(spec), patient(spec.model_copy(update={"token": "other"}))
    monkeypatch.setattr("vesalius.tuning.ledger._SIGNING_SECONDS", 0.0)
    ask = ledger.study.ask
    slow: list[int] = []

    def asked() -> Any:
        trial = ask()
        if not slow:
            slow.append(trial.number)
            assert drawn(other).is_start
        return trial

    monkeypatch.setattr(ledger.study, "ask", asked)
    assert drawn(ledger).number == 2
    assert slow == [0]
    assert sum(trial.user_attrs.get("start", False) for trial in ledger.trials()) == 2, "the closed one and the new one"


def test_exhausted_spaces_are_asked_again_only_once_something_has_ended(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, space={"kind": "a,b"}, sampler="random", concurrent=3, trials=5)
    ledger = ledger_of(folder.spec)
    search = search_of(folder)
    first, second = search.suggest("one"), search.suggest("two")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert search.suggest("three") is None
    drawn_so_far = len(ledger.trials())
    assert search.suggest("four") is None
    assert len(ledger.trials()) == drawn_so_far
    for trial_id, config in (("one", first), ("two", second)):
        record = Record(number=config["number"], ending="complete", figures={"average_precision": 0.5})
        search.on_trial_complete(trial_id, {"record": record.model_dump_json()})
    assert search.suggest("five") == "FINISHED"
    assert search.is_exhausted
    assert ledger.counts() == (2, 0)


def test_a_trial_that_tune_lost_without_a_word_is_handed_out_again(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from vesalius.tuning.searcher import LostTrials

    search = search_of(toy_study(tmp_path, concurrent=1))
    first = search.suggest("one")
    assert search.suggest("two") is None
    LostTrials(search).on_step_begin(1, [SimpleNamespace(trial_id="one", status="RUNNING")])
    assert search.suggest("two") is None
    LostTrials(search).on_step_begin(2, [SimpleNamespace(trial_id="one", status="ERROR")])
    assert search.suggest("two") == first
    LostTrials(search).on_step_begin(3, [SimpleNamespace(trial_id="one", status="ERROR")])
    assert search.suggest("three") is None, "it is handed out once"


def test_that_every_trial_has_failed_is_said_of_all_trials_there_are(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, trials=20, concurrent=1)
    search = search_of(folder)
    ends(search, "complete")
    search = search_of(folder)
    for _ in range(4):
        ends(search, "failed")
    assert search.error is None, "one has ended well, in an earlier call"


def test_a_call_gives_up_after_three_failures_where_nothing_else_ever_ended(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, trials=20, concurrent=1)
    for _ in range(2):  # what was to be mended in between may have been
        search = search_of(folder)
        for _ in range(3):
            assert search.error is None
            ends(search, "failed")
        assert isinstance(search.error, StudyError)
        assert "every trial has failed so far, the last one because: diverged" in str(search.error)


def test_a_full_disk_ends_the_study_and_not_tunes_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy_study(tmp_path, concurrent=1)
    search = search_of(folder)
    search.suggest("one")

    def full(self: StudyFolder, record: Record) -> None:
        raise DiskSpaceError("the disk is full")

    monkeypatch.setattr("vesalius.tuning.folder.StudyFolder.keep", full)
    search.on_trial_complete("one", error=True)
    assert isinstance(search.error, DiskSpaceError)
    assert ledger_of(folder.spec).counts() == (0, 1), "it goes on with the next call"


@pytest.mark.parametrize(("kind", "ends_study"), [("RunError", False), ("StoreError", True)])
def test_a_run_that_cannot_go_on_blocks_its_study_once(tmp_path: Path, kind: str, ends_study: bool) -> None:
    folder = toy_study(tmp_path, concurrent=1)
    fatal = json.dumps({"kind": kind, "message": "checkpoint file a is damaged"})
    search = search_of(folder)
    ends(search, "complete")
    search.suggest("two")
    search.on_trial_complete("two", {"fatal": fatal})
    assert search.error is not None
    again = search_of(folder)
    config = again.suggest("three")
    assert isinstance(config, dict)
    again.on_trial_complete("three", {"fatal": fatal})
    assert (again.error is not None) == ends_study
    if not ends_study:
        row = analyse(folder).trials[config["number"]]
        assert row.state == "failed"
        assert row.reason == "checkpoint file a is damaged"
        assert folder.record(config["number"]) is not None


# ---- going on


def test_another_process_finds_what_was_left_half_way(tmp_path: Path) -> None:
    spec = toy_study(tmp_path).spec
    before = ledger_of(spec)
    complete(before, drawn(before))
    left = [drawn(before), drawn(before)]
    before.report(left[0].number, 25, 0.2)
    after = ledger_of(spec)
    found = after.left_behind()
    assert [(one.number, one.values) for one in found] == [(one.number, one.values) for one in left]
    assert after.counts() == (1, 2)
    after.report(left[0].number, 25, 0.2)
    after.report(left[0].number, 50, 0.4)
    for one in found:
        complete(after, one)
    assert after.counts() == (3, 0)
    assert drawn(after).number == 3
    (trial,) = [one for one in after.trials() if one.number == left[0].number]
    assert trial.intermediate_values == {25: 0.2, 50: 0.4}


def test_a_draw_that_was_killed_before_its_signature_is_found(tmp_path: Path) -> None:
    spec = toy_study(tmp_path).spec
    before = ledger_of(spec)
    before.study.ask()
    found = ledger_of(spec).left_behind()
    assert [one.is_start for one in found] == [True]
    assert found[0].values == {"method.x": 0.5, "method.k": 3, "method.kind": "a"}


def test_what_has_ended_stays_as_it_is(tmp_path: Path) -> None:
    ledger = ledger_of(toy_study(tmp_path).spec)
    first = drawn(ledger)
    again = ledger_of(toy_spec(tmp_path, token=ledger._spec.token))
    (left,) = again.left_behind()
    complete(ledger, first)
    again.end(left, Record(number=left.number, ending="failed", reason="too late"))
    assert [trial.state.name for trial in again.trials()] == ["COMPLETE"]


def test_a_study_that_goes_on_draws_something_new(tmp_path: Path) -> None:
    spec = toy_study(tmp_path, sampler="random").spec
    seen = []
    for _ in range(5):
        ledger = ledger_of(spec)
        begun = drawn(ledger)
        complete(ledger, begun)
        seen.append(begun.values["method.x"])
    assert len(set(seen)) == 5


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsgaii", "qmc"])
def test_a_broken_study_draws_what_an_unbroken_one_does(tmp_path: Path, sampler: str) -> None:
    whole, broken = (toy_study(tmp_path / name, sampler=sampler).spec for name in ("whole", "broken"))
    ledger = ledger_of(whole)
    for _ in range(6):
        one = drawn(ledger)
        again = ledger_of(broken)
        other = drawn(again)
        assert one.values == other.values
        complete(ledger, one)
        complete(again, other)


def test_two_drivers_share_a_study_and_keep_their_trials(tmp_path: Path) -> None:
    one = toy_study(tmp_path / "one", space={"x": "0..1"}, shared=True).spec
    other = toy_spec(tmp_path / "two", space={"x": "0..1"}, storage=one.storage, shared=True)
    mine, theirs = ledger_of(one), ledger_of(other)
    first, second, third = drawn(mine), drawn(theirs), drawn(mine)
    assert [first.number, second.number, third.number] == [0, 1, 2]
    assert [left.number for left in ledger_of(one).left_behind()] == [0, 2]
    assert [left.number for left in ledger_of(other).left_behind()] == [1]
    assert mine.counts() == theirs.counts() == (0, 3)


def test_a_driver_that_is_killed_while_it_draws_finds_its_trial_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toy_study(tmp_path, shared=True).spec
    before = ledger_of(spec)

    def killed(self: Ledger, trial: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_suggest", killed)
        with pytest.raises(KeyboardInterrupt):
            before.draw()
    assert [one.number for one in ledger_of(spec).left_behind()] == [0]
    assert ledger_of(toy_spec(tmp_path, shared=True)).left_behind() == [], "another driver's"


def test_of_two_drivers_that_begin_at_once_the_second_waits_for_the_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toy_study(tmp_path, shared=True).spec
    first = optuna.create_study(storage=spec.storage, study_name=spec.name, directions=["maximize"])
    other = toy_spec(tmp_path, shared=True, cohort_digest="e" * 64)
    noting = threading.Timer(1.5, first.set_user_attr, ("vesalius_terms", other.terms()))
    monkeypatch.setattr(optuna.storages.RDBStorage, "get_all_studies", lambda self: [])  # it was not there yet
    noting.start()
    try:
        with pytest.raises(StudyError, match="is of another cohort"):
            ledger_of(spec)
    finally:
        noting.join()
    assert first.get_trials() == [], "and has enqueued no second start"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cohort_digest": "e" * 64}, "is of another cohort: choose another name"),
        ({"space": {"k": "1..4"}}, "is of another spaces"),
        ({"objectives": ("best_dice",)}, "is of another objectives"),
        ({"settings": {"x": 0.1}, "method": "other"}, "another method, another settings"),
    ],
)
def test_a_study_on_other_terms_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    spec = toy_study(tmp_path).spec
    drawn(ledger_of(spec))
    with pytest.raises(StudyError, match=match):
        ledger_of(toy_spec(tmp_path, **changes))
    assert ledger_of(toy_spec(tmp_path, training={"threads": 7, "cache_mib": 5})), "a machine's own affair"


# ---- stopping early


@pytest.mark.parametrize("pruner", ["asha", "median"])
def test_a_pruner_stops_the_worse_but_never_the_start(tmp_path: Path, pruner: str) -> None:
    ledger = ledger_of(toy_study(tmp_path, pruner=pruner).spec)
    start = drawn(ledger)
    assert not any(ledger.report(start.number, percent, 0.0) for percent in (25, 50, 75, 100))
    complete(ledger, start)
    for value in (0.5, 0.6, 0.7):
        begun = drawn(ledger)
        stopped = [ledger.report(begun.number, percent, value) for percent in (25, 50, 75, 100)]
        assert not any(stopped), "each is better than all before it"
        complete(ledger, begun)
    worst = drawn(ledger)
    assert ledger.report(worst.number, 25, 0.1)
    ledger.end(worst, Record(number=worst.number, ending="pruned", percent=25))
    assert ledger.trials()[-1].state.name == "PRUNED"
    late = drawn(ledger)
    assert not ledger.report(late.number, 100, 0.1), "trained to its end, it is judged"


@pytest.mark.parametrize("pruner", ["asha:50", "median:50"])
def test_a_pruner_lets_every_trial_go_to_where_it_may_first_stop(tmp_path: Path, pruner: str) -> None:
    ledger = ledger_of(toy_study(tmp_path, pruner=pruner).spec)
    for value in (0.5, 0.6, 0.7, 0.8):
        begun = drawn(ledger)
        assert not any(ledger.report(begun.number, percent, value) for percent in (25, 49, 51, 75, 100))
        complete(ledger, begun)
    worst = drawn(ledger)
    assert [ledger.report(worst.number, percent, 0.1) for percent in (25, 49, 51)] == [False, False, True]


def test_a_verdict_outlives_a_kill(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, pruner="asha", concurrent=1)
    before = ledger_of(folder.spec)
    start = drawn(before)
    for percent in (25, 50, 75, 100):
        before.report(start.number, percent, 0.5)
    complete(before, start)
    worse = drawn(before)
    assert before.report(worse.number, 25, 0.1)
    after = ledger_of(folder.spec)
    (left,) = after.left_behind()
    assert left.given_up == 25
    assert after.report(left.number, 30, 0.1)
    config = search_of(folder).suggest("one")
    assert isinstance(config, dict)
    assert config["number"] == worse.number + 1, "nothing of it is trained"
    row = analyse(folder).trials[worse.number]
    assert (row.state, row.percent) == ("pruned", 25)
    kept = folder.record(worse.number)
    assert kept is not None
    assert kept.ending == "pruned"


def test_without_a_pruner_nothing_is_stopped(tmp_path: Path) -> None:
    ledger = ledger_of(toy_study(tmp_path, pruner="none").spec)
    for value in (0.9, 0.1, 0.0):
        assert not ledger.report(drawn(ledger).number, 25, value)


def test_a_failed_trial_is_none_of_the_figures(tmp_path: Path) -> None:
    folder = toy_study(tmp_path)
    ledger = ledger_of(folder.spec)
    complete(ledger, drawn(ledger))
    begun = drawn(ledger)
    ledger.end(begun, Record(number=begun.number, ending="failed", reason="out of memory"))
    found = analyse(folder)
    assert found.counts == {"complete": 1, "failed": 1}
    assert found.trials[1].reason == "out of memory"
    assert found.best == 0


# ---- analysis


def test_importance_finds_what_matters(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, space={"x": "0..1", "k": "4..6"}, sampler="random", trials=40)
    ledger = ledger_of(folder.spec)
    for _ in range(40):
        complete(ledger, drawn(ledger))
    found = analyse(folder)
    shares = found.importance["average_precision"]
    assert shares["method.x"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    best = max(found.trials, key=lambda row: row.figures.get("average_precision", 0))
    assert found.best == best.number
    assert found.front == (best.number,)


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, objectives=("average_precision", "seconds_per_volume"), criterion=None)
    ledger = ledger_of(folder.spec)
    for precision, seconds in ((0.5, 5.0), (0.9, 9.0), (0.4, 6.0), (0.7, 5.0), (0.7, 5.0)):
        begun = drawn(ledger)
        assert not ledger.report(begun.number, 25, 0.0)
        complete(ledger, begun, average_precision=precision, seconds_per_volume=seconds)
    found = analyse(folder)
    assert found.best is None
    assert found.front == (1, 3), "best average precision first; of equals the first; nothing that another one beats"
    assert set(found.importance) == {"average_precision", "seconds_per_volume"}


# ---- the storage


def test_a_storage_that_is_down_is_waited_for() -> None:
    calls: list[int] = []
    said: list[str] = []

    def flaky(value: int) -> int:
        calls.append(value)
        if len(calls) < 3:
            raise OperationalError("SELECT 1", {}, ConnectionError("connection refused"))
        return value

    patience = Patience("postgresql://me:secret@host/db", 30, waiting=said.append)
    assert patience(flaky, 7) == 7
    assert len(calls) == 3
    assert all("storage does not answer, waiting" in text and "secret" not in text for text in said)


def test_a_storage_that_stays_down_ends_in_a_sentence() -> None:
    def down() -> None:
        raise optuna.exceptions.StorageInternalError("down") from ConnectionError("connection refused")

    with pytest.raises(StudyError, match=r"postgresql://me:\*\*\*@host/db has not answered for 0 s.*nothing is lost"):
        Patience("postgresql://me:secret@host/db", 0)(down)


@pytest.mark.parametrize(
    "cause",
    [
        IntegrityError("INSERT", {}, ValueError("duplicate key")),
        InternalError("UPDATE", {}, ValueError("cannot execute UPDATE in a read-only transaction")),
    ],
)
def test_what_a_storage_will_never_do_ends_at_once(cause: Exception) -> None:
    calls: list[int] = []

    def refused() -> None:
        calls.append(1)
        raise optuna.exceptions.StorageInternalError("refused") from cause

    with pytest.raises(StudyError, match=r"answers that it will not \(.*mend that, nothing is lost"):
        Patience("postgresql://me:secret@host/db", 30)(refused)
    assert calls == [1]


def test_a_file_that_is_damaged_is_not_waited_for(tmp_path: Path) -> None:
    spec = toy_study(tmp_path).spec
    drawn(ledger_of(spec))
    ledger = patient(spec)
    with sqlite3.connect(tmp_path / "studies" / "toy" / "optuna.db") as database:
        database.execute("CREATE TRIGGER t BEFORE INSERT ON trials BEGIN SELECT no_such_function(); END")
    with pytest.raises(StudyError, match="answers that it will not"):
        ledger.draw()


def test_a_file_that_is_locked_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vesalius.tuning.storage._SQLITE_TIMEOUT", 0.1)
    ledger = patient(toy_study(tmp_path).spec)
    database = sqlite3.connect(tmp_path / "studies" / "toy" / "optuna.db", check_same_thread=False)
    database.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(1.0, database.rollback)
    release.start()
    assert drawn(ledger).number == 0
    release.join()
    database.close()


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("no address", "expected sqlite:///FILE or postgresql://"),
        ("mongodb://host/db", "expected sqlite:///FILE or postgresql://"),
        ("mysql+pymysql://me:secret@host/db", "expected sqlite:///FILE or postgresql://"),
        ("sqlite+nothing:///a.db", "expected sqlite:///FILE"),
    ],
)
def test_an_address_of_no_storage_is_refused(address: str, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        check_address(address)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingError, match=r"needs the package psycopg: pip install 'psycopg\[binary\]'"):
        check_address("postgresql://me@host/db")


def test_a_password_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert whole_address("sqlite:///a.db") == "sqlite:///a.db"
    kept = "postgresql://me:***@host/db"
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(StudyError, match=f"set {VARIABLE} to the whole address"):
        whole_address(kept)
    monkeypatch.setenv(VARIABLE, "postgresql://me:secret@host/db")
    assert whole_address(kept) == "postgresql://me:secret@host/db"
