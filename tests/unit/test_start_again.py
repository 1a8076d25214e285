"""A start that failed, with which everything is compared: when it is tried again, and what becomes of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.pages.study import render_study
from vesalius.platform.errors import StudyError
from vesalius.platform.progress import silent
from vesalius.tuning import StudyFolder, analyse, compared
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.searcher import LedgerSearch
from vesalius.tuning.spec import Record
from vesalius.tuning.storage import Patience
from vesalius.tuning.testing import BASE, toy_study

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


def call(folder: StudyFolder, *endings: str) -> list[int]:
    """Drive a study by one call in which trials end in order; return the numbers of those that were begun."""
    spec = folder.spec
    ledger = Ledger(spec, BASE, spec.storage, Patience(spec.storage, 0))
    ledger.start_again()
    search = LedgerSearch(ledger, spec, folder, deadline=None, progress=silent, abandon=lambda record: None)
    numbers = []
    for ending in endings:
        config = search.suggest("tune's")
        if not isinstance(config, dict):
            break
        numbers.append(config["number"])
        if ending == "dies":
            search.on_trial_complete("tune's", error=True)
            continue
        told: dict[str, Any] = {"number": numbers[-1], "ending": ending.split()[0], "run_id": f"toy-{numbers[-1]}"}
        if ending == "complete":
            told["figures"] = {"average_precision": 0.5}
        record = Record(**told, is_transient=ending == "failed of memory", reason="why")
        search.on_trial_complete("tune's", {"record": record.model_dump_json()})
    ledger.close()
    return numbers


@pytest.mark.parametrize("space", [{"x": "0..1"}, {"k": "5..8"}], ids=["inside", "outside"])
@pytest.mark.parametrize("how", ["failed of memory", "dies"])
def test_a_start_that_failed_of_the_moment_is_tried_once_more_a_call(
    tmp_path: Path, how: str, space: dict[str, str]
) -> None:
    folder = toy_study(tmp_path, trials=3, concurrent=1, space=space)
    assert call(folder, how, "complete", "complete", "complete") == [0, 1, 2], "the study has what it wants"
    assert call(folder, how, "complete") == [3], "and the start once more"
    with pytest.raises(StudyError, match=r"vesalius tune --resume toy` tries them again"):
        compared(analyse(folder))
    assert call(folder, "complete", "complete") == [4]
    found = analyse(folder)
    assert found.start == 4
    assert [row.number for row in found.trials if row.is_start] == [0, 3, 4]
    assert compared(found.model_copy(update={"best": 1})) == (1, 4)
    assert call(folder, "complete") == [], "it has come to its end"
    page = render_study(found, folder.spec, {"method.x": 0.5, "method.k": 3, "method.kind": "a"})
    assert "The start did not come to its end" not in page


def test_a_start_that_fails_by_its_settings_is_not_tried_again(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, trials=2, concurrent=1)
    assert call(folder, "failed", "complete") == [0, 1]
    assert call(folder, "complete") == []


def test_another_trial_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, trials=2, concurrent=1)
    assert call(folder, "complete", "failed of memory") == [0, 1]
    assert call(folder, "complete") == []


def test_of_two_drivers_one_alone_tries_the_start_again(tmp_path: Path) -> None:
    folder = toy_study(tmp_path, trials=6, concurrent=1)
    call(folder, "failed of memory")
    spec = folder.spec
    one, other = (Ledger(spec, BASE, spec.storage, Patience(spec.storage, 0)) for _ in range(2))
    assert one.start_again()
    assert not other.start_again()
    first, second = one.draw(), other.draw()
    assert first is not None
    assert second is not None
    assert (first.is_start, second.is_start) == (True, False)
