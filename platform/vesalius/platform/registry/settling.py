"""Aliases and tags made to say what the log says. May be broken off anywhere; the next call goes on.

==============  =====================================================================================================
``champion``    alias of the version that the log's last crowning entry names
``challenger``  alias of the newest version, as long as it has never been champion; else of none
``archived``    tag of a version that was champion and is no more: when, by whom, and by which entry of the log
``decision``    tag: ``promoted``, ``kept back`` or ``rolled back``, as the version's last entry says
==============  =====================================================================================================

A version goes: registered (challenger) -> kept back (challenger until a newer one is registered) or champion ->
archived -> champion again, by a rollback or another promotion.

MLflow points an alias unconditionally, and a process may be slow: it may point the champion's alias where the log said
to a while ago. So before it does, it marks where to, and the mark stays until it has seen the alias agree with the log.
An alias that is found at a version of some mark is brought back to what the log says; anywhere else, a person moved it.
Nobody takes away the mark of a process that may still live. Whoever holds the lock of a home knows that of the other
marks of that home none does (:func:`vesalius.platform.registry.champions.alone`); of those of other homes nobody knows.
"""

from __future__ import annotations

import json
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import ModelError
from vesalius.platform.registry.collisions import retried
from vesalius.platform.registry.line import moved_line
from vesalius.platform.registry.log import (
    LINE,
    Standing,
    append,
    begin_settling,
    end_settling,
    mark_of,
    read,
)
from vesalius.platform.registry.records import PromotionRecord
from vesalius.platform.registry.versions import CHALLENGER, CHAMPION, PREFIX, all_versions, tag_version
from vesalius.platform.tracking import answering
from vesalius.platform.tracking.connection import missing

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROUNDS = 20
PATIENCE_SECONDS = 10.0
"""How long a process is waited for that seems to be moving the alias; it takes a fraction of a second."""
_BETWEEN_SECONDS = 0.5


def settle(mlflow: Any, uri: str, name: str, home_id: str) -> Standing:
    """Bring aliases and tags to what the log says, and the log to what somebody has done to the alias by hand.

    Idempotent: each thing is written only where it differs, and whatever a killed process left undone is done.

    Args:
        mlflow: the client.
        uri: the tracking store.
        name: of the registered model.
        home_id: of the home whose lock the caller holds; see :func:`vesalius.platform.registry.champions.alone`.

    Raises:
        ModelError: the server refuses, or others move the alias all the time.
    """
    mark, pointed = mark_of(home_id, secrets.token_hex(8)), set[str]()
    for _ in range(_ROUNDS):
        standing = read(mlflow, uri, name)
        if not standing.exists:
            return standing
        versions = all_versions(mlflow, uri, name)
        known = {str(version.version) for version in versions}
        # Where we have pointed it ourselves, too late, nobody else moved it, even if our mark has been taken away.
        strayed = standing.moved and standing.alias not in pointed
        if strayed or (standing.crowned and standing.crowned not in known):
            append(mlflow, uri, _found(standing, known))
            continue
        with answering(uri, f"settle the aliases of '{name}'", ModelError):
            changes = _tag_changes(standing, versions)
            challenger = challenger_of(standing, versions)
            aliases_agree = standing.alias == standing.crowned and standing.challenger == challenger
            ended = standing.settled >= standing.latest and not standing.marks_of(home_id)
            if ended and aliases_agree and not changes:
                return standing
            for version, tags in changes.items():
                _tag(mlflow, name, version, tags)
            if standing.alias != standing.crowned:
                pointed.add(standing.crowned)
                begin_settling(mlflow, name, mark, pointed)
                _point(mlflow, name, CHAMPION, standing.alias, standing.crowned)
            _point(mlflow, name, CHALLENGER, standing.challenger, challenger)
            if not standing.latest:
                continue
            again = read(mlflow, uri, name)
            if again.latest == standing.latest and again.alias == standing.crowned:
                end_settling(mlflow, name, again.latest, again.marks_of(home_id))
    raise ModelError(f"the aliases of '{name}' are being moved all the time by others: try again when that has ended")


