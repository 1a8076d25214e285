from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from scipy import ndimage

from vesalius.methods.blocks import (
    MapSettings,
    average_pool,
    check_channels,
    erode,
    finish_map,
    image_score,
    median_pool,
    min_pool,
)
from vesalius.platform.config import override
from vesalius.platform.contracts import CohortFacts, Volume
from vesalius.platform.errors import SettingError, VolumeError

SHAPES = [(9, 12, 7), (3, 20, 4), (1, 5, 6)]
EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def random_map(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3, 5, 15])
def test_min_pool_is_scipys_minimum_with_nothing_outside(shape: tuple[int, ...], size: int) -> None:
    values = random_map(shape)
    expected = ndimage.minimum_filter(values.numpy(), size=size, mode="constant", cval=np.inf)
    np.testing.assert_array_equal(min_pool(values, size).numpy(), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3, 15])
def test_average_pool_divides_by_the_voxels_inside(shape: tuple[int, ...], size: int) -> None:
    values = random_map(shape).double()
    total = ndimage.uniform_filter(values.numpy(), size=size, mode="constant", cval=0.0)
    inside = ndimage.uniform_filter(np.ones(shape), size=size, mode="constant", cval=0.0)
    np.testing.assert_allclose(average_pool(values, size).numpy(), total / inside, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("memory", [1, 2**25])
def test_median_pool_is_the_median_of_the_voxels_inside(
    shape: tuple[int, ...], size: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vesalius.methods.blocks.maps._WINDOW_VALUES", memory)  # one plane a slab, and all in one
    values = random_map(shape)

    def lower_median(window: np.ndarray) -> float:
        known = np.sort(window[np.isfinite(window)])
        return float(known[(len(known) - 1) // 2])

    expected = ndimage.generic_filter(values.numpy(), lower_median, size=size, mode="constant", cval=np.inf)
    np.testing.assert_array_equal(median_pool(values, size).numpy(), expected)


def test_median_is_scipys_away_from_the_border() -> None:
    values = random_map((9, 10, 11))
    inner = (slice(2, -2),) * 3
    expected = ndimage.median_filter(values.numpy(), size=5)[inner]
    np.testing.assert_array_equal(median_pool(values, 5).numpy()[inner], expected)


def test_median_is_let_through_where_only_deterministic_operations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA PyTorch refuses a median along a dimension for its indices; what stands in for CUDA here does so too."""
    values, nanmedian = random_map((5, 6, 7)), torch.nanmedian
    expected = median_pool(values, 3)

    def as_on_cuda(windows: torch.Tensor, dim: int) -> object:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("median CUDA with indices output does not have a deterministic implementation")
        return nanmedian(windows, dim=dim)

    monkeypatch.setattr("torch.nanmedian", as_on_cuda)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.equal(median_pool(values, 3), expected)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("voxels", [0, 1, 2])
def test_erosion_is_scipys_and_a_cut_brain_loses_nothing_at_the_cut(voxels: int) -> None:
    brain = random_map((12, 13, 14)) > 0.4
    expected = brain.numpy()
    if voxels:
        expected = ndimage.binary_erosion(expected, iterations=voxels, border_value=1)
    np.testing.assert_array_equal(erode(brain, voxels).numpy(), expected)
    assert bool(erode(torch.ones(4, 4, 4), 3).all())


def test_the_median_sees_the_whole_map_and_the_eroded_brain_keeps_it() -> None:
    brain = torch.zeros(9, 9, 9, dtype=torch.bool)
    brain[2:7, 2:7, 2:7] = True
    values = torch.ones(9, 9, 9)
    settings = MapSettings(median_pool=3, erosion=1, voxels="brain")
    finished = finish_map(values, brain, settings)
    assert torch.equal(finished > 0, erode(brain, 1))
    assert float(finished.max()) == 1.0


def test_an_erosion_without_effect_is_refused() -> None:
    with pytest.raises(SettingError, match="erosion has no effect"):
        override(MapSettings(), {"erosion": 1})


def test_pooling_treats_channels_alone() -> None:
    values = random_map((2, 6, 7, 8))
    for pool in (min_pool, average_pool):
        together = pool(values, 3)
        assert together.shape == values.shape
        for channel in range(2):
            torch.testing.assert_close(together[channel], pool(values[channel], 3), rtol=0, atol=0)


def test_minimum_comes_before_average() -> None:
    values = torch.zeros(11, 11, 11)
    values[5, 5, 5] = 1.0  # one bright voxel is noise: the minimum removes it, whatever the average would do
    brain = torch.ones(11, 11, 11, dtype=torch.bool)
    assert finish_map(values, brain, MapSettings(min_pool=3, average_pool=3)).max() == 0
    assert finish_map(values, brain, MapSettings(average_pool=3)).max() == pytest.approx(1 / 27)


def test_restricted_map_knows_nothing_of_the_outside() -> None:
    brain = torch.zeros(10, 10, 10, dtype=torch.bool)
    brain[2:8, 2:8, 2:8] = True
    values = random_map((10, 10, 10))
    settings = MapSettings(average_pool=3, voxels="brain")
    finished = finish_map(values, brain, settings)
    assert not finished[~brain].any()
    # What stands outside the brain cannot be read off the map inside it.
    torch.testing.assert_close(finish_map(values + 100 * ~brain, brain, settings), finished)
    assert finish_map(values, brain, MapSettings(average_pool=3))[~brain].all()


def blob(shape: tuple[int, ...], seed: int = 3) -> torch.Tensor:
    """A ragged mask with holes, a voxel that stands alone, and corners that touch the volume's border."""
    brain = random_map(shape, seed) > 1.5
    brain[-1, -1, -1] = True
    brain[-1, -1, :-1] = False
    return brain


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [(1, 1), (3, 1), (1, 3), (3, 5), (5, 15)])
def test_map_inside_the_brain_is_pooled_over_brain_voxels_alone(shape: tuple[int, ...], sizes: tuple[int, int]) -> None:
    values, brain = random_map(shape) + 1, blob(shape)
    settings = MapSettings(min_pool=sizes[0], average_pool=sizes[1], voxels="brain", outside="left_out")
    mask = brain.numpy()
    least = ndimage.minimum_filter(np.where(mask, values.numpy(), np.inf), sizes[0], mode="constant", cval=np.inf)
    window = np.ones((sizes[1],) * 3)
    total = ndimage.convolve(np.where(mask, least, 0.0).astype(float), window, mode="constant")
    count = np.rint(ndimage.convolve(mask.astype(float), window, mode="constant"))
    expected = np.where(mask, total / np.maximum(count, 1), 0.0)
    finished = finish_map(values, brain, settings).numpy()
    np.testing.assert_allclose(finished, expected, rtol=1e-5)
    assert (finished[mask] >= 1).all()  # no voxel of the brain is erased or dimmed by what lies outside


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (3, 5)])
def test_by_default_what_lies_outside_the_brain_counts_as_zero(sizes: tuple[int, int]) -> None:
    values, brain = random_map((9, 8, 7)) + 1, blob((9, 8, 7))
    mask = brain.numpy()
    least = ndimage.minimum_filter(np.where(mask, values.numpy(), 0.0), sizes[0], mode="constant", cval=np.inf)
    window = np.ones((sizes[1],) * 3)
    count = ndimage.convolve(np.ones(mask.shape), window, mode="constant")
    expected = np.where(mask, ndimage.convolve(least, window, mode="constant") / count, 0.0)
    settings = MapSettings(min_pool=sizes[0], average_pool=sizes[1], voxels="brain")
    np.testing.assert_allclose(finish_map(values, brain, settings).numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("outside", ["zero", "left_out"])
def test_an_empty_brain_leaves_a_map_of_zeros(outside: Literal["zero", "left_out"]) -> None:
    values = random_map((6, 7, 8))
    settings = MapSettings(min_pool=3, average_pool=3, voxels="brain", outside=outside)
    assert torch.equal(finish_map(values, torch.zeros(6, 7, 8, dtype=torch.bool), settings), torch.zeros(6, 7, 8))


def test_image_score_is_taken_inside_the_brain() -> None:
    brain = torch.zeros(10, 10, 10, dtype=torch.bool)
    brain[:, :, :5] = True
    values = random_map((10, 10, 10))
    inside = np.sort(values[brain].numpy())
    values[~brain] = 1000
    assert image_score(values, brain, MapSettings(image_score="max")) == pytest.approx(inside[-1])
    assert image_score(values, brain, MapSettings(image_score="mean")) == pytest.approx(inside.mean())
    top = MapSettings(image_score="top_mean", top_fraction=0.1)
    assert image_score(values, brain, top) == pytest.approx(inside[-50:].mean())
    assert image_score(values, torch.zeros_like(brain), MapSettings(image_score="max")) == 1000


def test_even_windows_are_refused() -> None:
    with pytest.raises(SettingError, match="average_pool: expected an odd number of voxels"):
        override(MapSettings(), {"average_pool": "4"})


def test_other_channels_are_refused_by_name() -> None:
    cohort = CohortFacts(
        subjects=("a",), grid=(4, 4, 4), spacing_mm=(1, 1, 1), affine=EYE, channels=("T1w",), digest="0"
    )
    volume = Volume(
        subject_id="sub-7",
        image=torch.zeros(2, 4, 4, 4),
        brain=torch.ones(4, 4, 4, dtype=torch.bool),
        spacing_mm=(1, 1, 1),
        affine=EYE,
    )
    with pytest.raises(VolumeError, match=r"sub-7: the volume has 2 channels .* 1 \(T1w\)"):
        check_channels(volume, cohort)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [(3, 7, 7), (1, 1, 5), (5, 3, 1)])
def test_a_box_averages_along_each_axis_as_far_as_it_says(shape: tuple[int, ...], box: tuple[int, int, int]) -> None:
    values, brain = random_map(shape) + 1, blob(shape)
    window = np.ones(box)
    count = ndimage.convolve(np.ones(shape), window, mode="constant")
    expected = ndimage.convolve(values.numpy(), window, mode="constant") / count
    np.testing.assert_allclose(average_pool(values, box).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(finish_map(values, brain, MapSettings(average_pool=9), box).numpy(), expected, rtol=1e-5)
    inside = np.rint(ndimage.convolve(brain.numpy().astype(float), window, mode="constant"))
    total = ndimage.convolve(np.where(brain, values.numpy(), 0), window, mode="constant")
    expected = np.where(brain, total / np.maximum(inside, 1), 0)
    np.testing.assert_allclose(average_pool(values, box, brain).numpy(), expected, rtol=1e-5)
