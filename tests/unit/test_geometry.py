"""Geometry against nibabel, SciPy and closed forms."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nibabel import affines as nibabel_affines
from nibabel.processing import resample_from_to
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from vesalius.platform.errors import DiskSpaceError, VolumeError
from vesalius.platform.geometry import (
    Order,
    as_matrix,
    canonical,
    check_affine,
    grid_affine,
    resample,
    spacing_of,
    to_native,
    write_nifti,
)
from vesalius.platform.store.records import SourceFacts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike

some = settings(max_examples=50)

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def turned(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...] = (1.0, 1.5, 2.5)) -> np.ndarray:
    affine = np.zeros((4, 4))
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * spacing[axis]
    affine[:, 3] = (-7.5, 11.25, 3.0, 1.0)
    return affine


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any orientation, oblique or not, any flip, millimetre spacings of medical images."""
    order, signs = draw(st.sampled_from(ORIENTATIONS))
    spacing = draw(st.tuples(*[st.floats(0.4, 5)] * 3))
    angles = draw(st.tuples(*[st.floats(-40, 40)] * 3) | st.just((0.0, 0.0, 0.0)))
    affine = turned(order, signs, spacing)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


def test_an_affine_comes_back_as_float64() -> None:
    affine = np.diag([2, 3, 4, 1])
    checked = check_affine(affine.tolist(), "a.nii")
    assert checked.dtype == np.float64
    assert np.array_equal(checked, affine)


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.eye(3), "shape"),
        (np.zeros((4, 5)), "shape"),
        ("abc", "not a matrix"),
        ([[1, 2], [3]], "not a matrix"),
        (np.diag([1, np.nan, 1, 1]), "NaN"),
        (np.diag([1, np.inf, 1, 1]), "NaN or infinite"),
        (np.diag([1, 0, 1, 1]), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.diag([1, 1, 1, 2]), "last row"),
        (np.zeros((4, 4)), "last row"),
    ],
)
def test_an_affine_that_cannot_be_used_is_refused_by_name(affine: ArrayLike, reason: str) -> None:
    with pytest.raises(VolumeError, match=reason) as caught:
        check_affine(affine, "sub-01_T1w.nii.gz")
    assert str(caught.value).startswith("sub-01_T1w.nii.gz: its affine") or "of its affine" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_regular_affine_passes_at_any_scale(scale: float) -> None:
    check_affine(np.diag([scale, scale, scale, 1]), "a.nii")


@some
@given(affines())
def test_spacing_is_nibabels(affine: np.ndarray) -> None:
    assert np.allclose(spacing_of(affine), nibabel_affines.voxel_sizes(affine), rtol=1e-12)


def test_matrix_tuples_hold_the_same_numbers() -> None:
    affine = turned((2, 0, 1), (1, -1, 1))
    rows = as_matrix(affine)
    assert np.array_equal(np.array(rows), affine)
    assert {type(value) for row in rows for value in row} == {float}


@some
@given(
    st.tuples(*[st.integers(1, 300)] * 3), st.tuples(*[st.floats(0.1, 10)] * 3), st.tuples(*[st.floats(-100, 100)] * 3)
)
def test_a_grids_outer_faces_lie_evenly_around_its_centre(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], center: tuple[float, float, float]
) -> None:
    affine = grid_affine(shape, spacing, center)
    low = affine @ [-0.5, -0.5, -0.5, 1]
    high = affine @ [*(size - 0.5 for size in shape), 1]
    assert np.allclose((low + high)[:3] / 2, center, atol=1e-9)
    assert np.allclose((high - low)[:3], np.multiply(shape, spacing), atol=1e-9)
    assert nibabel.aff2axcodes(affine) == ("R", "A", "S")


