"""Steps on intensities: windows, equalised histograms, denoising, bias fields. Arrays are (D, H, W)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.registration import as_itk, single_thread
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def to_range(unit: NDArray[np.float32], output_range: tuple[float, float]) -> NDArray[np.float32]:
    """Map [0, 1] to ``output_range``."""
    low, high = output_range
    if (low, high) == (0.0, 1.0):
        return unit
    mapped: NDArray[np.float32] = (low + unit.astype(np.float64) * (high - low)).astype(np.float32)
    return mapped


def window(image: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Clip at two intensities and map them to 0 and 1 (Simarro Viana et al. 2020, section 2, steps 6 and 7)."""
    low, high = limits
    unit: NDArray[np.float32] = ((np.clip(image, low, high).astype(np.float64) - low) / (high - low)).astype(np.float32)
    return unit


def equalise(image: NDArray[np.float32], inside: NDArray[np.bool_], num_bins: int, name: str) -> NDArray[np.float32]:
    """Equalise the histogram: each intensity becomes the share of ``inside`` that is no brighter.

    Global, over one histogram of ``num_bins`` equal bins between the extremes inside. The cumulative shares stand at
    the bins' upper edges, 0 at the lowest, and are interpolated linearly; what lies outside ``inside`` goes through the
    same curve and ends at 0 and 1.

    Args:
        image: intensities.
        inside: voxels that the histogram is taken over.
        num_bins: number of bins.
        name: for messages: the file.

    Raises:
        VolumeError: there is one intensity only.
    """
    values = image[inside]
    if not values.size or values.min() == values.max():
        raise VolumeError(f"{name}: all of its foreground has one intensity, which no histogram can be equalised from")
    counts, edges = np.histogram(values.astype(np.float64), bins=num_bins)
    shares = np.concatenate([[0.0], np.cumsum(counts) / values.size])
    equalised: NDArray[np.float32] = np.interp(image, edges, shares).astype(np.float32)
    return equalised


def smoothed(
    image: NDArray[np.float32], spacing_mm: tuple[float, float, float], sigma_mm: float
) -> NDArray[np.float32]:
    """Return the image after a Gaussian of ``sigma_mm``; what lies beyond it is as its border."""
    from scipy.ndimage import gaussian_filter

    answer: NDArray[np.float32] = gaussian_filter(image, [sigma_mm / step for step in spacing_mm], mode="nearest")
    return answer


def curvature_flow(
    image: NDArray[np.float32], spacing_mm: tuple[float, float, float], time_step: float, num_iterations: int
) -> NDArray[np.float32]:
    """Denoise by curvature flow (Sethian; ITK's ``CurvatureFlow``): level lines move by their curvature.

    Explicit: a voxel is moved by its direct neighbours, so that ``num_iterations`` voxels of margin make a slab the
    same as the whole.

    Args:
        image: intensities.
        spacing_mm: voxel size.
        time_step: of each iteration; stable to 1/16.
        num_iterations: how many.
    """
    affine = np.diag([*spacing_mm, 1.0])
    with single_thread() as sitk:
        flowed = sitk.CurvatureFlow(as_itk(sitk, image, affine), time_step, num_iterations)
        values: NDArray[np.float32] = np.ascontiguousarray(sitk.GetArrayFromImage(flowed).transpose(2, 1, 0))
    return values


def without_bias(
    image: NDArray[np.float32],
    inside: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    shrink: int,
    num_iterations: Sequence[int],
    name: str,
) -> NDArray[np.float32]:
    """Divide by the smooth field that N4 finds (Tustison et al. 2010, SimpleITK).

    Args:
        image: intensities of MR; what is not positive is left out of the fit.
        inside: voxels that the field is fitted over.
        spacing_mm: voxel size.
        shrink: the fit looks at every so manieth voxel along each axis.
        num_iterations: at each level of the fit.
        name: for messages: the file.

    Raises:
        VolumeError: there is nothing positive inside, or the fit fails.
    """
    fitted = inside & (image > 0)
    if not fitted.any():
        raise VolumeError(f"{name}: nothing in it is positive, so it has no bias field: set recipe.bias=none")
    affine = np.diag([*spacing_mm, 1.0])
    with single_thread() as sitk:
        whole = as_itk(sitk, image, affine)
        mask = as_itk(sitk, fitted.astype(np.uint8), affine)
        factors = [min(shrink, max(1, size // 4)) for size in image.shape]
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([int(count) for count in num_iterations])
        try:
            corrector.Execute(sitk.Shrink(whole, factors), sitk.Shrink(mask, factors))
            field = sitk.Exp(corrector.GetLogBiasFieldAsImage(whole))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].split("ITK ERROR: ")[-1]
            raise VolumeError(
                f"{name}: its bias field cannot be fitted ({reason[:120]}): set recipe.bias=none"
            ) from None
        values = np.ascontiguousarray(sitk.GetArrayFromImage(field).transpose(2, 1, 0))
    corrected: NDArray[np.float32] = (image / np.maximum(values, 1e-6)).astype(np.float32)
    return corrected
