"""What one training worker does; rank 0 writes progress and tracked metrics."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import VesaliusError
from vesalius.platform.runs import Progressed, RunFolder, find_run

if TYPE_CHECKING:
    from collections.abc import Mapping


def work(config: Mapping[str, Any]) -> None:
    """Train on one worker; runs on every rank, or in the driver where there is no cluster."""
    import torch

    from vesalius.platform.store import CohortStore
    from vesalius.platform.training import Checkpoints, choose_device, collective, train

    run = RunFolder(Path(config["run"]))
    if (run.path / "failure.json").is_file():
        return  # a restarted worker of a run that failed on purpose: the same would happen again
    spec = run.spec
    ranks = collective()
    on_ray = ranks.world_size > 1 or torch.distributed.is_initialized()
    if not on_ray:
        device = choose_device(spec.training.device)
    elif torch.distributed.get_backend() == "nccl":
        import ray.train.torch

        device = ray.train.torch.get_device()
    else:
        device = torch.device("cpu")
    threads = spec.training.threads or max(1, (os.cpu_count() or 1) // max(1, spec.num_workers))
    torch.set_num_threads(threads)
    watcher = _Recorder(run, spec, ranks.rank, on_ray=on_ray)
    try:
        store = CohortStore.open(Path(spec.store))
        settings = config["method"].settings_type.model_validate(spec.settings)
        torch.manual_seed(spec.training.seed)  # initial weights: the same on every rank
        method = config["method"](settings, store.facts())
        start_from = None
        if spec.start_from:
            other_id, _, stage = spec.start_from.partition("@")
            other = find_run(run.path.parent.parent, other_id)
            start_from = (Checkpoints(other.checkpoints), stage)
        train(
            method,
            store,
            spec.training,
            run.checkpoints,
            collective=ranks,
            device=device,
            watcher=watcher,
            start_from=start_from,
        )
    except VesaliusError as error:
        aside = run.path / f".failure.{ranks.rank}.partial"
        aside.write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        aside.replace(run.path / "failure.json")
        if not on_ray:
            return
        raise
    finally:
        watcher.close()


class _Recorder:
    """Rank 0 writes progress and tracked metrics; every rank reports milestones to Ray Train."""

    def __init__(self, run: RunFolder, spec: Any, rank: int, *, on_ray: bool) -> None:
        self._run = run
        self._rank = rank
        self._on_ray = on_ray
        self._written = 0.0
        self._logger: Any = None
        if rank == 0 and spec.mlflow_run_id is not None:
            from vesalius.platform.tracking import RunLogger

            self._logger = RunLogger(
                spec.mlflow_tracking_uri,
                spec.mlflow_run_id,
                system_metrics=True,
                unsent=run.path / "unsent_metrics.json",
            )

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        now = time.monotonic()
        if self._rank == 0 and (now - self._written > 0.3 or overall == total):
            self._written = now
            self._run.set_progress(
                Progressed(stage=stage, step=step, num_steps=num_steps, overall=overall, total=total)
            )

    def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
        if self._logger is not None:
            self._logger.metrics(overall, metrics)

    def milestone(self, overall: int, metrics: Mapping[str, float]) -> None:
        if self._on_ray:
            import ray.train

            ray.train.report({"step": overall, **metrics})

    def close(self) -> None:
        if self._logger is not None:
            self._logger.close()
