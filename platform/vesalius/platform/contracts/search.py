"""Settings of a method, declared one by one with their search spaces."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vesalius.platform.config import Settings


class Range(Settings):
    """A numeric search space, whole numbers where the field is an int; ``log`` samples its logarithm."""

    low: float
    high: float
    log: bool = False


class Choice(Settings):
    """A search space of listed values."""

    values: tuple[bool | int | float | str, ...]


Space = Range | Choice


def setting(
    default: Any,
    description: str,
    *,
    space: Space | None = None,
    source: str = "",
    mutable: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a setting of a method.

    Args:
        default: the paper's value.
        description: one sentence for ``vesalius methods NAME``.
        space: what a study may search, where it makes sense to.
        source: paper and section, or who states otherwise.
        mutable: whether it may change in mid-training: no parameter or buffer has its shape or its value from it, so
            that a checkpoint made under one value goes on under another.
        bounds: pydantic bounds: ``gt``, ``ge``, ``lt``, ``le``.
    """
    extra: dict[str, Any] = {"source": source, "space": space.model_dump() if space else None, "mutable": mutable}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def spaces(settings_type: type[Settings], prefix: str = "") -> dict[str, Space]:
    """Return the search spaces declared on a settings class and those nested in it, by dotted field name."""
    found: dict[str, Space] = {}
    for name, info in settings_type.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            found.update(spaces(info.annotation, prefix=f"{prefix}{name}."))
        extra = info.json_schema_extra
        space = extra.get("space") if isinstance(extra, dict) else None
        if isinstance(space, dict):
            found[f"{prefix}{name}"] = (
                Choice.model_validate(space) if "values" in space else Range.model_validate(space)
            )
    return found


def mutables(settings_type: type[Settings], prefix: str = "") -> set[str]:
    """Return the settings of a class, and of those nested in it, that may change in mid-training, by dotted name."""
    found: set[str] = set()
    for name, info in settings_type.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            found |= mutables(info.annotation, prefix=f"{prefix}{name}.")
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("mutable"):
            found.add(f"{prefix}{name}")
    return found


class MethodSettings(Settings):
    """Base of every method's settings; defaults are the paper's."""
