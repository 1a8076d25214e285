"""A study's description in a file: YAML or JSON, or Python that makes it."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import SettingError
from vesalius.platform.settings_file import read_yaml

if TYPE_CHECKING:
    from pathlib import Path


def read_study_file(path: Path) -> dict[str, Any]:
    """Return what a study file says, by key.

    A ``.py`` file is run as any script is, and its variable ``study`` taken; of any other the YAML is read (JSON is
    YAML), in which nothing is run.

    Raises:
        SettingError: it cannot be read, fails, or holds no mapping.
    """
    try:
        return _checked(path, _from_python(path) if path.suffix == ".py" else read_yaml(path, "a study file"))
    except RecursionError:
        raise SettingError(f"{path} is nested too deeply, or holds itself: give plain lists and mappings") from None


def _checked(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SettingError(f"{path} holds no study: expected keys such as method, store, space and trials")
    for group in ("set", "space"):
        if isinstance(value.get(group), dict):
            for key, one in value[group].items():
                _require_plain(path, f"{group}.{key}", one)
    return value


def _require_plain(path: Path, name: str, value: Any) -> None:
    """Refuse what is neither number nor text, such as the dates that YAML makes of 2026-01-01."""
    if isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            _require_plain(path, name, one)
    elif not isinstance(value, bool | int | float | str | None):
        raise SettingError(
            f"{path}: {name} is of type {type(value).__name__}: expected numbers, texts, true, false or null; put what "
            "is meant as a text in quotes"
        )


def _from_python(path: Path) -> Any:
    if not path.is_file():
        raise SettingError(f"{path} is no file: give a study file")
    try:
        variables = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # whatever somebody else's script raises, or ends itself by
        raise SettingError(f"{path} failed: {type(error).__name__}: {error}") from error
    if "study" not in variables:
        raise SettingError(f"{path} defines no variable 'study': assign the study's keys to it")
    return variables["study"]
