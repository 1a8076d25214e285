"""Structures that CT scores are read in: the skull, and the two hemispheres (Bieder et al. 2022, section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CT_STRUCTURES: Final[dict[str, int]] = {"skull": 1, "left_hemisphere": 2, "right_hemisphere": 3}
"""Label of each structure; left is where x is negative in the reference's world."""

_BONE_HU = 300.0
_CLOSED_MM = 3.0
"""Radius of the ball that closes the bone: a fracture is a gap in it, and is judged in the skull."""


def ct_structures(
    image: NDArray[np.float32],
    brain: NDArray[np.bool_],
    head: NDArray[np.bool_] | None,
    to_midline: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Return (D, H, W) labels of :data:`CT_STRUCTURES` on the prepared grid.

    Args:
        image: Hounsfield units.
        brain: the brain mask.
        head: the head mask, so that no metal beside it is skull; None looks everywhere.
        to_midline: (4, 4) voxel indices to mm in a world whose midline is x = 0.
    """
    from scipy.ndimage import generate_binary_structure, label

    bone = image > _BONE_HU
    if head is not None:
        bone &= head
    labels = np.zeros(image.shape, dtype=np.uint8)
    i, j, k = (to_midline[0, axis] * np.arange(size) for axis, size in enumerate(image.shape))
    is_left = i[:, None, None] + j[None, :, None] + k[None, None, :] + to_midline[0, 3] < 0
    labels[brain & is_left] = CT_STRUCTURES["left_hemisphere"]
    labels[brain & ~is_left] = CT_STRUCTURES["right_hemisphere"]
    bone = _closed(bone, np.linalg.norm(to_midline[:3, :3], axis=0))
    if head is not None:
        bone &= head
    # Corners count as touching: in thick slices the vault's rings meet nowhere else.
    pieces, count = label(bone, generate_binary_structure(3, 3))
    if count:
        skull = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        labels[skull & ~brain] = CT_STRUCTURES["skull"]
    return labels


def _closed(bone: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return bone with its gaps of up to two radii filled; along an axis of thicker voxels nothing is filled.

    Of coarse voxels the ball holds at least those that share an edge with its middle one.
    """
    from scipy.ndimage import binary_closing

    radius = max(_CLOSED_MM, 1.5 * float(spacing_mm.min()))
    reach = np.floor(radius / spacing_mm).astype(int)
    # Beyond the volume a head goes on as it ends there: nothingness would eat into it.
    padded = np.pad(bone, [(num, num) for num in reach], mode="edge")
    offsets = np.meshgrid(*(np.arange(-num, num + 1) for num in reach), indexing="ij")
    squared = sum(np.square(offset * edge) for offset, edge in zip(offsets, spacing_mm, strict=True))
    closed = binary_closing(padded, squared <= radius**2)
    inner = tuple(slice(num, num + size) for num, size in zip(reach, bone.shape, strict=True))
    filled: NDArray[np.bool_] = closed[inner]
    return filled
