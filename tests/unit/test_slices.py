"""Slices of a volume and back, against NumPy's indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vesalius.methods.blocks import (
    MapSettings,
    SliceSettings,
    assemble,
    check_plane,
    crop_plane,
    finish_map,
    pad_plane,
    padded_plane,
    score_slices,
    take_all,
    take_slices,
)
from vesalius.platform.contracts import CohortFacts, Volume, grid_positions
from vesalius.platform.errors import VolumeError

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (6, 7, 13)


def facts(grid: tuple[int, int, int] = GRID, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> CohortFacts:
    return CohortFacts(
        subjects=("a", "b"), grid=grid, spacing_mm=spacing, affine=EYE, channels=("T1w", "FLAIR"), digest="x"
    )


def volume(
    grid: tuple[int, int, int] = GRID, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0), channels: int = 2
) -> Volume:
    image = torch.rand((channels, *grid), generator=torch.Generator().manual_seed(3))
    return Volume(subject_id="s", image=image, brain=image[0] > 0.5, spacing_mm=spacing, affine=EYE)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("every", [1, 2, 4, 50])
def test_slices_are_numpys_at_their_physical_place(axis: int, every: int) -> None:
    scan = volume()
    stack = take_slices(scan, facts(), SliceSettings(axis=axis, every=every))
    assert stack.index == tuple(range(0, GRID[axis], every))
    expected = np.moveaxis(np.take(scan.image.numpy(), stack.index, axis=axis + 1), axis + 1, 0)
    np.testing.assert_array_equal(stack.image.numpy(), expected)
    np.testing.assert_array_equal(
        stack.brain.numpy(), np.moveaxis(np.take(scan.brain.numpy(), stack.index, axis=axis), axis, 0)
    )
    places = grid_positions(GRID, scan.spacing_mm, facts().box_mm).movedim(axis, 0)[:, 0, 0, axis]
    torch.testing.assert_close(stack.position[:, 0], places[list(stack.index)])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_all_slices_come_back_as_the_volume(axis: int) -> None:
    scan = volume()
    settings = SliceSettings(axis=axis, every=3, scored="all")
    stack = take_slices(scan, facts(), settings)
    assert len(stack.index) == GRID[axis]
    torch.testing.assert_close(assemble(stack.image, stack.index, GRID, settings), scan.image, rtol=0, atol=0)
    torch.testing.assert_close(assemble(stack.image[:, 0], stack.index, GRID, settings), scan.image[0], rtol=0, atol=0)


def test_every_fourth_slice_stands_for_its_neighbours_and_nothing_for_what_lies_outside() -> None:
    settings = SliceSettings(every=4, first=2 / 13, last=12 / 13)
    scan = volume()
    stack = take_slices(scan, facts(), settings)
    assert stack.index == (2, 6, 10)
    out = assemble(torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 6, 7), stack.index, GRID, settings)
    assert out[0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0]


def test_an_extent_without_a_slice_is_refused() -> None:
    with pytest.raises(VolumeError, match=r"widen slices.first and slices.last"):
        take_slices(volume(), facts(), SliceSettings(first=0.47, last=0.49))


def test_an_extent_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slices end at 0\.2 of the axis, before they begin at 0\.5"):
        SliceSettings(first=0.5, last=0.2)


@pytest.mark.parametrize(
    ("grid", "expected"), [((6, 7, 13), (16, 16)), ((16, 32, 5), (16, 32)), ((17, 1, 5), (32, 16))]
)
def test_padding_a_plane_is_undone_by_cropping(grid: tuple[int, int, int], expected: tuple[int, int]) -> None:
    plane = padded_plane(facts(grid), 2, 16)
    assert plane == expected
    image = volume(grid).image[..., 0]
    padded = pad_plane(image, plane, -1.0)
    assert padded.shape[-2:] == plane
    assert int((padded == -1).sum()) == 2 * (plane[0] * plane[1] - grid[0] * grid[1])
    torch.testing.assert_close(crop_plane(padded, (grid[0], grid[1])), image, rtol=0, atol=0)


def test_slices_of_another_plane_are_refused_by_name() -> None:
    check_plane(volume((6, 7, 20), (1.0, 1.0, 5.0)), facts(), 2)  # another number of slices is no matter
    with pytest.raises(VolumeError, match=r"s: its slices are 6 voxels of 1 mm x 9 voxels of 1 mm but .* 7 voxels"):
        check_plane(volume((6, 9, 13)), facts(), 2)
    with pytest.raises(VolumeError, match=r"voxels of 1\.5 mm"):
        check_plane(volume(spacing=(1.0, 1.5, 2.0)), facts(), 2)


def test_slices_of_all_volumes_go_together_and_come_back_to_their_own() -> None:
    settings = SliceSettings(every=3)
    scans = [volume(), volume((6, 7, 20))]
    stack, each = take_all(scans, facts(), settings, torch.device("cpu"))
    assert [len(own.index) for own in each] == [5, 7]
    assert stack.image.shape == (12, 2, 6, 7)
    assert torch.equal(stack.position, torch.cat([own.position for own in each]))
    scores = score_slices(
        scans,
        each,
        settings,
        MapSettings(min_pool=3, image_score="mean"),
        evidence=stack.image[:, 0],
        restored=stack.image + 1,
        extras={"second": stack.image[:, 1]},
    )
    for scan, own, score in zip(scans, each, scores, strict=True):
        raw = assemble(own.image, own.index, scan.shape, settings)
        assert torch.equal(score.map, finish_map(raw[0], scan.brain, MapSettings(min_pool=3)))
        assert score.image_score == pytest.approx(float(score.map[scan.brain].mean()))
        assert score.restoration is not None
        assert torch.equal(score.restoration, raw + 1)
        assert torch.equal(score.extras["second"], raw[1])


def test_volumes_of_another_make_are_refused_among_others() -> None:
    with pytest.raises(VolumeError, match="the volume has 1 channels"):
        take_all([volume(), volume(channels=1)], facts(), SliceSettings(), torch.device("cpu"))
    with pytest.raises(VolumeError, match="its slices are"):
        take_all([volume(), volume((6, 9, 13))], facts(), SliceSettings(), torch.device("cpu"))
