"""Is a mask the mask of its image? What can be told from the grid, the values, and where the mask lies in the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.steps import constant_background
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.nifti import RawVolume

_AXES = ("left to right", "front to back", "top to bottom")
_CLEARER = 0.02
"""By how much the mirror image must agree better: what is left of a brain's asymmetry after a voxel's displacement."""
_AGREES = 0.9
_BRAIN_SIZED = 0.5
_OUTSIDE = 0.5
_FRACTIONS = (-0.5, 1.5)
_SHOWN = 5


def check_on_grid(mask: RawVolume, image: RawVolume) -> None:
    """Check that a mask lies voxel on voxel on its image, whichever way its axes are stored.

    Raises:
        VolumeError: its shape is another, or some voxel lies more than half a voxel away from the image's.
    """
    flat_mask, mask_affine = canonical(mask.array, mask.affine)
    flat_image, image_affine = canonical(image.array, image.affine)
    if flat_mask.shape != flat_image.shape:
        raise VolumeError(
            f"{mask.name} has shape {mask.shape} and its image {image.name} has {image.shape}: "
            "give a mask drawn on that image"
        )
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)]).T
    corners[:3] *= (np.array(flat_mask.shape) - 1)[:, None]
    # In voxels of the image, so that the bound means the same along a thick axis.
    apart = (np.linalg.inv(image_affine) @ mask_affine @ corners - corners)[:3]
    if np.abs(apart).max() > 0.5:
        raise VolumeError(
            f"{mask.name} lies up to {np.abs(apart).max():.1f} voxels away from its image {image.name} "
            "by their affines: give a mask drawn on that image"
        )


def check_mask_values(mask: RawVolume, labels: Sequence[int] = ()) -> None:
    """Check that a mask's values can be a mask's.

    With ``labels``, each is one of them or 0. Without, they are whole numbers from 0 on, or fractions as resampling
    makes them (-0.5 to 1.5): an image given for a mask is found out.

    Raises:
        VolumeError: some are not; the message names the first of them.
    """
    found = np.unique(mask.array)
    if labels:
        strange = found[~np.isin(found, (0, *labels))]
        if strange.size:
            raise VolumeError(
                f"{mask.name} holds {_listed(strange)}: expected 0 and the labels {', '.join(map(str, labels))}"
                ": give the data set's own mask, or list it in a manifest with its lesion_labels"
            )
        return
    if found[0] >= _FRACTIONS[0] and found[-1] <= _FRACTIONS[1]:
        return
    strange = found[(found < 0) | (found != np.rint(found))]
    if strange.size:
        raise VolumeError(
            f"{mask.name} holds {_listed(strange)}: expected a mask of whole numbers from 0 on, or of fractions of 1: "
            "is it an image?"
        )


def _listed(values: NDArray[np.float32]) -> str:
    more = f" and {values.size - _SHOWN:,} other values" if values.size > _SHOWN else ""
    return f"the value{'s' if values.size > 1 else ''} {', '.join(f'{value:g}' for value in values[:_SHOWN])}{more}"


def check_not_mirrored(mask: RawVolume, image: RawVolume, role: str) -> None:
    """Check that a mask which lies on its image by the headers is not the mirror image of what lies there.

    Seen only where the image's surroundings are one constant value, as after brain extraction. A mask at least half as
    large as what differs from that value is compared with it by Dice: the mirror image may not agree better by 0.02. Of
    a smaller one (a lesion's) more than half may not lie outside while its mirror image lies inside. So a lesion that
    is mirrored to a place within the brain goes unseen, as does any mask of a head with noise around it.

    Args:
        mask: on the image's grid, however its axes are stored.
        image: the first image.
        role: ``brain``, ``head``, ``lesion`` or ``structures``, for the message.

    Raises:
        VolumeError: it is mirrored; the message says along which axis, in world terms.
    """
    values = canonical(image.array, image.affine)[0]
    background = constant_background(values)
    if background is None:
        return
    inside = values != background
    marked = canonical(mask.array, mask.affine)[0] > 0.5
    num_inside, num_marked = int(inside.sum()), int(marked.sum())
    if not num_marked or not num_inside:
        return
    is_large = num_marked >= _BRAIN_SIZED * num_inside
    scale = 2.0 / (num_marked + num_inside) if is_large else 1.0 / num_marked
    straight = scale * int((marked & inside).sum())
    mirrored = [scale * int((np.flip(marked, axis) & inside).sum()) for axis in range(3)]
    axis = int(np.argmax(mirrored))
    bound = straight + _CLEARER if is_large else 0.0
    if mirrored[axis] >= _AGREES and mirrored[axis] > bound and (is_large or straight < _OUTSIDE):
        found = (
            f"its mirror image agrees with {image.name} better than it does itself (Dice {mirrored[axis]:.3f} against "
            f"{straight:.3f})"
            if is_large
            else f"{straight:.0%} of it lie in what {image.name} shows, and {mirrored[axis]:.0%} of its mirror image"
        )
        raise VolumeError(f"{mask.name} looks mirrored {_AXES[axis]}: {found}: mend this {role} mask's orientation")
