"""A model by any name, as a folder on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vesalius.platform.config import digest
from vesalius.platform.errors import ModelError, RunError
from vesalius.platform.models import CARD_FILE, WEIGHTS_FILE
from vesalius.platform.registry.packing import ARTIFACT_FOLDER
from vesalius.platform.registry.versions import LOG_SUFFIX, NAME, PREFIX, all_versions
from vesalius.platform.runs import find_run
from vesalius.platform.store.space import space_errors
from vesalius.platform.tracking import answering, client, tracking_uri
from vesalius.platform.tracking.connection import missing, shown

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]*)(?:@(?P<alias>[A-Za-z0-9_-]+)|/(?P<version>[0-9]+))")


def resolve(reference: str, *, home: Path, uri: str | None = None) -> Path:
    """Return the local folder of a model, for :func:`vesalius.platform.models.load_model`.

    Of a registered version, exactly its two files are fetched, by their names: nothing that the registry lists is
    followed, and no code of it is run. The card must be the one that was registered (and names the weights by their
    SHA-256): who can write to the artefacts alone cannot exchange a model. They stay in ``home/models`` and are
    fetched once.

    Args:
        reference: ``models:/NAME@champion``, ``models:/NAME/3``, a run id, or a folder.
        home: with the runs and the fetched models.
        uri: the tracking store.

    Raises:
        ModelError: there is no such version or model, or what is stored is not what was registered.
        RunError: there is no such run, it has no model yet, or nothing answers at ``uri``.
    """
    if reference.startswith("models:"):
        return _fetch(reference, home, uri or tracking_uri(home))
    folder = Path(reference).expanduser()
    if (folder / CARD_FILE).is_file():
        return folder.absolute()
    if (folder / "model" / CARD_FILE).is_file():
        return (folder / "model").absolute()
    if folder.is_dir() and not (home / "runs" / reference / "run.json").is_file():
        raise ModelError(
            f"{folder} holds no model ({CARD_FILE} is missing): name a finished run or models:/NAME@champion"
        )
    run = find_run(home, reference)
    if not (run.model / CARD_FILE).is_file():
        raise RunError(
            f"run '{run.run_id}' has no model yet (it is {run.state}): "
            f"finish it with `vesalius train --resume {run.run_id}`"
        )
    return run.model


def version_of(reference: str, *, home: Path, uri: str | None = None) -> tuple[str, str]:
    """Return name and version of what ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` names.

    Raises:
        ModelError: there is no such version.
        RunError: nothing answers at ``uri``.
    """
    _parsed(reference)
    uri = uri or tracking_uri(home)
    found = _version(client(uri), uri, reference)
    return str(found.name), str(found.version)


def _fetch(reference: str, home: Path, uri: str) -> Path:
    _parsed(reference)
    mlflow = client(uri)
    version = _version(mlflow, uri, reference)
    name = str(version.name)
    with answering(uri, f"fetch {reference}", ModelError):
        content = version.tags.get(f"{PREFIX}card", "")
        key = digest([uri, name, str(version.version), version.source, content])[:16]
        folder = home / "models" / name / f"{version.version}-{key}"
        if not (folder / CARD_FILE).is_file():
            place = f"{mlflow.get_model_version_download_uri(name, version.version)}/{ARTIFACT_FOLDER}"
            _download(place, folder, uri, content, f"version {version.version} of '{name}'")
        return folder


def _parsed(reference: str) -> re.Match[str]:
    match = _REFERENCE.fullmatch(reference)
    if match is None or not NAME.fullmatch(match["name"]) or match["name"].endswith(LOG_SUFFIX):
        raise ModelError(
            f"'{reference[:160]}' names no registered model: expected models:/NAME@champion or models:/NAME/3"
        )
    return match


def _version(mlflow: Any, uri: str, reference: str) -> Any:
    match = _parsed(reference)
    name = match["name"]
    with answering(uri, f"find {reference}"):
        try:
            if match["alias"]:
                return mlflow.get_model_version_by_alias(name, match["alias"])
            return mlflow.get_model_version(name, match["version"])
        except Exception as cause:  # MlflowException, imported only where MLflow is used
            if not missing(cause):
                raise
            raise ModelError(_no_such_version(mlflow, uri, name, reference)) from None


def _download(place: str, folder: Path, uri: str, content: str, who: str) -> None:
    from mlflow.artifacts import download_artifacts

    with space_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            for name in (WEIGHTS_FILE, CARD_FILE):
                with tempfile.TemporaryDirectory() as scratch:
                    found = download_artifacts(artifact_uri=f"{place}/{name}", dst_path=scratch, tracking_uri=uri)
                    shutil.copyfile(found, aside / name)
            if _content(aside / CARD_FILE) != content:
                raise ModelError(
                    f"{who} is not what was registered: the digest of its {CARD_FILE} is not that of the version's tag "
                    f"{PREFIX}card; take another version, or promote the run again under another name"
                )
            try:
                os.rename(aside, folder)
            except OSError:  # another process has fetched the same meanwhile
                if not (folder / CARD_FILE).is_file():
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _content(card: Path) -> str | None:
    """Return the digest of a card as it was written, by whatever version; None where it is not JSON."""
    try:
        return digest(json.loads(card.read_bytes()))
    except (ValueError, RecursionError):
        return None


def _no_such_version(mlflow: Any, uri: str, name: str, reference: str) -> str:
    known = all_versions(mlflow, uri, name)
    if not known:
        registered = [model.name for model in mlflow.search_registered_models(max_results=40)]
        names = ", ".join(sorted(one for one in registered if not one.endswith(LOG_SUFFIX))[:20]) or "none"
        return f"{reference}: no model '{name}' is registered at {shown(uri)}; registered are: {names}"
    numbers = ", ".join(str(version.version) for version in known)
    return f"{reference}: '{name}' has no such version or alias; its versions are {numbers}"


def fetched_version(reference: str, folder: Path) -> tuple[str, str] | None:
    """Return name and version of a registered model that :func:`resolve` found; None for a run or a folder.

    Args:
        reference: that was resolved.
        folder: that came of it, in which an alias has become the version it pointed at.
    """
    match = _REFERENCE.fullmatch(reference)
    return None if match is None else (match["name"], folder.name.partition("-")[0])


def follows_alias(reference: str) -> bool:
    """Say whether a reference may mean another version tomorrow."""
    match = _REFERENCE.fullmatch(reference)
    return match is not None and match["alias"] is not None
