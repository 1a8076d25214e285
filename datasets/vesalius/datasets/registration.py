"""Rigid and affine registration to MNI152 or to a reference file (SimpleITK), the same bits every time.

Mattes mutual information (Mattes et al. 2003) over the reference's mask and a rim around it, coarse to fine. The start
matters more than the optimiser: skull-stripped brains come at any height and tilt, so the masks' centres and volumes
give translation and scale, and several tilts are tried at the coarsest level. Of a head, whose neck may be long or cut
off, only what lies within 150 mm of its top takes part.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vesalius.datasets.steps import bounding_box, dice, smooth_for, world_grid, world_points
from vesalius.datasets.template import mni152
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import resample, spacing_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_TILT_LEVEL_MM = 6.0
_LEVELS_MM = (4.0, 3.0)
_TILTS_DEGREES = (-20.0, 0.0, 20.0)
_RIM_MM = 8.0
_HEAD_MM = 150.0
_BINS = 32
_STRETCH = (0.5, 2.0)

Kind = Literal["rigid", "affine"]
Part = Literal["brain", "head"]

GOOD_DICE = 0.92
"""Overlap with the reference below which an affine registration is to be looked at. Of forty real brains, well-stripped
ones reach 0.93 to 0.96, and one whose strip left part of the neck 0.91 (docs/decisions/0004-recipes.md)."""

GOOD_SHARE = 0.95
"""The same for a rigid one, which leaves each volume its own size: the share of the smaller mask within the other."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Where a volume lies in the reference's world.

    Attributes:
        to_source: (4, 4) from the reference's mm to the source's world mm.
        mutual_information: Mattes mutual information at the end in nats; higher is better.
        dice: overlap of the masks.
        share: of the smaller mask, the part that lies within the other.
    """

    to_source: NDArray[np.float64]
    mutual_information: float
    dice: float
    share: float


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """A volume on an isotropic RAS+ grid.

    Attributes:
        image: intensities from their minimum to their 99.5th percentile as 0 to 1, and 0 outside the mask.
        mask: the brain, or the head.
        affine: (4, 4), diagonal but for the origin.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]


class Target:
    """What volumes are registered to: an image and the mask of its brain, or of its head.

    Its resolutions are made when they are first asked for, and kept.
    """

    def __init__(
        self,
        image_DHW: NDArray[np.float32],
        affine: NDArray[np.float64],
        mask: NDArray[np.bool_],
        name: str,
        part: Part = "brain",
    ) -> None:
        """Keep the arrays; ``affine`` takes voxel indices to the reference's mm, ``name`` is for messages."""
        self.name, self.part = name, part
        self._given = (image_DHW, affine, mask)
        self._levels: dict[float, _Sampled] = {}
        self._rims: dict[float, NDArray[np.bool_]] = {}

    def level(self, mm: float) -> _Sampled:
        """Return the reference at one resolution."""
        if mm not in self._levels:
            self._levels[mm] = _sample(*self._given, mm, self.part)
        return self._levels[mm]

    def rim(self, mm: float) -> NDArray[np.bool_]:
        """Return the mask and 8 mm around it: the background next to the brain says where it ends."""
        from scipy.ndimage import distance_transform_edt

        if mm not in self._rims:
            self._rims[mm] = distance_transform_edt(~self.level(mm).mask, sampling=mm) <= _RIM_MM
        return self._rims[mm]


@lru_cache(maxsize=1)
def mni152_target() -> Target:
    """Return the MNI152 brain to register to, made once a process."""
    template = mni152()
    return Target(template.image, template.affine, template.brain, "MNI152")


def register_affine(
    image_DHW: NDArray[np.float32], affine: NDArray[np.float64], brain: NDArray[np.bool_], name: str
) -> Registration:
    """Find the affine transform (12 parameters) that takes a brain to MNI152; see :func:`register`."""
    return register(image_DHW, affine, brain, name, mni152_target(), "affine")


def register(
    image_DHW: NDArray[np.float32],
    affine: NDArray[np.float64],
    mask: NDArray[np.bool_],
    name: str,
    target: Target,
    kind: Kind,
) -> Registration:
    """Find the transform that takes a volume to the reference.

    Any contrast will do: mutual information asks for a relation between intensities, not for equal ones.

    Args:
        image_DHW: (D, H, W) intensities in canonical orientation.
        affine: (4, 4) voxel indices to the source's world mm.
        mask: (D, H, W) of what the reference shows: the brain, or the head.
        name: for messages: the file.
        target: the reference.
        kind: rigid (turn and shift: lengths stay) or affine (12 parameters).

    Raises:
        VolumeError: the optimiser lost the volume, or its answer is no shape of a head.
    """
    moving = {mm: _sample(image_DHW, affine, mask, mm, target.part) for mm in (_TILT_LEVEL_MM, *_LEVELS_MM)}
    advice = f"give a {target.part} mask, or register it beforehand"
    with single_thread() as sitk:
        try:
            transform = _best_tilt(sitk, target, moving[_TILT_LEVEL_MM], kind)
            for mm in _LEVELS_MM:
                information = _optimise(sitk, target, mm, moving[mm], transform, thorough=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].split("ITK ERROR: ")[-1]
            raise VolumeError(f"{name} cannot be registered to {target.name} ({reason[:120]}): {advice}") from None
    to_source = _matrix(transform)
    stretch = np.linalg.svd(to_source[:3, :3], compute_uv=False)
    if np.linalg.det(to_source[:3, :3]) <= 0 or stretch.min() < _STRETCH[0] or stretch.max() > _STRETCH[1]:
        raise VolumeError(
            f"{name} cannot be registered to {target.name} (it would be stretched {stretch.min():.2f} to "
            f"{stretch.max():.2f} times): give a mask of the {target.part} alone, or register it beforehand"
        )
    last = moving[_LEVELS_MM[-1]]
    fixed = target.level(_LEVELS_MM[-1])
    placed = resample(
        last.mask.astype(np.float32), last.affine, fixed.mask.shape, fixed.affine, to_source=to_source, order=0
    )
    there = placed > 0.5
    smaller = min(int(np.count_nonzero(there)), int(np.count_nonzero(fixed.mask)))
    return Registration(
        to_source=to_source,
        mutual_information=information,
        dice=dice(there, fixed.mask),
        share=int(np.count_nonzero(there & fixed.mask)) / max(1, smaller),
    )


