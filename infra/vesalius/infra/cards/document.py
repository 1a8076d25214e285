"""A model card as data: sections of sentences, facts and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from vesalius.platform.config import Settings, validate
from vesalius.platform.errors import ModelError, SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1


class Table(Settings):
    """A table: a cell is a text, numbers are written out."""

    title: str = ""
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Section(Settings):
    """A section: first its sentences, then its facts, its tables, its list."""

    title: str
    sentences: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    items: tuple[str, ...] = ()


class CardDocument(Settings):
    """A model card.

    Attributes:
        format: of the document.
        title: the model's name.
        summary: one sentence.
        written: time, UTC, ISO 8601.
        identity: digests and ids, for a program.
        figures: all that was measured, for a program: by split and voxel set, as ``vesalius evaluate --json`` says it.
        sections: for a person, in the order of Mitchell et al. 2019 (Model Cards for Model Reporting, figure 1).
    """

    format: int = FORMAT
    title: str
    summary: str
    written: str
    identity: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, Any] = Field(default_factory=dict)
    sections: tuple[Section, ...]


def read_document(value: Mapping[str, Any], origin: str) -> CardDocument:
    """Return a card that was kept somewhere.

    Raises:
        ModelError: it is damaged, or of a later version.
    """
    if value.get("format") != FORMAT:
        raise ModelError(
            f"{origin} is of format {value.get('format')!r} and this version reads {FORMAT}: update Vesalius"
        )
    try:
        return validate(CardDocument, value, origin)
    except SettingError as error:
        raise ModelError(f"{str(error)[:300]}; the card is damaged") from None
