"""Settings of a method, declared one by one with their search spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from vesalius.platform.config import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence


class Range(Settings):
    """A numeric search space, whole numbers where the field is an int; ``log`` samples its logarithm."""

    low: float
    high: float
    log: bool = False


class Choice(Settings):
    """A search space of listed values."""

    values: tuple[bool | int | float | str, ...]


Space = Range | Choice


SCORING = "scoring"
"""In the place of a stage: only :meth:`Method.score` reads the setting."""


def setting(
    default: Any,
    description: str,
    *,
    space: Space | None = None,
    inference_space: Space | None = None,
    source: str = "",
    since: str | None = None,
    mutable: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a setting of a method.

    Where ``since`` is given, a run may start after another one's earlier stages whatever the setting was there: the
    contract suite holds that nothing which these have learnt depends on it. One thing is left out. The validation
    passes of a selectable stage score with quick effort, so that a setting which scoring reads may change which pass
    is the best; it does not change what is trained.

    Args:
        default: the paper's value.
        description: one sentence for ``vesalius methods NAME``.
        space: what a study may search, where it makes sense to.
        inference_space: what a study of a finished run may search, where one that trains anew is not to by default.
        source: paper and section, or who states otherwise.
        since: the first training stage that reads it, or :data:`SCORING`; None is the first of all. A class of nested
            settings may say so for all its fields, as a ClassVar of this name.
        mutable: whether it may change in mid-training: no parameter or buffer has its shape or its value from it, so
            that a checkpoint made under one value goes on under another.
        bounds: pydantic bounds: ``gt``, ``ge``, ``lt``, ``le``.
    """
    extra: dict[str, Any] = {
        "source": source,
        "space": space.model_dump() if space else None,
        "inference_space": inference_space.model_dump() if inference_space else None,
        "since": since,
        "mutable": mutable,
    }
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def spaces(settings_type: type[Settings], prefix: str = "", *, inference: bool = False) -> dict[str, Space]:
    """Return the search spaces declared on a settings class and those nested in it, by dotted field name.

    ``inference`` adds those for studies of a finished run.
    """
    found: dict[str, Space] = {}
    for name, info in settings_type.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            found.update(spaces(info.annotation, prefix=f"{prefix}{name}.", inference=inference))
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        space = extra.get("space") or (extra.get("inference_space") if inference else None)
        if isinstance(space, dict):
            found[f"{prefix}{name}"] = (
                Choice.model_validate(space) if "values" in space else Range.model_validate(space)
            )
    return found


def read_since(settings_type: type[Settings], prefix: str = "", since: str | None = None) -> dict[str, str | None]:
    """Return from which stage on each setting is read, by dotted field name; see :func:`setting`.

    Args:
        settings_type: the class, and those nested in it.
        prefix: of the names.
        since: of fields that do not say, in a class that does not either.
    """
    common: str | None = getattr(settings_type, "since", since)
    found: dict[str, str | None] = {}
    for name, info in settings_type.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            found.update(read_since(info.annotation, prefix=f"{prefix}{name}.", since=common))
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        own = extra.get("since")
        found[f"{prefix}{name}"] = own if isinstance(own, str) else common
    return found


def read_after(settings_type: type[Settings], stages: Sequence[str]) -> set[str]:
    """Return the settings that none of a method's first stages reads, by dotted field name.

    Args:
        settings_type: of the method.
        stages: names of its stages from the first on.
    """
    return {key for key, since in read_since(settings_type).items() if since is not None and since not in stages}


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
