"""Brains, heads and structures, against phantoms whose masks are known: skull, scalp and table included."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt

from vesalius.datasets.foreground import CT_STRUCTURES, check_hounsfield, ct_structures, find_brain, find_head
from vesalius.datasets.foreground.coarse import closed, depth_mm, dilated, distance_mm, eroded
from vesalius.datasets.phantom import FindingSettings, PhantomSettings, make_phantom
from vesalius.datasets.steps import dice
from vesalius.platform.errors import VolumeError

SETTINGS = PhantomSettings(
    shape=(64, 77, 73),
    box_mm=(192.0, 231.0, 219.0),
    center_mm=(0, -18, 0),
    modalities=("T1w", "T2w", "FLAIR", "CT"),
    skull_stripped=False,
)


@lru_cache(maxsize=1)
def whole_head() -> Any:
    return make_phantom(1, SETTINGS)


def channel(modality: str) -> Any:
    return whole_head().channel(modality)


@pytest.mark.parametrize(
    ("modality", "least"),
    [
        ("T1w", 0.95),
        ("CT", 0.91),
        pytest.param("FLAIR", 0.95, marks=pytest.mark.long),
        # The fluid around the brain is brighter than the brain: with it, the Dice would be 0.86.
        ("T2w", 0.92),
    ],
)
def test_a_whole_head_is_stripped(modality: str, least: float) -> None:
    subject = whole_head()
    how = "ct" if modality == "CT" else "mr"
    brain, found = find_brain(channel(modality), subject.affine, None, how, "x")
    assert found == how
    assert dice(brain, subject.brain) > least
    # Next to nothing of the brain is lost, and next to nothing of bone and skin is kept.
    deep = eroded(subject.brain, 3.0)
    assert (deep & ~brain).sum() < 0.01 * deep.sum()
    assert (brain & ~subject.head).sum() < 0.001 * brain.sum()


def test_a_stripped_volume_is_left_alone() -> None:
    subject = whole_head()
    for modality, how, background in (("T1w", "mr", 0.0), ("CT", "ct", -1000.0)):
        stripped = np.where(subject.brain, channel(modality), background).astype(np.float32)
        brain, found = find_brain(stripped, subject.affine, None, how, "x")
        assert found == "nonzero"
        assert dice(brain, subject.brain) > 0.999


def test_a_given_mask_goes_first() -> None:
    subject = whole_head()
    given = np.zeros(subject.brain.shape, bool)
    given[20:40, 20:40, 20:40] = True
    brain, found = find_brain(channel("CT"), subject.affine, given, "ct", "x")
    assert found == "given"
    np.testing.assert_array_equal(brain, given)


def test_no_head_is_no_brain() -> None:
    noise = np.random.default_rng(0).normal(-1000, 20, (40, 40, 40)).astype(np.float32)
    with pytest.raises(VolumeError, match=r"scan\.nii: nothing in it is denser than air"):
        find_brain(noise, np.diag([4.0, 4, 4, 1]), None, "ct", "scan.nii")
    small = noise.copy()
    small[18:22, 18:22, 18:22] = 40
    with pytest.raises(VolumeError, match=r"scan\.nii: no piece of it .* give a brain mask"):
        find_brain(small, np.diag([4.0, 4, 4, 1]), None, "ct", "scan.nii")


@pytest.mark.parametrize("modality", SETTINGS.modalities)
def test_the_head_is_found_without_the_table(modality: str) -> None:
    subject = whole_head()
    image = channel(modality).copy()
    if modality == "CT":
        # A curved plate of 4 mm at the back of the head, 10 mm away from it, and a cable beside it.
        behind = int(np.argwhere(subject.head.any(axis=(0, 2))).min())
        image[8:-8, max(behind - 5, 0), 5:-5] = 200
        image[2:4, 20:60, 20:22] = 900
    head = find_head(image, subject.affine, None, "ct" if modality == "CT" else "mr", "x")
    assert head is not None
    assert dice(head, subject.head) > 0.97
    if modality == "CT":
        assert not head[2:4, 20:60, 20:22].any()
        assert not head[8:-8, max(behind - 5, 0), 5:-5].any()


def test_left_is_left_and_the_skull_is_bone() -> None:
    subject = whole_head()
    image, brain = channel("CT"), subject.brain
    labels = ct_structures(image, brain, subject.head, subject.affine)
    x = subject.affine[0, 0] * np.arange(image.shape[0]) + subject.affine[0, 3]
    left, right = labels == CT_STRUCTURES["left_hemisphere"], labels == CT_STRUCTURES["right_hemisphere"]
    assert (np.argwhere(left)[:, 0].max() <= np.flatnonzero(x < 0).max()) & left.any()
    assert (np.argwhere(right)[:, 0].min() >= np.flatnonzero(x >= 0).min()) & right.any()
    np.testing.assert_array_equal(left | right, brain & (labels != CT_STRUCTURES["skull"]))
    # The phantom's own labels know which side is which.
    own = {name: subject.structures == value for name, value in subject.structure_names.items()}
    for side, mask in (("left", left), ("right", right)):
        cortex = own[f"{side}_cerebral_cortex"]
        assert (cortex & mask).sum() > 0.99 * cortex.sum()
    skull = labels == CT_STRUCTURES["skull"]
    assert skull.sum() > 0.8 * (image > 300).sum()
    # Its narrow gaps are filled and nothing else is.
    assert (image[skull] > 300).mean() > 0.99
    # Metal beside the head is no skull, however much of it there is.
    metal = np.where(binary_dilation(subject.head, iterations=2), image, 3000)
    np.testing.assert_array_equal(ct_structures(metal, brain, subject.head, subject.affine), labels)


@pytest.mark.parametrize("edge", [3.0, 2.0])
def test_a_fracture_lies_in_the_skull(edge: float) -> None:
    """The gap holds soft tissue: of bone alone the structure would leave out what is to be found in it."""
    box = (192.0, 231.0, 219.0)
    settings = PhantomSettings(
        shape=tuple(round(length / edge) for length in box), box_mm=box, center_mm=(0, -18, 0), modalities=("CT",),
        skull_stripped=False,
    )  # fmt: skip
    found, all_of_them = 0, 0
    for seed in range(4):
        cracked = make_phantom(seed, settings, finding=FindingSettings(kind="fracture", severity=0.3 * seed))
        labels = ct_structures(cracked.image[0], cracked.brain, cracked.head, np.array(cracked.affine))
        skull, bone = labels == CT_STRUCTURES["skull"], cracked.image[0] > 300
        assert skull.sum() < 1.01 * bone.sum()
        found += int((skull & cracked.lesion).sum())
        all_of_them += int(cracked.lesion.sum())
    assert found > 0.7 * all_of_them


def test_a_skull_is_not_closed_across_thick_slices_nor_eaten_at_the_border() -> None:
    bone = np.ones((9, 9, 9), bool)
    bone[4, :, :] = False  # a gap of one voxel across the first axis
    image = np.where(bone, 1000.0, 0.0).astype(np.float32)
    nothing = np.zeros(bone.shape, bool)
    for edges, filled in (((1, 1, 1), True), ((5, 1, 1), False), ((1, 5, 5), True)):
        labels = ct_structures(image, nothing, None, np.diag([*edges, 1.0]))
        gap = labels[4] == CT_STRUCTURES["skull"]
        assert gap.all() if filled else not gap.any()
        # One of two pieces is left where the gap stays open.
        assert (labels[:4] == CT_STRUCTURES["skull"]).all()
        assert (labels[5:] == CT_STRUCTURES["skull"]).all() == filled


def test_hounsfield_units_are_told_from_others() -> None:
    subject = whole_head()
    check_hounsfield(channel("CT"), "scan.nii", subject.brain)
    with pytest.raises(VolumeError, match=r"scan\.nii does not look like CT.*lowest value"):
        check_hounsfield(channel("T1w"), "scan.nii")
    with pytest.raises(VolumeError, match=r"scan\.nii does not look like CT.*brain's median"):
        check_hounsfield(channel("CT") + 400, "scan.nii", subject.brain)


def test_morphology_in_millimetres() -> None:
    """A ball of 20 mm: eroding and dilating change its radius by as much; closing fills a furrow and keeps the rest."""
    axes = np.meshgrid(*((np.arange(41) - 20) * 2.0 for _ in range(3)), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    ball = radius <= 20
    assert dice(eroded(ball, 6), radius <= 14) > 0.97
    assert dice(dilated(ball, 6), radius <= 26) > 0.97
    furrow = ball & ~((np.abs(axes[0]) < 3) & (axes[1] > 0))
    assert dice(closed(furrow, 6), ball) > 0.98
    whole = np.ones((9, 9, 9), bool)
    assert closed(whole, 6).all()  # what touches the array's edge is not eaten from there


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_distances_are_scipys(share: float) -> None:
    mask = np.random.default_rng(0).random((20, 18, 16)) < share
    np.testing.assert_allclose(distance_mm(mask), distance_transform_edt(~mask, sampling=2.0), atol=1e-5)
    inside = distance_transform_edt(np.pad(mask, 1), sampling=2.0)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(depth_mm(mask), inside, atol=1e-5)
    assert not dilated(np.zeros_like(mask), 4).any()
    assert dilated(np.ones_like(mask), 4).all()
