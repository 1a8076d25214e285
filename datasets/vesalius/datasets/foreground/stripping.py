"""A whole head -> its brain, in MR and in CT, by threshold, opening and the MNI brain's own mask.

Both follow one path at 2 mm. Tissue of the brain's kind is eroded until brain and scalp fall apart; the piece that lies
deepest in the head is grown back within that tissue, and its furrows are closed. The MNI brain, brought onto it by an
affine registration, then cuts off what lies well outside (neck, eyes) and gives back what lies well inside (bright or
dark lesions, the ventricles). Where the fluid around the brain is bright (T2w) it is left out first, and what lies well
inside the MNI brain is given back from the guess that still held it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.foreground.coarse import Coarse, closed, coarse, depth_mm, dilated, eroded, fine, litres
from vesalius.datasets.foreground.heads import AIR_HU, coarse_head_ct, coarse_head_mr, head_threshold
from vesalius.datasets.registration import mni152_target, register
from vesalius.datasets.steps import solid
from vesalius.datasets.template import mni152
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import resample

if TYPE_CHECKING:
    from numpy.typing import NDArray

BRAIN_LITRES = (0.5, 2.4)
"""What a brain mask of an adult or a child may hold, cerebrospinal fluid included."""

BRAIN_HU = (0.0, 80.0)
"""What a CT is clipped to for a registration by the brain."""

_LEAKY_LITRES = 3.0
"""What a first guess may hold: with the fluid around the brain, where that is bright, and some of the neck."""

_SOFT_HU = (0.0, 100.0)
_OPENINGS_MM = (3.0, 4.0, 5.0, 6.0, 7.0, 9.0)
_DEEP_MM = 25.0
_PARENCHYMA = 0.5
# Half way between grey matter and fluid in T2w: 1.1 to 1.2 and 2 to 2.5 times the median of what lies deep.
_FLUID = 1.5
_RIM_MM = 8.0
# Of the rim in phantoms and in a real brain set into a made skull: 0.09 to 0.48 in T2w, 0.013 at most in T1w and FLAIR.
_FLUID_SHARE = 0.05
_OUTSIDE_MM = 6.0
_INSIDE_MM = 8.0
# Narrower than for what was never in the guess: it is tissue or fluid, and no bone.
_KEPT_MM = 4.0
_CLOSE_MM = 8.0


def strip_mr(image: NDArray[np.float32], affine: NDArray[np.float64], name: str) -> NDArray[np.bool_]:
    """Return the brain in a whole head of any MR contrast in which the skull is dark.

    Tissue is what is brighter than half the median deeper than 25 mm in the head. If a twentieth of its outer 8 mm is
    brighter than one and a half times that median, the fluid around the brain is bright and is no tissue either.

    Args:
        image: (D, H, W) in canonical orientation.
        affine: voxel indices to mm.
        name: for messages: the file.

    Raises:
        VolumeError: no brain falls apart from the scalp, or it does not fit the MNI brain.
    """
    low = coarse(image, affine, float(image.min()))
    head = coarse_head_mr(low, head_threshold(image))
    deep = eroded(head, _DEEP_MM)
    if not deep.any():
        raise VolumeError(
            f"{name}: its head is nowhere {2 * _DEEP_MM:g} mm thick, so no brain can be found: give a mask"
        )
    bottom = float(np.percentile(low.image, 2))
    level = float(np.median(low.image[deep])) - bottom
    tissue = low.image > bottom + _PARENCHYMA * level
    wide = _deepest(tissue, head, low, name)
    guess = _without_fluid(wide, tissue, low.image > bottom + _FLUID * level, head, low, name)
    return solid(fine(_fitted(guess, wide, head, low, low.image, name), low.affine, image.shape, affine))


def strip_ct(image: NDArray[np.float32], affine: NDArray[np.float64], name: str) -> NDArray[np.bool_]:
    """Return the brain in a whole head in CT (Hounsfield units).

    Tissue is 0 to 100 HU after smoothing (as Muschelli et al. 2015); bone parts it from the scalp.

    Args:
        image: (D, H, W) in canonical orientation.
        affine: voxel indices to mm.
        name: for messages: the file.

    Raises:
        VolumeError: no brain falls apart from the scalp, or it does not fit the MNI brain.
    """
    from scipy.ndimage import gaussian_filter

    low = coarse(image, affine, AIR_HU)
    head = coarse_head_ct(low)
    if not head.any():
        raise VolumeError(f"{name}: nothing in it is denser than air: expected a head in Hounsfield units")
    smooth = gaussian_filter(low.image, 0.5)
    guess = _deepest((smooth > _SOFT_HU[0]) & (smooth < _SOFT_HU[1]), head, low, name)
    window = np.clip(low.image, *BRAIN_HU)
    brain = _fitted(guess, guess, head, low, window, name) & ~solid_bone(low)
    # On finer voxels a thin neck of it may part: what it held would stretch the brain's bounding box.
    return solid(fine(solid(brain), low.affine, image.shape, affine))


def solid_bone(low: Coarse) -> NDArray[np.bool_]:
    """Return what is bone at 2 mm and not calcified: above 250 HU and connected to the largest piece of it."""
    from scipy.ndimage import generate_binary_structure, label

    pieces, count = label(low.image > 250.0, generate_binary_structure(3, 3))
    if count == 0:
        return np.zeros(low.image.shape, dtype=bool)
    bone: NDArray[np.bool_] = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return bone


def _deepest(tissue: NDArray[np.bool_], head: NDArray[np.bool_], low: Coarse, name: str) -> NDArray[np.bool_]:
    """Return the piece of tissue that holds the most depth, once it has fallen apart from the rest."""
    from scipy.ndimage import label

    tissue = tissue & head
    depth, within = depth_mm(head), depth_mm(tissue)
    leaky = None
    for opening_mm in _OPENINGS_MM:
        pieces, count = label(within > opening_mm)
        if count == 0:
            break
        # Squared, so that a brain of a litre wins over scalp, face and neck of three.
        weights = np.bincount(pieces.ravel(), weights=(depth**2).ravel())[1:]
        grown = dilated(pieces == 1 + int(np.argmax(weights)), opening_mm + 2.0) & tissue
        volume = litres(grown, low.affine)
        if volume < BRAIN_LITRES[0]:
            break
        if volume <= _LEAKY_LITRES:
            leaky = grown
        if volume <= BRAIN_LITRES[1]:
            break
    if leaky is None:
        raise VolumeError(
            f"{name}: no piece of it could be told from the rest that is as large as a brain: give a brain mask"
        )
    return closed(leaky, _CLOSE_MM) & head


def _without_fluid(
    wide: NDArray[np.bool_],
    tissue: NDArray[np.bool_],
    bright: NDArray[np.bool_],
    head: NDArray[np.bool_],
    low: Coarse,
    name: str,
) -> NDArray[np.bool_]:
    """Return the guess without bright fluid around the brain; as it is where there is none or too little is left."""
    rim = wide & (depth_mm(wide) <= _RIM_MM)
    if np.count_nonzero(bright & rim) < _FLUID_SHARE * np.count_nonzero(rim):
        return wide
    try:
        return _deepest(tissue & ~bright, head, low, name)
    except VolumeError:
        return wide


def _fitted(
    guess: NDArray[np.bool_],
    wide: NDArray[np.bool_],
    head: NDArray[np.bool_],
    low: Coarse,
    image: NDArray[np.float32],
    name: str,
) -> NDArray[np.bool_]:
    """Return the guess between the MNI brain's mask made narrower and made wider.

    Args:
        guess: what is registered.
        wide: the guess with the fluid around it, where that was left out; else the guess.
        head: what is not air.
        low: the volume at 2 mm.
        image: its intensities as the registration sees them.
        name: for messages: the file.
    """
    found = register(image, low.affine, guess, name, mni152_target(), "affine")
    template = mni152()
    placed = resample(
        template.brain.astype(np.float32),
        template.affine,
        low.image.shape,
        low.affine,
        to_source=np.linalg.inv(found.to_source),
    )
    brain = placed > 0.5
    depth = depth_mm(brain)
    # A lesion at the surface may be as bright as the fluid: most of it comes back this way.
    given_back = (wide & (depth > _KEPT_MM)) | (head & (depth > _INSIDE_MM))
    fitted = (guess & dilated(brain, _OUTSIDE_MM)) | given_back
    # Opened once more: what hangs on by a thread near the eyes and the neck falls off.
    core = solid(eroded(fitted, 3.0))
    return closed(dilated(core, 4.0) & fitted, _CLOSE_MM)
