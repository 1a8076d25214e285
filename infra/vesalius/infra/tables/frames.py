"""What every table is made of: the house style, names with sentences, keys with values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def plain(**options: Any) -> Table:
    """Return an empty table in the house style: a rule under the head, no cage around the rest."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title_justify="left", **options)


def heading(name: str, summary: str) -> Text:
    """Return a name and the sentence about it."""
    return Text.assemble((name, "bold cyan"), "  ", summary)


def plain_text(text: str) -> Text:
    """Return text as it stands: brackets are brackets, not markup."""
    return Text(text)


def listing(rows: Sequence[Mapping[str, Any]], head: str) -> Table:
    """Return names with their sentences; ``rows`` hold ``name`` and ``summary``."""
    table = plain()
    table.add_column(head, style="cyan", no_wrap=True)
    table.add_column("")
    for row in rows:
        table.add_row(row["name"], row["summary"])
    return table


def pairs(head: str, values: Mapping[str, str]) -> Table:
    """Return names with a sentence each."""
    table = plain()
    table.add_column(head, style="cyan", no_wrap=True)
    table.add_column("", overflow="fold")
    for key, value in values.items():
        table.add_row(key, value)
    return table


def key_values(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return two columns, keys dim and values plain."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in pairs:
        table.add_row(key, str(value))
    return table


def as_time(seconds: float) -> str:
    """Return seconds as a person says them: 40 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
