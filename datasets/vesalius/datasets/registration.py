"""Affine registration of a brain to MNI152 (SimpleITK), the same bits every time.

Mattes mutual information (Mattes et al. 2003) over the template's brain and a rim around it, coarse to fine. The start
matters more than the optimiser: skull-stripped brains come at any height and tilt, so the masks' centres and volumes
give translation and scale, and several tilts are tried at the coarsest level.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.steps import bounding_box, dice, smooth_for, world_points
from vesalius.datasets.template import mni152
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import grid_affine, resample, spacing_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_TILT_LEVEL_MM = 6.0
_LEVELS_MM = (4.0, 3.0)
_TILTS_DEGREES = (-20.0, 0.0, 20.0)
_RIM_MM = 8.0
_BINS = 32
_STRETCH = (0.5, 2.0)

GOOD_DICE = 0.92
"""Overlap with the template's brain below which a registration is to be looked at. Of forty real brains, well-stripped
ones reach 0.93 to 0.96, and one whose strip left part of the neck 0.91 (docs/decisions/0004-recipes.md)."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Where a brain lies in the template's world.

    Attributes:
        to_source: (4, 4) from MNI mm to the source's world mm.
        mutual_information: Mattes mutual information at the end in nats; higher is better.
        dice: overlap of the brain with the template's brain.
    """

    to_source: NDArray[np.float64]
    mutual_information: float
    dice: float


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """A brain on an isotropic RAS+ grid.

    Attributes:
        image: intensities over their 99.5th percentile, at most 1, and 0 outside the brain.
        brain: the mask.
        affine: (4, 4), diagonal but for the origin.
    """

    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]


def register_affine(
    image_DHW: NDArray[np.float32], affine: NDArray[np.float64], brain: NDArray[np.bool_], name: str
) -> Registration:
    """Find the affine transform (12 parameters) that takes a brain to MNI152.

    Any contrast will do: mutual information asks for a relation between intensities, not for equal ones.

    Args:
        image_DHW: (D, H, W) intensities in canonical orientation.
        affine: (4, 4) voxel indices to the source's world mm.
        brain: (D, H, W) mask: of the brain, as the template has no skull.
        name: for messages: the file.

    Raises:
        VolumeError: the optimiser lost the brain, or its answer is no shape of a head.
    """
    moving = {mm: _sample(image_DHW, affine, brain, mm) for mm in (_TILT_LEVEL_MM, *_LEVELS_MM)}
    with _single_thread() as sitk:
        try:
            transform = _best_tilt(sitk, moving[_TILT_LEVEL_MM])
            for mm in _LEVELS_MM:
                information = _optimise(sitk, mm, moving[mm], transform, thorough=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].split("ITK ERROR: ")[-1]
            raise VolumeError(
                f"{name} cannot be registered to MNI152 ({reason[:120]}): give a brain mask, or register it beforehand"
            ) from None
    to_source = _matrix(transform)
    stretch = np.linalg.svd(to_source[:3, :3], compute_uv=False)
    if np.linalg.det(to_source[:3, :3]) <= 0 or stretch.min() < _STRETCH[0] or stretch.max() > _STRETCH[1]:
        raise VolumeError(
            f"{name} cannot be registered to MNI152 (it would be stretched {stretch.min():.2f} to {stretch.max():.2f} "
            "times): give a mask of the brain alone, or register it beforehand"
        )
    last = moving[_LEVELS_MM[-1]]
    fixed = _fixed(_LEVELS_MM[-1])
    placed = resample(
        last.brain.astype(np.float32), last.affine, fixed.brain.shape, fixed.affine, to_source=to_source, order=0
    )
    return Registration(to_source=to_source, mutual_information=information, dice=dice(placed > 0.5, fixed.brain))


def _best_tilt(sitk: Any, moving: _Sampled) -> Any:
    """Return the transform after the coarsest level from the tilt that ends with the highest information."""
    fixed = _fixed(_TILT_LEVEL_MM)
    center = world_points(fixed.brain, fixed.affine).mean(axis=0)
    shift = world_points(moving.brain, moving.affine).mean(axis=0) - center
    scale = (np.count_nonzero(moving.brain) / np.count_nonzero(fixed.brain)) ** (1 / 3)
    tried = []
    for degrees in _TILTS_DEGREES:
        # About the left-right axis: heads nod far more than they turn or lean in a scanner.
        sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
        matrix = scale * np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
        transform = sitk.AffineTransform(3)
        transform.SetCenter(center.tolist())
        transform.SetMatrix(matrix.ravel().tolist())
        transform.SetTranslation(shift.tolist())
        information = _optimise(sitk, _TILT_LEVEL_MM, moving, transform, thorough=False)
        tried.append((information, transform))
    return max(tried, key=lambda pair: pair[0])[1]


def _optimise(sitk: Any, mm: float, moving: _Sampled, transform: Any, *, thorough: bool) -> float:
    """Move ``transform`` to where the mutual information at one resolution is highest; return it in nats."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    # Every voxel counts: sampling would save little at these resolutions and brings a random number generator.
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(_as_itk(sitk, _rim(mm).astype(np.uint8), _fixed(mm).affine))
    method.SetInterpolator(sitk.sitkLinear)
    if thorough:
        method.SetOptimizerAsConjugateGradientLineSearch(1.0, 60, 1e-5, 5)
    else:
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-2, 100, 0.5, 1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, True)
    method.Execute(_as_itk(sitk, _fixed(mm).image, _fixed(mm).affine), _as_itk(sitk, moving.image, moving.affine))
    return -float(method.GetMetricValue())


