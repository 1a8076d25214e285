"""Tiny trainings for the method suite: from a seed, broken off where told, recorded, or as one of two workers."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from vesalius.platform.store import CohortStore
from vesalius.platform.training import Distributed, TrainingSettings, Unwatched, train

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.runs import RunFolder

CPU = torch.device("cpu")


def training_settings(**changes: Any) -> TrainingSettings:
    """Return loop settings for tiny runs: frequent checkpoints, a validation pass half-way, little threads."""
    values: dict[str, Any] = {"checkpoint_every": 2, "validate_every": 5, "validate_subjects": 2, "log_every": 1}
    values |= {"device": "cpu", "precision": "fp32"}
    return TrainingSettings.model_validate({**values, **changes})


def logged_steps(run: RunFolder) -> list[int]:
    """Return the steps, over all stages, at which each metric of a finished run's last stage must have been logged."""
    every, total = run.spec.training.log_every, run.progress.num_steps
    before = run.progress.total - total
    return [before + step for step in range(1, total + 1) if step % every == 0 or step == total]


def build(method_type: type[Method], settings: MethodSettings, store: CohortStore, seed: int = 0) -> Method:
    """Return a fresh method, its initial weights keyed by ``seed``."""
    torch.manual_seed(seed)
    return method_type(settings, store.facts())


def trained(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> Method:
    """Return a method trained to its end in a temporary folder."""
    method = build(method_type, settings, store)
    with tempfile.TemporaryDirectory() as folder:
        train(method, store, training_settings(), Path(folder), device=CPU)
    return method


class Broken(Exception):
    """Raised in the middle of training in place of a kill."""


class BreakAt(Unwatched):
    """Breaks off at a step: after its update, its metrics, its validation pass, or its checkpoint, the last of them.

    A pass is heard of before the checkpoint that holds it is written.
    """

    def __init__(self, overall: int, moment: str) -> None:
        self._overall = overall
        self._moment = moment
        self._now = 0

    def _break(self, moment: str) -> None:
        if self._now == self._overall and moment == self._moment:
            raise Broken

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        """Note the step."""
        self._now = overall
        self._break("step")

    def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
        """Hear of metrics."""
        self._break("metrics")

    def milestone(self, overall: int, metrics: Mapping[str, float]) -> None:
        """Hear of a milestone."""
        self._break("milestone")

    def saved(self, name: str, seconds: float) -> None:
        """Hear of a checkpoint."""
        self._break("saved")


class Recording(Unwatched):
    """Keeps what training says of itself: losses by stage, steps in all, the steps at which checkpoints were saved."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.saved_at: list[int] = []
        self.total = 0
        self._now = 0

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        """Note the step."""
        self.total = total
        self._now = overall

    def saved(self, name: str, seconds: float) -> None:
        """Hear of a checkpoint."""
        self.saved_at.append(self._now)

    def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
        """Hear of metrics."""
        for name, value in metrics.items():
            if name.endswith("/loss"):
                self.losses.setdefault(name, []).append(value)


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def one_of_two(
    rank: int, port: int, method_type: type[Method], settings: dict[str, Any], store_path: str, folder: str
) -> None:
    """Train as one of two gloo processes and leave the weights as ``rank<rank>.pt`` in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        store = CohortStore.open(Path(store_path))
        method = build(method_type, method_type.settings_type.model_validate(settings), store)
        checkpoints = Path(folder) / "checkpoints"
        train(method, store, training_settings(), checkpoints, collective=Distributed(), device=CPU)
        torch.save(method.state_dict(), Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
