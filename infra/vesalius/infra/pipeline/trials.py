"""What a study's trial needs of the pipeline: its run, its training, its figures."""

from __future__ import annotations

import functools
import json
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vesalius.infra.pipeline.judging import VALIDATION, fit_thresholds, score_run
from vesalius.infra.pipeline.tracked import await_server, outbox_of
from vesalius.infra.pipeline.tracked_study import track_stop, track_trial, trial_tags
from vesalius.infra.pipeline.training import advance, method_type, start_run
from vesalius.platform.cluster import free_reserved
from vesalius.platform.config import override, validate
from vesalius.platform.errors import RunError, StudyError, VesaliusError
from vesalius.platform.runs import RunSettings, find_run
from vesalius.platform.store import place_of
from vesalius.platform.training import Checkpoints, Forerunner, choose_device
from vesalius.platform.training.memory import PeakMemory
from vesalius.tuning import LOCAL, PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.runs import RunFolder
    from vesalius.tuning import Record, StudySpec

_MIB = 2**20
_DETECTION = ("average_precision", "best_dice", "auroc")
_PEAK = "peak_memory.json"
_ENDING_SECONDS = 20.0
"""How long the process of a trial of several workers may take to end once it is stopped."""


def base_of(spec: StudySpec) -> RunSettings:
    """Return the settings that a study's trials start from."""
    settings = validate(method_type(spec.method).settings_type, spec.settings, f"study '{spec.name}'")
    return RunSettings.of(settings, spec.training)


@dataclass(frozen=True)
class TrialTrainer:
    """What a trial needs of the pipeline; see :class:`vesalius.tuning.Trainer`.

    Attributes:
        home: of the runs.
        parent: id of the study's tracked run, of which those of its trials are children; None where it has none.
    """

    home: Path
    parent: str | None = None

    def start(
        self,
        spec: StudySpec,
        number: int,
        values: Mapping[str, Any],
        seed: int | None = None,
        parent: Record | None = None,
    ) -> RunFolder:
        """Return the run of a trial, which is begun where there is none, once the tracking server is there."""
        _memory(choose_device(spec.training.device).type)
        run_id = spec.run_id(number, seed)
        chosen = override(base_of(spec), values if seed is None else {**values, "training.seed": seed})
        forerunner = None
        if parent is not None:
            forerunner = Forerunner(
                run=parent.run_id, checkpoint=parent.checkpoint, weights_sha256=parent.weights_sha256
            )
        with suppress(RunError):
            run = find_run(self.home, run_id)
            _check_own(run, spec, number, chosen, forerunner)
            if run.spec.training != chosen.training:  # the study has changed where it computes since
                run.rewrite(run.spec.model_copy(update={"training": chosen.training}))
            return run
        _remove_unbegun(self.home / "runs" / run_id)
        begin = functools.partial(
            start_run,
            spec.method,
            place_of(spec.store),
            home=self.home,
            preset=spec.preset,
            settings=chosen.method.model_dump(mode="json"),
            training=chosen.training,
            num_workers=0 if spec.num_workers == 1 else spec.num_workers,
            name=run_id,
            start_from=None if spec.start is None else spec.start.text,
            source_digest=spec.source_digest,
            # Members of a population take nothing over but what they go on from.
            study=None if spec.population is not None else spec.name,
            forerunner=forerunner,
            until=1.0 if spec.population is None else spec.population.until(number),
            experiment=spec.experiment,
            tags=trial_tags(spec, number, seed, self.parent, parent),
        )
        return await_server(begin, PATIENCE_SECONDS, f"go on with `vesalius tune --resume {spec.name}` once it is back")

    def train(self, run: RunFolder) -> None:
        """Train a run to its end or its pause, and keep how much memory that took."""
        if run.spec.num_workers:
            advance(run, tuned=True)
            return
        memory = _memory(choose_device(run.spec.training.device).type)
        memory.begin()
        advance(run, tuned=True)
        _keep_peak(run, memory.read())

    def judge(self, run: RunFolder, spec: StudySpec) -> dict[str, float]:
        """Return a run's figures on validation; they go to its model's card and to tracking as of any run."""
        device = choose_device(spec.training.device).type
        memory = _memory(device)
        memory.begin()
        card = fit_thresholds(run, device=device)
        figures: dict[str, float | None] = {}
        for voxels, prefix in (("all", ""), ("brain", "brain/")):
            for name in _DETECTION:
                figures[f"{prefix}{name}"] = card.metrics.get(f"{VALIDATION}/{voxels}/{name}")
        for name in ("image_auroc", "seconds_per_volume"):
            figures[name] = card.metrics.get(f"{VALIDATION}/all/{name}")
        healthy = [one.image_score for one in score_run(run, VALIDATION, device=device).records if not one.has_lesion]
        if healthy:
            figures["healthy_image_score"] = -sum(healthy) / len(healthy)
        checkpoints = Checkpoints(run.checkpoints)
        last = checkpoints.last()
        if last is not None:
            figures["training_seconds"] = sum(checkpoints.state(last).seconds.values())
        if not run.spec.num_workers:
            figures["peak_memory"] = _keep_peak(run, memory.read()) / _MIB
        found = {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}
        track_trial(run, found)
        return found

    def abandon(self, spec: StudySpec, record: Record, seed: int | None = None) -> None:
        """Note of a trial's run that nobody goes on with it; of a stopped one how far it came, for later studies."""
        with suppress(VesaliusError):
            run = find_run(self.home, spec.run_id(record.number, seed))
            if run.spec.num_workers:
                free_reserved(run, wait_seconds=_ENDING_SECONDS)
            if record.ending == "pruned":
                track_stop(run, record)
            if run.state == "training":
                run.set_state("interrupted")
                outbox = outbox_of(run)
                if outbox is not None:
                    outbox.ended("KILLED")


