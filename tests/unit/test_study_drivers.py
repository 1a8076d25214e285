"""Drivers that share a study: what one does about trials of another that has died, or has been copied."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from vesalius.infra.cli.tune import _about_others
from vesalius.tuning import Driven, StudyFolder, find_study
from vesalius.tuning.noted import SILENT_SECONDS, Elsewhere
from vesalius.tuning.testing import complete, drawn, ledger_of, toy_study

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the drivers' clocks go forward."""
    import time

    begun, real = [0.0], time.time
    monkeypatch.setattr("vesalius.tuning.ledger.time.time", lambda: real() + begun[0])

    def forward(seconds: float) -> None:
        begun[0] += seconds

    return forward


@pytest.fixture
def two(tmp_path: Path) -> tuple[StudyFolder, StudyFolder]:
    address = f"sqlite:///{tmp_path}/team.db"
    space = {"kind": "a,b"}
    one, other = (toy_study(tmp_path / name, shared=True, storage=address, space=space) for name in ("one", "two"))
    return one, other


def test_what_a_dead_driver_had_under_way_counts_no_more(
    two: tuple[StudyFolder, StudyFolder], later: Callable[[float], None]
) -> None:
    one, other = (ledger_of(folder.spec) for folder in two)
    first, left = drawn(one), drawn(other)
    complete(one, first)
    assert one.counts() == (1, 1)
    assert one.elsewhere() == Elsewhere(alive=1)
    later(SILENT_SECONDS - 60)
    assert one.counts() == (1, 1)
    later(120)
    assert one.counts() == (1, 0), "whoever is left has to do what it was to do"
    assert one.elsewhere().silent == 1
    assert one.elsewhere().seconds == pytest.approx(SILENT_SECONDS + 60, abs=5)
    assert other.counts() == (1, 1), "to itself it is alive"
    assert other.elsewhere() == Elsewhere()
    again = drawn(one)
    assert again.values == left.values, "and no repeat of it"
    complete(one, again)
    assert ledger_of(two[1].spec).left_behind() == [], (
        "it comes back, and another one has trained these values meanwhile"
    )


def test_a_driver_that_is_at_work_is_heard_of(
    two: tuple[StudyFolder, StudyFolder], later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vesalius.platform.progress import silent
    from vesalius.tuning.searcher import LedgerSearch, StudyStopper

    one, other = (ledger_of(folder.spec) for folder in two)
    search = LedgerSearch(other, two[1].spec, two[1], deadline=None, progress=silent, abandon=lambda record: None)
    assert search.suggest("tune's") is not None
    for _ in range(4):
        later(SILENT_SECONDS / 2)
        assert not StudyStopper(search).stop_all()
    assert one.counts() == (0, 1)
    calls: list[str] = []
    monkeypatch.setattr(other, "_try", lambda function, *arguments: calls.append(function.__name__))
    StudyStopper(search).stop_all()
    assert calls == [], "once a minute, though Tune asks ten times a second"


def test_a_copy_leaves_the_first_ones_trials_alone(tmp_path: Path, two: tuple[StudyFolder, StudyFolder]) -> None:
    begun = drawn(ledger_of(two[0].spec))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    copy = find_study(tmp_path / "copy", "toy")
    assert [left.number for left in ledger_of(copy.spec).left_behind()] == [begun.number], "before it is claimed"
    assert copy.claim()
    assert ledger_of(copy.spec).left_behind() == []
    assert [left.number for left in ledger_of(two[0].spec).left_behind()] == [begun.number]


def test_other_drivers_are_spoken_of(two: tuple[StudyFolder, StudyFolder]) -> None:
    def said(elsewhere: Elsewhere, *, is_finished: bool = False, is_copy: bool = False) -> str:
        driven = Driven(
            is_finished=is_finished, is_exhausted=False, is_over=False, is_copy=is_copy, elsewhere=elsewhere, seconds=1
        )
        return " | ".join(_about_others(driven, two[0]))

    assert said(Elsewhere()) == ""
    assert said(Elsewhere(alive=2)) == "trials under way at other drivers: 2; the study is finished when they are"
    assert said(Elsewhere(alive=2), is_finished=True) == ""
    silent = said(Elsewhere(silent=1, seconds=7200), is_finished=True)
    assert "drivers not heard of: 1, the last one 2.0 h ago" in silent
    assert "vesalius tune --resume toy" in silent
    assert "is a copy: what is under way where it was copied from" in said(Elsewhere(), is_copy=True)
