"""What a call writes below its folder, and what a later one finds there again."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vesalius.platform.config import SettingsT


def kept(path: Path, kind: type[SettingsT], make: Callable[[], SettingsT]) -> SettingsT:
    """Return what a file holds; where there is none, or not of this kind, make it and write it there."""
    with contextlib.suppress(OSError, ValueError):
        return kind.model_validate_json(path.read_text())
    made = make()
    write_json(path, made.model_dump(mode="json"))
    return made


def write_json(path: Path, document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON aside and rename it."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two calls may write the same
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
