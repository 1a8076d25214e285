"""Begin a study, go on with it, train its best again with other seeds."""

from __future__ import annotations

import json
import math
import os
import secrets
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from vesalius.infra.pipeline.judging import VALIDATION
from vesalius.infra.pipeline.tracked_study import tracked_study
from vesalius.infra.pipeline.training import built, choose_settings, method_type, now
from vesalius.infra.pipeline.trials import TrialTrainer, base_of
from vesalius.platform.cluster import available_cores, session
from vesalius.platform.config import Settings
from vesalius.platform.errors import SettingError, StudyError
from vesalius.platform.runs import RunSettings
from vesalius.platform.store import CohortStore
from vesalius.tuning import (
    PRUNERS,
    StudySpec,
    alive_nodes,
    analyse,
    check_address,
    check_new_study,
    check_resources,
    check_sampler,
    choose_objectives,
    compared,
    dimensions,
    fitting,
    intermediate,
    new_study,
    objective,
    other_seeds,
    repeat,
    try_storage,
    whole_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vesalius.platform.progress import Progress
    from vesalius.tuning import StudyFolder


class StudyRequest(Settings):
    """What a study is asked to be. A study file has these keys.

    Attributes:
        method: name in the methods' table.
        store: of the cohort.
        preset: where the method's settings start.
        set: settings of all trials, by dotted key.
        space: what is searched, by key; empty takes what the method declares.
        trials: how many.
        objective: names; empty lets the cohort decide.
        lesions: folder of lesion masks that are set into the validation volumes, or None.
        sampler: its name.
        pruner: its name; None takes ``asha`` where a validation pass says something of the objective.
        seed: of the sampler.
        workers: of a trial.
        concurrent: trials side by side; None takes as many as fit.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker; None shares out what the cluster has.
        storage: address of the study's storage; None takes a file in its folder.
        name: of the study; None makes one.
    """

    method: str
    store: str
    preset: str = "paper"
    set: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    trials: int = 20
    objective: tuple[str, ...] = ()
    lesions: str | None = None
    sampler: str = "tpe"
    pruner: str | None = None
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=1)
    concurrent: int | None = Field(None, ge=1)
    cpus: int = Field(1, ge=1)
    gpus: float | None = Field(None, ge=0)
    storage: str | None = None
    name: str | None = None


