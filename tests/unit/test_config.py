"""Settings: frozen, overridden by dotted keys, typos named, one digest for one meaning."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.platform.config import Settings, canonical_json, digest, flatten, override, parse_assignments, validate
from vesalius.platform.errors import SettingError


class Inner(Settings):
    latent_dim: int = 256
    sigma: float = 0.01
    prior: Literal["gaussian", "official"] = "gaussian"
    bound: float | None = None
    grid: tuple[int, int, int] = (1, 2, 3)


class Outer(Settings):
    method: Inner = Inner()
    seed: int = 0


def test_override_reads_text_as_the_field_needs_it() -> None:
    changed = override(
        Outer(),
        {"method.latent_dim": "64", "method.sigma": "1e-3", "method.bound": "1", "method.grid": "[4,5,6]", "seed": "7"},
    )
    assert changed.method == Inner(latent_dim=64, sigma=1e-3, bound=1.0, grid=(4, 5, 6))
    assert changed.seed == 7
    assert override(changed, {"method.bound": "null", "method.prior": "official"}).method.bound is None
    assert Outer().method.latent_dim == 256, "the original stays"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("method.latnt_dim", "did you mean 'method.latent_dim'?"),
        ("latent_dim", "did you mean 'method.latent_dim'?"),
        ("sead", "did you mean 'seed'?"),
        ("method.latent_dims", "did you mean 'method.latent_dim'?"),
        ("zzz", "the known ones are method, method.latent_dim"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_setting(key: str, hint: str) -> None:
    with pytest.raises(SettingError) as caught:
        override(Outer(), {key: "1"})
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.latent_dim", "many"),
        ("method.latent_dim", "1.5"),
        ("method.sigma", "NaN"),
        ("method.sigma", "Infinity"),
        ("method.prior", "flat"),
        ("method.grid", "[1,2]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(key: str, value: str) -> None:
    with pytest.raises(SettingError, match=key.replace(".", r"\.")) as caught:
        override(Outer(), {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"method": "5", "method.sigma": "1"}, {"method.sigma": "1", "method": "{}"}])
def test_a_setting_and_one_of_its_own_settings_are_not_both_set(values: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=r"'method' and 'method\.sigma' are both set: give one of them"):
        override(Outer(), values)


@pytest.mark.parametrize("text", ["latent_dim", "=3", ""])
def test_an_assignment_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(SettingError, match="key=value"):
        parse_assignments([text])


def test_assignments() -> None:
    assert parse_assignments(["a.b=1", "c = x=y"]) == {"a.b": "1", "c": "x=y"}
    with pytest.raises(SettingError, match="set twice"):
        parse_assignments(["a=1", "a=2"])


def test_settings_are_frozen_and_closed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().seed = 3  # type: ignore[misc]  # refusing it is the test
    with pytest.raises(SettingError, match=r"run\.json: .*sead"):
        validate(Outer, {"sead": 1}, "run.json")


def test_flatten_and_digest() -> None:
    assert flatten(Outer())["method.sigma"] == 0.01
    assert list(flatten(Outer()))[-1] == "seed"
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest(Outer()) != digest(Outer(seed=1))
    # SHA-256 of the text {"a":1}, computed with coreutils.
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})


@given(st.integers(1, 10_000), st.floats(1e-6, 1e6), st.sampled_from(["gaussian", "official"]))
def test_settings_survive_json_and_overrides(latent: int, sigma: float, prior: str) -> None:
    values = {"method.latent_dim": latent, "method.sigma": sigma, "method.prior": prior}
    by_value = override(Outer(), values)
    assert override(Outer(), {k: str(v) for k, v in values.items()}) == by_value
    assert Outer.model_validate_json(by_value.model_dump_json()) == by_value