def _sample(image: NDArray[np.float32], affine: NDArray[np.float64], brain: NDArray[np.bool_], mm: float) -> _Sampled:
    """Return the brain at ``mm`` on a grid along the world's axes, with two voxels to spare on every side."""
    box = bounding_box(brain, margin=2)
    start = np.eye(4)
    start[:3, 3] = [part.start for part in box]
    local = affine @ start
    inside = brain[box]
    peak = float(np.percentile(image[box][inside], 99.5))
    bottom = float(image[box][inside].min())
    # From the brain's own minimum: z-scored and Hounsfield intensities have no meaningful zero.
    values = np.where(inside, np.clip((image[box] - bottom) / max(peak - bottom, 1e-12), 0, 1), 0).astype(np.float32)
    values = smooth_for(values, spacing_of(local), (mm, mm, mm))
    d, h, w = (size - 1 for size in values.shape)
    corners = np.array([[i, j, k, 1.0] for i in (0, d) for j in (0, h) for k in (0, w)]).T
    world = (local @ corners)[:3]
    low, high = world.min(axis=1) - 2 * mm, world.max(axis=1) + 2 * mm
    d, h, w = (int(np.ceil(extent / mm)) + 1 for extent in high - low)
    grid = grid_affine((d, h, w), (mm, mm, mm), tuple((low + high) / 2))
    return _Sampled(
        image=resample(values, local, (d, h, w), grid),
        brain=resample(inside.astype(np.float32), local, (d, h, w), grid) > 0.5,
        affine=grid,
    )


@lru_cache(maxsize=4)
def _fixed(mm: float) -> _Sampled:
    template = mni152()
    return _sample(template.image, template.affine, template.brain, mm)


@lru_cache(maxsize=4)
def _rim(mm: float) -> NDArray[np.bool_]:
    """Return the template's brain and 8 mm around it: the background next to the brain says where it ends."""
    from scipy.ndimage import distance_transform_edt

    rim: NDArray[np.bool_] = distance_transform_edt(~_fixed(mm).brain, sampling=mm) <= _RIM_MM
    return rim


def _as_itk(sitk: Any, array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    # ITK's world is LPS and ours RAS. Both images are given in RAS with unit directions: ITK cannot tell, and the
    # transform needs no conversion.
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(affine.diagonal()[:3].tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _matrix(transform: Any) -> NDArray[np.float64]:
    matrix = np.eye(4)
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    center = np.array(transform.GetCenter())
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.array(transform.GetTranslation()) + center - linear @ center
    return matrix


@contextlib.contextmanager
def _single_thread() -> Iterator[Any]:
    """Hold ITK to one thread: several add up the metric in an order that changes its last bits."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield sitk
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