def begin_study(request: StudyRequest, *, home: Path, say: Callable[[str], None], progress: Progress) -> StudyFolder:
    """Check all that can be checked, then make a study's folder.

    Args:
        request: what is asked for.
        home: of runs and studies.
        say: told what the person should know of the choices made.
        progress: of setting lesions into volumes, where they are asked for.

    Raises:
        SettingError: a setting, a space or an objective is unknown or does not fit.
        StoreError: the store cannot be used.
        CohortError: it holds no healthy training subjects, or none to set lesions into.
        StudyError: the name is taken, or the storage's password is missing.
    """
    if request.trials < 1:
        raise SettingError(f"--trials is {request.trials}: a study has 1 or more")
    name = request.name or f"{request.method.replace('_', '-')}-{now()[:10].replace('-', '')}-{secrets.token_hex(2)}"
    check_new_study(home, name)
    _check_no_runs(home, name)
    for one in request.objective:
        objective(one)
    if request.pruner is not None and request.pruner not in PRUNERS:
        raise SettingError(f"unknown pruner '{request.pruner}': the known ones are {', '.join(PRUNERS)}")
    storage = "" if request.storage is None else check_address(request.storage)
    whole_address(storage)
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in request.set.items()]
    method, training = choose_settings(request.method, request.preset, texts)
    store = CohortStore.open(request.store)
    base = RunSettings.of(method, training)
    check_sampler(request.sampler)
    concurrent, gpus = _side_by_side(request, training.device)
    check = _check(request.method, store, training.device, gpus)
    check(base)
    searched = dimensions(base, request.space, check)
    threads = training.threads or max(request.cpus, available_cores() // (concurrent * request.workers))
    training = training.model_copy(update={"threads": threads})
    if request.gpus == 0 and training.device not in ("auto", "cpu"):
        raise SettingError(f"--gpus is 0 and training.device {training.device}: leave one of them out")
    if request.gpus == 0:  # Ray hides no device from a trial that asked for none
        training = training.model_copy(update={"device": "cpu"})
    source = store
    objectives, criterion = _judged_by(request, store, training.validate_subjects, say)
    if request.storage is not None:
        try_storage(whole_address(storage))
    with new_study(home, name) as folder:
        if request.lesions is not None:
            store = _with_lesions(source, folder.path / "cohort", request.lesions, progress)
        spec = StudySpec(
            name=name,
            token=secrets.token_hex(8),
            method=request.method,
            preset=request.preset,
            settings=method.model_dump(mode="json"),
            training=training,
            store=str(store.path),
            cohort_digest=store.digest,
            source_digest="" if store is source else source.digest,
            searched=searched,
            objectives=objectives,
            sampler=request.sampler,
            pruner=request.pruner or ("none" if criterion is None else "asha"),
            criterion=criterion,
            seed=request.seed,
            trials=request.trials,
            num_workers=request.workers,
            concurrent=concurrent,
            cpus=request.cpus,
            gpus=gpus,
            storage=storage,
            shared=request.storage is not None,
            experiment=name,
            created=now(),
        )
        folder.rewrite(spec)
    return folder


def _judged_by(
    request: StudyRequest, store: CohortStore, validate_subjects: int, say: Callable[[str], None]
) -> tuple[tuple[str, ...], str | None]:
    """Return a study's objectives and the criterion that a trial may be stopped by.

    Lesions that are asked for count as there: setting them in takes long, and what does not fit is to be said before.

    Raises:
        SettingError: an objective or a pruner does not fit the cohort.
    """
    planted = request.lesions is not None
    objectives, said = choose_objectives(request.objective, store, num_workers=request.workers, planted=planted)
    if said:
        say(said)
    criterion = intermediate(objectives, store, validate_subjects, planted=planted)
    if request.pruner not in (None, "none") and criterion is None:
        raise SettingError(
            f"--pruner {request.pruner} stops trials by their validation passes, which say nothing of "
            f"{' and '.join(objectives)}: use --pruner none"
        )
    return objectives, criterion


def _check_no_runs(home: Path, name: str) -> None:
    """Check that no runs have the names of a new study's trials: they would be taken for these.

    Raises:
        StudyError: there are some.
    """
    taken = sorted(path.name for path in (home / "runs").glob(f"{name}-[0-9][0-9][0-9][0-9]"))
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise StudyError(
            f"runs of a study '{name}' exist already ({taken[0]}{more} in {home / 'runs'}): choose another name, or "
            "move them away"
        )


def check_resumed(study: StudyFolder, asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a study on a cohort, or with spaces, that are not its own.

    Args:
        study: to be gone on with.
        asked: what was given beside its name, by the keys of :class:`StudyRequest`; what is None was not.

    Raises:
        StudyError: its store has changed, or another one or other spaces were given.
    """
    spec = study.spec
    begin = "begin a new study with another --name"
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
        given = dimensions(base, asked["space"], _check(spec.method, store, spec.training.device, spec.gpus))
        if given != spec.searched:
            said = "; ".join(f"{one.key}={one.text()}" for one in spec.searched)
            raise StudyError(f"study '{spec.name}' searches other spaces ({said}): leave --space out, or {begin}")
    if asked.get("objective") and tuple(asked["objective"]) != spec.objectives:
        raise StudyError(f"study '{spec.name}' is judged by {', '.join(spec.objectives)}: {begin}")


def change_study(study: StudyFolder, changes: Mapping[str, Any]) -> None:
    """Change what a study may change on its way: how many trials it is to have, and how they share the machine.

    Args:
        study: to be gone on with.
        changes: of ``trials``, ``concurrent``, ``cpus`` and ``gpus``.

    Raises:
        SettingError: there is to be no trial, or they do not fit.
        StudyError: a process drives the study.
    """
    if changes.get("trials", 1) < 1:
        raise SettingError(f"--trials is {changes['trials']}: a study has 1 or more")
    if not changes:
        return
    resources, nodes = _resources()
    with study.alone():
        spec = study.spec.model_copy(update=dict(changes))
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
        StudyError: there is no single best, or it is the start; or the store has changed since.
    """
    if num < 2:
        raise SettingError(f"--seeds is {num}: a difference has an interval over 2 seeds or more")
    check_resumed(study, {})
    found = analyse(study)
    numbers = compared(found)
    taken = {int(row.values.get("training.seed", study.spec.training.seed)) for row in found.trials}
    rows = [row for row in found.trials if row.number in numbers]
    with tracked_study(study, home) as parent:
        repeat(study, rows, other_seeds(sorted(taken), num), TrialTrainer(home, parent), progress)


def _check(method: str, store: CohortStore, device: str, gpus: float) -> Callable[[RunSettings], None]:
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


def _side_by_side(request: StudyRequest, device: str) -> tuple[int, float]:
    """Return how many trials run at once and each one's share of a GPU.

    Raises:
        SettingError: they do not fit, or a share is one that no device can give.
    """
    resources, nodes = _resources()
    devices = 0.0 if device == "cpu" or request.gpus == 0 else float(resources.get("GPU", 0))
    if request.workers > 1:
        if request.gpus not in (None, 0, 1):
            raise SettingError("--gpus shares devices among trials of one worker; several workers take whole ones")
        gpus = 1.0 if devices else 0.0
    elif request.gpus is not None:
        gpus = request.gpus
    else:
        apiece = math.ceil((request.concurrent or devices) / devices) if devices else 0  # trials that share a device
        gpus = int(1000 / apiece) / 1000 if apiece else 0.0
    fit = fitting(resources, request.workers, request.cpus, gpus, nodes=nodes)
    concurrent = request.concurrent or max(1, fit)
    check_resources(
        resources, concurrent=concurrent, num_workers=request.workers, cpus=request.cpus, gpus=gpus, nodes=nodes
    )
    return concurrent, gpus


def _resources() -> tuple[dict[str, float], list[dict[str, float]] | None]:
    """Return what the cluster has, and what each of its machines where it is not this one alone."""
    if os.environ.get("RAY_ADDRESS"):
        with session():
            import ray

            found: dict[str, float] = ray.cluster_resources()
            return found, alive_nodes()
    return {"CPU": float(available_cores()), "GPU": float(torch.cuda.device_count())}, None


def _with_lesions(store: CohortStore, out: Path, masks: str, progress: Progress) -> CohortStore:
    """Return the cohort with synthetic lesions in its validation volumes; training subjects stay as they are.

    Raises:
        SettingError, CohortError, VolumeError: see :func:`vesalius.datasets.lesions.plant_lesions`.
    """
    from pathlib import Path as Folder

    from vesalius.datasets.lesions import plant_lesions

    plant_lesions(store, out, Folder(masks), splits=(VALIDATION,), progress=progress)
    return CohortStore.open(out)
