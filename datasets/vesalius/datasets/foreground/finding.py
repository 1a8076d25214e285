"""Which masks a volume gets: the ones given, what is stripped already, or what a classical method finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets import steps
from vesalius.datasets.foreground.coarse import litres
from vesalius.datasets.foreground.heads import head_ct, head_mr
from vesalius.datasets.foreground.stripping import BRAIN_LITRES, strip_ct, strip_mr
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AIR_BELOW_HU = -200.0
_BRAIN_MEDIAN_HU = (-20.0, 120.0)


def find_brain(
    image: NDArray[np.float32],
    affine: NDArray[np.float64],
    given: NDArray[np.bool_] | None,
    how: str,
    name: str,
) -> tuple[NDArray[np.bool_], str]:
    """Return the brain mask and where it came from: ``given``, ``nonzero``, ``otsu``, ``mr`` or ``ct``.

    Args:
        image: the first modality, in canonical orientation.
        affine: its voxel indices to mm.
        given: a mask on its grid, if there is one.
        how: as ``recipe.brain``.
        name: for messages: the image's file.

    Raises:
        VolumeError: a mask is asked for and not given, or no brain is found.
    """
    if how not in ("mr", "ct"):
        return steps.find_brain(image, given, how, name)
    if given is not None:
        return steps.find_brain(image, given, "given", name)
    stripped = _stripped_before(image, affine, name)
    if stripped is not None:
        return stripped, "nonzero"
    brain = (strip_mr if how == "mr" else strip_ct)(image, affine, name)
    if not brain.any():
        raise VolumeError(f"{name}: no brain was found in it: give a brain mask")
    return brain, how


def find_head(
    image: NDArray[np.float32], affine: NDArray[np.float64], given: NDArray[np.bool_] | None, how: str, name: str
) -> NDArray[np.bool_] | None:
    """Return the head mask, or None where none is asked for and none is given.

    Raises:
        VolumeError: a mask is asked for and not given, or the head is empty.
    """
    if given is not None:
        head = given
    elif how == "none":
        return None
    elif how == "given":
        raise VolumeError(f"{name} has no head mask: give one or set recipe.head to mr, ct, otsu or none")
    elif how == "otsu":
        head = steps.brain_otsu(image)
    else:
        head = (head_mr if how == "mr" else head_ct)(image, affine)
    if not head.any():
        raise VolumeError(f"{name}: its head mask is empty: expected a head, or a mask that marks it")
    return head


def check_hounsfield(image: NDArray[np.float32], name: str, brain: NDArray[np.bool_] | None = None) -> None:
    """Check that a volume looks like CT in Hounsfield units.

    Args:
        image: intensities as the file has them.
        name: for messages: the file.
        brain: where the brain is known, its median is looked at too.

    Raises:
        VolumeError: nothing in it is below -200 HU, or its brain is not between -20 and 120 HU.
    """
    lowest = float(image.min())
    if lowest > _AIR_BELOW_HU:
        raise VolumeError(
            f"{name} does not look like CT in Hounsfield units: its lowest value is {lowest:g}, and air is near -1000: "
            "choose a recipe for its modality, or rescale it"
        )
    if brain is None:
        return
    median = float(np.median(image[brain]))
    if not _BRAIN_MEDIAN_HU[0] <= median <= _BRAIN_MEDIAN_HU[1]:
        raise VolumeError(
            f"{name} does not look like CT in Hounsfield units: its brain's median is {median:g}, expected 20 to 45: "
            "look at its brain mask and at its rescaling"
        )


def _stripped_before(image: NDArray[np.float32], affine: NDArray[np.float64], name: str) -> NDArray[np.bool_] | None:
    """Return what differs from a constant background if it is of a brain's size; a whole head is larger."""
    background = steps.constant_background(image)
    if background is None or not (image != background).any():
        return None
    piece = steps.brain_nonzero(image, name, background)
    return piece if BRAIN_LITRES[0] <= litres(piece, affine) <= BRAIN_LITRES[1] else None
