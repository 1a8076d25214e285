"""The head: what is not air, without the table it lies on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.foreground.coarse import Coarse, closed, coarse, dilated, eroded, fine
from vesalius.datasets.steps import solid

if TYPE_CHECKING:
    from numpy.typing import NDArray

AIR_HU = -1000.0
_SKIN_HU = -300.0
_TABLE_MM = 5.0
_CLOSE_MM = 6.0


def head_ct(image: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the head in CT (Hounsfield units): above -300 HU, opened by 5 mm, the largest piece, holes filled.

    Opening takes away what is thinner than 10 mm, such as the table and the head rest, and gives the ears' tips with
    it. Sinuses and ear canals open to the outside by less than 12 mm are closed.
    """
    low = coarse(image, affine, AIR_HU)
    return fine(coarse_head_ct(low), low.affine, image.shape, affine)


def head_mr(image: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the head in MR: above a tenth of the way from the 2nd to the 98th percentile (as BET, Smith 2002)."""
    low = coarse(image, affine, float(image.min()))
    return fine(coarse_head_mr(low, head_threshold(image)), low.affine, image.shape, affine)


def coarse_head_ct(low: Coarse) -> NDArray[np.bool_]:
    """Return :func:`head_ct` at 2 mm."""
    return _opened(low.image > _SKIN_HU)


def coarse_head_mr(low: Coarse, threshold: float) -> NDArray[np.bool_]:
    """Return :func:`head_mr` at 2 mm, for a threshold taken from the volume itself."""
    return _opened(low.image > threshold)


def head_threshold(image: NDArray[np.float32]) -> float:
    """Return the intensity between air and tissue: t2 + 0.1 (t98 - t2) (Smith 2002, section 2.1)."""
    low, high = np.percentile(image, (2, 98))
    return float(low + 0.1 * (high - low))


def _opened(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    core = solid(eroded(tissue, _TABLE_MM))
    # A head thinner than the table is none; then what there is may stay.
    return closed(dilated(core, _TABLE_MM) & tissue if core.any() else solid(tissue), _CLOSE_MM)
