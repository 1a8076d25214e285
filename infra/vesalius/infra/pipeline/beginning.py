"""What a study is asked to be; all that can be checked is checked, then its folder is made."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, Field

from vesalius.infra.pipeline.earlier_studies import earlier_study
from vesalius.infra.pipeline.judging import VALIDATION
from vesalius.infra.pipeline.populations import check_generations, choose_population, require_criterion
from vesalius.infra.pipeline.starting import check_has_effect, filled, find_origin, settings_of, start_of
from vesalius.infra.pipeline.studies import check_with, cluster_resources
from vesalius.infra.pipeline.training import method_type, now
from vesalius.platform.cluster import available_cores
from vesalius.platform.cluster.capacity import grows_to
from vesalius.platform.config import Settings
from vesalius.platform.errors import SettingError, StudyError
from vesalius.platform.runs import RunSettings
from vesalius.platform.store import CohortStore
from vesalius.tuning import (
    VALIDATIONS,
    StudySpec,
    check_address,
    check_mutable,
    check_new_study,
    check_pruner,
    check_resources,
    check_sampler,
    choose_objectives,
    declared,
    dimensions,
    fitting,
    full_key,
    intermediate,
    learn,
    mutable_spaces,
    new_study,
    objective,
    try_storage,
    whole_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.platform.progress import Progress
    from vesalius.tuning import Start, StudyFolder


class StudyRequest(Settings):
    """What a study is asked to be. A study file has these keys.

    Attributes:
        method: name in the methods' table; empty takes that of the run to start from.
        store: of the cohort; empty takes that of the run to start from.
        start_from: ``RUN@STAGE``, whose finished stages trials take over, or ``RUN``, all of them; ``from`` in a file.
        preset: where the method's settings start; None takes ``paper``, or the settings of the run to start from.
        set: settings of all trials, by key as in ``space``.
        space: what is searched, by key; empty takes what the method declares.
        trials: how many.
        population: members that are trained side by side in generations, or None.
        generations: of the population, or None.
        objective: names; empty lets the cohort decide.
        lesions: folder of lesion masks that are set into the validation volumes, or None.
        sampler: its name.
        pruner: its name, or ``NAME:FIRST`` (see :func:`vesalius.tuning.check_pruner`); None takes ``asha`` where a
            validation pass says something of the objective.
        seed: of the sampler.
        workers: of a trial.
        concurrent: trials side by side; None takes as many as fit.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker; 1 where each of several workers takes one; None shares out what the cluster has.
        storage: address of the study's storage; None takes a file in its folder.
        name: of the study; None makes one.
        learn_from: earlier studies of the method that it learns from: names, or ids of their tracked runs.
    """

    method: str = ""
    store: str = ""
    start_from: str | None = Field(None, validation_alias=AliasChoices("start_from", "from"))
    preset: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    trials: int = 20
    population: int | None = None
    generations: int | None = None
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
    learn_from: tuple[str, ...] = ()


def begin_study(request: StudyRequest, *, home: Path, say: Callable[[str], None], progress: Progress) -> StudyFolder:
    """Check all that can be checked, then make a study's folder.

    Args:
        request: what is asked for.
        home: of runs and studies.
        say: told what the person should know of the choices made.
        progress: of setting lesions into volumes, where they are asked for.

    Raises:
        SettingError: a setting, a space or an objective is unknown or does not fit, or is read by a stage that trials
            take over from the run they start from.
        RunError: that run is missing, or has not finished the stage; or how far the cluster may grow cannot be read.
        StoreError: the store cannot be used.
        CohortError: it holds no healthy training subjects, or none to set lesions into.
        StudyError: the name is taken, the storage's password is missing, or a study to learn from is not found or of
            another method.
    """
    if request.trials < 1:
        raise SettingError(f"--trials is {request.trials}: a study has 1 or more")
    population = choose_population(request)
    origin = None if request.start_from is None else find_origin(request.start_from, home)
    request = request if origin is None else filled(request, origin)
    name = request.name or f"{request.method.replace('_', '-')}-{now()[:10].replace('-', '')}-{secrets.token_hex(2)}"
    check_new_study(home, name)
    _check_no_runs(home, name)
    for one in request.objective:
        objective(one)
    if request.pruner is not None:
        check_pruner(request.pruner)
    storage = "" if request.storage is None else check_address(request.storage)
    whole_address(storage)
    earlier = [earlier_study(one, method=request.method, home=home) for one in dict.fromkeys(request.learn_from)]
    given = {full_key(key): value for key, value in request.set.items()}
    if len(given) < len(request.set):
        raise SettingError("a setting is set twice, with and without its group: give it once")
    request = request.model_copy(update={"set": given})
    preset, method, training = settings_of(request, origin)
    store = CohortStore.open(request.store)
    base = RunSettings.of(method, training)
    check_sampler(request.sampler, shared=request.storage is not None, num_objectives=len(request.objective))
    concurrent, gpus = _side_by_side(request, training.device, say)
    check = check_with(request.method, store, training.device, gpus)
    check(base)
    start = None
    if origin is not None:
        kind = method_type(request.method)
        start = start_of(origin, kind(method, store.facts(any_grid=kind.any_grid)), store.digest, home)
    space = request.space
    if population is not None:
        space = space or mutable_spaces(base, declared(base))
    searched = dimensions(base, space, check, taken_over=() if start is None else start.stages)
    check_has_effect(searched, request.set, start)
    if population is not None:
        check_mutable(base, searched)
        concurrent = min(concurrent, population.size)
    threads = training.threads or max(request.cpus, available_cores() // (concurrent * request.workers))
    training = training.model_copy(update={"threads": threads})
    if request.gpus == 0 and training.device not in ("auto", "cpu"):
        raise SettingError(f"--gpus is 0 and training.device {training.device}: leave one of them out")
    if not gpus and training.device == "auto":  # Ray hides no device from a trial that asked for none
        training = training.model_copy(update={"device": "cpu"})
    source = store
    objectives, criterion = _judged_by(request, store, training.validate_subjects, say, start)
    if population is not None:
        require_criterion(criterion, objectives)
        said = check_generations(method_type(request.method), method, store, population)
        if said:
            say(said)
    pruner = request.pruner or ("none" if criterion is None or population is not None else "asha")
    # A study of a run's later part keeps the run's own passes: its start is to come to what the run did.
    if (
        pruner != "none"
        and start is None
        and not {"training.validations", "training.validate_every"} & set(request.set)
    ):
        training = training.model_copy(update={"validations": VALIDATIONS})
    if request.storage is not None:
        try_storage(whole_address(storage))
    with new_study(home, name) as folder:
        if request.lesions is not None:
            store = _with_lesions(source, folder.cohort, request.lesions, progress)
        spec = StudySpec(
            name=name,
            token=secrets.token_hex(8),
            method=request.method,
            preset=preset,
            settings=method.model_dump(mode="json"),
            training=training,
            store=str(store.path),
            cohort_digest=store.digest,
            source_digest="" if store is source else source.digest,
            searched=searched,
            objectives=objectives,
            sampler=request.sampler if population is None else "random",
            pruner=pruner,
            criterion=criterion,
            seed=request.seed,
            trials=request.trials if population is None else population.size * population.generations,
            population=population,
            num_workers=request.workers,
            concurrent=concurrent,
            cpus=request.cpus,
            gpus=gpus,
            storage=storage,
            start=start,
            shared=request.storage is not None,
            experiment=name,
            created=now(),
            learn_from=tuple(one.name for one in earlier),
        )
        lessons = [learn(one, spec, RunSettings.of(method, training)) for one in earlier]
        for lesson in lessons:
            if lesson.caveat:
                say(lesson.caveat)
        folder.rewrite(spec.model_copy(update={"learnt": tuple(one for lesson in lessons for one in lesson.learnt)}))
    return folder


def _judged_by(
    request: StudyRequest, store: CohortStore, validate_subjects: int, say: Callable[[str], None], start: Start | None
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
    if start is not None and not start.has_passes:
        criterion = None
        if request.pruner not in (None, "none"):
            raise SettingError(
                f"--pruner {request.pruner} stops trials by their validation passes, and none is made after "
                f"{start.text}: use --pruner none"
            )
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


def _side_by_side(request: StudyRequest, device: str, say: Callable[[str], None]) -> tuple[int, float]:
    """Return how many trials run at once and each one's share of a GPU.

    Raises:
        SettingError: they do not fit, or a share is one that no device can give.
        RunError: what says how far the cluster may grow cannot be read.
    """
    resources, nodes = cluster_resources()
    devices = 0.0 if device == "cpu" or request.gpus == 0 else float(resources.get("GPU", 0))
    if device == "auto" and request.gpus is None and not devices and nodes is not None and grows_to().get("GPU"):
        say(
            "the cluster has no GPU now, though it may grow to some: the study is planned on CPUs; to use GPUs, have a "
            "node with one up first (minReplicas), then begin it"
        )
    if request.workers > 1:
        if request.gpus not in (None, 0, 1):
            raise SettingError("--gpus shares devices among trials of one worker; several workers take whole ones")
        gpus = 1.0 if devices or (request.gpus == 1 and device != "cpu") else 0.0
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


def _with_lesions(store: CohortStore, out: Path, masks: str, progress: Progress) -> CohortStore:
    """Return the cohort with synthetic lesions in its validation volumes; training subjects stay as they are.

    Raises:
        SettingError, CohortError, VolumeError: see :func:`vesalius.datasets.lesions.plant_lesions`.
    """
    from pathlib import Path as Folder

    from vesalius.datasets.lesions import plant_lesions

    plant_lesions(store, out, Folder(masks), splits=(VALIDATION,), progress=progress)
    return CohortStore.open(out)
