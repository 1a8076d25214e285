"""Pictures of what methods see, as PNG files: no window, no display, fonts that ship with matplotlib."""

from __future__ import annotations

from vesalius.infra.figures.comparison import Case, MethodColumn, draw_comparison
from vesalius.infra.figures.montage import Tile, draw_montage
from vesalius.infra.figures.overlay import draw_overlay

__all__ = ["Case", "MethodColumn", "Tile", "draw_comparison", "draw_montage", "draw_overlay"]
