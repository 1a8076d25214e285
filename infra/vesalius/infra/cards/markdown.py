"""A model card as Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vesalius.infra.cards.document import CardDocument, Section, Table


def as_markdown(card: CardDocument) -> str:
    """Return a card as Markdown. What comes from data is escaped: it makes neither tables nor HTML."""
    parts = [f"# {_text(card.title)}", _text(card.summary), f"Written {_text(card.written)}."]
    for section in card.sections:
        parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"## {_text(section.title)}", *map(_text, section.sentences)]
    if section.facts:
        parts.append("\n".join(f"- {_text(name)}: {_text(value)}" for name, value in section.facts))
    parts += [_table(table) for table in section.tables]
    if section.items:
        parts.append("\n".join(f"- {_text(item)}" for item in section.items))
    return parts


def _table(table: Table) -> str:
    lines = [f"**{_text(table.title)}**", ""] if table.title else []
    lines.append(f"| {' | '.join(map(_text, table.heads))} |")
    lines.append(f"| {' | '.join('---' for _ in table.heads)} |")
    lines += [f"| {' | '.join(map(_text, row))} |" for row in table.rows]
    return "\n".join(lines)


def _text(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split())).replace("<", "&lt;").replace(">", "&gt;")
