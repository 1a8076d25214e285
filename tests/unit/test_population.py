"""A population: who goes on from whom, with what settings, and that a kill changes nothing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.platform.contracts import Choice, Range
from vesalius.platform.errors import SettingError, StudyError
from vesalius.platform.progress import silent
from vesalius.platform.runs import RunSettings
from vesalius.tuning import Dimension, analyse, declared, dimensions
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.population import check_mutable, mutable_spaces, perturbed
from vesalius.tuning.searcher import LedgerSearch
from vesalius.tuning.spec import Population, Record
from vesalius.tuning.storage import Patience
from vesalius.tuning.testing import BASE, CRITERION, ToySettings, toy_study, worth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.tuning import StudyFolder, TrialRow

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # SQLite's connections end with the process


def population(home: Path, size: int, generations: int, **changes: Any) -> StudyFolder:
    return toy_study(
        home,
        population=Population(size=size, generations=generations),
        trials=size * generations,
        concurrent=changes.pop("concurrent", size),
        sampler="random",
        **changes,
    )


def driver_of(study: StudyFolder) -> LedgerSearch:
    spec = study.spec
    ledger = Ledger(spec, BASE, spec.storage, Patience(spec.storage, 0), has_ended=study.has_ended)
    return LedgerSearch(ledger, spec, study, deadline=None, progress=silent, abandon=lambda number: None)


def came_to(study: StudyFolder, config: dict[str, Any], fails: Callable[[int], bool]) -> Record:
    """Return what a trial comes to that gathers, in each generation, what its settings are worth."""
    spec, number = study.spec, config["number"]
    assert spec.population is not None
    parent = config.get("parent")
    gathered = (parent["figures"].get(CRITERION, 0.0) if parent else 0.0) + worth(config["values"])
    run_id = spec.run_id(number)
    if fails(number):
        return Record(number=number, ending="failed", reason="diverged", run_id=run_id)
    if spec.population.is_last(number):
        return Record(number=number, ending="complete", figures={"average_precision": gathered}, run_id=run_id)
    percent = 100 * spec.population.until(number)
    return Record(
        number=number,
        ending="paused",
        figures={CRITERION: gathered},
        percent=percent,
        checkpoint="0",
        weights_sha256=f"{number}" * 64,
        run_id=run_id,
    )


def play(
    study: StudyFolder,
    *,
    fails: Callable[[int], bool] = lambda number: False,
    seed: int = 0,
    most: int = 1000,
    told: bool = True,
) -> LedgerSearch:
    """Drive a study without Ray: trials that are under way end in any order; after so many ends the driver is killed.

    ``told`` says whether the last of these ends comes to the driver before it is killed.
    """
    search, order, ended = driver_of(study), random.Random(seed), 0
    under_way: dict[str, dict[str, Any]] = {}
    while True:
        config = search.suggest(name := f"{len(under_way)}-{ended}-{order.random()}")
        if isinstance(config, dict):
            under_way[name] = config
            continue
        if not under_way:
            return search
        name = order.choice(sorted(under_way))
        record = came_to(study, under_way.pop(name), fails)
        study.keep(record)
        ended += 1
        if ended < most or told:
            search.on_trial_complete(name, {"record": record.model_dump_json()})
        if ended == most:
            return search


def lineage(study: StudyFolder) -> list[tuple[Any, ...]]:
    rows = analyse(study).trials
    return [(row.number, row.parent, row.values, row.figures, row.curve, row.is_start) for row in rows]


def of(study: StudyFolder, generation: int) -> list[TrialRow]:
    return [row for row in analyse(study).trials if row.generation == generation]


# ---- generations


def test_the_worst_go_on_from_the_best_with_other_settings(tmp_path: Path) -> None:
    study = population(tmp_path, 5, 3)
    play(study)
    found = analyse(study)
    assert found.counts == {"paused": 10, "complete": 5}
    for generation in (1, 2):
        before, now = of(study, generation - 1), of(study, generation)
        ranked = sorted(before, key=lambda row: -row.figures[CRITERION])
        best, worst = ranked[0], ranked[-1]
        for own, row in zip(before, now, strict=True):
            if own is worst and not own.is_start:
                assert row.parent == best.number
                assert row.values != best.values
            else:
                assert row.parent == own.number
                assert row.values == own.values
            assert row.parent_sha256 == f"{row.parent}" * 64
    assert any(row.parent != row.number - 5 for row in found.trials if row.generation), "somebody was replaced"


def test_the_first_generation_is_the_start_and_draws_none_of_which_are_alike(tmp_path: Path) -> None:
    study = population(tmp_path, 6, 2, space={"k": "3..8", "kind": "a,b"})
    play(study, most=6)
    first = of(study, 0)
    assert first[0].is_start
    assert first[0].values == {"method.k": 3, "method.kind": "a"}
    values = [tuple(row.values.values()) for row in first]
    assert len(set(values)) == 6
    assert (8, "b") not in values, "what the settings refuse together is not drawn"


def test_the_start_is_kept_as_it_is_however_it_fares(tmp_path: Path) -> None:
    study = population(tmp_path, 4, 4, space={"x": "0.2..0.6", "k": "4..6"})  # the start, 0.5 and 3, lies outside
    play(study)
    controls = [row for row in analyse(study).trials if row.number % 4 == 0]
    assert all(row.is_start and row.values == {} for row in controls)
    assert [row.parent for row in controls] == [None, 0, 4, 8]
    assert analyse(study).start == 12
    assert controls[-1].figures["average_precision"] == pytest.approx(4 * worth({}))


def test_a_copy_of_a_start_outside_of_the_spaces_lies_inside(tmp_path: Path) -> None:
    study = population(tmp_path, 2, 2, space={"x": "0.8..0.9"})  # worse than the start
    play(study)
    copy = of(study, 1)[1]
    assert copy.parent == 0
    assert 0.8 <= copy.values["method.x"] <= 0.9


def test_one_that_fails_is_replaced_and_a_start_that_fails_is_none_any_more(tmp_path: Path) -> None:
    study = population(tmp_path, 3, 3)
    play(study, fails=lambda number: number in (0, 4))
    second, third = of(study, 1), of(study, 2)
    assert second[0].parent in (1, 2)
    assert not second[0].is_start
    assert third[1].parent in (3, 5)
    assert analyse(study).start is None
    replaced = [row.number for row in second + third if row.parent != row.number - 3]
    assert replaced == [3, 7], "who fails is the worst: nobody else is replaced beside"


def test_a_generation_that_fails_ends_the_study_in_a_sentence(tmp_path: Path) -> None:
    study = population(tmp_path, 2, 3)
    search = play(study, fails=lambda number: number in (2, 3))
    assert isinstance(search.error, StudyError)
    assert "every member of generation 1 of study 'toy' has failed, the last one because: diverged" in str(search.error)


def test_nobody_is_replaced_where_nothing_is_judged_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = population(tmp_path, 3, 3)
    judged = came_to

    def unjudged(study: StudyFolder, config: dict[str, Any], fails: Callable[[int], bool]) -> Record:
        record = judged(study, config, fails)
        return record.model_copy(update={"figures": {}}) if config["number"] < 3 else record

    monkeypatch.setitem(globals(), "came_to", unjudged)
    play(study, fails=lambda number: number == 1)
    second, third = of(study, 1), of(study, 2)
    assert [second[0].parent, second[2].parent] == [0, 2]
    assert second[1].parent in (0, 2)
    worst = min(second, key=lambda row: row.figures[CRITERION])
    assert not worst.is_start, "a start would be kept"
    assert [row.number - 3 for row in third if row.parent != row.number - 3] == [worst.number]


def test_a_start_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    study = population(tmp_path, 2, 2)
    ledger = driver_of(study)._ledger
    begun = ledger.draw()
    assert begun is not None
    ledger.end(begun, Record(number=0, ending="failed", reason="out of memory", is_transient=True))
    assert not ledger.start_again(), "its place is taken, and every number is one of a member"


def test_a_draw_whose_answer_was_lost_is_the_next_members(tmp_path: Path) -> None:
    study = population(tmp_path, 2, 2)
    ledger = driver_of(study)._ledger
    begun = ledger.draw()
    assert begun is not None
    ledger.end(begun, came_to(study, {"number": 0, "values": begun.values}, lambda number: False))
    ledger.study.ask()
    assert ledger.is_ready(), "the last one of its generation"
    again = ledger.draw()
    assert again is not None
    assert again.number == 1
    assert not ledger.is_ready(), "the next generation waits for it"


# ---- kills


@pytest.mark.long
def test_a_driver_that_is_killed_at_any_end_comes_to_the_same(tmp_path: Path) -> None:
    whole = population(tmp_path / "whole", 4, 3, concurrent=2)
    play(whole, fails=lambda number: number == 6)
    expected = lineage(whole)
    assert len(expected) == 12
    for most in range(1, 12):
        study = population(tmp_path / f"{most}", 4, 3, concurrent=2)
        play(study, fails=lambda number: number == 6, seed=most, most=most, told=bool(most % 2))
        play(study, fails=lambda number: number == 6, seed=most + 100)
        assert lineage(study) == expected, f"killed after {most} ends"


def test_a_draw_that_nobody_signed_is_bred_again(tmp_path: Path) -> None:
    whole, study = (population(tmp_path / name, 3, 2) for name in ("whole", "killed"))
    play(whole)
    play(study, most=3)
    ledger = driver_of(study)._ledger
    ledger.study.ask()  # and the driver is killed
    play(study)
    assert lineage(study) == lineage(whole)


def test_the_next_generation_waits_for_the_last_of_this_one(tmp_path: Path) -> None:
    study = population(tmp_path, 3, 2)
    search = driver_of(study)
    configs = [search.suggest(f"{index}") for index in range(3)]
    assert search.suggest("more") is None
    for index, config in enumerate(configs):
        assert isinstance(config, dict)
        assert search.suggest("more") is None
        record = came_to(study, config, lambda number: False)
        search.on_trial_complete(f"{index}", {"record": record.model_dump_json()})
    after = search.suggest("more")
    assert isinstance(after, dict)
    assert after["number"] == 3
    assert after["parent"]["run_id"] == "toy-0000"


def test_another_seed_is_another_population(tmp_path: Path) -> None:
    one, other = (population(tmp_path / f"{seed}", 4, 2, seed=seed) for seed in (0, 1))
    play(one)
    play(other)
    assert [row.values for row in of(one, 0)[1:]] != [row.values for row in of(other, 0)[1:]]


# ---- settings


def of_range(low: float, high: float, **more: Any) -> Dimension:
    return Dimension(key="method.x", space=Range(low=low, high=high), **more)


@pytest.mark.parametrize(
    ("one", "value", "lower", "upper"),
    [
        (of_range(0, 10), 5.0, 4.0, 6.0),
        (of_range(0, 5.5), 5.0, 4.0, 5.5),
        (of_range(0, 5), 5.0, 4.0, 4.0),
        (of_range(1, 9, whole=True), 5, 4, 6),
        (of_range(1, 9, whole=True), 2, 1, 3),
        (of_range(1, 9, whole=True), 1, 2, 2),
        (of_range(1, 50, whole=True), 20, 16, 24),
        (of_range(-5, 5), -5.0, -4.0, -4.0),
        (of_range(2, 3), 9.0, 3.0, 3.0),
        (Dimension(key="method.x", space=Choice(values=(1, 4, 16))), 4, 1, 16),
        (Dimension(key="method.x", space=Choice(values=(1, 4, 16))), 16, 4, 4),
        (Dimension(key="method.x", space=Choice(values=(False, True))), True, False, False),
    ],
)
def test_what_a_value_is_perturbed_to(one: Dimension, value: Any, lower: Any, upper: Any) -> None:
    found = [perturbed(one, value, side, 0.0) for side in (0.2, 0.8)]
    assert found == [pytest.approx(lower), pytest.approx(upper)]
    assert all(type(each) is type(wanted) for each, wanted in zip(found, (lower, upper), strict=True))


@pytest.mark.parametrize("value", [0.0, None, "null"])
def test_what_no_factor_moves_is_drawn_from_the_space(value: Any) -> None:
    assert perturbed(of_range(0, 0.9), value, 0.2, 0.5) == pytest.approx(0.45)


def test_whole_numbers_have_equal_room() -> None:
    one = of_range(1, 4, whole=True)
    drawn = [perturbed(one, None, 0.2, (index + 0.5) / 400) for index in range(400)]
    assert [drawn.count(number) for number in (1, 2, 3, 4)] == [100] * 4


def test_what_may_not_change_in_mid_training_is_refused() -> None:
    searched = dimensions(BASE, {"width": "2..8", "x": None}, lambda settings: None)
    with pytest.raises(SettingError, match=r"method\.width must not change there: leave it out, or search some of"):
        check_mutable(BASE, searched)
    check_mutable(BASE, [one for one in searched if one.key != "method.width"])
    assert set(mutable_spaces(BASE, declared(BASE))) == {"method.x", "method.k", "method.kind"}


def test_a_method_without_mutable_spaces_is_refused() -> None:
    class Fixed(ToySettings):
        pass

    with pytest.raises(SettingError, match="no space of a setting that may change in mid-training"):
        mutable_spaces(RunSettings.of(Fixed()), {"method.width": Range(low=1, high=2)})
