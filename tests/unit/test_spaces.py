"""Spaces of a study: how they are given, and that a bad one fails before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import pytest
from pydantic import model_validator

from vesalius.methods import METHODS
from vesalius.platform.config import Settings
from vesalius.platform.contracts import SCORING, Choice, MethodSettings, Range, setting
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.runs import RunSettings
from vesalius.platform.tables import lookup
from vesalius.tuning import Dimension, declared, dimensions, parse_space, read_study_file
from vesalius.tuning.spaces import TRAINING, chosen, point

if TYPE_CHECKING:
    from pathlib import Path


class InnerSettings(Settings):
    steps: tuple[int, ...] = setting((10,), "steps of each phase")
    rate: float = setting(1e-3, "a rate", gt=0, space=Range(low=1e-4, high=1e-1, log=True))


class ToySettings(MethodSettings):
    classes: int = setting(4, "classes", ge=2, le=20, space=Range(low=2, high=8))
    length: int = setting(8, "a length", ge=1, space=Choice(values=(4, 8)))
    width: int = setting(16, "a width", ge=1)
    window: int = setting(3, "an odd window", ge=1)
    kind: Literal["plain", "fancy"] = setting("plain", "which kind")
    bound: float | None = setting(None, "a bound, or none")
    inner: InnerSettings = InnerSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width <= self.length:
            raise ValueError("width must exceed length")
        if self.window % 2 == 0:
            raise ValueError("window must be odd")
        return self


BASE = RunSettings.of(ToySettings())


def accept(settings: RunSettings) -> None:
    """Find nothing wrong."""


def searched(**given: Any) -> dict[str, Dimension]:
    return {one.key: one for one in dimensions(BASE, {key.replace("__", "."): v for key, v in given.items()}, accept)}


def refused(match: str, given: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=match):
        dimensions(BASE, given, accept)


# ---- how they are given


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("4..16", Range(low=4, high=16)),
        ("log:1e-3..1", Range(low=1e-3, high=1, log=True)),
        ("-2..-0.5", Range(low=-2, high=-0.5)),
        ("64,128,256", Choice(values=(64, 128, 256))),
        ("plain, fancy", Choice(values=("plain", "fancy"))),
        ("null,1.5", Choice(values=("null", 1.5))),
        ("true,false", Choice(values=(True, False))),
        ("[10],[20,5]", Choice(values=("[10]", "[20, 5]"))),
        ([1, 2], Choice(values=(1, 2))),
        (["1e-3", "1e-2"], Choice(values=(1e-3, 1e-2))),
        ({"values": ["1e-3", "a"]}, Choice(values=(1e-3, "a"))),
        ({"low": 1, "high": 3}, Range(low=1, high=3)),
        ({"low": "1e-3", "high": 1, "log": True}, Range(low=1e-3, high=1, log=True)),
        ({"values": ["a", "b"]}, Choice(values=("a", "b"))),
    ],
)
def test_a_space_is_read(text: Any, space: Range | Choice) -> None:
    found, condition = parse_space("key", text)
    assert found == space
    assert [type(value) for value in getattr(found, "values", ())] == [type(v) for v in getattr(space, "values", ())]
    assert condition is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("9..4", r"key=9..4 is empty: the first number must be below"),
        ("4..4", "is empty"),
        ("a..b", "expected two numbers"),
        ("nan..1", "expected two numbers"),
        ("0..inf", "expected two numbers"),
        ("log:0..1", "a logarithmic range begins above 0"),
        ("log:1,2", "log: goes before a range"),
        ("4", "names '4' alone: a space has two values or more"),
        ([], "names nothing"),
        ("4,4", "names a value twice"),
        ("1,1.0", "names a value twice"),
        ("1,true", "names a value twice"),
        ({"values": 3}, "expected low and high"),
        ({"values": "abc"}, "expected low and high"),
        ({"low": 1}, "expected two numbers"),
        ({"lo": 1, "high": 2}, "expected low and high"),
        ({"low": 1, "high": 2, "values": [1, 2]}, "expected low and high"),
        ("1..2 if other", "expected OTHER=VALUE"),
        ("1..2 if =3", "expected OTHER=VALUE"),
    ],
)
def test_a_space_that_is_none_is_refused(text: Any, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        parse_space("key", text)


@pytest.mark.parametrize(
    "text",
    [
        "4..16",
        "log:0.001..1",
        "log:0.00012345678..1",
        "0..123456789",
        "64,128",
        "plain,fancy",
        "null,1.5",
        "[10],[20, 5]",
    ],
)
def test_a_space_says_itself_as_it_is_given(text: str) -> None:
    space, _ = parse_space("key", text)
    assert parse_space("key", Dimension(key="key", space=space).text())[0] == space


def test_files_hold_what_options_hold(tmp_path: Path) -> None:
    yaml, python = tmp_path / "study.yaml", tmp_path / "study.py"
    yaml.write_text("method: toy\ntrials: 4\nspace:\n  classes: 2..6\n  length: [4, 8]\n")
    python.write_text("study = dict(method='toy', trials=2 + 2, space={'classes': '2..6', 'length': [4, 8]})\n")
    assert read_study_file(yaml) == read_study_file(python)
    assert set(searched(**read_study_file(yaml)["space"])) == {"method.classes", "method.length"}


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.yaml", "- 1\n", "holds no study"),
        ("a.yaml", "a: [", "is no YAML"),
        ("a.yaml", "set: &a {values: *a}\n", r"refers to other places by \* \(line 1\)"),
        ("a.yaml", "a: &a [1, 2]\nspace:\n  x: *a\n", r"refers to other places by \* \(line 3\)"),
        ("a.yaml", "space: {a: " + 5000 * "[" + 5000 * "]" + "}", "is nested too deeply"),
        ("a.py", "a = []\na.append(a)\nstudy = {'space': {'a': a}}\n", "is nested too deeply, or holds itself"),
        ("a.py", "1 / 0\n", "failed: ZeroDivisionError"),
        ("a.py", "import sys\nsys.exit(3)\n", "failed: SystemExit: 3"),
        ("a.yaml", "set: {a: 2026-01-01}\n", "set.a is of type date"),
        ("a.yaml", "space: {a: [2026-01-01, 3]}\n", "space.a is of type date"),
        ("a.py", "x = 1\n", "defines no variable 'study'"),
        ("a.yaml", None, "cannot be read"),
        ("a.py", None, "is no file"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, content: str | None, match: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingError, match=match):
        read_study_file(tmp_path / name)


# ---- what a method declares, narrowed and widened


def test_without_any_the_declared_spaces_are_taken() -> None:
    assert declared(BASE).keys() == searched().keys() == {"method.classes", "method.length", "method.inner.rate"}
    assert searched()["method.classes"].whole
    assert not searched()["method.inner.rate"].whole


def test_a_key_alone_takes_the_declared_space() -> None:
    found = searched(classes=None, inner__rate="log:1e-5..1")
    assert found["method.classes"].space == Range(low=2, high=8)
    assert found["method.inner.rate"].space == Range(low=1e-5, high=1, log=True)
    refused("declares no space of 'method.width'", {"width": None})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"code_length": "1..2"}, r"unknown setting 'method.code_length'"),
        ({"clases": "2..4"}, r"did you mean 'method.classes'\?"),
        ({"inner": "1..2"}, r"'method.inner' is a group of settings: .*'method.inner.steps'"),
        ({"training.thread": "1..2"}, r"did you mean 'training.threads'"),
        ({"training.threads": "1,2"}, r"'training.threads' changes nothing that a study could judge"),
        ({"kind": "1..2"}, "is no number and --space method.kind gives a range"),
        ({"classes": "2.5..4"}, "takes whole numbers"),
        ({"classes": "2..30"}, r"the value 21 is refused: method.classes: .* less than or equal to 20"),
        ({"classes": "1..4"}, r"the value 1 is refused"),
        ({"kind": "plain,fine"}, r"the value fine is refused"),
        ({"length": "4,x"}, r"the value x is refused"),
        ({"classes": "2..4", "method.classes": "2..5"}, "two spaces"),
    ],
)
def test_a_bad_space_fails_before_anything_starts(given: dict[str, Any], match: str) -> None:
    refused(match, given)


def test_every_whole_number_of_a_short_range_is_tried() -> None:
    refused(r"the value 4 is refused: .*window must be odd", {"window": "3..7"})
    assert searched(window="3,5,7")["method.window"].probes() == [3, 5, 7]


def test_a_value_may_need_another_one_beside_it() -> None:
    refused(r"width=6,16: the value 6 is refused: .*width must exceed length", {"width": "6,16"})
    assert searched(width="6,16", length="4,8").keys() == {"method.width", "method.length"}


def test_a_method_is_asked_a_bounded_number_of_times() -> None:
    asked: list[RunSettings] = []

    def refuse(settings: RunSettings) -> None:
        asked.append(settings)
        raise CohortError("too many")

    refused_by = {"classes": "2..12", "length": "4,8,9,10", "window": "1,3,5,7"}
    with pytest.raises(SettingError, match="is refused: too many"):
        dimensions(BASE, refused_by, refuse)
    assert len(asked) <= 66


def test_the_method_is_asked_too() -> None:
    def refuse_seven(settings: RunSettings) -> None:
        assert isinstance(settings.method, ToySettings)
        if settings.method.classes == 7:
            raise CohortError("seven classes are more than this cohort has")

    with pytest.raises(SettingError, match=r"the value 7 is refused: seven classes are more than this cohort has"):
        dimensions(BASE, {"classes": "2..8"}, refuse_seven)
    assert dimensions(BASE, {"classes": "2..6"}, refuse_seven)


@pytest.mark.parametrize("key", TRAINING)
def test_what_is_searched_of_training_exists(key: str) -> None:
    assert key in type(BASE.training).model_fields


# ---- conditions


def test_a_condition_comes_after_its_parent() -> None:
    found = searched(bound="0.1..1 if kind=fancy", kind="plain,fancy")
    assert list(found) == ["method.kind", "method.bound"]
    condition = found["method.bound"].condition
    assert condition is not None
    assert condition.holds({"method.kind": "fancy"})
    assert not condition.holds({"method.kind": "plain"})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"bound": "0.1..1 if kind=fancy"}, r"searched if method.kind is fancy, which it never is"),
        ({"bound": "0.1..1 if knd=fancy"}, r"did you mean 'method.kind'"),
        ({"bound": "0.1..1 if inner=1"}, r"'method.inner' is a group"),
        ({"classes": "2..4 if length=4", "length": "4,8 if classes=2"}, "leads in a circle"),
    ],
)
def test_a_bad_condition_is_refused(given: dict[str, Any], match: str) -> None:
    refused(match, given)


def test_a_condition_that_always_holds_needs_no_search() -> None:
    assert searched(bound="0.1..1 if kind=plain")["method.bound"].condition is not None


# ---- where the start lies


def test_the_start_is_a_point_of_the_spaces_or_none() -> None:
    inside = dimensions(
        BASE, {"classes": "2..6", "length": "4,8", "bound": "0.1..1 if kind=fancy", "kind": "plain,fancy"}, accept
    )
    assert point(BASE, inside) == {"method.classes": 4, "method.length": 8, "method.kind": "plain"}
    assert point(BASE, dimensions(BASE, {"classes": "5..6"}, accept)) is None


def test_values_that_are_no_plain_ones_reach_the_settings() -> None:
    changed = chosen(BASE, {"method.inner.steps": "[20, 5]", "method.bound": "null", "method.kind": "fancy"})
    assert isinstance(changed.method, ToySettings)
    assert changed.method.inner.steps == (20, 5)
    assert changed.method.bound is None
    found = dimensions(BASE, {"inner.steps": "[10],[20,5]"}, accept)
    assert point(BASE, found) == {"method.inner.steps": "[10]"}


@pytest.mark.parametrize("name", METHODS)
def test_what_methods_declare_can_be_searched(name: str) -> None:
    base = RunSettings.of(lookup(METHODS, name, "method").settings_type())
    found = dimensions(base, {"training.seed": "1,2", **dict.fromkeys(declared(base))}, accept)
    assert {one.key for one in found} == {"training.seed", *declared(base)}


class LaterSettings(MethodSettings):
    """Two stages, ``first`` and ``second``, and a score."""

    width: int = setting(8, "a width", space=Range(low=4, high=16))
    rate: float = setting(0.1, "a rate", space=Range(low=0.01, high=1, log=True), since="second")
    steps: tuple[int, ...] = setting(
        (10,), "steps of each phase", since=SCORING, inference_space=Choice(values=("[5]", "[20]"))
    )
    window: int = setting(9, "a window", since=SCORING, inference_space=Range(low=1, high=7))
    kind: Literal["plain", "fancy"] = setting(
        "plain", "which kind", since=SCORING, inference_space=Choice(values=("plain", "fancy"))
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "fancy":
            raise ValueError("not with this base")
        return self


LATER = RunSettings.of(LaterSettings())


def test_a_number_stands_for_a_list_of_that_one() -> None:
    (one,) = dimensions(BASE, {"inner.steps": "200,700"}, accept)
    assert one.probes() == ["[200]", "[700]"]
    assert chosen(BASE, {one.key: "[700]"}).method.inner.steps == (700,)  # type: ignore[attr-defined]
    (two,) = dimensions(BASE, {"inner.steps": "[200],[300,400]"}, accept)
    assert two.probes() == ["[200]", "[300, 400]"]


def test_trials_that_train_anew_do_not_search_what_is_for_finished_runs() -> None:
    assert [one.key for one in dimensions(LATER, {}, accept)] == ["method.width", "method.rate"]
    (named,) = dimensions(LATER, {"steps": None}, accept)
    assert named.probes() == ["[5]", "[20]"], "unless it is named"


def test_after_stages_what_is_read_later_is_searched_around_the_runs_own_values() -> None:
    found = {one.key: one for one in dimensions(LATER, {}, accept, taken_over=["first"])}
    assert set(found) == {"method.rate", "method.steps", "method.window"}, "of kind one value is refused"
    assert found["method.steps"].probes() == ["[10]", "[5]", "[20]"]
    assert found["method.window"].space == Range(low=1, high=9)
    assert point(LATER, list(found.values())) is not None
    found = {one.key: one for one in dimensions(LATER, {}, accept, taken_over=["first", "second"])}
    assert set(found) == {"method.steps", "method.window"}


def test_what_stages_have_read_that_are_taken_over_is_not_searched() -> None:
    with pytest.raises(SettingError, match=r"'method.width' is read by the stage 'first', which trials take over"):
        dimensions(LATER, {"width": "4..8"}, accept, taken_over=["first"])
    with pytest.raises(SettingError, match=r"'method.rate' is read by the stage 'second'"):
        dimensions(LATER, {"rate": None}, accept, taken_over=["first", "second"])
    assert dimensions(LATER, {"rate": None}, accept, taken_over=["first"])
