"""The steps of a recipe, against SciPy, SimpleITK and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_fill_holes, label

from vesalius.datasets import steps
from vesalius.platform.errors import VolumeError

MASKS = arrays(np.bool_, (6, 7, 5), elements=st.booleans())


def ball(shape: tuple[int, int, int] = (30, 32, 28), radius: float = 0.7) -> np.ndarray[Any, np.dtype[np.bool_]]:
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    inside: np.ndarray[Any, np.dtype[np.bool_]] = np.sum(np.square(axes), axis=0) < radius**2
    return inside


def head(seed: int = 0, background: float = 0.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    random = np.random.default_rng(seed)
    return np.where(ball(), 100 + random.normal(0, 10, ball().shape), background).astype(np.float32)


@given(MASKS)
@settings(max_examples=60)
def test_solid_is_scipys_largest_piece_filled(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    pieces, count = label(mask)
    if count == 0:
        assert not steps.solid(mask).any()
        return
    largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    np.testing.assert_array_equal(steps.solid(mask), binary_fill_holes(largest))


@given(MASKS, st.integers(0, 3))
@settings(max_examples=60)
def test_bounding_box_is_the_smallest(mask: np.ndarray[Any, np.dtype[np.bool_]], margin: int) -> None:
    if not mask.any():
        with pytest.raises(ValueError, match="empty"):
            steps.bounding_box(mask)
        return
    where = np.argwhere(mask)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = np.minimum(where.max(axis=0) + margin + 1, mask.shape)
    assert [(part.start, part.stop) for part in steps.bounding_box(mask, margin)] == list(zip(low, high, strict=True))


@pytest.mark.parametrize("unit", [1e-45, 1.0])
def test_otsu_parts_values_however_near_they_lie(unit: float) -> None:
    image = np.repeat(np.array([2, 3, 40, 41], dtype=np.float32) * np.float32(unit), 16).reshape(4, 4, 4)
    threshold = steps.otsu_threshold(image)
    np.testing.assert_array_equal(image > threshold, image > np.float32(unit) * 20)


@pytest.mark.parametrize("seed", range(3))
def test_otsu_is_simpleitks(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = np.where(ball(), random.normal(80, 15, ball().shape), random.normal(10, 6, ball().shape))
    image = image.astype(np.float32)
    reference = sitk.OtsuThresholdImageFilter()
    reference.SetNumberOfHistogramBins(256)
    reference.Execute(sitk.GetImageFromArray(image))
    width = (image.max() - image.min()) / 256
    assert abs(steps.otsu_threshold(image) - reference.GetThreshold()) <= 1.01 * width


def test_otsu_finds_the_brain_in_noise() -> None:
    random = np.random.default_rng(0)
    image = (head() + random.normal(0, 8, ball().shape)).astype(np.float32)
    brain, how = steps.find_brain(image, None, "auto", "x")
    assert how == "otsu"
    assert steps.dice(brain, ball()) > 0.99


@pytest.mark.parametrize("background", [0.0, -5.342541])
def test_auto_takes_what_differs_from_a_constant_background(background: float) -> None:
    image = head(background=background)
    image[15, 16, 14] = np.float32(background)  # a hole in the tissue is brain
    brain, how = steps.find_brain(image, None, "auto", "x")
    assert how == "nonzero"
    np.testing.assert_array_equal(brain, ball())


def test_auto_takes_the_mask_given() -> None:
    given_mask = np.zeros(ball().shape, bool)
    given_mask[10:20, 10:20, 10:20] = True
    brain, how = steps.find_brain(head(), given_mask, "auto", "x")
    assert how == "given"
    np.testing.assert_array_equal(brain, given_mask)


@pytest.mark.parametrize(
    ("image", "mask", "how", "words"),
    [
        (head(), None, "given", "no brain mask"),
        (head(), np.zeros(ball().shape, bool), "given", "is empty"),
        (head(background=-5.0), None, "nonzero", "no voxel is 0"),
        (np.zeros((5, 5, 5), np.float32), None, "nonzero", "every voxel is 0"),
    ],
)
def test_a_brain_that_cannot_be_found_is_said_so(image: Any, mask: Any, how: str, words: str) -> None:
    with pytest.raises(VolumeError, match=rf"scan\.nii.*{words}"):
        steps.find_brain(image, mask, how, "scan.nii")


def test_noise_is_no_constant_background() -> None:
    assert steps.constant_background(np.random.default_rng(0).random((9, 9, 9)).astype(np.float32)) is None


def test_scaling_is_the_papers_formula() -> None:
    image, brain = head(3), ball()
    scaled = steps.scale_over(image, brain, 2, 98, "x")
    inside = np.sort(image[brain].astype(np.float64))
    place = np.array([0.02, 0.98]) * (inside.size - 1)
    low, high = np.interp(place, np.arange(inside.size), inside)
    np.testing.assert_allclose(scaled, np.clip((image - low) / (high - low), 0, 1), atol=1e-6)
    assert scaled[brain].min() == 0
    assert scaled[brain].max() == 1


@given(st.floats(0.01, 100), st.floats(-1000, 1000))
@settings(max_examples=30)
def test_scaling_does_not_see_the_scanners_gain(gain: float, offset: float) -> None:
    image, brain = head(4), ball()
    other = (image.astype(np.float64) * gain + offset).astype(np.float32)
    expected = steps.scale_over(image, brain, 0, 98, "x")
    # float32 keeps the offset intensities to about 1e-4, which a gain of 0.01 makes visible.
    tolerance = 1e-5 + 3e-7 * (abs(offset) + 150 * gain) / (40 * gain)
    np.testing.assert_allclose(steps.scale_over(other, brain, 0, 98, "x")[brain], expected[brain], atol=tolerance)


def test_a_flat_brain_cannot_be_scaled() -> None:
    with pytest.raises(VolumeError, match=r"scan\.nii: percentiles 0 and 98"):
        steps.scale_over(np.where(ball(), 7, 0).astype(np.float32), ball(), 0, 98, "scan.nii")


@pytest.mark.parametrize(("own", "target"), [(1.0, 2.0), (0.87, 2.0), (1.0, 4.0)])
def test_smoothing_makes_a_voxel_as_wide_as_the_target(own: float, target: float) -> None:
    """An impulse becomes a Gaussian whose variance, with the voxel's own as a Gaussian's, is the target voxel's."""
    impulse = np.zeros((1, 1, 41), np.float32)
    impulse[0, 0, 20] = 1
    spread = steps.smooth_for(impulse, (9.0, 9.0, own), (9.0, 9.0, target))[0, 0].astype(np.float64)
    offsets = (np.arange(41) - 20) * own
    variance = (spread * offsets**2).sum() / spread.sum()
    full_width = 2 * np.sqrt(2 * np.log(2))
    assert spread.sum() == pytest.approx(1, abs=1e-6)
    # The kernel is cut at 3 sigma, which takes some 3 % of the variance.
    assert variance == pytest.approx((target**2 - own**2) / full_width**2, rel=0.05)


