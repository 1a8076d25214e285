"""The steps of a recipe: small pure functions on arrays in canonical RAS+ orientation.

None of them reads a file, draws a random number or keeps state. Arrays are (D, H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import grid_affine

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_FACE_SHARE = 0.9
_OTSU_BINS = 256
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))

Box = tuple[slice, slice, slice]


def raise_minimum(image: NDArray[np.float32], minimum: float | None) -> NDArray[np.float32]:
    """Return the image with every value below ``minimum`` raised to it; None leaves it alone."""
    return image if minimum is None else np.maximum(image, np.float32(minimum))


def constant_background(image: NDArray[np.float32]) -> float | None:
    """Return the one value that fills the volume's surroundings, or None where they are not constant.

    It is the commonest value on the six faces, if nine tenths of their voxels have it: a brain may touch a face, and
    a scanner's noise does not agree with itself.
    """
    faces = np.concatenate([np.moveaxis(image, axis, 0)[index].ravel() for axis in range(3) for index in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    best = int(np.argmax(counts))
    return float(values[best]) if counts[best] >= _FACE_SHARE * faces.size else None


def otsu_threshold(image: NDArray[np.float32]) -> float:
    """Return the threshold with the largest variance between the two classes it makes (Otsu 1979).

    256 bins between the image's extremes; the answer is the upper edge of the last bin of the darker class.
    """
    try:
        counts, edges = np.histogram(image, bins=_OTSU_BINS)
    except ValueError:  # the values lie too near one another for 256 edges between them in float32
        counts, edges = np.histogram(image.astype(np.float64), bins=_OTSU_BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = image.size - below
    sums = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
        variance = np.nan_to_num(below * above * gap**2)
    return float(edges[int(np.argmax(variance)) + 1])


def bounding_box(mask: NDArray[np.bool_], margin: int = 0) -> Box:
    """Return the slices that hold every true voxel, widened by ``margin`` voxels within the array.

    Raises:
        ValueError: the mask is empty.
    """
    slices = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        (where,) = np.nonzero(mask.any(axis=others))
        if not where.size:
            raise ValueError("an empty mask has no bounding box")
        slices.append(slice(max(0, int(where[0]) - margin), min(mask.shape[axis], int(where[-1]) + 1 + margin)))
    return (slices[0], slices[1], slices[2])


def solid(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask's largest connected piece (by faces) with its holes filled."""
    from scipy.ndimage import label

    answer = np.zeros(mask.shape, dtype=bool)
    if not mask.any():
        return answer
    box = bounding_box(mask)
    pieces, count = label(mask[box])
    piece = pieces == 1 if count == 1 else pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    # A hole is background that the outside cannot reach: label it rather than dilate the outside a hundred times.
    outside, count = label(np.pad(~piece, 1, constant_values=True))
    answer[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return answer


def brain_nonzero(image: NDArray[np.float32], name: str, background: float | None = 0.0) -> NDArray[np.bool_]:
    """Return where the image differs from its background: the largest piece, holes filled.

    Args:
        image: a volume whose background is one constant value.
        name: for messages: the file.
        background: that value.

    Raises:
        VolumeError: nothing or everything differs from it.
    """
    different = image != background
    if not different.any() or different.all():
        what = "every voxel is" if not different.any() else "no voxel is"
        raise VolumeError(
            f"{name}: {what} {background:g}, so no brain can be told from it: "
            "give a brain mask or set recipe.brain=otsu"
        )
    return solid(different)


def brain_otsu(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the largest piece above Otsu's threshold, opened by one voxel to cut thin bridges, holes filled."""
    from scipy.ndimage import binary_dilation, binary_erosion

    bright = image > otsu_threshold(image)
    core = solid(binary_erosion(bright))
    opened = binary_dilation(core) & bright
    return solid(opened if opened.any() else bright)


def find_brain(
    image: NDArray[np.float32], given: NDArray[np.bool_] | None, how: str, name: str
) -> tuple[NDArray[np.bool_], str]:
    """Return the brain mask and where it came from: ``given``, ``nonzero`` or ``otsu``.

    Args:
        image: the first modality.
        given: a mask on its grid, if there is one.
        how: ``given``, ``nonzero``, ``otsu``, or ``auto``: the mask given, else what differs from a constant
            background, else Otsu's threshold.
        name: for messages: the image's file.

    Raises:
        VolumeError: a mask is asked for and not given, or the brain is empty.
    """
    if how == "auto":
        background = constant_background(image)
        how = "given" if given is not None else "nonzero" if background is not None else "otsu"
    else:
        background = 0.0
    if how == "given":
        if given is None:
            raise VolumeError(f"{name} has no brain mask: give one or set recipe.brain to nonzero, otsu or auto")
        brain = given
    else:
        brain = brain_nonzero(image, name, background) if how == "nonzero" else brain_otsu(image)
    if not brain.any():
        raise VolumeError(f"{name}: its brain mask ({how}) is empty: give a mask that marks the brain")
    return brain, how


def smooth_for(
    image: NDArray[np.float32], spacing_mm: tuple[float, float, float], target_mm: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Return the image smoothed so that it may be sampled at a coarser spacing without aliasing.

    Along each axis by the Gaussian whose full width at half maximum makes a voxel of ``spacing_mm`` as wide as one
    of ``target_mm``: FWHM^2 = target^2 - spacing^2 (Cardoso et al., MICCAI 2015). Axes that do not get coarser are
    left alone.
    """
    from scipy.ndimage import gaussian_filter1d

    answer = image
    for axis, (own, target) in enumerate(zip(spacing_mm, target_mm, strict=True)):
        if target > own * 1.01:
            sigma = np.sqrt(target**2 - own**2) / _FWHM / own
            answer = gaussian_filter1d(answer, sigma, axis=axis, mode="nearest", truncate=3.0)
    return answer


def scale_over(
    image: NDArray[np.float32], brain: NDArray[np.bool_], low: float, high: float, name: str
) -> NDArray[np.float32]:
    """Clip at two percentiles of the brain's intensities and scale them to [0, 1].

    Args:
        image: intensities.
        brain: where the percentiles are taken.
        low: lower percentile.
        high: upper percentile (Naval Marimont & Tarroni 2021, section 3: 98).
        name: for messages: the file.

    Raises:
        VolumeError: the two percentiles are equal.
    """
    bottom, top = np.percentile(image[brain].astype(np.float64), (low, high))
    if not top > bottom:
        raise VolumeError(
            f"{name}: percentiles {low:g} and {high:g} of its brain are both {bottom:g}: "
            "give a brain mask that holds tissue, or wider percentiles"
        )
    scaled: NDArray[np.float32] = ((np.clip(image, bottom, top) - bottom) / (top - bottom)).astype(np.float32)
    return scaled


def outside_to(image: NDArray[np.float32], brain: NDArray[np.bool_], value: float) -> NDArray[np.float32]:
    """Return the image with ``value`` everywhere outside the brain."""
    return np.where(brain, image, np.float32(value))


def row_ends(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the first and last voxel of every row: they hold a mask's extremes in whatever direction."""
    ends = np.zeros_like(mask)
    i, j = np.nonzero(mask.any(axis=2))
    rows = mask[i, j]
    ends[i, j, rows.argmax(axis=1)] = True
    ends[i, j, mask.shape[2] - 1 - rows[:, ::-1].argmax(axis=1)] = True
    return ends


def world_points(mask: NDArray[np.bool_], affine: ArrayLike) -> NDArray[np.float64]:
    """Return (N, 3) world coordinates in mm of a mask's voxel centres."""
    matrix: NDArray[Any] = np.asarray(affine, dtype=np.float64)
    points: NDArray[np.float64] = np.argwhere(mask) @ matrix[:3, :3].T + matrix[:3, 3]
    return points


def world_grid(
    shape: tuple[int, ...], affine: ArrayLike, mm: float, *, margin: int = 0
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return shape and affine of the isotropic grid along the world's axes that holds a volume.

    Args:
        shape: (D, H, W) of the volume.
        affine: its voxel indices to mm.
        mm: voxel size of the grid.
        margin: voxels to spare on every side.
    """
    ends = [(0, size - 1) for size in shape]
    corners = np.array([[i, j, k, 1.0] for i in ends[0] for j in ends[1] for k in ends[2]]).T
    world = (np.asarray(affine, dtype=np.float64) @ corners)[:3]
    low, high = world.min(axis=1) - margin * mm, world.max(axis=1) + margin * mm
    d, h, w = (int(np.ceil(extent / mm)) + 1 for extent in high - low)
    x, y, z = (low + high) / 2
    return (d, h, w), grid_affine((d, h, w), (mm, mm, mm), (x, y, z))


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the overlap 2 |a and b| / (|a| + |b|) of two masks that are not both empty."""
    return 2.0 * float(np.count_nonzero(a & b)) / float(np.count_nonzero(a) + np.count_nonzero(b))
