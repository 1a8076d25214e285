"""What following an alias counts: versions that took over and versions that could not, under one name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.serving import following
from vesalius.infra.serving.following import Follower
from vesalius.infra.serving.testing.server import make_model
from vesalius.platform.errors import ModelError, UnansweredError, VesaliusError

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.infra.serving.versions import ServedVersion

ALIAS = "models:/brain@champion"


def _versions(folder: Path) -> dict[str, ServedVersion]:
    from vesalius.infra.serving.versions import find_version

    found = {}
    for number, mean in (("1", 1.0), ("2", 0.8)):
        model = make_model(folder / number, mean=mean)
        one = find_version(str(model), folder)
        found[number] = type(one)(**{**vars(one), "name": "brain", "version": number})
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    heard: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(following, "count", lambda metric, **labels: heard.append((metric.name, labels)))
    monkeypatch.setattr(following, "gauge", lambda metric, _, **labels: heard.append((metric.name, labels)))
    return heard


def test_a_registry_that_is_away_is_no_version_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[tuple[str, dict[str, str]]]
) -> None:
    versions = _versions(tmp_path)
    meant: list[ServedVersion | VesaliusError] = [
        versions["1"],
        UnansweredError("no tracking server answers"),
        versions["2"],
        ModelError("version 3 is not what was registered"),
        ModelError("version 3 is not what was registered"),
        UnansweredError("no tracking server answers"),
    ]

    def find(*_: Any) -> ServedVersion:
        now = meant.pop(0)
        if isinstance(now, VesaliusError):
            raise now
        return now

    async def load(_: ServedVersion) -> None:
        return None

    monkeypatch.setattr(following, "find_version", find)

    async def look() -> list[str]:
        follower = Follower(ALIAS, tmp_path, load, 1.0)
        problems = [str((await follower.look())["problem"]) for _ in range(6)]
        assert follower.present.version == "2"
        return problems

    problems = asyncio.run(look())
    assert "no tracking server" in problems[1], "it is told all the same"
    assert "no tracking server" in problems[5]
    assert [labels.get("outcome") for _, labels in counted] == [None, "switched", None, "failed"]
    assert {labels["model"] for _, labels in counted} == {ALIAS}


def test_a_folder_is_named_without_its_place(tmp_path: Path) -> None:
    async def load(_: ServedVersion) -> None:
        return None

    async def label() -> str:
        return Follower(str(tmp_path / "brain"), tmp_path, load, 1.0).label

    assert asyncio.run(label()) == "brain"


def test_a_registry_whose_database_is_gone_is_away_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from vesalius.platform.registry import version_of

    def fail(*_: Any) -> None:
        raise MlflowException("API request failed with error code 500: the database is starting up")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(UnansweredError, match="cannot find models:/brain@champion"):
        version_of(ALIAS, home=tmp_path)
