"""Go on with a study, change it on its way, train its best again with other seeds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from vesalius.infra.pipeline.populations import refuse_more_trials, refuse_seeds
from vesalius.infra.pipeline.starting import check_start_is_there
from vesalius.infra.pipeline.tracked_study import tracked_study
from vesalius.infra.pipeline.training import built, method_type
from vesalius.infra.pipeline.trials import TrialTrainer, base_of
from vesalius.platform.cluster import available_cores, session
from vesalius.platform.errors import SettingError, StudyError
from vesalius.platform.store import CohortStore
from vesalius.tuning import (
    alive_nodes,
    analyse,
    check_resources,
    compared,
    dimensions,
    other_seeds,
    repeat,
    taken_seeds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunSettings
    from vesalius.tuning import StudyFolder


def check_resumed(study: StudyFolder, asked: Mapping[str, Any], home: Path) -> None:
    """Refuse to go on with a study on a cohort, or with spaces, that are not its own.

    Args:
        study: to be gone on with.
        home: of the runs.
        asked: what was given beside its name, by the keys of :class:`StudyRequest`; what is None was not.

    Raises:
        StudyError: its store or the run that it starts from has changed, or another one or other spaces were given.
    """
    spec = study.spec
    begin = "begin a new study with another --name"
    if spec.start is not None:
        check_start_is_there(spec.start, spec.name, home)
    store = CohortStore.open(spec.store)
    if store.digest != spec.cohort_digest:
        raise StudyError(
            f"the store {spec.store} has changed since study '{spec.name}' was begun (digest "
            f"{spec.cohort_digest[:12]}, now {store.digest[:12]}): trials before and after are not comparable; {begin}"
        )
    if asked.get("method") not in (None, spec.method):
        raise StudyError(f"study '{spec.name}' is of {spec.method}, not of {asked['method']}: {begin}")
    own = (spec.cohort_digest, spec.source_digest)  # the latter without the lesions that the study's copy has
    if asked.get("store") is not None and (digest := CohortStore.open(asked["store"]).digest) not in own:
        raise StudyError(
            f"study '{spec.name}' is of another cohort than {asked['store']} (digest {spec.cohort_digest[:12]}, not "
            f"{digest[:12]}): {begin}"
        )
    if asked.get("space"):
        base = base_of(spec)
        taken_over = () if spec.start is None else spec.start.stages
        given = dimensions(
            base, asked["space"], check_with(spec.method, store, spec.training.device, spec.gpus), taken_over=taken_over
        )
        if {one.key: one for one in given} != {one.key: one for one in spec.searched}:
            said = "; ".join(f"{one.key}={one.text()}" for one in spec.searched)
            raise StudyError(f"study '{spec.name}' searches other spaces ({said}): leave --space out, or {begin}")
    if asked.get("objective") and tuple(asked["objective"]) != spec.objectives:
        raise StudyError(f"study '{spec.name}' is judged by {', '.join(spec.objectives)}: {begin}")


def change_study(study: StudyFolder, changes: Mapping[str, Any]) -> None:
    """Change what a study may change on its way: how many trials it is to have, and how they share the machine.

    Args:
        study: to be gone on with.
        changes: of ``trials``, ``concurrent``, ``cpus`` and ``gpus``; trials train where the last says, those that are
            half-way too.

    Raises:
        SettingError: there is to be no trial, or they do not fit.
        StudyError: a process drives the study.
    """
    if changes.get("trials", 1) < 1:
        raise SettingError(f"--trials is {changes['trials']}: a study has 1 or more")
    if not changes:
        return
    if "trials" in changes:
        refuse_more_trials(study.spec)
    resources, nodes = cluster_resources()
    with study.alone():
        spec = study.spec.model_copy(update=dict(changes))
        device = spec.training.device
        if changes.get("gpus") == 0:  # as at the beginning: Ray hides no device from a trial that asked for none
            device = "cpu"
        elif "gpus" in changes and device == "cpu":
            device = "auto"
        spec = spec.model_copy(update={"training": spec.training.model_copy(update={"device": device})})
        check_resources(
            resources,
            concurrent=spec.concurrent,
            num_workers=spec.num_workers,
            cpus=spec.cpus,
            gpus=spec.gpus,
            nodes=nodes,
        )
        study.rewrite(spec)


def repeat_best(study: StudyFolder, num: int, *, home: Path, progress: Progress) -> None:
    """Train a study's best trial and its start again with other seeds than any of its trials had.

    Args:
        study: with a complete start and a better trial.
        num: of seeds.
        home: of the runs.
        progress: called with trainings ended and in all.

    Raises:
        SettingError: fewer than two seeds have no interval.
        StudyError: there is no single best, or it is the start; or the store has changed since; or it is a population.
    """
    if num < 2:
        raise SettingError(f"--seeds is {num}: a difference has an interval over 2 seeds or more")
    refuse_seeds(study.spec)
    check_resumed(study, {}, home)
    if study.spec.start is not None and not study.spec.start.trains:
        raise SettingError(
            f"the trials of study '{study.spec.name}' train nothing after {study.spec.start.text}: with other seeds "
            "they would come to the same"
        )
    found = analyse(study)
    numbers = compared(found)
    taken = taken_seeds(study.spec, found)
    rows = [row for row in found.trials if row.number in numbers]
    with tracked_study(study, home) as parent:
        repeat(study, rows, other_seeds(sorted(taken), num), TrialTrainer(home, parent), progress)


def check_with(method: str, store: CohortStore, device: str, gpus: float) -> Callable[[RunSettings], None]:
    """Return what asks a method whether settings fit a cohort, as a run of them would be before it is begun.

    Args:
        method: its name.
        store: of the cohort.
        device: that trials are to be trained on, cpu, cuda or auto.
        gpus: of a trial; one that has none is trained on the CPU unless it asks for more by name.
    """
    kind = method_type(method)
    on_cpu = device == "cpu" or (device == "auto" and not gpus)

    def check(settings: RunSettings) -> None:
        with torch.random.fork_rng(devices=[]):
            built(kind, settings, store, on_cpu=on_cpu)

    return check


def cluster_resources() -> tuple[dict[str, float], list[dict[str, float]] | None]:
    """Return what the cluster has, and what each of its machines where it is not this one alone."""
    if os.environ.get("RAY_ADDRESS"):
        with session():
            import ray

            found: dict[str, float] = ray.cluster_resources()
            return found, alive_nodes()
    return {"CPU": float(available_cores()), "GPU": float(torch.cuda.device_count())}, None
