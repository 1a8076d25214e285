"""One dimension of a study: a setting, what it may be, and when it is searched at all."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import Settings
from vesalius.platform.contracts import Choice, Range
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = bool | int | float | str
_EXAMPLES = "method.num_classes=4..16, method.prior_sigma=log:1e-3..1 or method.latent_dim=64,128,256"
_RANGE = re.compile(r"(log:)?([^,\[\]]+?)\.\.([^,\[\]]+)")
_CONDITION = re.compile(r"\s+if\s+")


class Condition(Settings):
    """A dimension is searched in trials where another setting has one of these values.

    Attributes:
        key: of the other setting, dotted: ``method.*`` or ``training.*``.
        values: one of them must be its value.
    """

    key: str
    values: tuple[Value, ...]

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Say whether it holds for settings by dotted key."""
        value = plain(settings[self.key])
        return any(_is_same(one, value) for one in self.values)


class Dimension(Settings):
    """What a study searches of one setting.

    Attributes:
        key: of the setting, dotted: ``method.*`` or ``training.*``.
        space: a range of numbers or a choice. A value that is no plain one (a list, null) is its JSON text.
        whole: whole numbers alone.
        condition: when it is searched; always where None.
    """

    key: str
    space: Range | Choice
    whole: bool = False
    condition: Condition | None = None

    def own(self, value: Any) -> Value | None:
        """Return a setting's value as the space has it (to a sampler 1 is not 1.0), or None where it lies outside."""
        value = plain(value)
        if isinstance(self.space, Choice):
            return next((one for one in self.space.values if _is_same(one, value)), None)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number and self.space.low <= value <= self.space.high else None

    def probes(self) -> list[Value]:
        """Return values to be checked before anything starts: each choice, both ends, few whole numbers all of them."""
        if isinstance(self.space, Choice):
            return list(self.space.values)
        if not self.whole:
            return [self.space.low, self.space.high]
        low, high = int(self.space.low), int(self.space.high)
        return list(range(low, high + 1)) if high - low <= _FEW else [low, high]

    def text(self) -> str:
        """Return the space as it is given on the command line, without its key."""
        if isinstance(self.space, Choice):
            said = ",".join(value if isinstance(value, str) else json.dumps(value) for value in self.space.values)
        else:
            said = f"{'log:' if self.space.log else ''}{_digits(self.space.low)}..{_digits(self.space.high)}"
        if self.condition is None:
            return said
        values = ",".join(str(plain(value)) for value in self.condition.values)
        return f"{said} if {self.condition.key}={values}"


_FEW = 32


def _digits(value: float) -> str:
    """Return a number with all its digits, and no more of them than it needs."""
    short = f"{value:g}"
    return short if float(short) == value else repr(int(value) if value % 1 == 0 else value)


def parse_space(key: str, value: Any) -> tuple[Range | Choice, tuple[str, tuple[Value, ...]] | None]:
    """Read a space from the command line's text or a study file's value.

    ``4..16`` and ``log:1e-3..1`` are ranges, ``64,128,256`` and lists are choices; a text may end with
    ``if OTHER=VALUE,VALUE``.

    Returns:
        The space, and the key and values of its condition where it has one.

    Raises:
        SettingError: it is none, is empty, or holds a single value.
    """
    if isinstance(value, dict):
        return _from_mapping(key, value)
    if isinstance(value, list | tuple):
        return _choice(key, [_number(one) for one in value]), None
    text, *rest = _CONDITION.split(str(value).strip(), maxsplit=1)
    condition = _parse_condition(key, rest[0]) if rest else None
    found = _RANGE.fullmatch(text)
    if found:
        return _range(key, found[2], found[3], log=bool(found[1])), condition
    if text.startswith("log:"):
        raise SettingError(f"--space {key}={text}: log: goes before a range, such as log:1e-4..1e-2")
    return _choice(key, _split(text)), condition


def _from_mapping(key: str, value: Mapping[str, Any]) -> tuple[Range | Choice, tuple[str, tuple[Value, ...]] | None]:
    known = {"low", "high", "log", "values", "if"}
    strangers = sorted(set(value) - known)
    is_choice = isinstance(value.get("values"), list | tuple)
    if strangers or is_choice == ("low" in value or "high" in value) or is_choice != ("values" in value):
        raise SettingError(
            f"space of '{key}' is {json.dumps(value, default=str)}: expected low and high (and log), or values as "
            "a list, and if as OTHER=VALUE where it has a condition"
        )
    condition = _parse_condition(key, str(value["if"])) if "if" in value else None
    if "values" in value:
        return _choice(key, [_number(one) for one in value["values"]]), condition
    return _range(key, value.get("low"), value.get("high"), log=bool(value.get("log", False))), condition


def _parse_condition(key: str, text: str) -> tuple[str, tuple[Value, ...]]:
    other, separator, values = text.partition("=")
    if not separator or not other.strip() or not values.strip():
        raise SettingError(f"condition of '{key}' is '{text}': expected OTHER=VALUE, such as method.prior=gaussian")
    return other.strip(), tuple(plain(value) for value in _split(values.strip()))


def _range(key: str, low: Any, high: Any, *, log: bool) -> Range:
    try:
        ends = float(low), float(high)
        space = Range(low=ends[0], high=ends[1], log=log)
    except (TypeError, ValueError):  # pydantic's errors are ValueErrors: NaN and infinity
        raise SettingError(f"--space {key}={low}..{high}: expected two numbers, low..high") from None
    if space.low >= space.high:
        raise SettingError(f"--space {key}={low}..{high} is empty: the first number must be below the second")
    if log and space.low <= 0:
        raise SettingError(f"--space {key}=log:{low}..{high}: a logarithmic range begins above 0")
    return space


def _choice(key: str, values: list[Any]) -> Choice:
    texts = tuple(plain(value) for value in values)
    if len(texts) < 2:
        said = f"'{values[0]}' alone" if values else "nothing"
        raise SettingError(f"--space {key} names {said}: a space has two values or more, such as {_EXAMPLES}")
    # To Optuna true is 1: what had been trained with the one would be noted as the other.
    if any(one == other for one, other in itertools.combinations(texts, 2)):
        raise SettingError(f"--space {key} names a value twice (true is 1, false is 0): give each once")
    return Choice(values=texts)


def _split(text: str) -> list[Any]:
    try:
        value: list[Any] = json.loads(f"[{text}]")
    except ValueError:
        return [_read(part.strip()) for part in text.split(",") if part.strip()]
    return value


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(value: Any) -> Any:
    """Return a list's text as the number that it is: YAML reads 1e-3, without a point, as a text."""
    read = _read(value) if isinstance(value, str) else value
    is_number = isinstance(read, int | float) and not isinstance(read, bool) and math.isfinite(read)
    return read if is_number else value


def _is_same(one: Value, other: Value) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def plain(value: Any) -> Value:
    """Return a value as samplers take it: what is no bool, number or text becomes its JSON text."""
    if isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, default=str)
