"""Start a run, train it from where it stands, keep its model."""

from __future__ import annotations

import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import torch

from vesalius.infra.pipeline.sharing import find_shared
from vesalius.infra.pipeline.tracked import await_server_as_job, end_again, outbox_of, resume_tracked, tell_end
from vesalius.methods import METHODS
from vesalius.platform import cluster, tracking
from vesalius.platform.cluster import check_store
from vesalius.platform.config import flatten, override, parse_assignments, validate
from vesalius.platform.contracts import read_after, trains_in_bfloat16
from vesalius.platform.errors import RunError, SettingError
from vesalius.platform.models import ModelCard, read_card, save_model
from vesalius.platform.progress import silent
from vesalius.platform.runs import RunFolder, RunSettings, RunSpec, check_new_run, create_run, find_run, new_run_id
from vesalius.platform.store import CohortStore
from vesalius.platform.tables import lookup
from vesalius.platform.training import Checkpoints, State, choose_device, stage_subjects

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.progress import Progress
    from vesalius.platform.store import Place
    from vesalius.platform.training import Forerunner, TrainingSettings


def method_type(name: str) -> type[Method]:
    """Return the class of a method by its name in the table.

    Raises:
        SettingError: no such method; names the nearest one.
    """
    kind: type[Method] = lookup(METHODS, name, "method")
    return kind


def choose_settings(
    name: str,
    preset: str,
    assignments: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    training: TrainingSettings | None = None,
) -> tuple[MethodSettings, TrainingSettings]:
    """Return a method's and the loop's settings: a preset, changed by ``method.*`` and ``training.*`` assignments.

    Args:
        name: of the method.
        preset: where its settings start.
        assignments: texts such as ``method.latent_dim=64``.
        settings: the method's settings, complete, in the preset's place.
        training: the loop's, in the defaults' place.

    Raises:
        SettingError: an unknown method, preset or key (with the nearest known one), or a value that does not fit.
    """
    kind = method_type(name)
    presets = kind.presets()
    if settings is None and preset not in presets:
        raise SettingError(f"{name} has no preset '{preset}': it has {', '.join(presets)}")
    start = presets[preset] if settings is None else validate(kind.settings_type, settings, f"settings of {name}")
    chosen = override(RunSettings.of(start, training), parse_assignments(assignments))
    return chosen.method, chosen.training


def start_run(
    name_of_method: str,
    store: Place,
    *,
    home: Path,
    preset: str = "paper",
    assignments: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    training: TrainingSettings | None = None,
    num_workers: int = 1,
    name: str | None = None,
    start_from: str | None = None,
    forerunner: Forerunner | None = None,
    until: float = 1.0,
    source_digest: str = "",
    experiment: str = "vesalius",
    tags: Mapping[str, str] | None = None,
    study: str | None = None,
) -> RunFolder:
    """Check all that can be checked, then create a run's folder and, unless tracking is off, its tracked run.

    ``settings`` are the method's, complete, as plain JSON, in the place of the preset's; the preset is then a tag.
    ``training`` stands in the place of the loop's defaults; ``tags`` join those of the tracked run. ``forerunner`` and
    ``until`` are of the run's specification. ``source_digest`` is of the cohort that the store is a copy of, with
    lesions in its validation volumes: the run to start from may be of that. ``study`` is the one that the run is a
    trial of: it may start after a last stage with the other run's settings, and take stages over that another trial
    has trained alike.

    Raises:
        SettingError: the method or a setting is not known or does not fit.
        StoreError: the store cannot be used.
        CohortError: it holds no healthy training subjects, or not of one grid where a stage needs that.
        RunError: the name is taken, or the run to start from is missing.
    """
    chosen, training = choose_settings(name_of_method, preset, assignments, settings, training)
    if num_workers == 0:
        choose_device(training.device)  # of a worker of Ray the cluster's devices decide, not this machine's
    cohort = CohortStore.open(store)
    # A setting that does not fit the cohort, or a cohort that does not fit a stage, says so now.
    method = built(
        method_type(name_of_method),
        RunSettings.of(chosen, training),
        cohort,
        on_cpu=_trains_on_cpu(training.device, num_workers),
    )
    run_id = name or new_run_id(name_of_method)
    if start_from is not None:
        other, stages = check_start(start_from, home, name_of_method, method, {cohort.digest, source_digest})
        is_same = other.spec.settings == chosen.model_dump(mode="json")
        if study is None and is_same and len(stages) == len(method.stages()):
            raise RunError(
                f"'{stages[-1]}' is the last stage of {name_of_method}: nothing is left to train after it; use run "
                f"'{other.run_id}' itself, or --set what scoring alone reads"
            )
    check_new_run(home, run_id)
    uri = None if tracking.is_tracking_off() else tracking.tracking_uri(home)
    spec = RunSpec(
        run_id=run_id,
        method=name_of_method,
        settings=chosen.model_dump(mode="json"),
        training=training,
        store=str(store),
        cohort_digest=cohort.digest,
        num_workers=num_workers,
        start_from=start_from,
        forerunner=forerunner,
        until=until,
        experiment=experiment,
        mlflow_tracking_uri=None if uri is None else tracking.shown(uri),
        created=now(),
    )
    if study is not None:
        spec = spec.model_copy(update={"shared_from": find_shared(spec, method, cohort, home, study)})
    if uri is None:
        return create_run(home, spec)
    own = {"method": spec.method, "cohort_digest": spec.cohort_digest, "vesalius_run": run_id, **(tags or {})}
    tracked = tracking.start_run(uri, experiment, run_id, {**spec.flat(), "preset": preset}, own)
    return create_run(home, spec.model_copy(update={"mlflow_run_id": tracked}))