def _check_own(
    run: RunFolder, spec: StudySpec, number: int, chosen: RunSettings, forerunner: Forerunner | None
) -> None:
    """Refuse a run that has a trial's name and is not that trial.

    Raises:
        StudyError: it trains something else.
    """
    found = run.spec
    local = {name: getattr(found.training, name) for name in LOCAL}
    different = [
        what
        for what, is_same in (
            ("another method", found.method == spec.method),
            ("another cohort", found.cohort_digest == spec.cohort_digest),
            ("other settings", found.settings == chosen.method.model_dump(mode="json")),
            ("other training settings", found.training == chosen.training.model_copy(update=local)),
            ("another start", found.start_from == (None if spec.start is None else spec.start.text)),
            ("another forerunner", found.forerunner == forerunner),
        )
        if not is_same
    ]
    if different:
        raise StudyError(
            f"run '{run.run_id}' in {run.path.parent} is of {', '.join(different)} than trial {number} of study "
            f"'{spec.name}': move it away, or begin a study with another name"
        )


def _remove_unbegun(folder: Path) -> None:
    """Remove what a kill left of a run between its folder and its specification: at most a part of the latter.

    Raises:
        StudyError: the folder holds something else.
    """
    if not folder.exists():
        return
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("run.json."))
    if others:
        raise StudyError(f"{folder} is no run and holds {', '.join(others[:3])}: move it away, a trial needs the name")
    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _memory(device: str) -> PeakMemory:
    """Return what measures this process above what it held before its first trial.

    Above what it held before each trial, the first one would have to answer for what all of them load, and the others
    would be given what the ones before them left.
    """
    return PeakMemory(torch.device(device))


def _keep_peak(run: RunFolder, num_bytes: int) -> int:
    """Keep the most memory that a run has taken so far, and return it."""
    path = run.path / _PEAK
    with suppress(OSError, ValueError, KeyError):
        num_bytes = max(num_bytes, int(json.loads(path.read_text())["bytes"]))
    path.write_text(json.dumps({"bytes": num_bytes}))
    return num_bytes
