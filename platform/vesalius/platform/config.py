"""Frozen settings, dotted overrides with a did-you-mean, and digests.

One :func:`override` serves the command line, the tuner and the tests; the same JSON goes to MLflow, the
checkpoint and the registered model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SettingsT = TypeVar("SettingsT", bound="Settings")

Matrix4 = tuple[
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
]
"""Four rows of an affine, as records and JSON keep it."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def flatten(settings: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return ``{"a.b": value}`` for every leaf; nested settings become dotted keys, in declaration order."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            flat.update(flatten(value, prefix=f"{key}."))
        else:
            flat[key] = value
    return flat


def kinds_of(settings_type: type[BaseModel], key: str) -> Iterator[Any]:
    """Yield the types that a setting takes, out of its unions and annotations."""
    kind: Any = settings_type
    for name in key.split("."):
        kind = kind.model_fields[name].annotation
    waiting = [kind]
    while waiting:
        one = waiting.pop()
        if get_origin(one) in (typing.Union, types.UnionType, typing.Annotated):
            waiting.extend(get_args(one)[:1] if get_origin(one) is typing.Annotated else get_args(one))
        else:
            yield one


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a JSON-able value or pydantic model: sorted keys, no spaces, no NaN."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Split ``["a.b=1", ...]`` into ``{"a.b": "1"}``.

    Raises:
        SettingError: a text has no ``=``, an empty name, or names a key twice.
    """
    values: dict[str, str] = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise SettingError(f"'{text}' is not a setting: expected key=value, such as method.latent_dim=64")
        if key in values:
            raise SettingError(f"'{key}' is set twice: give it once")
        values[key] = value.strip()
    return values


def override(settings: SettingsT, values: Mapping[str, Any]) -> SettingsT:
    """Return a copy of ``settings`` with dotted keys replaced, validated as a whole.

    Text values are read as JSON where they are JSON (``64``, ``1e-3``, ``true``, ``null``, ``[1, 2]``) and
    as plain text otherwise, then checked against the field's type.

    Args:
        settings: The settings to start from.
        values: ``{"a.b": value}``; every key must name an existing leaf or nested settings.

    Raises:
        SettingError: an unknown key (with the nearest known one) or a value of the wrong type or range.
    """
    known = _paths(settings)
    tree = settings.model_dump()
    for key, raw in values.items():
        if key not in known:
            raise SettingError(unknown_setting(key, known))
        *parents, leaf = key.split(".")
        for num in range(1, len(parents) + 1):
            if (parent := ".".join(parents[:num])) in values:
                raise SettingError(f"'{parent}' and '{key}' are both set: give one of them")
        node = tree
        for name in parents:
            node = node[name]
        node[leaf] = _read(raw)
    try:
        return type(settings).model_validate(tree)
    except ValidationError as error:
        raise SettingError(_explain(error, type(settings).__name__)) from None


def validate(kind: type[SettingsT], value: Mapping[str, Any], origin: str) -> SettingsT:
    """Build settings from plain data read from ``origin`` (a file's name), or say what is wrong with it.

    Raises:
        SettingError: a key is unknown or a value is of the wrong type or range.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise SettingError(f"{origin}: {_explain(error, kind.__name__)}") from None


def _paths(settings: BaseModel, prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        paths.append(f"{prefix}{name}")
        if isinstance(value, BaseModel):
            paths.extend(_paths(value, prefix=f"{prefix}{name}."))
    return paths


def unknown_setting(key: str, known: Sequence[str]) -> str:
    """Return what to say of a setting that is not known: the nearest known one, or all of them."""
    # A leaf given without its parents ("latent_dim") is the commonest slip: match the last part too.
    by_leaf = {path.rsplit(".", 1)[-1]: path for path in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(by_leaf), n=1, cutoff=0.6)
        near = [by_leaf[name] for name in leaf]
    hint = f"did you mean '{near[0]}'?" if near else f"the known ones are {', '.join(known)}"
    return f"unknown setting '{key}': {hint}"


def _read(raw: Any) -> Any:
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _explain(error: ValidationError, name: str) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or name
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message[:1].lower()}{message[1:]}, but got {item['input']!r}")
    return "; ".join(parts)