def built(kind: type[Method], settings: RunSettings, cohort: CohortStore, *, on_cpu: bool) -> Method:
    """Return a method of these settings on a cohort, after all checks that need neither a device nor a step.

    Args:
        kind: of method.
        settings: its own and the loop's.
        cohort: that it is to be trained on.
        on_cpu: whether that will be on a CPU for certain.

    Raises:
        SettingError: a setting does not fit the cohort, or a stage would not be trained right in the precision.
        CohortError: a stage finds no subjects, or not of one grid where it needs that.
    """
    method = kind(settings.method, cohort.facts(any_grid=kind.any_grid))
    for stage in method.stages():
        stage_subjects(stage, cohort, method.cohort)
        if on_cpu and stage.optimizers:
            trains_in_bfloat16(settings.training.precision, torch.device("cpu"), stage.trains)
    return method


def _trains_on_cpu(device: str, num_workers: int) -> bool:
    """Return whether a run will be trained on a CPU for certain: a cluster may have devices that are not here."""
    if device != "auto":
        return device == "cpu"
    return not torch.cuda.is_available() and (num_workers == 0 or not cluster.joins_another())


def check_start(
    start_from: str, home: Path, name_of_method: str, method: Method, digests: Collection[str]
) -> tuple[RunFolder, tuple[str, ...]]:
    """Return the run to start from and its stages up to the one to start after.

    Args:
        start_from: ``RUN@STAGE``.
        home: of the runs.
        name_of_method: of the new run.
        method: built from the new run's settings.
        digests: of the cohorts that the other run may have been trained on.

    Raises:
        SettingError: the text is not RUN@STAGE, or a setting that these stages read differs.
        RunError: the run is missing, of another method or cohort, or has not finished the stage.
    """
    settings = method.settings
    other, separator, stage = start_from.partition("@")
    if not separator or not stage:
        raise SettingError(f"--from is '{start_from}': expected RUN@STAGE, such as my-run@adversarial")
    run = find_run(home, other)
    spec = run.spec
    if spec.method != name_of_method:
        raise RunError(
            f"run '{other}' trained {spec.method}, not {name_of_method}: start from a run of the same method"
        )
    if spec.cohort_digest not in digests:
        raise RunError(f"run '{other}' was trained on another cohort: start from a run on this store")
    names = [one.name for one in method.stages()]
    checkpoints = Checkpoints(run.checkpoints)
    stages = checkpoints.state(checkpoints.begin_after(stage, names)).finished_stages
    late = read_after(type(settings), stages)
    theirs = flatten(validate(type(settings), spec.settings, f"run '{other}'"))
    different = [
        f"{key} ({theirs[key]} there, {value} here)"
        for key, value in flatten(settings).items()
        if key not in late and theirs[key] != value
    ]
    if different:
        raise SettingError(
            f"run '{other}' has other settings that its stages up to '{stage}' read: {', '.join(different)}; give the "
            "same ones with --set"
        )
    return run, stages


