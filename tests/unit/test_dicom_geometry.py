"""DICOM geometry: against SimpleITK, against closed forms, and on a real head."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vesalius.datasets.dicom import find_series, read_series
from vesalius.datasets.dicom.gaps import missing_slices
from vesalius.datasets.dicom.writing import SeriesPlan, write_series
from vesalius.platform.geometry import canonical

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
OBLIQUE = tuple(
    tuple(float(part) for part in row)
    for row in (np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0] * [1, 1, 1]).T
)


def plan_of(axes: Any, places: Any, **changes: Any) -> SeriesPlan:
    row, column, table = axes
    if np.dot(np.cross(row, column), table) < 0 and axes is OBLIQUE:
        table = tuple(-part for part in table)
    given = {"size": (14, 11), "pixel_mm": (4.0, 5.0), "center_mm": (6.0, -9.0, 3.0), **changes}
    return SeriesPlan(places_mm=tuple(places), row=row, column=column, table=table, **given)


def ramp(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear in world mm, different along every axis: what interpolation must reproduce exactly."""
    return np.asarray(0.7 * points[..., 0] - 0.31 * points[..., 1] + 1.13 * points[..., 2] + 5.0)


def waves(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth, with second derivatives of at most 60 / 20**2 along any direction."""
    return np.asarray(20.0 * (np.sin(points / 20.0) * [1, 0.8, 0.9]).sum(axis=-1))


def world(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def with_itk(files: list[Path]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32), LPS @ affine


@pytest.mark.parametrize("backwards", [False, True], ids=["rising", "falling"])
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["axial", "sagittal", "coronal", "oblique"])
def test_a_regular_series_lies_where_simpleitk_has_it(tmp_path: Path, axes: Any, backwards: bool) -> None:
    places = np.arange(-15.0, 16.0, 2.5)
    files = write_series(tmp_path, plan_of(axes, places[::-1] if backwards else places, intercept=-1000.0), waves)
    volume = read_series(files)
    expected, affine = with_itk(files)
    mine, my_affine = canonical(volume.array, volume.affine)
    theirs, their_affine = canonical(expected, affine)
    np.testing.assert_allclose(my_affine, their_affine, atol=1e-3)
    np.testing.assert_array_equal(mine, theirs)
    assert not any("were resampled" in text or "were moved" in text for text in volume.warnings)
    assert volume.notes["dicom"]["resampled"] == []


@pytest.mark.parametrize("backwards", [False, True], ids=["rising", "falling"])
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["axial", "sagittal", "coronal", "oblique"])
@pytest.mark.parametrize("degrees", [0.0, 18.5, -22.0])
def test_tilted_and_uneven_slices_keep_a_ramp_exactly(
    tmp_path: Path, axes: Any, backwards: bool, degrees: float
) -> None:
    """Every voxel that slices cover equals the function at its own place in the world, in millimetres."""
    places = [*np.arange(-30.0, -5, 4.0), *np.arange(-6.9, 30, 7.0)]
    thickness = [4.0] * 7 + [7.0] * 6
    if backwards:
        places, thickness = places[::-1], thickness[::-1]
    plan = plan_of(axes, places, thickness_mm=thickness, slope=0.01, intercept=0.0).tilted(degrees)
    files = write_series(tmp_path, plan, ramp)
    random.Random(1).shuffle(files)
    volume = read_series(files)
    expected = ramp(world(volume.affine, volume.shape))
    # Rows that every slice reaches, however far it was moved.
    extra = volume.shape[1] - plan.size[1]
    inside = slice(extra, plan.size[1])
    assert (extra > 3) == (degrees != 0)
    apart = np.abs(volume.array - expected)[:, inside]
    assert apart.size > 1000
    assert apart.max() < 0.011  # half a stored step, twice
    assert ["the gantry was tilted" in text for text in volume.warnings].count(True) == (degrees != 0)
    assert sum(f"resampled linearly to {volume.shape[2]} planes" in text for text in volume.warnings) == 1
    assert any("lowest value" in text for text in volume.warnings)  # a ramp has no air in it, and that is said
    # Right angles, equal steps, the source's pixels.
    steps = volume.affine[:3, :3]
    gram = steps.T @ steps
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(np.diag(gram))[:2], plan.pixel_mm)


def test_curvature_is_kept_to_interpolation_accuracy(tmp_path: Path) -> None:
    places = [*np.arange(-40.0, -5, 4.0), *np.arange(-7.0, 40, 7.0)]
    plan = plan_of(AXIAL, places, thickness_mm=[4.0] * 9 + [7.0] * 7, size=(40, 44), pixel_mm=(2.0, 2.0), slope=0.01)
    plan = SeriesPlan(**{**vars(plan), "intercept": 0.0}).tilted(15.0)
    volume = read_series(write_series(tmp_path, plan, waves))
    extra = volume.shape[1] - plan.size[1]
    apart = np.abs(volume.array - waves(world(volume.affine, volume.shape)))[:, extra : plan.size[1]]
    # Linear interpolation errs by h^2 / 8 times the second derivative, along the normal and along a column.
    bound = 20.0 / 20.0**2 * (7.0**2 + 2.0**2) / 8 * 2 + 0.01
    assert apart.max() < bound
    assert np.sqrt((apart**2).mean()) < 0.3


def test_an_ellipsoid_stays_one(tmp_path: Path) -> None:
    """Off centre in every direction: a flip, a shift or a shear that is left would show at its edge."""
    center, radii = np.array([12.0, -8.0, 9.0]), np.array([22.0, 30.0, 26.0])

    def depth(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt((((points - center) / radii) ** 2).sum(axis=-1)))

    places = [*np.arange(-48.0, -11, 4.0), *np.arange(-10.9, 50, 7.0)]
    plan = plan_of(AXIAL, places, thickness_mm=[4.0] * 10 + [7.0] * 9, size=(60, 70), pixel_mm=(2.0, 2.0))
    plan = SeriesPlan(**{**vars(plan), "center_mm": (0.0, 0.0, 0.0)}).tilted(20.0)
    volume = read_series(write_series(tmp_path, plan, lambda points: np.where(depth(points) < 1, 40.0, -1000.0)))
    where = depth(world(volume.affine, volume.shape))
    margin = 7.0 / radii.min()
    assert (volume.array[where < 1 - margin] == 40).all()
    outside = volume.array[where > 1 + margin]
    assert set(np.unique(outside)) <= {-1024.0, *np.unique(outside[(outside > -1024) & (outside <= -1000)])}
    mass = np.clip(volume.array + 1000, 0, None)
    points = world(volume.affine, volume.shape)
    found = (mass[..., None] * points).sum(axis=(0, 1, 2)) / mass.sum()
    np.testing.assert_allclose(found, center, atol=0.3)
    voxel = abs(np.linalg.det(volume.affine[:3, :3]))
    assert mass.sum() / 1040 * voxel == pytest.approx(4 / 3 * np.pi * radii.prod(), rel=0.02)


def test_a_tilted_series_equals_simpleitks_resampling(tmp_path: Path) -> None:
    """SimpleITK reads the slices as a straight stack and undoes the shear by an affine transform."""
    plan = plan_of(AXIAL, np.arange(0.0, 41.0, 4.0), size=(20, 24), pixel_mm=(3.0, 3.0)).tilted(-17.0)
    noise = np.random.default_rng(0).normal(0, 50, (11, 24, 20)).round()
    images = iter(noise)
    volume = read_series(write_series(tmp_path, plan, lambda points: next(images)))
    sheared = np.eye(4)
    sheared[:3, 0] = np.array(plan.row) * 3.0
    sheared[:3, 1] = np.array(plan.column) * 3.0
    sheared[:3, 2] = np.array(plan.table) * 4.0
    sheared[:3, 3] = plan.corner_mm(0)
    grid = LPS @ volume.affine
    mapping = np.linalg.inv(sheared) @ grid  # the grid's voxels to indices of the stack
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(mapping[:3, :3].ravel().tolist())
    transform.SetTranslation(mapping[:3, 3].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(volume.shape)
    resampler.SetTransform(transform)
    theirs = sitk.GetArrayFromImage(resampler.Execute(sitk.GetImageFromArray(noise))).transpose(2, 1, 0)
    # SimpleITK repeats the border for half a voxel; beyond the outermost centres we have air.
    index = world(mapping, volume.shape)
    covered = ((index[..., :2] > -1e-6) & (index[..., :2] < np.array(plan.size) - 1 + 1e-6)).all(axis=-1)
    assert covered.mean() > 0.5
    np.testing.assert_allclose(volume.array[covered], theirs[covered], atol=0.02)
    assert (volume.array[~covered] == -1024).all()


def test_names_and_instance_numbers_do_not_matter(tmp_path: Path) -> None:
    places = np.arange(0.0, 30.0, 3.0)
    straight = write_series(tmp_path / "a", plan_of(AXIAL, places), waves)
    order = [4, 1, 9, 0, 7, 2, 8, 3, 6, 5]
    mixed = write_series(
        tmp_path / "b", plan_of(AXIAL, places[order]), waves, name=lambda index: f"{(index * 3) % 10}.dcm"
    )
    (one,), (other,) = find_series(tmp_path / "a"), find_series(tmp_path / "b")
    assert [path.name for path in one.files] == [path.name for path in straight]
    assert [mixed.index(path) for path in other.files] == [order.index(place) for place in range(10)]
    first, second = read_series(one.files), read_series(other.files[::-1])
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_allclose(first.affine, second.affine)


def test_the_digest_is_of_contents_alone(tmp_path: Path) -> None:
    files = write_series(tmp_path / "a", plan_of(AXIAL, np.arange(0.0, 30.0, 3.0)), waves)
    before = read_series(files).sha256
    moved = [path.rename(path.with_name(f"x{9 - index}")) for index, path in enumerate(files)]
    assert read_series(moved[::-1]).sha256 == before
    content = bytearray(moved[3].read_bytes())
    content[-1] ^= 1
    moved[3].write_bytes(content)
    assert read_series(moved).sha256 != before


def test_hounsfield_units_by_each_slices_own_scaling(tmp_path: Path) -> None:
    """As a scanner may that scales every slice to its own range."""
    from vesalius.datasets.dicom.writing import write_slice

    files = []
    for index, slope in enumerate((1.0, 0.5, 0.25, 2.0)):
        plan = plan_of(AXIAL, np.arange(4) * 3.0, slope=slope, intercept=-1000.0 + 10 * index)
        files.append(tmp_path / f"{index}.dcm")
        write_slice(files[-1], plan, index, ramp(plan.points_mm(index)))
    volume = read_series(files)
    np.testing.assert_allclose(volume.array, ramp(world(volume.affine, volume.shape)), atol=1.001)
    assert np.abs(volume.array[..., 2] - ramp(world(volume.affine, volume.shape))[..., 2]).max() < 0.13


def test_what_was_not_measured_is_air(tmp_path: Path) -> None:
    def values(points: NDArray[np.float64]) -> NDArray[np.float64]:
        image = waves(points)
        image[0, 0], image[0, 1], image[0, 2] = 77.0, -2000.0, -1024.0
        return image

    tags = {"PixelPaddingValue": 77}
    plan = plan_of(AXIAL, np.arange(5) * 3.0, intercept=0.0, tags=tags)
    volume = read_series(write_series(tmp_path, plan, values))
    corner = volume.array[:3, 0]
    assert (corner == -1024).all()
    assert volume.notes["dicom"]["num_unmeasured_voxels"] == 10
    assert (volume.array[3:] > -1024).all()


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [
        *((syntax, bits) for syntax in ("explicit little", "implicit little", "explicit big") for bits in (8, 16, 32)),
        ("run length", 8),
        ("run length", 16),
    ],
)
def test_every_plain_encoding_gives_the_same_voxels(tmp_path: Path, syntax: str, bits: int) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    plan = plan_of(AXIAL, np.arange(4) * 3.0, intercept=-100.0)
    expected = read_series(write_series(tmp_path / "plain", plan, waves)).array
    for path in sorted((tmp_path / "plain").iterdir()):
        dataset = pydicom.dcmread(path)
        values = dataset.pixel_array.astype(f"<u{bits // 8}")
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
        big = syntax == "explicit big"
        dataset.PixelData = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
        dataset["PixelData"].VR = "OB" if big and bits == 8 else "OW"
        target = tmp_path / "other" / path.name
        target.parent.mkdir(exist_ok=True)
        if syntax == "run length":
            dataset.compress(RLELossless, generate_instance_uid=False)
            dataset.save_as(target, enforce_file_format=True)
            continue
        uid, implicit = {
            "explicit little": (ExplicitVRLittleEndian, False),
            "implicit little": (ImplicitVRLittleEndian, True),
            "explicit big": (ExplicitVRBigEndian, False),
        }[syntax]
        dataset.file_meta.TransferSyntaxUID = uid
        pydicom.dcmwrite(target, dataset, implicit_vr=implicit, little_endian=not big)
    (series,) = find_series(tmp_path / "other")
    assert series.problem is None, series.problem
    np.testing.assert_array_equal(read_series(series.files).array, expected)


# Gaps -------------------------------------------------------------------------------------------------------------

GE_GAPS = np.array([4.0] * 13 + [1.08] + [7.0] * 13)
GE_THICKNESS = np.array([4.0] * 14 + [7.0] * 14)


def merged(gaps: NDArray[np.float64], thickness: NDArray[np.float64] | None, slice_index: int) -> Any:
    """Leave one slice out of a series."""
    gaps = gaps.copy()
    gaps[slice_index - 1] += gaps[slice_index]
    return np.delete(gaps, slice_index), None if thickness is None else np.delete(thickness, slice_index)


LEGITIMATE: dict[str, tuple[list[float], list[float] | None]] = {
    "even": ([5.0] * 20, [5.0] * 21),
    "even, thickness unknown": ([5.0] * 20, None),
    "overlapping": ([0.625] * 40, [1.25] * 41),
    "far apart, as planned": ([10.0] * 20, [1.0] * 21),
    "base and vertex": ([4.0] * 10 + [5.5] + [7.0] * 10, [4.0] * 11 + [7.0] * 11),
    "base and vertex, the join as the vertex": ([5.0] * 10 + [10.0] * 10, [5.0] * 11 + [10.0] * 10),
    "base and vertex, thickness unknown": ([4.0] * 10 + [7.0] * 10, None),
    "the real one": (list(GE_GAPS), list(GE_THICKNESS)),
    "the real one, thickness unknown": (list(GE_GAPS), None),
    "the real one from the vertex down": (list(GE_GAPS[::-1]), list(GE_THICKNESS[::-1])),
    "rounded positions": ([0.6, 0.7, 0.6, 0.6, 0.6, 0.7, 0.6, 0.6, 0.7, 0.6], [0.6] * 11),
    "rounded positions, thickness unknown": ([0.6, 0.7, 0.6, 0.6, 0.6, 0.7, 0.6, 0.6, 0.7, 0.6], None),
}


@pytest.mark.parametrize("case", LEGITIMATE)
def test_planned_gaps_are_no_holes(case: str) -> None:
    gaps, thickness = LEGITIMATE[case]
    assert missing_slices(np.array(gaps), None if thickness is None else np.array(thickness)) == []


@pytest.mark.parametrize("known", [True, False], ids=["thickness known", "thickness unknown"])
@given(
    count=st.integers(9, 60),
    gap=st.floats(0.4, 12),
    overlap=st.floats(0.3, 3),
    jitter=st.floats(0, 0.04),
    place=st.floats(0, 1),
)
@hypothesis_settings(max_examples=60)
def test_a_slice_missing_from_an_even_series_is_found(
    known: bool, count: int, gap: float, overlap: float, jitter: float, place: float
) -> None:
    missing = 1 + round(place * (count - 3))
    noise = np.random.default_rng(count).uniform(-jitter, jitter, count) * min(gap, 1)
    gaps = np.diff(np.arange(count) * gap + noise)
    thickness = np.full(count, gap * overlap) if known else None
    assert missing_slices(gaps, thickness) == []
    (found,) = missing_slices(*merged(gaps, thickness, missing))
    assert found[0] == missing - 1
    assert found[1] == pytest.approx(gap, rel=0.2)


@pytest.mark.parametrize("start", [0.0, 0.04, 0.06, 0.31])
@pytest.mark.parametrize("gap", [0.6, 0.625, 1.25, 4.8])
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL], ids=["axial", "sagittal"])
def test_positions_rounded_to_a_tenth_are_even(tmp_path: Path, axes: Any, start: float, gap: float) -> None:
    """As some scanners write them: nothing is resampled for it."""
    plan = plan_of(axes, start + gap * np.arange(24), thickness_mm=gap, pixel_mm=(0.45, 0.45))
    files = write_series(tmp_path, plan, waves)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [round(float(part), 1) for part in dataset.ImagePositionPatient]
        dataset.save_as(path)
    volume = read_series(files)
    assert volume.notes["dicom"]["resampled"] == []
    assert volume.shape == (*plan.size, 24)


@pytest.mark.parametrize("missing", range(1, 27))
def test_any_slice_missing_from_the_real_pattern_is_found(missing: int) -> None:
    holes = missing_slices(*merged(GE_GAPS, GE_THICKNESS, missing))
    if missing == 13:
        # The last thin slice overlaps the first thick one: without it nothing is left unmeasured, and no gap shows.
        assert holes == []
    else:
        assert [index for index, _ in holes] == [missing - 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_second_slice_missing_is_found_where_it_leaves_tissue_out(count: int) -> None:
    gaps = np.array([4.0] * 6 + [8.0] * count + [4.0] * 6)
    assert [index for index, _ in missing_slices(gaps, np.full(len(gaps) + 1, 4.0))] == list(range(6, 6 + count))


# The real head ----------------------------------------------------------------------------------------------------


def test_the_real_head_is_straight_and_the_right_way_round(real_data: Path) -> None:
    """28 slices, tilted by 18.5 degrees, 4 and 7 mm apart with an overlap where they meet."""
    (series,) = find_series(real_data / "ct_dicom_ge")
    assert (series.problem, len(series.files), series.modality) == (None, 28, "CT")
    volume = read_series(series.files)
    notes = volume.notes["dicom"]
    assert notes["tilt_degrees"] == pytest.approx(18.5, abs=0.01)
    assert (notes["gaps_mm"]["lowest"], notes["gaps_mm"]["highest"]) == (1.081, 6.999)
    assert any("18.5 degrees" in text and "48.2 mm" in text for text in volume.warnings)
    assert any("13 x 4.00, 1 x 1.08, 13 x 7.00" in text for text in volume.warnings)
    steps = volume.affine[:3, :3]
    np.testing.assert_allclose(steps.T @ steps, np.diag(np.diag(steps.T @ steps)), atol=1e-6)
    array, affine = canonical(volume.array, volume.affine)
    # SimpleITK reads single files without a word on series. The end slice that no other one reaches beyond is copied,
    # pixel by pixel, so what it says of every pixel's place in the world must be what we say.
    image = sitk.ReadImage(str(series.files[-1]))
    pixels = np.maximum(sitk.GetArrayFromImage(image)[0].astype(np.float32), -1024)
    mapping = np.linalg.inv(affine)
    for row in range(0, 512, 31):
        for column in range(0, 512, 17):
            point = np.array(image.TransformIndexToPhysicalPoint((column, row, 0))) * [-1, -1, 1]
            index = mapping[:3, :3] @ point + mapping[:3, 3]
            np.testing.assert_allclose(index, np.rint(index), atol=2e-3)
            i, j, k = np.rint(index).astype(int)
            assert array[i, j, k] == pixels[row, column]
    bone = array > 300
    assert 0.5e6 < bone.sum() * abs(np.linalg.det(affine)) < 2e6  # mm3: a skull


def test_a_slice_taken_from_the_real_series_is_missed(real_data: Path, tmp_path: Path) -> None:
    for path in sorted((real_data / "ct_dicom_ge").glob("*.dcm")):
        if path.name != "07.dcm":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (series,) = find_series(tmp_path)
    assert series.problem is not None
    assert "a slice is missing between 06.dcm and 08.dcm: 8.00 mm apart where 4.00 mm were expected" in series.problem


def test_memory_and_size_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A series that is small as stored may not grow beyond the bound: a tilt asks for more than its own voxels."""
    from vesalius.datasets.dicom import resampling

    plan = plan_of(AXIAL, np.arange(30) * 3.0, size=(10, 10)).tilted(40.0)
    write_series(tmp_path, plan, waves)
    monkeypatch.setattr(resampling, "MAX_VOXELS", 5000)
    (series,) = find_series(tmp_path)
    assert series.problem is not None
    assert "more than 5,000" in series.problem
