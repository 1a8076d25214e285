"""Trials trained again with other seeds: workers of Ray as for a trial, records in the study's folder, resumable."""

from __future__ import annotations

import functools
import secrets
import shutil
import warnings
from typing import TYPE_CHECKING, Any

from vesalius.platform.cluster import session
from vesalius.platform.progress import silent
from vesalius.tuning.resources import alive_nodes, check_resources, trial_resources
from vesalius.tuning.running import failures, fit, keeps_workers, quiet
from vesalius.tuning.spec import Record
from vesalius.tuning.trial import work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.progress import Progress
    from vesalius.tuning.analysis import TrialRow
    from vesalius.tuning.folder import StudyFolder
    from vesalius.tuning.trial import Trainer


def repeat(
    study: StudyFolder, trials: Sequence[TrialRow], seeds: Sequence[int], trainer: Trainer, progress: Progress = silent
) -> None:
    """Train trials again with each of some seeds, and judge them as trials are judged.

    What an earlier call has finished is left alone, and what it left half-way goes on; what failed is tried again.

    Args:
        study: the folder.
        trials: of it.
        seeds: of the training.
        trainer: how a trial is trained and judged.
        progress: called with trainings ended and in all.

    Raises:
        StudyError: another process drives the study from here, or Ray fails.
        SettingError: trainings side by side do not fit the cluster.
        VesaliusError: whatever is wrong for all of them.
    """
    spec = study.spec
    # Seed by seed, so that what is broken off has pairs to show.
    wanted = [(row, seed) for seed in seeds for row in trials]
    with study.alone():
        left = [(row, seed) for row, seed in wanted if not _has_ended(study.record(row.number, seed))]
        progress(len(wanted) - len(left), len(wanted), "")
        if not left:
            return
        with session():
            import ray
            from ray import tune
            from ray.tune import RunConfig, TuneConfig, Tuner, with_resources

            from vesalius.tuning.searcher import RepeatStopper

            concurrent = min(spec.concurrent, len(left))
            check_resources(
                ray.cluster_resources(),
                concurrent=concurrent,
                num_workers=spec.num_workers,
                cpus=spec.cpus,
                gpus=spec.gpus,
                nodes=alive_nodes(),
            )
            stopper = RepeatStopper(len(wanted) - len(left), len(wanted), progress)
            configs = [{"number": row.number, "values": dict(row.values), "seed": seed} for row, seed in left]
            shutil.rmtree(study.ray, ignore_errors=True)
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Ray's own
                tuner = Tuner(
                    with_resources(functools.partial(_work, folder=study.path, trainer=trainer), trial_resources(spec)),
                    param_space={"again": tune.grid_search(configs)},
                    tune_config=TuneConfig(max_concurrent_trials=concurrent, reuse_actors=keeps_workers(spec)),
                    run_config=RunConfig(
                        name=f"attempt-{secrets.token_hex(4)}",
                        storage_path=str(study.ray),
                        stop=stopper,
                        verbose=0,
                        failure_config=failures(spec),
                    ),
                )
                fit(tuner, study, lambda: stopper.error, f"vesalius study {spec.name} --seeds {len(seeds)}")
        for row, seed in left:
            if spec.run_id(row.number, seed) not in stopper.told and not _has_ended(study.record(row.number, seed)):
                reason = "its worker process died again and again: most likely it ran out of memory"
                run_id = spec.run_id(row.number, seed)
                record = Record(number=row.number, ending="failed", reason=reason, run_id=run_id)
                trainer.abandon(spec, record, seed)
                study.keep(record, seed)


def _has_ended(record: Record | None) -> bool:
    return record is not None and record.ending == "complete"


def _work(config: dict[str, Any], **options: Any) -> None:
    work(config["again"], **options)
