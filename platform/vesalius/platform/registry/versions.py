"""Versions of a registered model: made, tagged, listed."""

from __future__ import annotations

import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vesalius.platform.config import Settings, digest
from vesalius.platform.errors import ModelError
from vesalius.platform.models import read_card
from vesalius.platform.registry.collisions import retried
from vesalius.platform.registry.packing import pack
from vesalius.platform.store.space import space_errors
from vesalius.platform.tracking import answering, client, end_run, start_run, tracking_uri
from vesalius.platform.tracking.connection import existing_run, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.platform.models import ModelCard

CHAMPION = "champion"
CHALLENGER = "challenger"
LOG_SUFFIX = ".promotions"
"""Of the registered model that holds the log of another one's promotions."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PREFIX = "vesalius."


class VersionFacts(Settings):
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: its number.
        champion: whether the alias points at it now.
        aliases: all that point at it.
        archived: of a version that was champion and is no more: when (``at``), by whom (``by``), and by which entry of
            the log of promotions (``entry``).
        decision: ``promoted``, ``kept back``, or empty where no promotion was tried or it was broken off.
        method: name in the methods' table.
        run_id: the run it came from.
        tracked_run: the same in MLflow; the version's artefacts lie there.
        cohort_digest: of the cohort it was trained on.
        digest: of the model: method, settings, cohort and weights.
        created: time of registration, milliseconds since 1970.
        previous_champion: the version it took the alias from.
        gate: figures of its promotion.
        metrics: figures on the split its thresholds were fitted on.
        test_figures: for the reader; nothing was chosen by them.
    """

    name: str
    version: str
    champion: bool = False
    aliases: tuple[str, ...] = ()
    archived: dict[str, Any] = Field(default_factory=dict)
    decision: str = ""
    method: str = ""
    run_id: str = ""
    tracked_run: str = ""
    cohort_digest: str = ""
    digest: str = ""
    created: int = 0
    previous_champion: str | None = None
    gate: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float | None] = Field(default_factory=dict)
    test_figures: dict[str, Any] = Field(default_factory=dict)


def check_name(name: str) -> str:
    """Return ``name`` if a model may be registered under it.

    Raises:
        ModelError: it holds anything but letters, digits, dot, underscore and hyphen, or is kept for a log.
    """
    if not NAME.fullmatch(name):
        raise ModelError(f"'{name[:160]}' cannot name a model: use up to 128 letters, digits, '.', '_' and '-'")
    if name.endswith(LOG_SUFFIX):
        raise ModelError(f"'{name}' cannot name a model: under names in {LOG_SUFFIX} promotions are recorded")
    return name


def register(
    model: Path,
    name: str,
    *,
    home: Path,
    methods: str,
    uri: str | None = None,
    mlflow_run_id: str | None = None,
    experiment: str = "vesalius",
) -> VersionFacts:
    """Register a model as a new version, or find the version that holds this very model; moves no alias.

    Args:
        model: a model's folder.
        name: registered model, made where it does not exist.
        home: decides the tracking store where ``uri`` does not.
        methods: where MLflow's own loader finds the methods' table, ``package.module:NAME``; a constant of the
            program, never read from a model.
        uri: the tracking store.
        mlflow_run_id: the tracked run the version belongs to; one is made where there is none.
        experiment: of the run that is made.

    Raises:
        ModelError: there is no model in the folder, or the name cannot be used.
        RunError: the tracked run is missing, or nothing answers at ``uri``.
    """
    check_name(name)
    card = read_card(model)
    uri = uri or tracking_uri(home)
    mlflow = client(uri)
    content = digest(card)
    for known in all_versions(mlflow, uri, name):
        if known.tags.get(f"{PREFIX}card") == content:
            return _facts(known, aliases_of(mlflow, uri, name))
    run_id = mlflow_run_id
    if run_id is None:
        run_id = start_run(uri, experiment, f"register {card.run_id or name}", {"method": card.method})
        end_run(uri, run_id, "FINISHED")
    with answering(uri, f"register a version of '{name}'", ModelError), tempfile.TemporaryDirectory() as scratch:
        run = existing_run(mlflow, uri, run_id)
        packed = Path(scratch) / "packed"
        pack(model, card, packed, methods)
        place = f"models/{content[:16]}"
        with space_errors(Path(scratch)):
            mlflow.log_artifacts(run_id, str(packed), place)
        _ensure_registered(mlflow, name)
        made = retried(
            lambda: mlflow.create_model_version(
                name,
                source=f"{run.info.artifact_uri}/{place}",
                run_id=run_id,
                tags=_tags(card, content),
                description=f"{card.method}, trained by run {card.run_id} on {', '.join(card.cohort.channels)}",
            )
        )
        return _facts(made, {})


