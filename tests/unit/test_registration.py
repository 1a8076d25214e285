"""Registration to MNI152: a known transform is found again, with the same bits, and real heads land on the template."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.prepare import prepare
from vesalius.datasets.recipes import mni_affine
from vesalius.datasets.registration import GOOD_DICE, Target, mni152_target, register, register_affine
from vesalius.datasets.steps import brain_nonzero, world_points
from vesalius.datasets.template import mni152
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import canonical, grid_affine, resample


def known_transform(degrees: tuple[float, float, float], scale: float, shift: tuple[float, float, float]) -> Any:
    """Return a (4, 4) MNI -> source transform: turned about three axes, scaled unequally, sheared and shifted."""
    x, y, z = np.deg2rad(degrees)
    turn_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turn_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    turn_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    stretch = np.array([[0.95, 0.04, 0], [0, 1.0, 0], [0, 0.03, 1.06]]) * scale
    matrix = np.eye(4)
    matrix[:3, :3] = turn_x @ turn_y @ turn_z @ stretch
    matrix[:3, 3] = shift
    return matrix


def moved_template(to_source: Any, *, inverted: bool) -> tuple[Any, Any, Any]:
    """Return the template as another scanner might see it: moved, at 2 mm, and in another contrast."""
    template = mni152()
    shape, spacing = (100, 116, 100), (2.0, 2.0, 2.0)
    center = tuple((to_source @ [0.0, -17.0, 5.0, 1.0])[:3])
    grid = grid_affine(shape, spacing, center)
    back = np.linalg.inv(to_source)
    image = resample(template.image, template.affine, shape, grid, to_source=back)
    brain = resample(template.brain.astype(np.float32), template.affine, shape, grid, to_source=back, order=0) > 0.5
    if inverted:
        # As T2 to T1: bright where it was dark, and not linearly so.
        image = np.where(brain, (260.0 - image) ** 1.3, 0).astype(np.float32)
    return np.where(brain, image, 0).astype(np.float32), grid, brain


CASES = {
    "nodding low": (known_transform((14, -6, 5), 0.88, (12.0, 45.0, -38.0)), False),
    "looking up, another contrast": (known_transform((-16, 5, -8), 1.05, (-30.0, 5.0, 60.0)), True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_known_transform_is_found_again(case: str) -> None:
    truth, inverted = CASES[case]
    found = register_affine(*moved_template(truth, inverted=inverted), name="x")
    template = mni152()
    points = world_points(template.brain, template.affine)[::500]
    apart = (points @ (found.to_source - truth)[:3, :3].T) + (found.to_source - truth)[:3, 3]
    # Registered at 3 mm: a third of a voxel on average, and nowhere in the brain a whole one.
    assert np.linalg.norm(apart, axis=1).mean() < 1.0
    assert np.linalg.norm(apart, axis=1).max() < 3.0
    assert found.dice > 0.97
    if not inverted:
        again = register_affine(*moved_template(truth, inverted=inverted), name="x")
        np.testing.assert_array_equal(again.to_source, found.to_source)
        assert (again.mutual_information, again.dice) == (found.mutual_information, found.dice)


def rigid_transform(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> Any:
    """Return a (4, 4) MNI -> source transform: turned about three axes and shifted, lengths kept."""
    matrix = known_transform(degrees, 1.0, shift)
    left, _, right = np.linalg.svd(matrix[:3, :3])
    matrix[:3, :3] = left @ right
    return matrix


def distances_mm(found: Any, truth: Any) -> Any:
    """Return how far apart two transforms take points all over the template's brain."""
    template = mni152()
    points = world_points(template.brain, template.affine)[::500]
    return np.linalg.norm(points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3], axis=1)


def test_a_known_rigid_transform_is_found_again_and_keeps_lengths() -> None:
    truth = rigid_transform((11, -5, 7), (8.0, -20.0, 31.0))
    found = register(*moved_template(truth, inverted=True), "x", mni152_target(), "rigid")
    np.testing.assert_allclose(found.to_source[:3, :3] @ found.to_source[:3, :3].T, np.eye(3), atol=1e-6)
    assert distances_mm(found.to_source, truth).mean() < 1.0
    assert distances_mm(found.to_source, truth).max() < 3.0
    assert found.dice > 0.97
    assert 0.97 < found.share <= 1


