"""Reading NIfTI: nibabel's values, our sentences."""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest

from vesalius.datasets.files import file_sha256
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.reading import inspect, load
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AFFINE = np.array([[-1.5, 0.1, 0, 40], [0.1, 1.4, 0.2, -50], [0, -0.2, 2.0, -30], [0, 0, 0, 1]])


def values(dtype: Any = np.float32, shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).random(shape) * 200 + 1).astype(dtype)


def save(path: Path, array: Any = None, affine: Any = AFFINE, kind: Any = nibabel.Nifti1Image) -> Path:
    nibabel.save(kind(values() if array is None else array, affine), path)
    return path


def sentence(path: Path, *words: str) -> None:
    """Check that reading is refused in one sentence that names the file and holds the words."""
    with pytest.raises(VolumeError) as caught:
        read_nifti(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_values_and_affine_are_nibabels(tmp_path: Path, dtype: str, name: str) -> None:
    path = save(tmp_path / name, values(np.dtype(dtype)))
    volume = read_nifti(path)
    image = nibabel.load(path)
    np.testing.assert_array_equal(volume.array, image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
    assert volume.oriented


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_scaling_is_applied(tmp_path: Path, kind: Any) -> None:
    image = kind(values(np.int16), AFFINE)
    image.header.set_slope_inter(0.37, -1024.5)
    nibabel.save(image, tmp_path / "a.nii.gz")
    expected = nibabel.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii.gz").array, expected, rtol=1e-6)


def test_a_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    content = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii.gz").array, values())


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", values()[..., None, None])
    np.testing.assert_array_equal(read_nifti(path).array, values())


def test_a_file_without_orientation_is_read_and_said_to_be(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    assert not read_nifti(tmp_path / "a.nii").oriented


def with_bytes(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = bytearray(save(path.with_name("plain.nii")).read_bytes())
        change(content)
        path.write_bytes(content)

    return write


def put(offset: int, dtype: str, value: Any) -> Callable[[Path], None]:
    def change(content: bytearray) -> None:
        encoded = np.array(value, dtype).tobytes()
        content[offset : offset + len(encoded)] = encoded

    return with_bytes(change)


def volume_with(value: float, *, count: int = 1) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array = values()
        array.flat[:count] = value
        save(path, array)

    return write


BAD: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "missing": (lambda path: None, ("no such file",)),
    "folder": (lambda path: path.mkdir(), ("folder",)),
    "empty": (lambda path: path.write_bytes(b""), ("empty",)),
    "text": (lambda path: path.write_text("subject,age\n1,30\n" * 40), ("not a NIfTI file", "text")),
    "short text": (lambda path: path.write_text("hi"), ("not a NIfTI file",)),
    "random": (lambda path: path.write_bytes(bytes(range(1, 255)) * 4), ("not a NIfTI file",)),
    "truncated voxels": (with_bytes(lambda c: c.__delitem__(slice(600, None))), ("truncated", "1,192", "600")),
    "truncated header": (with_bytes(lambda c: c.__delitem__(slice(200, None))), ("truncated", "header")),
    "header of a pair": (with_bytes(lambda c: c.__setitem__(slice(344, 348), b"ni1\0")), ("pair",)),
    "analyze": (with_bytes(lambda c: c.__setitem__(slice(344, 348), b"\0\0\0\0")), ("Analyze",)),
    "4D": (lambda path: save(path, values(shape=(4, 5, 6, 3))), ("4D", "(4, 5, 6, 3)")),
    "2D": (lambda path: save(path, values(shape=(40, 50))), ("(40, 50)",)),
    "one slice": (lambda path: save(path, values(shape=(40, 50, 1))), ("(40, 50, 1)",)),
    "complex": (lambda path: save(path, values(np.complex64)), ("real numbers",)),
    "NaN": (volume_with(np.nan, count=3), ("3 NaN",)),
    "infinite": (volume_with(-np.inf, count=2), ("2 infinite",)),
    "unknown type": (put(70, "<i2", 12345), ("header is damaged",)),
    "infinite intercept": (put(112, "<f4", [2.0, np.inf]), ("header is damaged",)),
    "NaN in the affine": (put(280, "<f4", np.nan), ("affine", "NaN")),
    "singular affine": (
        with_bytes(lambda c: c.__setitem__(slice(280, 328), np.ones((3, 4), "<f4").tobytes())),
        ("affine", "singular"),
    ),
    "gigantic": (put(42, "<i2", 32767), ("truncated",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_in_one_sentence(tmp_path: Path, case: str) -> None:
    write, words = BAD[case]
    path = tmp_path / "bad.nii"
    write(path)
    sentence(path, *words)


def test_both_kinds_of_broken_voxels_are_counted(tmp_path: Path) -> None:
    array = values()
    array[0, 0, :2], array[1, 1, 1] = np.nan, np.inf
    sentence(save(tmp_path / "a.nii.gz", array), "2 NaN and 1 infinite")


def test_a_gzip_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.nii.gz").read_bytes()
    path = tmp_path / "cut.nii.gz"
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        sentence(path)


def test_a_file_with_any_byte_changed_reads_or_is_refused(tmp_path: Path) -> None:
    """No error of nibabel's, zlib's or NumPy's gets out, whatever the bytes; warnings are errors in this suite."""
    random = np.random.default_rng(1)
    messages = []
    for name, span in (("a.nii", 352), ("a.nii.gz", 10_000)):
        whole = save(tmp_path / f"whole.{name}").read_bytes()
        for _ in range(400):
            content = bytearray(whole)
            for _ in range(random.integers(1, 4)):
                content[random.integers(0, min(span, len(content)))] = random.integers(0, 256)
            path = tmp_path / name
            path.write_bytes(content)
            try:
                volume = read_nifti(path)
            except VolumeError as error:
                messages.append(str(error))
            else:
                assert np.isfinite(volume.array).all()
                assert abs(np.linalg.det(volume.affine)) > 0
    assert len(messages) > 300
    assert all(str(tmp_path) in message and "\n" not in message for message in messages)


def raw(tmp_path: Path, **changes: Any) -> RawSubject:
    image = save(tmp_path / "t1.nii.gz")
    return RawSubject.model_validate({"subject_id": "one", "images": {"T1w": str(image)}, **changes})


@pytest.mark.parametrize("role", ["brain_mask", "head_mask", "lesion_mask", "structures"])
def test_a_mask_of_another_shape_is_refused(tmp_path: Path, role: str) -> None:
    mask = save(tmp_path / "mask.nii.gz", np.ones((5, 6, 8), np.uint8))
    with pytest.raises(VolumeError, match=r"mask\.nii\.gz has shape \(5, 6, 8\).*t1\.nii\.gz has \(5, 6, 7\)"):
        load(raw(tmp_path, **{role: str(mask)}), ["T1w"])


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 3.0  # two voxels
    mask = save(tmp_path / "mask.nii.gz", np.ones((5, 6, 7), np.uint8), moved)
    with pytest.raises(VolumeError, match=r"2\.0 voxels away"):
        load(raw(tmp_path, brain_mask=str(mask)), ["T1w"])


def test_a_mask_stored_along_other_axes_lies_on_its_image(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.ones((5, 6, 7), np.uint8), AFFINE)
    nibabel.save(nibabel.as_closest_canonical(image), tmp_path / "mask.nii.gz")
    volumes = load(raw(tmp_path, brain_mask=str(tmp_path / "mask.nii.gz")), ["T1w"])
    assert volumes.brain is not None


@pytest.mark.parametrize(("value", "text"), [(0.0, "every voxel is 0"), (-3.5, "every voxel is -3.5")])
def test_an_image_without_contrast_is_refused(tmp_path: Path, value: float, text: str) -> None:
    path = save(tmp_path / "flat.nii.gz", np.full((5, 6, 7), value, np.float32))
    with pytest.raises(VolumeError, match=text):
        load(raw(tmp_path, images={"T1w": str(path)}), ["T1w"])


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "labels.nii.gz", values())
    with pytest.raises(VolumeError, match="whole numbers"):
        load(raw(tmp_path, structures=str(path)), ["T1w"])


def test_a_missing_modality_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"no FLAIR image.*T1w"):
        load(raw(tmp_path), ["FLAIR"])


def test_inspection_hashes_as_coreutils_do_and_sees_a_lesion(tmp_path: Path) -> None:
    import hashlib

    lesion = np.zeros((5, 6, 7), np.uint8)
    path = save(tmp_path / "lesion.nii.gz", lesion)
    healthy = inspect(raw(tmp_path, lesion_mask=str(path)), ["T1w"])
    assert healthy.sha256 == {
        "T1w": hashlib.sha256((tmp_path / "t1.nii.gz").read_bytes()).hexdigest(),
        "lesion_mask": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert not healthy.anomalous
    lesion[1, 1, 1] = 4
    save(path, lesion)
    assert inspect(raw(tmp_path, lesion_mask=str(path)), ["T1w"]).anomalous
    assert inspect(raw(tmp_path, labels={"anomalous": True}), ["T1w"]).anomalous


@pytest.mark.parametrize(("unit", "words"), [("micron", "in micrometres"), ("meter", "in metres")])
def test_lengths_in_other_units_are_refused(tmp_path: Path, unit: str, words: str) -> None:
    """A brain of 50 micrometre voxels would be taken for one of 50 mm."""
    image = nibabel.Nifti1Image(values(), AFFINE)
    for known in ("mm", "unknown"):
        image.header.set_xyzt_units(known, "sec")
        assert read_nifti(save_as(tmp_path / f"{known}.nii", image)).oriented
    image.header.set_xyzt_units(unit, "sec")
    sentence(save_as(tmp_path / "a.nii", image), f"its lengths are {words}: expected millimetres")


def save_as(path: Path, image: Any) -> Path:
    nibabel.save(image, path)
    return path


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    sentence(tmp_path / "a.nii", "is not a regular file: expected a .nii or .nii.gz file")
    with pytest.raises(VolumeError, match="is not a regular file"):
        file_sha256(tmp_path / "a.nii")
