"""A study that is driven while Ray or its storage fails; Ray itself is not started."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from ray.exceptions import RaySystemError
from ray.tune import TuneError
from sqlalchemy.exc import OperationalError

from vesalius.platform.errors import SettingError, StoreError, StudyError
from vesalius.tuning import analyse, drive, repeat
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.testing import BASE, ToyTrainer, toy_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Let a function do the work of ``Tuner.fit``: it is given the searcher."""

    @contextlib.contextmanager
    def none() -> Iterator[None]:
        yield

    for module in ("running", "repeating"):
        monkeypatch.setattr(f"vesalius.tuning.{module}.session", none)
        monkeypatch.setattr(f"vesalius.tuning.{module}.check_resources", lambda resources, **more: None)
        monkeypatch.setattr(f"vesalius.tuning.{module}.alive_nodes", lambda: [])
    monkeypatch.setattr("ray.cluster_resources", dict)

    def take(function: Callable[[Any], None]) -> None:
        class Fake:
            def __init__(self, trainable: Any, *, tune_config: Any, **options: Any) -> None:
                self.search = tune_config.search_alg

            def fit(self) -> None:
                function(self.search)

        monkeypatch.setattr("ray.tune.Tuner", Fake)

    return take


@pytest.mark.parametrize("error", [TuneError("the head is gone"), RaySystemError("the head is gone")])
def test_a_ray_that_breaks_off_is_a_sentence_and_loses_nothing(
    tmp_path: Path, tuner: Callable[[Callable[[Any], None]], None], error: Exception
) -> None:
    study = toy_study(tmp_path)

    def breaks(search: Any) -> None:
        if search is not None:
            search.suggest("one")
        (study.path / "ray").mkdir()
        raise error

    tuner(breaks)
    with pytest.raises(StudyError, match=r"Ray broke off study 'toy' \(.*the head is gone.*tune --resume toy") as said:
        drive(study, BASE, ToyTrainer(str(tmp_path)))
    assert said.value.exit_code == 2
    assert not study.ray.exists()
    assert analyse(study).counts == {"running": 1}, "it goes on with the next call"
    with pytest.raises(StudyError, match=r"the head is gone.*vesalius study toy --seeds 2"):
        repeat(study, analyse(study).trials[:1], [1, 2], ToyTrainer(str(tmp_path)))


def test_a_sampler_whose_package_is_missing_is_said_before_ray_is_started(tmp_path: Path) -> None:
    study = toy_study(tmp_path, sampler="cmaes")
    with pytest.raises(SettingError, match="sampler 'cmaes' needs the package cmaes: pip install cmaes"):
        drive(study, BASE, ToyTrainer(str(tmp_path)))


def test_what_ended_a_study_is_said_rather_than_that_ray_broke_off(
    tmp_path: Path, tuner: Callable[[Callable[[Any], None]], None]
) -> None:
    def breaks(search: Any) -> None:
        search.error = StoreError("the store is gone")
        raise TuneError("a trial failed")

    tuner(breaks)
    with pytest.raises(StoreError, match="the store is gone"):
        drive(toy_study(tmp_path), BASE, ToyTrainer(str(tmp_path)))


def test_a_storage_that_is_down_leaves_the_count_where_it_was(
    tmp_path: Path, tuner: Callable[[Callable[[Any], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(search: Any) -> None:
        for number in range(2):
            config = search.suggest(str(number))
            record = {"number": config["number"], "ending": "complete", "figures": {"average_precision": 0.5}}
            search.on_trial_complete(str(number), {"record": json.dumps(record)})
        answers = Ledger.trials
        down = [True]

        def trials(self: Ledger) -> Any:
            def ask() -> Any:
                if down:
                    down.pop()
                    raise OperationalError("SELECT 1", {}, ConnectionError("refused"))

            self._try(ask)
            return answers(self)

        monkeypatch.setattr(Ledger, "trials", trials)
        search.suggest("three")

    tuner(runs)
    seen: list[tuple[int, int, str]] = []
    drive(toy_study(tmp_path), BASE, ToyTrainer(str(tmp_path)), progress=lambda *said: seen.append(said))
    (waited,) = [one for one in seen if "waiting" in one[2]]
    assert waited[:2] == (2, 6)
