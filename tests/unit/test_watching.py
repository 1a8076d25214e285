"""What is said of a training: from which step it goes on, and nothing lost that was due when it was broken off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from vesalius.platform.testing.methods import build
from vesalius.platform.testing.steady import Steady, SteadySettings
from vesalius.platform.testing.training_runs import BreakAt, Broken, training_settings
from vesalius.platform.training import Unwatched, Watcher, train

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.store import CohortStore


class _Listens(Unwatched):
    """Keeps where training begins and what is measured; breaks it off once a stage's end is saved, where told to."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.begun_at: list[tuple[int, int]] = []
        self.heard: dict[str, list[int]] = {}
        self._breaks = breaks

    def begun(self, overall: int, total: int) -> None:
        self.begun_at.append((overall, total))

    def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
        for name in metrics:
            self.heard.setdefault(name, []).append(overall)

    def saved(self, name: str, seconds: float) -> None:
        if self._breaks and name == "0001-00000000":
            raise Broken


def _train(store: CohortStore, folder: Path, watcher: Watcher) -> None:
    method = build(Steady, SteadySettings(epochs=40, pause_seconds=0), store)
    settings = training_settings(checkpoint_every=20, validate_every=100_000)
    train(method, store, settings, folder, device=torch.device("cpu"), watcher=watcher)


def test_training_goes_on_from_its_last_checkpoint_and_says_so(toy_store: CohortStore, tmp_path: Path) -> None:
    with pytest.raises(Broken):
        _train(toy_store, tmp_path, BreakAt(55, "step"))
    again, once_more = _Listens(), _Listens()
    _train(toy_store, tmp_path, again)
    _train(toy_store, tmp_path, once_more)
    assert again.begun_at == [(40, 60)]
    assert once_more.begun_at == [(60, 60)]


def test_a_stage_that_is_broken_off_as_it_ends_has_said_how_long_it_took(
    toy_store: CohortStore, tmp_path: Path
) -> None:
    broken, again = _Listens(breaks=True), _Listens()
    with pytest.raises(Broken):
        _train(toy_store, tmp_path, broken)
    _train(toy_store, tmp_path, again)
    assert [*broken.heard.get("head/seconds", []), *again.heard.get("head/seconds", [])] == [60]
