"""Explicit, lazy tables: a name, a place, a sentence. No folder walks, no import-time registration."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """One line of a lazy table: where the class or module is, and one sentence for listings."""

    path: str
    summary: str


def lookup(table: Mapping[str, TableEntry], name: str, kind: str) -> Any:
    """Import and return what ``table`` names ``name``; ``kind`` ("method", "layout") is for the message.

    Raises:
        SettingError: no such name; the message names the nearest one.
    """
    if name not in table:
        near = difflib.get_close_matches(name, list(table), n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"the known ones are {', '.join(table)}"
        raise SettingError(f"unknown {kind} '{name}': {hint}")
    return resolve(table[name].path)


def resolve(path: str) -> Any:
    """Import ``package.module:attribute``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
