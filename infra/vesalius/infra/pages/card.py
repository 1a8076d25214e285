"""The page of a model card: one file without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.infra.pages.document import CARD, render_page, write_page

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.infra.cards import CardDocument


def write_card_page(path: Path, card: CardDocument) -> int:
    """Write the page, complete or absent, and return its size in bytes.

    Args:
        path: see :func:`page_path`.
        card: what it shows.

    Raises:
        DiskSpaceError: there is no room.
    """
    return write_page(path, render_card(card))


def render_card(card: CardDocument) -> str:
    """Return the page's HTML."""
    sections = [(section.title.lower().replace(" ", "-"), section) for section in card.sections]
    return render_page("card", CARD, styles=("page", "card"), card=card, sections=sections)
