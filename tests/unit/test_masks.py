"""Masks that are not their image's: strange values, mirror images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vesalius.datasets.layouts.example import example_affine, example_blob, example_head
from vesalius.datasets.masks import check_mask_values, check_not_mirrored
from vesalius.datasets.nifti import RawVolume, read_nifti
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def volume(array: Any, name: str = "mask.nii.gz", affine: Any = None) -> RawVolume:
    return RawVolume(
        array=np.asarray(array, np.float32), affine=example_affine() if affine is None else affine, name=name
    )


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], ()), ([0, 0.999], ()), ([-0.03, 0.4, 1.02], ()), ([0, 4], ()), ([0, 255], ()), ([0, 2035], ()),
        ([0], (1, 2, 4)), ([0, 1, 2, 4], (1, 2, 4)), ([0, 4], (1, 2, 4)), ([0, 255], (1, 255)),
    ],
)  # fmt: skip
def test_values_that_a_mask_may_have(values: Sequence[float], labels: Sequence[int]) -> None:
    check_mask_values(volume(np.resize(values, (4, 4, 4))), labels)


@pytest.mark.parametrize(
    ("values", "labels", "words"),
    [
        ([0, 1, 3], (1, 2, 4), r"holds the value 3: expected 0 and the labels 1, 2, 4: give the data set's own mask"),
        ([0, 1, 4], (1, 2, 3), r"holds the value 4: .* lesion_labels"),
        ([0, 0.5], (1,), r"holds the value 0\.5"),
        ([0, -1], (1, 2, 4), r"holds the value -1"),
        ([-5.3, 0, 2.25, 7], (), r"holds the values -5\.3, 2\.25: expected a mask of whole numbers"),
        ([0, 1, -3], (), "holds the value -3"),
    ],
)
def test_values_that_it_may_not(values: Sequence[float], labels: Sequence[int], words: str) -> None:
    with pytest.raises(VolumeError, match=words) as caught:
        check_mask_values(volume(np.resize(values, (4, 4, 4))), labels)
    assert str(caught.value).startswith("mask.nii.gz ")


def test_an_image_given_for_a_mask_is_found_out() -> None:
    with pytest.raises(VolumeError, match=r"other values: .* is it an image\?"):
        check_mask_values(volume(example_head(0)))


def lopsided(seed: int = 0) -> Any:
    """Return a head that touches neither its own mirror image nor the grid's middle."""
    head = example_head(seed)
    for axis in range(3):
        head = np.roll(head, 1, axis)
    head[head.shape[0] // 2 + 4 :, :8] = 0
    return head


@pytest.mark.parametrize("background", [0.0, -5.25])
@pytest.mark.parametrize(
    ("axis", "words"), [(0, "left to right"), (1, "front to back"), (2, "top to bottom")]
)  # fmt: skip
def test_a_brain_mask_that_is_mirrored(axis: int, words: str, background: float) -> None:
    head = lopsided()
    mask = head > 0
    image = volume(np.where(mask, head, background), "image.nii.gz")
    check_not_mirrored(volume(mask), image, "brain")
    with pytest.raises(VolumeError, match=rf"mask\.nii\.gz looks mirrored {words}: .* image\.nii\.gz"):
        check_not_mirrored(volume(np.flip(mask, axis)), image, "brain")


def test_the_axis_is_the_worlds_and_not_the_arrays() -> None:
    """A mask stored LAS beside an RAS image lies on it; its content mirrored is found all the same."""
    head = lopsided()
    image = volume(head, "image.nii.gz")
    stored = volume(np.flip(head > 0, 0), affine=example_affine(flipped=True))
    check_not_mirrored(stored, image, "brain")
    with pytest.raises(VolumeError, match="left to right"):
        check_not_mirrored(volume(head > 0, affine=example_affine(flipped=True)), image, "brain")


def test_masks_that_are_a_little_off_are_not_called_mirrored() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        head = example_head(seed)
        mask = head > 0
        image = volume(head)
        for change in (mask, np.roll(mask, 1, 0), mask & (rng.random(mask.shape) > 0.1), mask | np.roll(mask, 2, 2)):
            check_not_mirrored(volume(change), image, "brain")


def test_a_lesion_that_is_mirrored_out_of_the_brain() -> None:
    head = example_head(0)
    head[:8] = 0
    lesion = example_blob((15, 13, 10)) > 0
    assert (head[lesion] > 0).all()
    check_not_mirrored(volume(lesion), volume(head), "lesion")
    with pytest.raises(VolumeError, match=r"looks mirrored left to right: 25% of it lie in .* lesion mask"):
        check_not_mirrored(volume(np.flip(lesion, 0)), volume(head), "lesion")


def test_what_cannot_be_seen_is_let_through() -> None:
    """Noise around the head, an empty mask, a lesion that is mirrored within the brain."""
    head = lopsided()
    noise = head + np.random.default_rng(0).normal(0, 1, head.shape)
    check_not_mirrored(volume(np.flip(head > 0, 0)), volume(noise), "brain")
    check_not_mirrored(volume(np.zeros_like(head)), volume(head), "lesion")
    check_not_mirrored(volume(example_blob((14, 13, 10))), volume(example_head(0)), "lesion")
    check_not_mirrored(volume(np.flip(example_blob((14, 13, 10)), 0)), volume(example_head(0)), "lesion")


@pytest.mark.parametrize("name", ["brats_2013_pat0004_1", "brats_2013_pat0005_1", "brats_2013_pat0006_1"])
def test_real_brain_masks_and_their_mirror_images(name: str, real_data: Path) -> None:
    folder = real_data / "brats2015" / name
    image = read_nifti(folder / "T1c_subtrMeanDivStd.nii.gz")
    mask = read_nifti(folder / "brainmask.nii.gz")
    check_not_mirrored(mask, image, "brain")
    check_mask_values(mask)
    mirrored = RawVolume(array=np.ascontiguousarray(mask.array[::-1]), affine=mask.affine, name="mirrored.nii.gz")
    with pytest.raises(VolumeError, match=r"mirrored\.nii\.gz looks mirrored left to right"):
        check_not_mirrored(mirrored, image, "brain")
