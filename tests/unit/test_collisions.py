"""Writes in each other's way: what is tried again, and what is said at once."""

from __future__ import annotations

import sqlite3

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.orm.exc import StaleDataError

from vesalius.platform.registry import collisions
from vesalius.platform.registry.collisions import collided, retried


@pytest.mark.parametrize(
    "cause",
    [
        MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.name"),
        MlflowException('duplicate key value violates unique constraint "registered_model_tag_pk"'),
        MlflowException("DELETE statement on table 'model_tags' expected to delete 1 row(s); 0 were matched."),
        StaleDataError("UPDATE statement on table 'model_version_tags' expected to update 1 row(s); 0 were matched."),
        sqlite3.OperationalError("database is locked"),
        MlflowException("deadlock detected"),
    ],
)
def test_a_collision_is_tried_again(cause: Exception) -> None:
    tries: list[int] = []

    def write() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise cause
        return "written"

    assert collided(cause)
    assert retried(write) == "written"
    assert len(tries) == 3


@pytest.mark.parametrize(
    "cause",
    [
        MlflowException("Registered Model with name=lesions not found"),
        ValueError("UNIQUE constraint failed: said by someone else"),
    ],
)
def test_what_is_no_collision_is_raised_at_once(cause: Exception) -> None:
    tries: list[int] = []

    def write() -> None:
        tries.append(1)
        raise cause

    with pytest.raises(type(cause), match=str(cause)):
        retried(write)
    assert tries == [1]


def test_a_collision_that_does_not_end_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from tenacity import stop_after_attempt, wait_none

    monkeypatch.setattr(collisions, "_STOP", stop_after_attempt(4))
    monkeypatch.setattr(collisions, "_WAIT", wait_none())
    tries: list[int] = []

    def write() -> None:
        tries.append(1)
        raise sqlite3.OperationalError("database is locked")

    with pytest.raises(sqlite3.OperationalError, match="is locked"):
        retried(write)
    assert len(tries) == 4
