"""Train a run from the driver: on Ray Train workers, or in this process."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

from vesalius.platform import errors
from vesalius.platform.cluster.capacity import capacity
from vesalius.platform.cluster.reserved import free_reserved
from vesalius.platform.cluster.session import session
from vesalius.platform.cluster.worker import check_store, work
from vesalius.platform.errors import RunError, VesaliusError
from vesalius.platform.progress import silent
from vesalius.platform.store.lock import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder


def train(
    run: RunFolder,
    method_type: type[Method],
    *,
    progress: Progress = silent,
    watch_every_seconds: float = 0.5,
    tuned: bool = False,
) -> RunFolder:
    """Train a run to its end or its pause, from where it stands.

    Args:
        run: created or broken off.
        method_type: the class that the run's method names.
        progress: called with steps done, steps in all and the stage's name, from a thread of its own.
        watch_every_seconds: how often.
        tuned: whether a trial of Ray Tune calls: validation passes are then reported to it, and it may stop the run.

    Raises:
        RunError: the store has changed since the run was created, or its checkpoints are gone.
        StoreError: another process trains this very run.
        DivergenceError: a loss or gradient is not finite.
        VesaliusError: whatever a worker raised on purpose.
    """
    with exclusive(run.lock):  # two drivers of one run would drop each other's checkpoints
        return _train(run, method_type, progress, watch_every_seconds, tuned=tuned)


def _train(
    run: RunFolder, method_type: type[Method], progress: Progress, watch_every_seconds: float, *, tuned: bool
) -> RunFolder:
    failure = run.path / "failure.json"
    check_store(run.spec)
    attempt = run.begin_attempt()
    failure.unlink(missing_ok=True)  # after the attempt has begun: a worker left behind writes none from now on
    run.set_state("training")
    try:
        with _watching(run, progress, watch_every_seconds):
            if run.spec.num_workers == 0:
                work({"run": str(run.path), "method": method_type, "attempt": attempt, "tuned": tuned})
            else:
                _train_on_ray(run, method_type, attempt, tuned=tuned)
        if failure.is_file():
            raise _failure(failure)
    except BaseException as error:  # an interrupt too is written into the run's state
        with contextlib.suppress(VesaliusError, OSError):  # the error on its way says more than a disk that is full
            run.set_state("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    run.set_state("finished" if run.paused is None else "paused")
    return run


def _train_on_ray(run: RunFolder, method_type: type[Method], attempt: str, *, tuned: bool) -> None:
    spec = run.spec
    with session():
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from vesalius.platform.training import backend_for

        free_reserved(run)  # the lock is ours: whoever trained it before has ended
        # The cluster's devices decide, not the driver's: a laptop may drive a cluster of GPUs, and one that grows has
        # none yet.
        wants = spec.training.device
        offered = capacity()
        gpus = offered.get("GPU", 0)
        use_gpu = wants == "cuda" or (wants == "auto" and gpus > 0)
        if use_gpu and gpus < spec.num_workers:
            raise RunError(
                f"{spec.num_workers} workers need {spec.num_workers} GPUs and the cluster has {gpus:g}: "
                "use as many workers as GPUs, or train on the CPU with --set training.device=cpu"
            )
        cores = offered.get("CPU", 0)
        if cores < spec.num_workers:
            raise RunError(
                f"{spec.num_workers} workers need {spec.num_workers} cores and the cluster has {cores:g}: "
                "use fewer workers or a larger cluster"
            )
        trainer = TorchTrainer(
            work,
            train_loop_config={"run": str(run.path), "method": method_type, "attempt": attempt, "tuned": False},
            torch_config=TorchConfig(backend=backend_for("cuda" if use_gpu else "cpu")),
            scaling_config=ScalingConfig(
                num_workers=spec.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1, "GPU": int(use_gpu)}
            ),
            run_config=RunConfig(
                name=f"{run.run_id}-{int(time.time())}",
                storage_path=str(run.path / "ray"),
                failure_config=FailureConfig(max_failures=spec.training.max_failures),
                callbacks=_callbacks(tuned=tuned),
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own
            try:
                with _own_interrupt():
                    trainer.fit()
            except Exception as error:  # Ray's errors have no common class
                # A worker's own word, where it left one, says more than the controller's.
                if (run.path / "failure.json").is_file():
                    raise _failure(run.path / "failure.json") from None
                raise RunError(
                    f"training of '{run.run_id}' failed on the cluster: {_said(error)}; "
                    f"go on with `vesalius train --resume {run.run_id}`"
                ) from error


def _callbacks(*, tuned: bool) -> list[Any]:
    if not tuned:
        return []
    from ray.tune.integration.ray_train import TuneReportCallback

    return [TuneReportCallback()]


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt: Ray Train aborts the run, exits, and keeps the signal to itself for good."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _said(error: Exception) -> str:
    """Return one line of what Ray says of a failure: the last, but of memory the last is advice on Ray's settings."""
    text = str(error).strip() or type(error).__name__
    if "OutOfMemoryError" in text or "running low on memory" in text:
        return (
            "workers were ended because their machine ran out of memory: set a lower training.cache_mib, a smaller "
            "batch or fewer workers, or stop what else is at work there"
        )
    return text.splitlines()[-1][:300]


def _failure(path: Path) -> VesaliusError:
    value = json.loads(path.read_text())
    kind = getattr(errors, value["kind"], VesaliusError)
    error: VesaliusError = kind(value["message"])
    return error


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
