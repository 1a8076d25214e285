"""Train a run from the driver: on Ray Train workers, or in this process."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform import errors
from vesalius.platform.cluster.capacity import capacity
from vesalius.platform.cluster.nodes import RoomWatch, await_nodes, resource_of
from vesalius.platform.cluster.reserved import free_reserved
from vesalius.platform.cluster.session import session
from vesalius.platform.cluster.worker import check_store, work
from vesalius.platform.errors import RunError, UnreachableError, VesaliusError
from vesalius.platform.progress import silent
from vesalius.platform.runs import NODES_ARE_BACK
from vesalius.platform.store.lock import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.platform.contracts import Method
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder

_LOG = logging.getLogger(__name__)


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
    check_store(run.spec)
    attempt = run.begin_attempt()
    _failure(run).unlink(missing_ok=True)  # after the attempt has begun: a worker left behind writes none from now on
    run.set_state("training")
    try:
        with _watching(run, progress, watch_every_seconds):
            if run.spec.num_workers == 0:
                work({"run": str(run.path), "method": method_type, "attempt": attempt, "tuned": tuned, "lost": ""})
            else:
                _train_on_ray(run, method_type, attempt, tuned=tuned)
        if (word := _word(run)) is not None:
            raise word
    except BaseException as error:  # an interrupt too is written into the run's state
        with contextlib.suppress(VesaliusError, OSError):  # the error on its way says more than a disk that is full
            run.set_state("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    run.set_state("finished" if run.paused is None else "paused")
    return run


def _train_on_ray(run: RunFolder, method_type: type[Method], attempt: str, *, tuned: bool) -> None:
    """Train on Ray Train workers, in as many groups one after the other as it takes.

    A group that loses a worker ends, and the next one goes on from the last checkpoint. Ray Train could do that itself,
    but for as many workers as before only: it would wait for ever for a node that is gone for good. A group that did
    not get its workers in time has lost nothing: others are at work there, and it tries again until it has them.
    """
    spec = run.spec
    with session():
        from vesalius.platform.training import Checkpoints

        free_reserved(run)  # the lock is ours: whoever trained it before has ended
        # The cluster's devices decide, not the driver's: a laptop may drive a cluster of GPUs, and one that grows has
        # none yet.
        wants = spec.training.device
        use_gpu = wants == "cuda" or (wants == "auto" and capacity().get("GPU", 0) > 0)
        bundle: dict[str, float] = {"CPU": 1, "GPU": int(use_gpu)}
        checkpoints = Checkpoints(run.checkpoints)
        failures, lost, stood = 0, "", checkpoints.last()
        has_begun = has_said = False
        while True:
            num_workers = await_nodes(run, bundle, again=has_begun)
            name = f"{run.run_id}-{attempt}"
            config = {"run": str(run.path), "method": method_type, "attempt": attempt, "tuned": False, "lost": lost}
            with RoomWatch(run, bundle, num_workers) as watch:
                error = _fit(config, name, bundle, num_workers, tuned=tuned)
            if error is None:
                return
            # A worker's own word, where it left one, says more than the controller's.
            word = _word(run) or _word_in(error)
            if word is not None and not isinstance(word, UnreachableError):
                raise word from None
            attempt = run.begin_attempt()  # a worker of this group that was out of reach may still be at work
            _failure(run).unlink(missing_ok=True)
            if _waits_for_others(error):
                # Else there would be one a minute for as long as it waits.
                shutil.rmtree(_storage(run.path) / name, ignore_errors=True)
                if not has_said:
                    has_said = True
                    _LOG.warning("waiting for %d %s that others use", num_workers, resource_of(bundle))
                continue
            has_begun, has_said = True, False
            if watch.has_asked:
                lost = NODES_ARE_BACK
            else:
                last = checkpoints.last()
                failures = failures + 1 if last == stood else 1
                lost, stood = str(word) if word is not None else _said(error), last
            if failures > spec.training.max_failures:
                raise RunError(
                    f"training of '{run.run_id}' failed on the cluster: {lost}; "
                    f"go on with `vesalius train --resume {run.run_id}`"
                ) from error
            free_reserved(run)


def _fit(
    config: dict[str, Any], name: str, bundle: dict[str, float], num_workers: int, *, tuned: bool
) -> Exception | None:
    """Train with one group of workers; return what ended it before its time, or None."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from vesalius.platform.training import backend_for

    use_gpu = bundle["GPU"] > 0
    trainer = _trainer_type()(
        work,
        train_loop_config=config,
        torch_config=TorchConfig(backend=backend_for("cuda" if use_gpu else "cpu")),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=bundle),
        run_config=RunConfig(
            name=name,
            storage_path=str(_storage(Path(config["run"]))),
            # One try to get its workers: where a node has died meanwhile, how many there are is asked again.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            callbacks=_callbacks(tuned=tuned),
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own
        try:
            with _own_interrupt():
                trainer.fit()
        except Exception as error:
            return error
    return None


_UNNEEDED = ("DatasetsCallback", "PlacementGroupCleanerCallback")


def _trainer_type() -> type[Any]:
    """Return Ray's trainer without helpers that have nothing to do here: two processes less beside a training.

    One hands out Ray Data's shards, and ours are read from the store; the other frees what a dead controller had
    reserved, which :func:`free_reserved` does.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types here
        def _create_default_callbacks(self) -> list[Any]:
            found = super()._create_default_callbacks()
            return [one for one in found if type(one).__name__ not in _UNNEEDED]

    return Trainer


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


def _waits_for_others(error: Exception) -> bool:
    """Say whether a group ended because it did not get its workers in time."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError  # it has no public name

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def _said(error: Exception) -> str:
    """Return one line of what Ray says of a failure: the last, but of memory the last is advice on Ray's settings."""
    text = str(error).strip() or type(error).__name__
    if "OutOfMemoryError" in text or "running low on memory" in text:
        return (
            "workers were ended because their machine ran out of memory: set a lower training.cache_mib, a smaller "
            "batch or fewer workers, or stop what else is at work there"
        )
    return text.splitlines()[-1][:300]


def _storage(run: Path) -> Path:
    """Return where Ray Train makes a folder for each group of a run's workers."""
    return run / "ray"


def _failure(run: RunFolder) -> Path:
    return run.path / "failure.json"


def _word(run: RunFolder) -> VesaliusError | None:
    """Return why a worker of a run says it failed, or None where none has said so."""
    try:
        value = json.loads(_failure(run).read_text())
    except FileNotFoundError:
        return None
    kind = getattr(errors, value["kind"], VesaliusError)
    error: VesaliusError = kind(value["message"])
    return error


def _word_in(error: Exception) -> VesaliusError | None:
    """Return what a worker raised that could leave no word, as where the run's disk is full."""
    raised = [one for one in getattr(error, "worker_failures", {}).values() if isinstance(one, VesaliusError)]
    # Who was out of reach may try again; what ends the run says more.
    return next((one for one in raised if not isinstance(one, UnreachableError)), raised[0] if raised else None)


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
