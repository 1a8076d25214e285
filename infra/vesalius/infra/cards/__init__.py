"""Model cards: what a model is, what it was made from and how good it is, in the sections of Mitchell et al. 2019.

::

    document.py    a card as data
    writing.py     from a run, or from what a registry holds
    details.py, data.py, results.py, caveats.py   its sections
    markdown.py    as Markdown; a page of it is written by vesalius.infra.pages
"""

from vesalius.infra.cards.document import CardDocument, Section, Table
from vesalius.infra.cards.finding import card_of
from vesalius.infra.cards.markdown import as_markdown
from vesalius.infra.cards.writing import CardSources, write_card

__all__ = ["CardDocument", "CardSources", "Section", "Table", "as_markdown", "card_of", "write_card"]
