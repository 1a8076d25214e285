"""The folding pattern: band-passed noise, partly a subject's own, read where a ray meets the surface.

Sulci are the sheets where the noise crosses zero. Reading it at points pushed outwards along rays from the middle makes
those sheets run inwards, as sulci do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft, ndimage

from vesalius.datasets.phantom.lattice import Lattice, stream

if TYPE_CHECKING:
    from vesalius.datasets.phantom.lattice import Array, Axes, Triple

FOLDS = Lattice(low_mm=(-120, -135, -120), high_mm=(120, 135, 120), spacing_mm=5)  # symmetric about x = 0
FOLD_WAVELENGTH_MM = 32.0
FOLD_DEPTH = 0.45  # 0: folds run in any direction; 1: straight towards the middle
LEAVES = (0.9, 2.6, 2.6)  # the cerebellum's leaves are finer, and run from left to right
TEMPLATE_SEED = 0  # what all subjects share


def _band(seed: int, name: str) -> Array:
    """Band-passed noise of unit deviation on :data:`FOLDS`, with the wavelength of the gyri."""
    white = stream(seed, name).standard_normal(FOLDS.shape, dtype=np.float32)
    frequency = np.sqrt(
        sum(
            np.square(f)
            for f in np.meshgrid(
                *(fft.fftfreq(n, FOLDS.spacing_mm) for n in FOLDS.shape[:2]),
                fft.rfftfreq(FOLDS.shape[2], FOLDS.spacing_mm),
                indexing="ij",
                sparse=True,
            )
        )
    )
    gain = np.exp(-0.5 * np.square((frequency * FOLD_WAVELENGTH_MM - 1) / 0.25)).astype(np.float32)
    band = fft.irfftn(fft.rfftn(white) * gain, FOLDS.shape)
    return np.asarray(band / band.std(), np.float32)


@lru_cache(maxsize=1)
def _shared_folds() -> Array:
    band = _band(TEMPLATE_SEED, "shared folds")
    return (band + band[::-1]) * np.float32(np.sqrt(0.5))


def draw_folds(seed: int, shared: float) -> Array:
    """Draw noise on :data:`FOLDS` whose zero crossings are the sulci; ``shared`` of its variance is all subjects'."""
    return np.float32(np.sqrt(shared)) * _shared_folds() + np.float32(np.sqrt(1 - shared)) * _band(seed, "own folds")


def read_folds(folds: Array, at: Axes, middle: Triple, radii: Triple, spacing_mm: float) -> Array:
    """Return the signed distance (mm) to the sulci of the cerebrum, an ellipsoid of ``radii`` around ``middle``.

    Args:
        folds: from :func:`draw_folds`.
        at: template coordinates (mm) of the points of a lattice.
        middle: where the rays start.
        radii: of the surface they run to.
        spacing_mm: of that lattice.
    """
    radius = np.sqrt(sum(((a - np.float32(m)) / np.float32(r)) ** 2 for a, m, r in zip(at, middle, radii, strict=True)))
    outwards = np.maximum(radius, np.float32(0.35)) ** np.float32(-FOLD_DEPTH)
    index = [
        ((a - np.float32(m)) * outwards + np.float32(m - low)) * np.float32(1 / FOLDS.spacing_mm)
        for a, m, low in zip(at, middle, FOLDS.low_mm, strict=True)
    ]
    return _distance(ndimage.map_coordinates(folds, index, order=1, mode="grid-wrap", output=np.float32), spacing_mm)


def read_leaves(folds: Array, at: Axes, spacing_mm: float) -> Array:
    """Return the signed distance (mm) to the furrows of the cerebellum; arguments as :func:`read_folds`."""
    index = [
        (a - np.float32(low)) * np.float32(finer / FOLDS.spacing_mm)
        for a, low, finer in zip(at, FOLDS.low_mm, LEAVES, strict=True)
    ]
    return _distance(ndimage.map_coordinates(folds, index, order=1, mode="grid-wrap", output=np.float32), spacing_mm)


def _distance(noise: Array, spacing_mm: float) -> Array:
    """Return the distance from where ``noise`` crosses zero, to first order, with its sign."""
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(noise, spacing_mm)))
    return np.asarray(noise / (slope + np.float32(0.03)), np.float32)