def test_a_finer_grid_is_not_smoothed() -> None:
    image = head()
    np.testing.assert_array_equal(steps.smooth_for(image, (2.0, 2.0, 2.0), (2.0, 1.0, 0.5)), image)


def test_raising_the_minimum_and_the_outside() -> None:
    image = np.array([[[-2.0, 0.5, 3.0]]], np.float32)
    np.testing.assert_array_equal(steps.raise_minimum(image, 0), [[[0, 0.5, 3]]])
    np.testing.assert_array_equal(steps.raise_minimum(image, None), image)
    inside = np.array([[[True, False, True]]])
    np.testing.assert_array_equal(steps.outside_to(image, inside, 9), [[[-2, 9, 3]]])


@given(MASKS, MASKS)
@settings(max_examples=30)
def test_dice_is_the_f1_score(a: np.ndarray[Any, np.dtype[np.bool_]], b: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    from sklearn.metrics import f1_score

    if a.any() or b.any():
        assert steps.dice(a, b) == pytest.approx(f1_score(a.ravel(), b.ravel(), zero_division=0.0))


@given(MASKS, st.tuples(*[st.floats(-1, 1)] * 3))
@settings(max_examples=40)
def test_row_ends_hold_the_extremes_in_any_direction(
    mask: np.ndarray[Any, np.dtype[np.bool_]], direction: tuple[float, float, float]
) -> None:
    ends = steps.row_ends(mask)
    assert not (ends & ~mask).any()
    if mask.any():
        far, all_far = (np.argwhere(each) @ direction for each in (ends, mask))
        assert (far.min(), far.max()) == (all_far.min(), all_far.max())


def test_world_points_are_the_affines() -> None:
    affine = np.array([[2.0, 0, 0, -5], [0, 0, 3, 1], [0, -1, 0, 4], [0, 0, 0, 1]])
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 2, 3] = True
    np.testing.assert_allclose(steps.world_points(mask, affine), [affine[:3] @ [1, 2, 3, 1]])
