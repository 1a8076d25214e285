"""A tracked run from its start to its end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vesalius.platform.errors import RunError
from vesalius.platform.tracking.connection import answering, artifact_root, client, existing_run, shown
from vesalius.platform.tracking.logger import RunLogger, metric_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000
_PARAMS_A_BATCH = 100
_RUNS_A_PAGE = 500
_PACKAGES = ("vesalius", "torch", "numpy", "ray", "mlflow", "zarr", "safetensors", "nibabel", "SimpleITK")


def start_run(
    uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> str:
    """Begin a tracked run, with its settings as parameters and the environment as tags.

    Args:
        uri: the tracking store.
        experiment: made where it does not exist.
        name: shown in listings.
        params: flat settings, see :func:`vesalius.platform.config.flatten`; cut to MLflow's 6,000 characters.
        tags: such as the cohort's digest.

    Returns:
        The run's id in MLflow.

    Raises:
        RunError: nothing answers at ``uri``, or the experiment has been deleted there.
    """
    mlflow = client(uri)
    with answering(uri, f"start a run of experiment '{experiment}'"):
        from mlflow.entities import Param

        experiment_id = _experiment(mlflow, uri, experiment)
        described = {**{f"env.{key}": value for key, value in environment().items()}, **(tags or {})}
        run = mlflow.create_run(
            experiment_id, run_name=name, tags={key: str(value)[:_LONGEST_TAG] for key, value in described.items()}
        )
        run_id: str = run.info.run_id
        entities = [Param(metric_key(key), as_param(value)) for key, value in params.items()]
        try:
            for start in range(0, len(entities), _PARAMS_A_BATCH):
                mlflow.log_batch(run_id, params=entities[start : start + _PARAMS_A_BATCH])
        except Exception:  # raised again
            mlflow.set_terminated(run_id, status="FAILED")
            raise
        return run_id


def resume_run(uri: str, run_id: str) -> None:
    """Go on with a tracked run: what is logged from now on joins what is there.

    Raises:
        RunError: there is no such run, or nothing answers at ``uri``.
    """
    mlflow = client(uri)
    existing_run(mlflow, uri, run_id)
    with answering(uri, f"go on with tracked run {run_id}"):
        mlflow.update_run(run_id, status="RUNNING")


def is_running(uri: str, run_id: str) -> bool:
    """Return whether a tracked run has not ended.

    Raises:
        RunError: there is no such run.
        UnansweredError: nothing answers at ``uri``.
    """
    return bool(existing_run(client(uri), uri, run_id).info.status == "RUNNING")


def end_run(uri: str, run_id: str, status: RunStatus, *, timestamp: int | None = None) -> None:
    """End a tracked run.

    Args:
        uri: the tracking store.
        run_id: the run's id in MLflow.
        status: ``FINISHED``, ``FAILED`` or, where a person or a scheduler stopped it, ``KILLED``.
        timestamp: when it ended, milliseconds since 1970; now where None.

    Raises:
        RunError: there is no such run, or nothing answers at ``uri``.
    """
    mlflow = client(uri)
    existing_run(mlflow, uri, run_id)
    with answering(uri, f"end tracked run {run_id}"):
        mlflow.set_terminated(run_id, status=status, end_time=timestamp)


def find_run(uri: str, experiment: str, tags: Mapping[str, str]) -> str | None:
    """Return the id of the oldest tracked run of an experiment that has some tags, or None where there is none.

    Args:
        uri: the tracking store.
        experiment: its name.
        tags: plain names, and values without quotes.

    Raises:
        RunError: nothing answers at ``uri``.
    """
    found = next(find_runs(uri, experiment, tags), None)
    return None if found is None else found.run_id


@dataclass(frozen=True)
class TrackedRun:
    """A tracked run as it stands.

    Attributes:
        run_id: in MLflow.
        params: its settings, as text.
        metrics: the last value of each.
        tags: of it.
    """

    run_id: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def find_runs(uri: str, experiment: str, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
    """Yield the tracked runs of an experiment that have some tags, oldest first; see :func:`find_run`.

    Raises:
        RunError: nothing answers at ``uri``.
    """
    mlflow = client(uri)
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    doing = f"look for runs of experiment '{experiment}'"
    with answering(uri, doing):
        found = mlflow.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage != "active":
        return
    token: str | None = None
    while True:
        with answering(uri, doing):
            page = mlflow.search_runs(
                [found.experiment_id],
                wanted,
                order_by=["attributes.start_time"],
                max_results=_RUNS_A_PAGE,
                page_token=token,
            )
        for run in page:
            data = run.data
            yield TrackedRun(run.info.run_id, dict(data.params), dict(data.metrics), dict(data.tags))
        token = page.token
        if not token:
            return


def tag_run(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a tracked run.

    Raises:
        RunError: there is no such run, or nothing answers at ``uri``.
    """
    mlflow = client(uri)
    existing_run(mlflow, uri, run_id)
    with answering(uri, f"tag tracked run {run_id}"):
        for key, value in tags.items():
            mlflow.set_tag(run_id, key, value[:_LONGEST_TAG])


def tags_of(uri: str, run_id: str) -> dict[str, str]:
    """Return the tags of a tracked run.

    Raises:
        RunError: there is no such run, or nothing answers at ``uri``.
    """
    return dict(existing_run(client(uri), uri, run_id).data.tags)


def log_metrics(
    uri: str, run_id: str, metrics: Mapping[str, float | None], step: int = 0, *, timestamp: int | None = None
) -> None:
    """Log a handful of figures at once; what is None (undefined) is left out.

    Args:
        uri: the tracking store.
        run_id: the run's id in MLflow.
        metrics: by name.
        step: of the run.
        timestamp: when they were taken, milliseconds since 1970; now where None.

    Raises:
        RunError: there is no such run, or nothing answers at ``uri``.
    """
    with RunLogger(uri, run_id) as logger:
        logger.metrics(step, {key: value for key, value in metrics.items() if value is not None}, timestamp=timestamp)


def environment() -> dict[str, str]:
    """Return what a number may depend on besides the settings: versions, machine and device."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": str(os.cpu_count()),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }
    for package in _PACKAGES:
        try:
            facts[package.lower()] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    import torch

    if torch.cuda.is_available():
        facts["cuda_device"] = torch.cuda.get_device_name()
        facts["cuda"] = str(torch.version.cuda)
        facts["cuda_device_count"] = str(torch.cuda.device_count())
    return facts


def _experiment(mlflow: Any, uri: str, name: str) -> str:
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        try:
            made: str = mlflow.create_experiment(name, artifact_location=artifact_root(uri))
        except Exception:  # raised again
            # Another process may have made it between the question and now.
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                raise
        else:
            return made
    if found.lifecycle_stage != "active":
        raise RunError(f"experiment '{name}' has been deleted at {shown(uri)}: restore it there or use another name")
    experiment_id: str = found.experiment_id
    return experiment_id


def as_param(value: Any) -> str:
    """Return a setting as a tracked run has it: a text as it is, anything else as JSON, cut to what MLflow takes."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_PARAM else f"{text[: _LONGEST_PARAM - 1]}…"
