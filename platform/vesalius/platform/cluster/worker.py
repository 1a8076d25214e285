"""What one training worker does; rank 0 writes progress and tracked metrics."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.cluster.measuring import RunMeter
from vesalius.platform.cluster.reserved import note_reserved
from vesalius.platform.cluster.session import available_cores
from vesalius.platform.errors import RunError, UnreachableError, VesaliusError
from vesalius.platform.runs import Progressed, RunFolder, RunSpec, find_run
from vesalius.platform.tracking import is_tracking_off

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.platform.contracts import Collective
    from vesalius.platform.store import CohortStore


def work(config: Mapping[str, Any]) -> None:
    """Train on one worker; runs on every rank, or in the driver where there is no cluster."""
    import torch

    from vesalius.platform.training import Checkpoints, choose_device, collective, train
    from vesalius.platform.training.devices import workers_here

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
    threads = spec.training.threads or max(1, available_cores() // workers_here(ranks, device))
    torch.set_num_threads(threads)
    if on_ray and ranks.rank == 0:
        note_reserved(run)
    meter = RunMeter(run, spec, ranks.rank)
    watcher: _Recorder | None = None
    try:
        watcher = _Recorder(run, spec, ranks, meter, config, on_ray=on_ray)
        store = check_store(spec)
        if run.has_checkpointed and Checkpoints(run.checkpoints).last() is None:
            raise RunError(
                f"run '{run.run_id}' has had checkpoints and {run.checkpoints} holds none: "
                "put them back, or start a new run with `vesalius train`"
            )
        settings = config["method"].settings_type.model_validate(spec.settings)
        torch.manual_seed(spec.training.seed)  # initial weights: the same on every rank
        method = config["method"](settings, store.facts(any_grid=config["method"].any_grid))
        home = run.path.parent.parent
        start_from = shared_from = None
        if spec.start_from:
            other, _, stage = spec.start_from.partition("@")
            start_from = (Checkpoints(find_run(home, other).checkpoints), stage)
        if spec.shared_from:
            other, _, stage = spec.shared_from.partition("@")
            shared_from = (Checkpoints(RunFolder(home / "runs" / other).checkpoints), stage)
        forerunner = None
        if spec.forerunner is not None:
            forerunner = (Checkpoints(find_run(home, spec.forerunner.run).checkpoints), spec.forerunner)
        result = train(
            method,
            store,
            spec.training,
            run.checkpoints,
            collective=ranks,
            device=device,
            watcher=watcher,
            start_from=start_from,
            shared_from=shared_from,
            forerunner=forerunner,
            until=spec.until,
        )
        if result.paused is not None and ranks.rank == 0:
            run.set_paused(result.paused)
    except VesaliusError as error:
        if not on_ray:
            meter.failed(error)
            raise
        if not isinstance(error, UnreachableError):  # which is no end yet: the driver tries again
            meter.failed(error)
        # A worker that an earlier driver left behind has no word in what another one does now.
        if run.attempt == config["attempt"]:
            _leave_word(run, ranks.rank, error)
        raise
    finally:
        if watcher is not None:
            watcher.close()


def _leave_word(run: RunFolder, rank: int, error: VesaliusError) -> None:
    """Write why a worker failed: on Ray the driver gets the last line of a traceback at best."""
    with contextlib.suppress(OSError):
        aside = run.path / f".failure.{rank}.partial"
        aside.write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        aside.replace(run.path / "failure.json")


def check_store(spec: RunSpec) -> CohortStore:
    """Open a run's store and check that it holds what it held when the run was created.

    Raises:
        RunError: its digest is another.
        StoreError: it cannot be opened.
    """
    from vesalius.platform.store import CohortStore

    store = CohortStore.open(spec.store)
    if store.digest != spec.cohort_digest:
        raise RunError(
            f"the store {spec.store} has changed since run '{spec.run_id}' was created "
            f"(digest {spec.cohort_digest[:12]}, now {store.digest[:12]}): start a new run on it"
        )
    return store


class EndRequestedError(Exception):
    """Raised by a worker to end its group at a checkpoint: there is room for more of them again."""


class _Recorder:
    """Rank 0 writes progress and tracked metrics; every rank reports milestones to Ray Train, or a lone one to Tune."""

    def __init__(
        self,
        run: RunFolder,
        spec: RunSpec,
        ranks: Collective,
        meter: RunMeter,
        config: Mapping[str, Any],
        *,
        on_ray: bool,
    ) -> None:
        self._run = run
        self._meter = meter
        self._attempt = config["attempt"]
        self._lost = config["lost"]
        self._rank = ranks.rank
        self._num_workers = ranks.world_size
        self._on_ray = on_ray
        self._tuned = config["tuned"]
        self._total = 0
        self._written = 0.0
        self._logger: Any = None
        if self._rank == 0 and spec.mlflow_run_id and spec.mlflow_tracking_uri and not is_tracking_off():
            from vesalius.platform.tracking import RunLogger, training_journal, with_password

            self._logger = RunLogger(
                with_password(spec.mlflow_tracking_uri),
                spec.mlflow_run_id,
                system_metrics=True,
                unsent=training_journal(run.path),
            )

    def begun(self, overall: int, total: int) -> None:
        if self._on_ray and self._rank == 0:
            self._stop_if_taken_over()
            self._run.note_group(self._num_workers, overall, self._lost)
        self._meter.begin()

    def trained(self, stage: str, num_items: int) -> None:
        self._meter.trained(stage, num_items)

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        self._meter.step(stage, overall, total)
        now = time.monotonic()
        self._total = total
        if self._rank == 0 and (now - self._written > 0.3 or overall == total):
            self._written = now
            self._stop_if_taken_over()
            self._run.set_progress(
                Progressed(stage=stage, step=step, num_steps=num_steps, overall=overall, total=total)
            )

    def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
        if self._logger is not None:
            self._logger.metrics(overall, metrics)

    def milestone(self, overall: int, metrics: Mapping[str, float]) -> None:
        said = {"step": overall, "total": self._total, **metrics}
        if self._on_ray:
            import ray.train

            ray.train.report(said)
        elif self._tuned:
            import ray.tune

            try:
                ray.tune.report(said)
            except SystemExit:  # how Tune stops a trial: to the run it is an interruption
                raise KeyboardInterrupt from None

    def saved(self, name: str, seconds: float) -> None:
        self._meter.saved(seconds)
        self._run.note_checkpoint()
        if self._on_ray and self._run.end_request.exists():
            raise EndRequestedError(f"run '{self._run.run_id}' goes on with more workers from checkpoint {name}")

    def _stop_if_taken_over(self) -> None:
        if self._run.attempt != self._attempt:
            raise RunError(f"run '{self._run.run_id}' was taken over by another driver; this worker stops")

    def close(self) -> None:
        if self._logger is not None:
            self._logger.close()