def settle_wholly(mlflow: Any, uri: str, name: str, home_id: str) -> Standing:
    """Do as :func:`settle`, and take away the marks of killed processes elsewhere, too.

    A mark of another home that is still there after :data:`PATIENCE_SECONDS` is taken for one of a killed process.

    Raises:
        ModelError: the server refuses, or others move the alias all the time.
    """
    standing = settle(mlflow, uri, name, home_id)
    left = set(standing.settling)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(_BETWEEN_SECONDS)
        left &= set(read(mlflow, uri, name).settling)
    if left:
        # Once more: what they left may have happened only after they were looked at.
        standing = settle(mlflow, uri, name, home_id)
        with answering(uri, f"settle the aliases of '{name}'", ModelError):
            end_settling(mlflow, name, standing.latest, left)
    return settle(mlflow, uri, name, home_id)


def challenger_of(standing: Standing, versions: list[Any]) -> str:
    """Return the newest version where it has never been champion, else nothing."""
    if not versions:
        return ""
    newest = str(versions[-1].version)
    crowned = newest in standing.line or newest in standing.archived or newest == standing.champion
    return "" if crowned or f"{PREFIX}card" not in versions[-1].tags else newest


def _found(standing: Standing, known: set[str]) -> PromotionRecord:
    """Return what is to be said of an alias that was moved without us, or before there was a log."""
    alias = standing.alias if standing.alias in known else ""
    facts: dict[str, Any] = {"name": standing.name, "life": standing.life, "by": "unknown", "version": alias}
    if not standing.entries:
        told = tuple(one for one in standing.tags.get(LINE, "").split(",") if one.isdecimal())
        line = moved_line(told, standing.alias)
        sentence = f"version {standing.alias} was champion before promotions were recorded"
        return PromotionRecord(kind="adopted", line=line, sentence=sentence, **facts)
    if alias:
        sentence = f"the alias was found moved to version {alias}, without a promotion"
    else:
        sentence = f"version {standing.crowned}, the champion, was found deleted or without its alias"
    return PromotionRecord(
        kind="moved", champion_version=standing.crowned, follows=standing.head, sentence=sentence, **facts
    )


def _tag_changes(standing: Standing, versions: list[Any]) -> dict[str, dict[str, str | None]]:
    """Return by version the tags that differ from what the log says; None stands for one to be removed."""
    wanted: dict[str, dict[str, str]] = {}
    for entry in standing.entries:
        record = entry.record
        if entry.overtaken:
            continue
        if record.kind in ("promoted", "kept back"):
            told = {
                "gate": json.dumps(record.promotion.get("gate", {})),
                "test_figures": json.dumps(record.promotion.get("test_figures", {})),
                "decision": record.kind,
            }
            if record.kind == "promoted":
                told["previous_champion"] = record.champion_version
            wanted.setdefault(record.version, {}).update(told)
        elif record.kind == "rolled back" and record.champion_version:
            wanted.setdefault(record.champion_version, {})["decision"] = record.kind
    changes: dict[str, dict[str, str | None]] = {}
    for version in versions:
        number = str(version.version)
        tags: dict[str, str | None] = dict(wanted.get(number, {}))
        ended = standing.archived.get(number)
        if ended is None:
            tags["archived"] = None
        else:
            said = {"at": ended.record.at, "by": ended.record.by, "entry": ended.number}
            tags["archived"] = json.dumps(said)
        differing = {key: value for key, value in tags.items() if version.tags.get(f"{PREFIX}{key}") != value}
        if differing:
            changes[number] = differing
    return changes


def _tag(mlflow: Any, name: str, version: str, tags: Mapping[str, str | None]) -> None:
    try:
        for key, value in tags.items():
            if value is None:
                retried(partial(mlflow.delete_model_version_tag, name, version, f"{PREFIX}{key}"))
        tag_version(mlflow, name, version, {key: value for key, value in tags.items() if value is not None})
    except Exception as cause:  # MlflowException, imported only where MLflow is used
        if not missing(cause):  # a version may be deleted at any time
            raise


def _point(mlflow: Any, name: str, alias: str, present: str, wanted: str) -> None:
    if present == wanted:
        return
    if wanted:
        retried(lambda: mlflow.set_registered_model_alias(name, alias, wanted))
        return
    try:
        retried(lambda: mlflow.delete_registered_model_alias(name, alias))
    except Exception as cause:  # MlflowException, imported only where MLflow is used
        if not missing(cause):
            raise