def template_as_ct(seed: int) -> Any:
    """Return the template as CT would show it: HU from nilearn's own maps of grey and white matter, with noise."""
    spec = importlib.util.find_spec("nilearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets/data"
    shares = [
        read_nifti(folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz").array for tissue in ("gm", "wm")
    ]
    grey, white = (np.clip(share / max(1.0, float(share.max())), 0, 1) for share in shares)
    hounsfield = 8 + 30 * grey + 21 * white
    return (hounsfield + np.random.default_rng(seed).normal(0, 4, hounsfield.shape)).astype(np.float32)


@pytest.mark.parametrize("kind", ["rigid", pytest.param("affine", marks=pytest.mark.long)])
def test_a_ct_brain_is_matched_to_the_t1_template(kind: Any) -> None:
    """CT against T1: intensities rise and fall in another order (grey above white), and noise is half the contrast."""
    rigid = rigid_transform((-18, 4, -6), (-12.0, 30.0, 15.0))
    truth = rigid if kind == "rigid" else known_transform((-18, 4, -6), 0.94, (-12.0, 30.0, 15.0))
    template = mni152()
    shape, back = (100, 116, 50), np.linalg.inv(truth)
    center = tuple((truth @ [0.0, -17.0, 5.0, 1.0])[:3])
    grid = grid_affine(shape, (2.0, 2.0, 4.0), center)  # slices of 4 mm, as CT has them
    image = resample(template_as_ct(0), template.affine, shape, grid, to_source=back)
    brain = resample(template.brain.astype(np.float32), template.affine, shape, grid, to_source=back, order=0) > 0.5
    found = register(np.where(brain, image, -1000).astype(np.float32), grid, brain, "x", mni152_target(), kind)
    apart = distances_mm(found.to_source, truth)
    assert apart.mean() < 1.5
    assert apart.max() < 4.0
    assert np.linalg.det(found.to_source[:3, :3]) > 0


@pytest.mark.long
def test_a_head_is_matched_by_its_upper_part() -> None:
    """Two scans of one head, one of them with a long neck: the transform is the same as without."""
    template = mni152()
    grid = grid_affine((50, 60, 70), (4.0, 4.0, 4.0), (0.0, -17.0, -20.0))
    image = resample(template.image, template.affine, (50, 60, 70), grid)
    mask = resample(template.brain.astype(np.float32), template.affine, (50, 60, 70), grid) > 0.5
    neck = np.zeros_like(mask)
    neck[18:32, 22:38, 2:25] = True
    long = np.where(neck & ~mask, 90, image).astype(np.float32)
    truth = rigid_transform((9, 3, -4), (5.0, -8.0, 12.0))
    target = Target(image, grid, mask, "head", "head")
    found = register(long, truth @ grid, mask | neck, "x", target, "rigid")
    assert distances_mm(found.to_source, truth).mean() < 1.5


def test_what_is_no_brain_is_refused_by_name() -> None:
    image = np.zeros((60, 60, 60), np.float32)
    image[5:55, 29:31, 29:31] = np.random.default_rng(0).random((50, 2, 2)) + 1
    with pytest.raises(VolumeError, match=r"^stick\.nii cannot be registered to MNI152") as caught:
        register_affine(image, np.diag([4.0, 4.0, 4.0, 1.0]), image > 0, "stick.nii")
    assert "\n" not in str(caught.value)


def real_scan(real_data: Path, subject: str) -> Path:
    return real_data / f"ds002748/{subject}/anat/{subject}_T1w.nii.gz"


@pytest.mark.parametrize(
    "subject",
    ["sub-60", pytest.param("sub-12", marks=pytest.mark.long), pytest.param("sub-17", marks=pytest.mark.long)],
)
def test_real_heads_of_any_height_land_on_the_template(real_data: Path, subject: str) -> None:
    """sub-60 sits high in the scanner, sub-12 and sub-17 low: brain and tissue must meet the template's."""
    volume = read_nifti(real_scan(real_data, subject))
    image, affine = canonical(volume.array, volume.affine)
    found = register_affine(image, affine, brain_nonzero(image, subject), subject)
    assert found.dice > GOOD_DICE
    template = mni152()
    placed = resample(image, affine, template.brain.shape, template.affine, to_source=found.to_source)
    core = tuple(slice(20, size - 20) for size in placed.shape)

    def agreement(shift: tuple[int, int, int]) -> float:
        moved = np.roll(placed, shift, axis=(0, 1, 2))
        return float(np.corrcoef(moved[core].ravel(), template.image[core].ravel())[0, 1])

    # The optimiser never saw this figure: linear correlation, which any step of 3 mm must make worse.
    steps_mm = [tuple(int(step) for step in sign * row) for row in 3 * np.eye(3, dtype=int) for sign in (-1, 1)]
    assert all(agreement((0, 0, 0)) > agreement((i, j, k)) for i, j, k in steps_mm)


def test_a_registered_point_comes_back_to_its_voxel(real_data: Path) -> None:
    """The stored voxel of a source voxel, taken back by ``to_source``, is that voxel: on a real, oblique LAS scan."""
    path = real_scan(real_data, "sub-60")
    raw = RawSubject(subject_id="sub-60", images={"T1w": str(path)})
    record, arrays = prepare(raw, mni_affine(4.0), ["T1w"])
    assert record.source is not None
    to_source, affine = np.array(record.source.to_source), np.array(record.affine)
    source_affine = np.array(record.source.affine)
    stored_to_source = np.linalg.inv(source_affine) @ to_source @ affine
    original = read_nifti(path).array
    inside = np.argwhere(arrays.brain)[::97]
    index = np.rint(inside @ stored_to_source[:3, :3].T + stored_to_source[:3, 3]).astype(int)
    # Where the store says brain, the file has brain at the place to_source names.
    assert (original[tuple(index.T)] > 0).mean() > 0.99
