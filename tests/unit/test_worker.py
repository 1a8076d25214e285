"""What a training worker does around the loop: how many threads it takes, what it leaves behind when it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from vesalius.platform.cluster import worker
from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.testing.methods import training_settings
from vesalius.platform.testing.steady import Steady, SteadySettings

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore


def _run(home: Path, store: CohortStore, num_workers: int, **training: Any) -> RunFolder:
    spec = RunSpec(
        run_id="run",
        method="steady",
        settings=SteadySettings(epochs=2, pause_seconds=0).model_dump(mode="json"),
        training=training_settings(**training),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=num_workers,
        created="2026-01-01T00:00:00Z",
    )
    return create_run(home, spec)


def _work(run: RunFolder) -> None:
    worker.work({"run": str(run.path), "method": Steady, "attempt": run.begin_attempt(), "tuned": False, "lost": ""})


@pytest.mark.parametrize(("threads", "taken"), [(None, 8), (3, 3)])
def test_a_worker_shares_its_cores_with_those_of_its_machine_alone(
    threads: int | None, taken: int, toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    monkeypatch.setattr(worker, "available_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    _work(_run(tmp_path, toy_store, 8, threads=threads))
    assert said == [taken], "eight workers, and no other one is here"
