"""Self-contained web pages: one file each, no network, readable from a disk that nobody serves."""

from vesalius.infra.pages.card import write_card_page
from vesalius.infra.pages.document import CARD, STUDY, page_path
from vesalius.infra.pages.quality import write_quality_page
from vesalius.infra.pages.slices import Album
from vesalius.infra.pages.study import write_study_page

__all__ = ["CARD", "STUDY", "Album", "page_path", "write_card_page", "write_quality_page", "write_study_page"]