def registered_as(model: Path, name: str, *, uri: str) -> str:
    """Return the number of the version that holds this very model, or empty where it is not registered."""
    content = digest(read_card(model))
    found = [one for one in all_versions(client(uri), uri, name) if one.tags.get(f"{PREFIX}card") == content]
    return str(found[0].version) if found else ""


def history(name: str, *, home: Path, uri: str | None = None) -> list[VersionFacts]:
    """Return all versions of a registered model, oldest first.

    Raises:
        ModelError: there is no such model.
        RunError: nothing answers at ``uri``.
    """
    check_name(name)
    uri = uri or tracking_uri(home)
    mlflow = client(uri)
    found = all_versions(mlflow, uri, name)
    if not found:
        raise ModelError(f"no version of '{name}' is registered at {shown(uri)}: promote a run with --name {name}")
    aliases = aliases_of(mlflow, uri, name)
    return [_facts(version, aliases) for version in found]


def aliases_of(mlflow: Any, uri: str, name: str) -> dict[str, str]:
    """Return the version that each alias of a registered model points at."""
    with answering(uri, f"find the champion of '{name}'", ModelError):
        return {alias: str(version) for alias, version in dict(mlflow.get_registered_model(name).aliases).items()}


def tag_version(mlflow: Any, name: str, version: str, tags: Mapping[str, Any]) -> None:
    """Set tags of a version: texts as they are, anything else as JSON."""
    for key, value in tags.items():
        text = value if isinstance(value, str) else json.dumps(value)
        retried(partial(mlflow.set_model_version_tag, name, version, f"{PREFIX}{key}", text))


def all_versions(mlflow: Any, uri: str, name: str) -> list[Any]:
    """Return MLflow's own records of all versions, oldest first."""
    with answering(uri, f"list the versions of '{name}'", ModelError):
        found: list[Any] = []
        token = None
        while True:
            page = mlflow.search_model_versions(f"name='{name}'", max_results=1000, page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))


def _ensure_registered(mlflow: Any, name: str) -> None:
    try:
        mlflow.create_registered_model(name, description="Registered by `vesalius promote`.")
    except Exception as cause:  # MlflowException, imported only where MLflow is used
        if getattr(cause, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(card: ModelCard, content: str) -> dict[str, str]:
    tags = {
        "card": content,
        "digest": card.digest,
        "method": card.method,
        "run_id": card.run_id,
        "cohort_digest": card.cohort.digest,
        "metrics": json.dumps(card.metrics),
    }
    return {f"{PREFIX}{key}": value for key, value in tags.items()}


def _facts(version: Any, aliases: Mapping[str, str]) -> VersionFacts:
    tags = {key.removeprefix(PREFIX): value for key, value in version.tags.items() if key.startswith(PREFIX)}

    def read(key: str) -> Any:
        try:
            value = json.loads(tags.get(key, "{}"))
        except ValueError:  # edited by hand in MLflow's own pages
            return {}
        return value if isinstance(value, dict) else {}

    return VersionFacts(
        name=version.name,
        version=str(version.version),
        champion=aliases.get(CHAMPION) == str(version.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(version.version))),
        archived=read("archived"),
        decision=tags.get("decision", ""),
        method=tags.get("method", ""),
        run_id=tags.get("run_id", ""),
        tracked_run=version.run_id or "",
        cohort_digest=tags.get("cohort_digest", ""),
        digest=tags.get("digest", ""),
        created=int(version.creation_timestamp or 0),
        previous_champion=tags.get("previous_champion") or None,
        gate=read("gate"),
        metrics=read("metrics"),
        test_figures=read("test_figures"),
    )
