"""The contract suite over every method of the table, on the phantom. A new method is tested by existing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from pydantic import BaseModel

from vesalius.methods import METHODS
from vesalius.platform.config import override
from vesalius.platform.contracts import Method
from vesalius.platform.tables import lookup
from vesalius.platform.testing import methods as contract
from vesalius.platform.testing import pauses
from vesalius.platform.testing import stages as settings_contract
from vesalius.platform.testing.descent import (
    assert_same_changes,
    assert_same_lengths,
    assert_two_workers_descend_as_one,
    descend,
    descended,
)
from vesalius.platform.testing.training_runs import build

if TYPE_CHECKING:
    from vesalius.platform.contracts import MethodSettings
    from vesalius.platform.store import CohortStore


# Methods whose stages are those of another one: what takes long is checked of the other in `make test`, and of both in
# `make test-all`.
_TRAINS_LIKE = {
    "residual_vae": "variational_autoencoder",
    "autoencoder": "variational_autoencoder",
    "autoencoder_3d": "variational_autoencoder",
    "context_autoencoder_gan": "anovaegan",
    "anogan": "anovaegan",
    "implicit_field_2d": "implicit_field",
    "f_anogan_2d": "f_anogan",
}
assert not _TRAINS_LIKE.keys() - METHODS.keys()
assert not set(_TRAINS_LIKE.values()) - (METHODS.keys() - _TRAINS_LIKE.keys())
_LONG_OF_THE_LIKE = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long) if name in _TRAINS_LIKE else name for name in METHODS],
    indirect=True,
)


@pytest.fixture(params=list(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def method_type(name: str) -> type[Method]:
    found: type[Method] = lookup(METHODS, name, "method")
    return found


@pytest.fixture
def settings(method_type: type[Method]) -> MethodSettings:
    return method_type.presets()["tiny"]


def test_builds_from_settings(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    contract.assert_builds_from_settings(method_type, settings, phantom_store)


def test_every_preset_is_valid_and_paper_is_the_default(method_type: type[Method]) -> None:
    presets = method_type.presets()
    assert {"paper", "tiny"} <= set(presets)
    assert presets["paper"] == method_type.settings_type()
    for preset in presets.values():
        assert type(preset).model_validate_json(preset.model_dump_json()) == preset


def test_every_setting_says_what_it_is(method_type: type[Method]) -> None:
    waiting: list[type[BaseModel]] = [method_type.settings_type]
    while waiting:
        for field, info in waiting.pop().model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                waiting.append(info.annotation)
                continue
            assert info.description, f"{field} has no description"
            extra = info.json_schema_extra
            assert isinstance(extra, dict)
            assert extra.get("source"), f"{field} does not say where its default is from"


def test_what_is_read_late_changes_nothing_before(
    method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore
) -> None:
    settings_contract.assert_settings_are_read_since(method_type, settings, phantom_store)


@_LONG_OF_THE_LIKE
def test_exact_resume(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    contract.assert_exact_resume(method_type, settings, phantom_store)


def test_exact_pause(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    pauses.assert_exact_pause(method_type, settings, phantom_store)


@_LONG_OF_THE_LIKE
def test_mutable_settings(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    pauses.assert_mutable_settings(method_type, settings, phantom_store)


@_LONG_OF_THE_LIKE
def test_two_workers_equal_one(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    contract.assert_two_workers_equal_one(method_type, settings, phantom_store)


def test_learns_the_same_in_another_arithmetic(
    method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend(monkeypatch)
    begun = build(method_type, settings, phantom_store)
    one, lengths = descended(method_type, settings, phantom_store)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    other, others = descended(method_type, settings, phantom_store)
    assert_same_lengths(lengths, others, share=1e-3)
    assert_same_changes(begun, one, other)


@pytest.mark.parametrize(
    "norm", ["batch", pytest.param("layer", marks=pytest.mark.long), pytest.param("instance", marks=pytest.mark.long)]
)
def test_two_workers_descend_as_one_whatever_the_critics_statistics(norm: str, phantom_store: CohortStore) -> None:
    """The penalty included: a tiny critic's weights change by less than what two workers under Adam may differ by."""
    kind: type[Method] = lookup(METHODS, "f_anogan", "method")
    settings = override(kind.presets()["tiny"], {"network.critic_norm": norm})
    assert_two_workers_descend_as_one(kind, settings, phantom_store)


def test_loss_falls(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    contract.assert_loss_falls(method_type, settings, phantom_store)


def test_scores(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    contract.assert_scores(method_type, settings, phantom_store)


def test_save_and_load_keep_scores(
    name: str, method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore
) -> None:
    contract.assert_save_and_load_keep_scores(method_type, settings, phantom_store, name, METHODS)


def test_nan_stops(method_type: type[Method], settings: MethodSettings, phantom_store: CohortStore) -> None:
    contract.assert_nan_stops(method_type, settings, phantom_store)


def test_table_and_folder_agree() -> None:
    import vesalius.methods

    folder = Path(vesalius.methods.__file__).parent
    stems = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert stems - {"__init__", "blocks"} == set(METHODS)
    for key, entry in METHODS.items():
        assert issubclass(lookup(METHODS, key, "method"), Method)
        assert entry.path.startswith(f"vesalius.methods.{key}")
        assert entry.summary