@some
@given(affines(), st.tuples(*[st.integers(1, 5)] * 3))
def test_canonical_is_nibabels(affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found, found_affine = canonical(values, affine)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    assert np.array_equal(found, np.asarray(expected.dataobj))
    assert np.allclose(found_affine, expected.affine, atol=1e-9)
    # Every value keeps its place in the world: for this no orientation code is needed.
    there = nibabel_affines.apply_affine(np.linalg.inv(affine) @ found_affine, np.argwhere(np.ones(found.shape)))
    assert np.allclose(there, np.rint(there), atol=1e-6)
    assert np.array_equal(values[tuple(np.rint(there).astype(int).T)], found.ravel())


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_same_grid_is_copied_bit_for_bit(order: Order) -> None:
    values = np.random.default_rng(0).normal(size=(7, 8, 9)).astype(np.float32)
    affine = turned((1, 2, 0), (1, -1, 1))
    # NIfTI keeps affines as float32: the grid is still the same.
    rounded = affine.astype(np.float32).astype(np.float64) * (1 + 1e-9)
    assert resample(values, affine, (7, 8, 9), rounded, order=order).tobytes() == values.tobytes()


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_turning_and_cropping_by_whole_voxels_copies(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
    affine = turned(axes, signs)
    straight, straight_affine = canonical(values, affine)
    moved = straight_affine @ nibabel_affines.from_matvec(np.eye(3), [1, -2, 3])
    found = resample(values, affine, (6, 8, 4), moved, fill=-9)
    padded = np.pad(straight, 20, constant_values=-9)
    assert np.array_equal(found, padded[21:27, 18:26, 23:27])
    assert np.array_equal(resample(straight, straight_affine, values.shape, affine), values)


def test_grids_that_never_meet_give_the_fill() -> None:
    far = grid_affine((3, 3, 3), (1, 1, 1), (500, 0, 0))
    found = resample(np.ones((4, 4, 4), np.float32), np.eye(4), (3, 3, 3), far, fill=-1)
    assert np.array_equal(found, np.full((3, 3, 3), -1, np.float32))
    slanted = far @ nibabel_affines.from_matvec(Rotation.from_euler("x", 20, degrees=True).as_matrix())
    assert np.array_equal(resample(np.ones((4, 4, 4), np.float32), np.eye(4), (3, 3, 3), slanted, fill=-1), found)


@some
@given(affines(), st.sampled_from([0, 1, 3]), st.integers(0, 1000))
def test_inside_the_source_resampling_is_scipys_and_nibabels(affine: np.ndarray, order: Order, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(9, 10, 11)).astype(np.float32)
    center = (affine @ [4, 4.5, 5, 1])[:3]
    size = min(spacing_of(affine))
    target = grid_affine((4, 5, 6), (0.7 * size,) * 3, tuple(center))
    found = resample(values, affine, (4, 5, 6), target, order=order, fill=7)
    reference = resample_from_to(
        nibabel.Nifti1Image(values, affine), ((4, 5, 6), target), order=order, cval=7, mode="nearest"
    )
    mapping = np.linalg.inv(affine) @ target
    direct = affine_transform(
        values, mapping[:3, :3], mapping[:3, 3], output_shape=(4, 5, 6), order=order, mode="nearest"
    )
    index = np.moveaxis(np.indices((4, 5, 6)), 0, -1)
    place = index @ mapping[:3, :3].T + mapping[:3, 3]
    # Exactly between two voxels the nearest one is a matter of rounding.
    clear = np.abs(place - np.floor(place) - 0.5).min(axis=-1) > 1e-6 if order == 0 else np.ones((4, 5, 6), bool)
    inside = ((place > 0) & (place < np.array(values.shape) - 1)).all(axis=-1) & clear
    assert inside.any()
    assert np.allclose(found[inside], direct[inside], atol=1e-5)
    assert np.allclose(found[inside], np.asarray(reference.dataobj)[inside], atol=1e-4)


@some
@given(affines(), st.tuples(*[st.floats(-2, 2)] * 4), st.sampled_from([1, 3]))
def test_a_linear_field_stays_the_same_field(affine: np.ndarray, field: tuple[float, ...], order: Order) -> None:
    """A field linear in world mm is reproduced by linear interpolation, whatever the grids."""
    world = np.moveaxis(np.indices((14, 15, 16)), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    origin = (affine @ [6.5, 7, 7.5, 1])[:3]
    values = ((world - origin) @ field[:3] + field[3]).astype(np.float32)
    target = grid_affine((5, 5, 5), (0.4 * min(spacing_of(affine)),) * 3, tuple(origin))
    expected = (np.moveaxis(np.indices((5, 5, 5)), 0, -1) @ target[:3, :3].T + target[:3, 3] - origin) @ field[:3]
    # A cubic spline has the same answer away from the border, whose effect falls by 0.27 a voxel.
    tolerance = 1e-4 if order == 1 else 1e-2
    assert np.allclose(
        resample(values, affine, (5, 5, 5), target, order=order),
        expected + field[3],
        atol=tolerance * max(spacing_of(affine)),
    )


@some
@given(st.floats(-0.495, 3.495), st.sampled_from([0, 1]))
def test_a_voxel_reaches_half_a_voxel_beyond_its_centre(place: float, order: Order) -> None:
    values = np.array([5.0, 6.0, 8.0, 1.0], np.float32).reshape(4, 1, 1)
    target = nibabel_affines.from_matvec(np.diag([0.93, 1, 1]), [place, 0, 0])
    found = resample(values, np.eye(4), (1, 1, 1), target, order=order, fill=-1).item()
    if order == 1:
        assert found == pytest.approx(np.interp(place, range(4), values.ravel()), abs=8e-3)
    else:
        assert found in {
            values[int(np.floor(place + 0.5 + shift)), 0, 0] for shift in (-1e-3, 1e-3) if -0.5 < place + shift < 3.5
        }
    beyond = nibabel_affines.from_matvec(np.diag([0.93, 1, 1]), [place + 4.01, 0, 0])
    assert resample(values, np.eye(4), (1, 1, 1), beyond, order=order, fill=-1).item() == -1
    before = nibabel_affines.from_matvec(np.diag([0.93, 1, 1]), [place - 4.01, 0, 0])
    assert resample(values, np.eye(4), (1, 1, 1), before, order=order, fill=-1).item() == -1


@some
@given(affines(), st.integers(0, 100))
def test_outside_means_outside_every_voxel(affine: np.ndarray, seed: int) -> None:
    """For any two grids: a target centre gets the fill exactly where it lies in no source voxel."""
    values = np.ones((5, 6, 4), np.float32)
    random = np.random.default_rng(seed)
    target = grid_affine((8, 7, 9), tuple(random.uniform(0.8, 3, 3)), tuple((affine @ [2, 2.5, 1.5, 1])[:3]))
    found = resample(values, affine, (8, 7, 9), target, fill=-1)
    place = np.moveaxis(np.indices((8, 7, 9)), 0, -1) @ target[:3, :3].T + target[:3, 3] - affine[:3, 3]
    place = place @ np.linalg.inv(affine[:3, :3]).T
    margin = np.minimum(place + 0.5, np.array([5, 6, 4]) - 0.5 - place).min(axis=-1)
    clear = np.abs(margin) > 2e-3
    assert np.array_equal(found[clear] > 0, margin[clear] > 0)
    assert set(np.unique(found)) <= {np.float32(-1), np.float32(1)}


@some
@given(arrays(np.uint16, (5, 4, 6), elements=st.integers(0, 400)), affines())
def test_nearest_neighbour_invents_no_label(labels: np.ndarray, affine: np.ndarray) -> None:
    target = grid_affine((6, 6, 6), (1.3, 0.7, 1.1), tuple((affine @ [2, 1.5, 2.5, 1])[:3]))
    assert set(np.unique(resample(labels, affine, (6, 6, 6), target, order=0))) <= {*np.unique(labels), 0}


def test_to_source_takes_the_target_world_to_the_source_world() -> None:
    values = np.zeros((10, 10, 10), np.float32)
    values[7, 4, 4] = 1
    to_source = nibabel_affines.from_matvec(np.eye(3), [4, 0, 0])
    found = resample(values, np.eye(4), (10, 10, 10), np.eye(4), to_source=to_source)
    assert np.argwhere(found).tolist() == [[3, 4, 4]]


@some
@given(affines(), affines(), st.data())
def test_a_planted_point_comes_home(affine: np.ndarray, other: np.ndarray, data: st.DataObject) -> None:
    """Canonical, registered, resampled, then to_native: the point is at its own voxel, whatever the file's axes."""
    shape = data.draw(st.tuples(*[st.integers(5, 8)] * 3))
    point = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    volume = np.zeros(shape, np.float32)
    volume[point] = 1
    # A rigid registration of any angle: stored world to source world.
    to_source = other.copy()
    to_source[:3, :3] = other[:3, :3] / np.linalg.norm(other[:3, :3], axis=0)
    straight, straight_affine = canonical(volume, affine)
    spacing = min(spacing_of(affine)) / 2
    reach = np.linalg.norm(affine[:3, :3] @ np.array(shape)) + 2 * spacing
    size = int(np.ceil(reach / spacing))
    size = min(size, 96)
    center = np.linalg.inv(to_source) @ affine @ [*(np.array(point, float)), 1]
    grid = (size,) * 3
    stored_affine = grid_affine(grid, (spacing,) * 3, tuple(center[:3] + 0.3 * spacing))
    stored = resample(straight, straight_affine, grid, stored_affine, to_source=to_source)
    source = SourceFacts(files={}, sha256={}, shape=shape, affine=as_matrix(affine), to_source=as_matrix(to_source))
    native = to_native(stored, stored_affine, source)
    assert native.shape == shape
    assert np.unravel_index(native.argmax(), shape) == point
    assert native[point] > 0.4


def test_a_label_map_comes_home_exactly_where_nothing_was_resampled() -> None:
    labels = np.random.default_rng(0).integers(0, 50, (6, 7, 5))
    for axes, signs in ORIENTATIONS:
        affine = turned(axes, signs)
        straight, straight_affine = canonical(labels, affine)
        source = SourceFacts(files={}, sha256={}, shape=labels.shape, affine=as_matrix(affine))
        assert np.array_equal(to_native(straight, straight_affine, source, order=1), labels)


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.bool_, np.uint8, np.int16])
def test_a_nifti_holds_the_values_and_the_affine(tmp_path: Path, name: str, dtype: type[np.generic]) -> None:
    values = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(dtype)
    affine = turned((2, 0, 1), (-1, 1, 1))
    path = tmp_path / "deep" / name
    write_nifti(path, values, affine)
    image = nibabel.load(path)
    assert np.array_equal(np.asarray(image.dataobj), values)
    assert np.allclose(image.affine, affine)
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_a_nifti_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.nii.gz"
    write_nifti(path, np.zeros((2, 2, 2), np.float32), np.eye(4))
    before = path.read_bytes()

    def fail(image: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", fail)
    with pytest.raises(DiskSpaceError, match=r"map\.nii\.gz: the disk or quota is full"):
        write_nifti(path, np.ones((2, 2, 2), np.float32), np.eye(4))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.nii.gz"]


def test_a_real_brain_comes_home_exactly(real_data: Path) -> None:
    path = sorted((real_data / "ds002748").glob("sub-*/anat/*_T1w.nii.gz"))[0]
    image = nibabel.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    assert nibabel.aff2axcodes(image.affine) != ("R", "A", "S")
    straight, straight_affine = canonical(values, check_affine(image.affine, path.name))
    source = SourceFacts(files={}, sha256={}, shape=values.shape, affine=as_matrix(image.affine))
    assert np.array_equal(to_native(straight, straight_affine, source), values)
    # Through a coarser grid around the same head: smooth, hence alike, and on the file's own grid.
    center = (straight_affine @ [*((np.array(straight.shape) - 1) / 2), 1])[:3]
    grid = grid_affine((112, 128, 96), (2.0, 2.0, 2.0), tuple(center))
    back = to_native(resample(straight, straight_affine, (112, 128, 96), grid), grid, source)
    assert back.shape == values.shape
    assert np.corrcoef(back.ravel(), values.ravel())[0, 1] > 0.95