def _best_tilt(sitk: Any, target: Target, moving: _Sampled, kind: Kind) -> Any:
    """Return the transform after the coarsest level from the tilt that ends with the highest information."""
    fixed = target.level(_TILT_LEVEL_MM)
    center = world_points(fixed.mask, fixed.affine).mean(axis=0)
    shift = world_points(moving.mask, moving.affine).mean(axis=0) - center
    scale = (np.count_nonzero(moving.mask) / np.count_nonzero(fixed.mask)) ** (1 / 3)
    tried = []
    for degrees in _TILTS_DEGREES:
        # About the left-right axis: heads nod far more than they turn or lean in a scanner.
        angle = float(np.deg2rad(degrees))
        if kind == "rigid":
            transform = sitk.Euler3DTransform()
            transform.SetCenter(center.tolist())
            transform.SetRotation(angle, 0.0, 0.0)
        else:
            sine, cosine = np.sin(angle), np.cos(angle)
            matrix = scale * np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
            transform = sitk.AffineTransform(3)
            transform.SetCenter(center.tolist())
            transform.SetMatrix(matrix.ravel().tolist())
        transform.SetTranslation(shift.tolist())
        information = _optimise(sitk, target, _TILT_LEVEL_MM, moving, transform, thorough=False)
        tried.append((information, transform))
    return max(tried, key=lambda pair: pair[0])[1]


def _optimise(sitk: Any, target: Target, mm: float, moving: _Sampled, transform: Any, *, thorough: bool) -> float:
    """Move ``transform`` to where the mutual information at one resolution is highest; return it in nats."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    # Every voxel counts: sampling would save little at these resolutions and brings a random number generator.
    method.SetMetricSamplingStrategy(method.NONE)
    fixed = target.level(mm)
    method.SetMetricFixedMask(as_itk(sitk, target.rim(mm).astype(np.uint8), fixed.affine))
    method.SetInterpolator(sitk.sitkLinear)
    if thorough:
        method.SetOptimizerAsConjugateGradientLineSearch(1.0, 60, 1e-5, 5)
    else:
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-2, 100, 0.5, 1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, True)
    method.Execute(as_itk(sitk, fixed.image, fixed.affine), as_itk(sitk, moving.image, moving.affine))
    return -float(method.GetMetricValue())


def _sample(
    image: NDArray[np.float32], affine: NDArray[np.float64], mask: NDArray[np.bool_], mm: float, part: Part
) -> _Sampled:
    """Return the volume at ``mm`` on a grid along the world's axes, with two voxels to spare on every side."""
    if part == "head":
        mask = _upper(mask, affine)
    box = bounding_box(mask, margin=2)
    start = np.eye(4)
    start[:3, 3] = [part.start for part in box]
    local = affine @ start
    inside = mask[box]
    peak = float(np.percentile(image[box][inside], 99.5))
    bottom = float(image[box][inside].min())
    # From the mask's own minimum: z-scored and Hounsfield intensities have no meaningful zero.
    values = np.where(inside, np.clip((image[box] - bottom) / max(peak - bottom, 1e-12), 0, 1), 0).astype(np.float32)
    values = smooth_for(values, spacing_of(local), (mm, mm, mm))
    shape, grid = world_grid(values.shape, local, mm, margin=2)
    return _Sampled(
        image=resample(values, local, shape, grid),
        mask=resample(inside.astype(np.float32), local, shape, grid) > 0.5,
        affine=grid,
    )


def _upper(head: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the part of a head within 150 mm of its top: scans end anywhere between the ears and the chest."""
    i, j, k = (affine[2, axis] * np.arange(size) for axis, size in enumerate(head.shape))
    height = i[:, None, None] + j[None, :, None] + k[None, None, :]
    upper: NDArray[np.bool_] = head & (height >= height[head].max() - _HEAD_MM)
    return upper


def as_itk(sitk: Any, array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """Return an array on a grid along the world's axes as an ITK image."""
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
def single_thread() -> Iterator[Any]:
    """Hold ITK to one thread: several add up the metric in an order that changes its last bits."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield sitk
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
