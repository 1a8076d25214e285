"""Connected components of a segmentation: what is too small to be a lesion is dropped before it is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Connectivity = Literal[6, 18, 26]
_AXES_MOVED: dict[int, int] = {6: 1, 18: 2, 26: 3}


def drop_small_components(
    mask_DHW: NDArray[np.bool_], min_voxels: int, connectivity: Connectivity = 26
) -> NDArray[np.bool_]:
    """Return a mask (D, H, W) without its 3D components of fewer than ``min_voxels`` voxels.

    Baur et al. 2018 (section 3.1, postprocessing) drop those of fewer than 6 and do not say which voxels touch. Here 26
    neighbours do, those at a corner included: in a volume of slices that lie far apart the outline of one lesion moves
    by more than a voxel from slice to slice, so that a neighbourhood of 6 would cut it into pieces and drop its ends.
    Voxels are counted as they are, whatever they measure in mm; a slice that stands for several counts several times.

    Args:
        mask_DHW: a segmentation.
        min_voxels: the smallest component that stays; 1 keeps all.
        connectivity: neighbours of a voxel: 6 across faces, 18 across edges as well, 26 across corners as well.
    """
    if min_voxels <= 1 or not mask_DHW.any():
        return mask_DHW
    from scipy import ndimage

    touching = ndimage.generate_binary_structure(3, _AXES_MOVED[connectivity])
    labels, _ = ndimage.label(mask_DHW, structure=touching)
    stays = np.bincount(labels.ravel()) >= min_voxels
    stays[0] = False
    kept: NDArray[np.bool_] = stays[labels]
    return kept


def mask_dice(found: NDArray[Any], truth: NDArray[Any]) -> float | None:
    """Return the Dice of two masks of one shape; None where the truth is empty."""
    found, truth = np.asarray(found, dtype=np.bool_), np.asarray(truth, dtype=np.bool_)
    num_true = int(np.count_nonzero(truth))
    if not num_true:
        return None
    return 2 * int(np.count_nonzero(found & truth)) / (num_true + int(np.count_nonzero(found)))
