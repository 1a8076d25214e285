"""Self-contained web pages: one file each, no network, readable from a disk that nobody serves."""

from vesalius.infra.pages.quality import page_path, write_quality_page
from vesalius.infra.pages.slices import Album

__all__ = ["Album", "page_path", "write_quality_page"]
