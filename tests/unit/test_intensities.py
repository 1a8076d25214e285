"""Windows, equalised histograms, curvature flow and N4, against closed forms and a field that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vesalius.datasets import intensities
from vesalius.datasets.phantom import PhantomSettings, make_phantom
from vesalius.platform.errors import VolumeError


def distance(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Any:
    """Return the distance in mm from the grid's centre."""
    axes = [(np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing, strict=True)]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def test_a_window_is_the_papers() -> None:
    """Section 2, steps 6 and 7 of Simarro Viana et al.: [-20, 100] HU to [-1, 1]."""
    hounsfield = np.array([[[-1000, -20, 10, 40, 70, 100, 3000]]], np.float32)
    scaled = intensities.to_range(intensities.window(hounsfield, (-20, 100)), (-1, 1))
    np.testing.assert_allclose(scaled, [[[-1, -1, -0.5, 0, 0.5, 1, 1]]], atol=1e-6)


@pytest.mark.parametrize("shape", ["normal", "exponential", "two tissues"])
def test_an_equalised_histogram_is_flat(shape: str) -> None:
    random = np.random.default_rng(0)
    values = {
        "normal": random.normal(30, 8, 60_000),
        "exponential": random.exponential(200, 60_000) - 1000,
        "two tissues": np.concatenate([random.normal(30, 3, 40_000), random.normal(900, 50, 20_000)]),
    }[shape]
    image = values.astype(np.float32).reshape(30, 40, 50)
    inside = np.ones(image.shape, bool)
    equalised = intensities.equalise(image, inside, 4096, "x")
    # The probability integral transform: intensities become their own rank, whatever they were.
    rank = np.argsort(np.argsort(image.ravel())) / image.size
    np.testing.assert_allclose(equalised.ravel(), rank, atol=0.02)
    counts, _ = np.histogram(equalised, bins=10, range=(0, 1))
    assert np.abs(counts / image.size - 0.1).max() < 0.03


def test_an_equalised_histogram_is_taken_inside_and_applied_everywhere() -> None:
    image = np.linspace(-10, 10, 4001, dtype=np.float32).reshape(1, 1, -1)
    inside = (image >= 0) & (image <= 8)
    equalised = intensities.equalise(image, inside, 512, "x")
    np.testing.assert_allclose(equalised[inside], image[inside] / 8, atol=2e-3)
    assert equalised[image < 0].max() == 0
    assert equalised[image > 8].min() == 1
    assert (np.diff(equalised.ravel()) >= 0).all()


def test_one_intensity_cannot_be_equalised() -> None:
    with pytest.raises(VolumeError, match=r"scan\.nii.*one intensity"):
        intensities.equalise(np.ones((3, 3, 3), np.float32), np.ones((3, 3, 3), bool), 16, "scan.nii")


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 0.8, 1.25)])
def test_curvature_flow_shrinks_spheres_as_theory_says(spacing: tuple[float, float, float]) -> None:
    """A sphere's two principal curvatures are 1 / r each: r(t)^2 = r(0)^2 - 4 t, so |x| becomes sqrt(|x|^2 + 4 t)."""
    radius = distance((41, 45, 39), spacing)
    flowed = intensities.curvature_flow(radius.astype(np.float32), spacing, 0.05, 20)
    expected = np.sqrt(radius**2 + 4 * 0.05 * 20)
    ring = (radius > 6) & (radius < 12)
    change = (flowed - radius)[ring] / (expected - radius)[ring]
    assert np.abs(change - 1).max() < 0.1
    assert abs(change.mean() - 1) < 0.02


def test_curvature_flow_keeps_an_edge_that_a_gaussian_blurs() -> None:
    random = np.random.default_rng(0)
    truth = np.where(np.arange(40)[:, None, None] < 20, 0.3, 0.7) * np.ones((40, 30, 30))
    noisy = (truth + random.normal(0, 0.05, truth.shape)).astype(np.float32)
    flowed = intensities.curvature_flow(noisy, (1, 1, 1), 0.0625, 10)
    blurred = intensities.smoothed(noisy, (1, 1, 1), 1.0)
    assert (flowed - truth)[5:-5, 5:-5, 5:-5].std() < 0.6 * (noisy - truth)[5:-5, 5:-5, 5:-5].std()
    assert np.abs(flowed - truth)[19:21].mean() < 0.5 * np.abs(blurred - truth)[19:21].mean()


def test_a_slab_with_a_margin_flows_as_the_whole() -> None:
    image = np.random.default_rng(0).random((20, 18, 40)).astype(np.float32)
    whole = intensities.curvature_flow(image, (1, 1, 1), 0.05, 5)
    slab = intensities.curvature_flow(np.ascontiguousarray(image[:, :, 10:30]), (1, 1, 1), 0.05, 5)
    np.testing.assert_array_equal(slab[:, :, 5:-5], whole[:, :, 15:25])
    assert not np.array_equal(slab, whole[:, :, 10:30])


def test_n4_finds_the_field_that_was_put_in() -> None:
    flat = PhantomSettings(shape=(48, 56, 48))
    subject = make_phantom(3, flat)
    image, brain = subject.image[0], subject.brain
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in image.shape), indexing="ij")
    field = 0.25 * x - 0.2 * y * z + 0.2 * np.cos(2 * z)
    spacing = flat.spacing_mm

    def found(seen: Any) -> Any:
        corrected = intensities.without_bias(seen, brain, spacing, 2, (40, 40, 30), "x")
        return np.log(seen[brain] / corrected[brain])

    # The phantom has a field of its own, which N4 finds too: what was added is the difference.
    added = found((image * np.exp(field)).astype(np.float32)) - found(image)
    truth = field[brain] - field[brain].mean()
    assert np.corrcoef(added, truth)[0, 1] > 0.93
    assert np.std(added - truth - (added - truth).mean()) < 0.4 * np.std(truth)


def test_n4_wants_something_positive() -> None:
    image = np.full((8, 8, 8), -1, np.float32)
    with pytest.raises(VolumeError, match=r"scan\.nii.*nothing in it is positive"):
        intensities.without_bias(image, np.ones(image.shape, bool), (1, 1, 1), 1, (5,), "scan.nii")
