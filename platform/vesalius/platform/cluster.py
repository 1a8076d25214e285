"""Ray: the one place where training and ingest meet it.

A run is trained by :func:`train` on N Ray Train workers, or in the calling process where N is 0. Checkpoints are
our own (:mod:`vesalius.platform.training.checkpoint`), on storage that all workers see: a restarted worker group
finds the last one by itself, so a checkpoint counts as soon as it is renamed and not when a controller polls.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vesalius.platform import errors
from vesalius.platform.errors import RunError, VesaliusError
from vesalius.platform.progress import silent
from vesalius.platform.runs import Progressed, RunFolder, find_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vesalius.platform.contracts import Method
    from vesalius.platform.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
}


@contextlib.contextmanager
def session(num_cpus: int | None = None) -> Iterator[None]:
    """Hold a Ray runtime: the one that runs already, the cluster at ``RAY_ADDRESS``, or a local one for the while.

    Args:
        num_cpus: cores of a local runtime; all of the machine's where None.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start-up
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(
                num_cpus=num_cpus or os.cpu_count(),
                object_store_memory=512 * 2**20,
                log_to_driver=False,
                logging_level="ERROR",
                dashboard_host="127.0.0.1",
            )
    try:
        yield
    finally:
        ray.shutdown()


def map_tasks(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    progress: Progress = silent,
    total: int = 0,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Apply ``function`` to every item, each in a Ray task of one core; yield ``(item, result or error)``.

    At most two tasks a worker are in flight, so memory is bounded by the workers and not by the items. Results
    come in the order they are ready. A lost worker's task is tried again on another.

    Args:
        function: importable on the workers; it must not keep state.
        items: what to apply it to.
        num_workers: tasks at once; 0 works in the calling process, in order, without Ray.
        progress: called after each item.
        total: number of items, for ``progress``.
    """
    done = 0
    if num_workers == 0:
        for item in items:
            try:
                outcome: Result | Exception = function(item)
            except Exception as error:  # handed to the caller, who names the item and goes on with the others
                outcome = error
            done += 1
            progress(done, total, "")
            yield item, outcome
        return
    with session(num_workers):
        import ray

        task = ray.remote(num_cpus=1, max_retries=2)(function)
        waiting: dict[Any, Item] = {}
        source = iter(items)
        exhausted = False
        try:
            while waiting or not exhausted:
                while not exhausted and len(waiting) < 2 * num_workers:
                    try:
                        item = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    waiting[task.remote(item)] = item
                if not waiting:
                    break
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=5)
                for reference in ready:
                    item = waiting.pop(reference)
                    try:
                        outcome = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        outcome = error.cause if isinstance(error.cause, Exception) else error
                    except ray.exceptions.RayError as error:
                        outcome = error
                    done += 1
                    progress(done, total, "")
                    yield item, outcome
        finally:
            for reference in waiting:
                ray.cancel(reference, force=False)


# ----------------------------------------------------------------------------------------------------
# Training


def train(
    run: RunFolder, method_type: type[Method], *, progress: Progress = silent, watch_every_seconds: float = 0.5
) -> RunFolder:
    """Train a run to its end, from where it stands; write its model folder's weights as the last checkpoint.

    Args:
        run: created or broken off.
        method_type: the class that the run's method names.
        progress: called with steps done, steps in all and the stage's name, from a thread of its own.
        watch_every_seconds: how often.

    Raises:
        RunError: the store has changed since the run was created.
        DivergenceError: a loss or gradient is not finite.
        VesaliusError: whatever a worker raised on purpose.
    """
    failure = run.path / "failure.json"
    failure.unlink(missing_ok=True)
    _check_store(run)
    run.set_state("training")
    try:
        with _watching(run, progress, watch_every_seconds):
            if run.spec.num_workers == 0:
                _work({"run": str(run.path), "method": method_type})
            else:
                _train_on_ray(run, method_type)
        if failure.is_file():
            raise _failure(failure)
    except KeyboardInterrupt:
        run.set_state("interrupted")
        raise
    except BaseException:
        run.set_state("failed")
        raise
    run.set_state("finished")
    return run


def _check_store(run: RunFolder) -> None:
    from vesalius.platform.store import CohortStore

    spec = run.spec
    now = CohortStore.open(Path(spec.store)).digest
    if now != spec.cohort_digest:
        raise RunError(
            f"the store {spec.store} has changed since run '{run.run_id}' was created "
            f"(digest {spec.cohort_digest[:12]}, now {now[:12]}): start a new run on it"
        )


def _train_on_ray(run: RunFolder, method_type: type[Method]) -> None:
    spec = run.spec
    with session():
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from vesalius.platform.training import backend_for, choose_device

        # The cluster's devices decide, not the driver's: a laptop may drive a cluster of GPUs.
        wants = spec.training.device
        use_gpu = wants == "cuda" or (wants == "auto" and ray.cluster_resources().get("GPU", 0) >= spec.num_workers)
        cores = ray.cluster_resources().get("CPU", 1)
        if cores < spec.num_workers:
            raise RunError(
                f"{spec.num_workers} workers need {spec.num_workers} cores and the cluster has {cores:g}: "
                "use fewer workers or a larger cluster"
            )
        device = choose_device("cpu") if not use_gpu else __import__("torch").device("cuda")
        trainer = TorchTrainer(
            _work,
            train_loop_config={"run": str(run.path), "method": method_type},
            torch_config=TorchConfig(backend=backend_for(device)),
            scaling_config=ScalingConfig(
                num_workers=spec.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1, "GPU": int(use_gpu)}
            ),
            run_config=RunConfig(
                name=f"{run.run_id}-{int(time.time())}",
                storage_path=str(run.path / "ray"),
                failure_config=FailureConfig(max_failures=spec.training.max_failures),
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own
            try:
                trainer.fit()
            except Exception as error:
                # A worker's own word, where it left one, says more than the controller's.
                if (run.path / "failure.json").is_file():
                    raise _failure(run.path / "failure.json") from None
                raise RunError(
                    f"training of '{run.run_id}' failed on the cluster: {str(error).strip().splitlines()[-1][:300]}; "
                    f"go on with `vesalius train --resume {run.run_id}`"
                ) from error


def _work(config: Mapping[str, Any]) -> None:
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


def _failure(path: Path) -> VesaliusError:
    value = json.loads(path.read_text())
    kind = getattr(errors, value["kind"], VesaliusError)
    error: VesaliusError = kind(value["message"])
    return error


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


@contextlib.contextmanager
def _watching(run: RunFolder, progress: Progress, every_seconds: float) -> Iterator[None]:
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every_seconds):
            now = run.progress
            if now.total:
                progress(now.overall, now.total, now.stage)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        now = run.progress
        if now.total:
            progress(now.overall, now.total, now.stage)
