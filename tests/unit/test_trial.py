"""A trial as its worker sees it: what its own settings are to blame for, and what is wrong for all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from vesalius.platform.errors import DiskSpaceError, DivergenceError, RunError
from vesalius.tuning.folder import StudyFolder
from vesalius.tuning.spec import Record
from vesalius.tuning.testing import ToyTrainer, toy_study
from vesalius.tuning.trial import work

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.runs import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@dataclass(frozen=True)
class _Ends(ToyTrainer):
    error: Exception | None = None

    def train(self, run: RunFolder) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", found.append)
    return found


def _of_the_cluster(cause: Exception) -> RunError:
    error = RunError("training of 'toy-0000' failed on the cluster: ValueError: a defect")
    error.__cause__ = cause
    return error


def test_a_defect_in_one_of_several_workers_is_a_failed_trial(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    study = toy_study(tmp_path, num_workers=2)
    error = _of_the_cluster(WorkerGroupError("a defect", {1: ValueError("a defect")}))
    work({"number": 0, "values": {}}, folder=study.path, trainer=_Ends(str(tmp_path), error=error))
    record = Record.model_validate_json(said[-1]["record"])
    assert record.ending == "failed"
    assert "ValueError: a defect" in record.reason
    assert study.record(0) == record


@pytest.mark.parametrize(
    ("error", "is_transient"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (DivergenceError("the loss is not finite"), False),
        (ValueError("a defect"), False),
        ("workers died", True),
        ("workers raised", False),
    ],
)
def test_what_was_of_the_moment_is_told_from_what_settings_are_to_blame_for(
    tmp_path: Path, said: list[dict[str, Any]], error: Exception | str, is_transient: bool
) -> None:
    if isinstance(error, str):
        cause = RayActorError() if error == "workers died" else ValueError("a defect")
        error = _of_the_cluster(WorkerGroupError("a worker", {1: cause}))
    study = toy_study(tmp_path)
    work({"number": 0, "values": {}}, folder=study.path, trainer=_Ends(str(tmp_path), error=error))
    record = study.record(0)
    assert record is not None
    assert (record.ending, record.is_transient) == ("failed", is_transient)


def test_a_cluster_that_fails_is_wrong_for_all(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    study = toy_study(tmp_path, num_workers=2)
    error = _of_the_cluster(ControllerError(RuntimeError("no node")))
    work({"number": 0, "values": {}}, folder=study.path, trainer=_Ends(str(tmp_path), error=error))
    assert json.loads(said[-1]["fatal"])["kind"] == "RunError"
    assert study.record(0) is None


def test_a_disk_that_is_full_at_the_end_of_a_trial_is_told(
    tmp_path: Path, said: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = toy_study(tmp_path)

    def full(self: StudyFolder, record: Record, _seed: int | None = None) -> None:
        raise DiskSpaceError("the disk is full")

    monkeypatch.setattr(StudyFolder, "keep", full)
    work({"number": 0, "values": {}}, folder=study.path, trainer=_Ends(str(tmp_path)))
    assert json.loads(said[-1]["fatal"]) == {"kind": "DiskSpaceError", "message": "the disk is full"}