def train(run: RunFolder, *, progress: Progress = silent) -> ModelCard:
    """Train a run to its end from where it stands and write its model; a finished run is left alone.

    Raises:
        RunError: the store has changed since the run was created, or the run is one that pauses.
        DivergenceError: a loss or gradient is not finite.
    """
    card = None if run.spec.until < 1 else advance(run, progress=progress)
    if card is None:
        raise RunError(
            f"run '{run.run_id}' is of a population and pauses at {100 * run.spec.until:.0f} % of its training, where "
            "other runs go on from it: go on with its study, `vesalius tune --resume STUDY`"
        )
    return card


def advance(run: RunFolder, *, progress: Progress = silent, tuned: bool = False) -> ModelCard | None:
    """Train a run from where it stands: to its end, where its model is written, or to its pause, where there is none.

    A run that is there already is left alone. ``tuned`` says that a trial of Ray Tune calls; see
    :func:`vesalius.platform.cluster.train`.

    Raises:
        RunError: the store has changed since the run was created.
        DivergenceError: a loss or gradient is not finite.
    """
    spec = run.spec
    outbox = outbox_of(run)
    if run.state == "finished" and (run.model / "model.json").is_file():
        if outbox is not None:
            outbox.attempt()
            end_again(run, outbox)
        return read_card(run.model)
    if run.state == "paused" and run.paused is not None:
        return None
    if outbox is not None:
        await_server_as_job(lambda: resume_tracked(run, is_trial=tuned))
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        cluster.train(run, method_type(spec.method), progress=progress, tuned=tuned)
        card = None if run.paused is not None else _write_model(run)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if outbox is not None:
            tell_end(run, outbox, status)
    return card


def _write_model(run: RunFolder) -> ModelCard:
    spec = run.spec
    store = check_store(spec)
    kind = method_type(spec.method)
    facts = store.facts(any_grid=kind.any_grid)
    method = kind(validate(kind.settings_type, spec.settings, str(run.path / "run.json")), facts)
    checkpoints = Checkpoints(run.checkpoints)
    last = checkpoints.last()
    if last is None:
        raise RunError(f"run '{run.run_id}' has no checkpoint: go on with `vesalius train --resume {run.run_id}`")
    checkpoints.load_weights(last, method)
    state = checkpoints.state(last)
    card = ModelCard(
        method=spec.method,
        settings=spec.settings,
        cohort=facts,
        recipe=store.recipe,
        thresholds={},
        metrics={},
        run_id=run.run_id,
        stage=state.finished_stages[-1],
        step=state.steps[state.finished_stages[-1]],
        created=now(),
        vesalius_version=version("vesalius"),
        weights_sha256="",
    )
    return save_model(run.model, method, card)


def require_model(run: RunFolder) -> ModelCard:
    """Return the card of a finished run's model.

    Raises:
        RunError: the run has not been trained to its end.
    """
    if not (run.model / "model.json").is_file():
        raise RunError(
            f"run '{run.run_id}' is not finished ({run.state}): go on with `vesalius train --resume {run.run_id}`"
        )
    return read_card(run.model)


def describe_run(run: RunFolder, card: ModelCard) -> dict[str, Any]:
    """Return what ``vesalius train`` says of a finished run."""
    spec = run.spec
    checkpoints = Checkpoints(run.checkpoints)
    last = checkpoints.last()
    state = checkpoints.state(last) if last else State()
    return {
        "run": run.run_id,
        "state": run.state,
        "method": spec.method,
        "folder": str(run.path),
        "model": str(run.model),
        "store": spec.store,
        "cohort_digest": spec.cohort_digest,
        "num_workers": spec.num_workers,
        "start_from": spec.start_from,
        "inherited": list(state.inherited),
        "seconds": {stage: round(value, 2) for stage, value in state.seconds.items()},
        "thresholds": {voxels: one.model_dump(mode="json") for voxels, one in card.thresholds.items()},
        "weights_sha256": card.weights_sha256,
        "mlflow_run_id": spec.mlflow_run_id,
        "mlflow_tracking_uri": spec.mlflow_tracking_uri,
    }


def now() -> str:
    """Return the time, UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
