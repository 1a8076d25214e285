"""One trial, as its worker sees it: train the run, judge it, keep what came out, tell the driver."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from vesalius.platform import errors
from vesalius.platform.errors import CohortError, DivergenceError, SettingError, VesaliusError
from vesalius.platform.loading.budget import memory_shared_by
from vesalius.tuning.folder import StudyFolder
from vesalius.tuning.spec import Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.runs import RunFolder
    from vesalius.platform.training import Paused
    from vesalius.tuning.spec import StudySpec

_OWN_FAULT = (DivergenceError, SettingError, CohortError)
"""What a trial's own settings are to blame for; whatever else is wrong is wrong for all trials."""

_LOCK_SECONDS = 90.0
_CLOSING_SECONDS = 120
"""How long the next trial of a worker waits until a stopped one has let go: its tracked run may have to be closed."""


class Trainer(Protocol):
    """How a trial's run is made, trained and judged; the floor above knows how. It travels to the worker as it is."""

    def start(
        self,
        spec: StudySpec,
        number: int,
        values: Mapping[str, Any],
        seed: int | None = None,
        parent: Record | None = None,
    ) -> RunFolder:
        """Return the run of a trial: the one there is already, to be gone on with, or a new one.

        ``seed`` asks for the run that trains the trial again with that seed; ``parent`` is the paused trial that it
        goes on from.
        """
        ...

    def train(self, run: RunFolder) -> None:
        """Train a run to its end or pause from where it stands, reporting validation passes to Ray Tune."""
        ...

    def judge(self, run: RunFolder, spec: StudySpec) -> dict[str, float]:
        """Return a finished run's figures on validation, and what it took, by the objectives' names."""
        ...

    def abandon(self, spec: StudySpec, record: Record, seed: int | None = None) -> None:
        """Note of a trial's run that it will not be gone on with, and what has become of it."""
        ...


def work(config: dict[str, Any], *, folder: Path, trainer: Trainer) -> None:
    """Do a trial's work in a worker of Ray Tune; going on where an earlier worker of this trial was killed.

    Validation passes reach the driver as they are made, and the end as JSON under ``record`` or ``fatal``. A
    failure that the trial's settings are to blame for is a record too: raised, it would be tried again.

    Args:
        config: ``number`` and ``values`` of the trial, ``seed`` where it is to be trained again with another one, and
            ``parent``, the record of the trial that it goes on from where there is one.
        folder: of the study.
        trainer: how it is done.
    """
    from ray import tune

    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(_CLOSING_SECONDS))  # read here, not by the driver
    study = StudyFolder(folder)
    number = int(config["number"])
    seed = config.get("seed")
    parent = None if config.get("parent") is None else Record.model_validate(config["parent"])
    try:
        record = study.record(number, seed)
        if record is None or (seed is not None and record.ending == "failed"):
            record = _run(study.spec, number, config["values"], trainer, seed, parent)
            study.keep(record, seed)
    except VesaliusError as error:
        tune.report({"fatal": _fatal(type(error).__name__, str(error))})
    except OSError as error:
        said = f"trial {number} of study '{folder.name}' could not go on: {error}"
        tune.report({"fatal": _fatal("StudyError", said)})
    else:
        tune.report({"record": record.model_dump_json()})


def _fatal(kind: str, message: str) -> str:
    """Return what is wrong for all trials as :func:`error_of` reads it."""
    return json.dumps({"kind": kind, "message": message})


def error_of(text: str) -> VesaliusError:
    """Return the error that a worker told of."""
    fatal = json.loads(text)
    kind = getattr(errors, fatal["kind"], VesaliusError)
    error: VesaliusError = kind(fatal["message"])
    return error


def _run(
    spec: StudySpec,
    number: int,
    values: Mapping[str, Any],
    trainer: Trainer,
    seed: int | None,
    parent: Record | None,
) -> Record:
    """Return what becomes of a trial.

    Raises:
        VesaliusError, OSError: what is wrong is wrong for all trials.
    """
    from vesalius.platform.training.memory import is_out_of_memory

    run_id = spec.run_id(number, seed)

    def failed(reason: str, *, is_transient: bool = False) -> Record:
        said = " ".join(reason.split())[:500]
        record = Record(number=number, ending="failed", reason=said, run_id=run_id, is_transient=is_transient)
        # Notes that cannot be written say less than the reason.
        with contextlib.suppress(VesaliusError):
            trainer.abandon(spec, record, seed)
        return record

    try:
        with memory_shared_by(spec.concurrent):
            run = trainer.start(spec, number, values, seed, parent)
            _wait_for(run)
            trainer.train(run)
            if (paused := run.paused) is not None:
                return _of_pause(number, paused, run_id)
            figures = trainer.judge(run, spec)
    except _OWN_FAULT as error:
        return failed(str(error))
    except VesaliusError as error:
        # A trial of several workers says in a sentence what one of a single worker raises.
        lacked_memory = "out of memory" in str(error)
        if lacked_memory or _is_of_its_workers(error):
            return failed(str(error), is_transient=lacked_memory or _has_lost_workers(error))
        raise
    except OSError:
        raise
    except Exception as error:  # a defect that some settings bring out is one trial's, and the others go on
        if is_out_of_memory(error):
            return failed(f"out of memory: {error or type(error).__name__}", is_transient=True)
        return failed(f"{type(error).__name__}: {error}")
    missing = [name for name in spec.objectives if name not in figures]
    if missing:
        return failed(f"{', '.join(missing)} is undefined on the validation split")
    return Record(number=number, ending="complete", run_id=run_id, figures=figures)


def _of_pause(number: int, paused: Paused, run_id: str) -> Record:
    known = paused.criterion is not None and paused.value is not None and math.isfinite(paused.value)
    return Record(
        number=number,
        ending="paused",
        run_id=run_id,
        figures={paused.criterion: paused.value} if known else {},
        percent=paused.percent,
        checkpoint=paused.checkpoint,
        weights_sha256=paused.weights_sha256,
    )


def _is_of_its_workers(error: VesaliusError) -> bool:
    """Say whether Ray Train gave a run up since its workers failed, and not since the cluster did."""
    from ray.train import WorkerGroupError

    return isinstance(error.__cause__, WorkerGroupError)


def _has_lost_workers(error: VesaliusError) -> bool:
    """Say whether workers of Ray Train died, and did not raise."""
    from ray.exceptions import RayActorError

    failures = getattr(error.__cause__, "worker_failures", {})
    return any(isinstance(one, RayActorError) for one in failures.values())


def _wait_for(run: RunFolder) -> None:
    """Wait until a worker that a killed driver left behind has let go of the run: it ends by itself within seconds."""
    from vesalius.platform.store.lock import is_held

    deadline = time.monotonic() + _LOCK_SECONDS
    while is_held(run.lock) and time.monotonic() < deadline:
        time.sleep(0.5)
