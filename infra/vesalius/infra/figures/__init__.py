"""Pictures of what methods see, as PNG files: no window, no display, fonts that ship with matplotlib."""

from __future__ import annotations

from vesalius.infra.figures.comparison import Case, MethodColumn, draw_comparison
from vesalius.infra.figures.curves import Curve, CurvePanel, CurvePoint, draw_curves
from vesalius.infra.figures.gallery import GalleryCase, GalleryRow, draw_gallery
from vesalius.infra.figures.histogram import HistogramPanel, draw_histogram
from vesalius.infra.figures.images import KindCurve, KindScores, RocRow, draw_kinds, draw_precision_recall, draw_roc
from vesalius.infra.figures.montage import Tile, draw_montage
from vesalius.infra.figures.overlay import draw_overlay
from vesalius.infra.figures.surface import SurfaceCase, draw_surfaces

__all__ = [
    "Case",
    "Curve",
    "CurvePanel",
    "CurvePoint",
    "GalleryCase",
    "GalleryRow",
    "HistogramPanel",
    "KindCurve",
    "KindScores",
    "MethodColumn",
    "RocRow",
    "SurfaceCase",
    "Tile",
    "draw_comparison",
    "draw_curves",
    "draw_gallery",
    "draw_histogram",
    "draw_kinds",
    "draw_montage",
    "draw_overlay",
    "draw_precision_recall",
    "draw_roc",
    "draw_surfaces",
]
