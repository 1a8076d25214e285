"""Named recipes: what the papers say in numbers, settings that contradict each other, reference files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesalius.datasets.dicom import read_series
from vesalius.datasets.layouts.dicom import DicomLayout
from vesalius.datasets.layouts.example import example_affine, example_head
from vesalius.datasets.prepare import prepare_file
from vesalius.datasets.recipes import RECIPES, Recipe, as_is, mni_affine, recipe_named, recipe_of, steps_of
from vesalius.datasets.recipes.implicit_field_2021 import implicit_field_2021
from vesalius.datasets.reference import FOLDER_VARIABLE, pinned
from vesalius.platform.config import digest, override
from vesalius.platform.errors import SettingError, VolumeError
from vesalius.platform.geometry import write_nifti

PAPERS = [name for name in RECIPES if re.search(r"\d{4}", name)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe_of(json.loads(recipe.model_dump_json())) == recipe


def test_the_papers_numbers() -> None:
    assert recipe_named("implicit_field_2021").target_grid() == (160, 160, 160)
    full = recipe_named("implicit_field_2021_full")
    assert full == implicit_field_2021(full_resolution=True)
    assert full.target_grid() == (300, 300, 300)
    assert full.spacing_mm == (0.7, 0.7, 0.7)  # the voxels of HCP
    assert override(full, {"spacing_mm": 1}).target_grid() == (210, 210, 210)
    assert recipe_named("anovaegan_2018").target_grid() == (256, 256, 20)
    assert recipe_named("position_regression_2022").target_grid() == (256, 256, 256)
    viana = recipe_named("f_anogan_3d_2020")
    assert viana.target_grid() == (64, 64, 64)
    assert (viana.window_hu, viana.output_range) == ((-20, 100), (-1, 1))


def test_every_paper_is_told_step_by_step() -> None:
    assert len(PAPERS) == 5
    for name in PAPERS:
        assert len(steps_of(name)) >= 5
        for step in steps_of(name):
            assert step.paper
            assert "section" in step.section
            assert step.ours
    assert steps_of("mni_affine") == ()


@pytest.mark.parametrize("name", PAPERS)
def test_what_a_step_says_is_what_the_recipe_does(name: str) -> None:
    """``key=value`` in the description of a step is the setting's value; a deviation's is none of the recipe's."""
    recipe = recipe_named(name).model_dump(mode="json")
    told = 0
    for step in steps_of(name):
        for key, text in re.findall(r"(?<!recipe\.)\b([a-z_]+)=(\[[^\]]*\]|[\w.-]+)", step.ours):
            assert key in recipe, f"{key} is no setting"
            value: Any = recipe[key]
            wanted = json.loads(text) if re.match(r"[\[\d-]", text) else text
            same = value == wanted or (isinstance(value, list) and value == [wanted] * 3)
            assert same, f"{key} is {value} and not {wanted}"
            told += 1
        for key in re.findall(r"recipe\.([a-z_0-9]+)=", step.ours + step.deviation):
            assert key in recipe, f"--set recipe.{key} is no setting"
    assert told >= 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"registration": "rigid", "spacing_mm": None}, "needs a spacing_mm"),
        ({"output_range": [1, -1]}, "output_range must rise"),
        ({"scale": "window"}, "needs a window_hu"),
        ({"scale": "window", "window_hu": [100, -20]}, "needs a window_hu that rises"),
        ({"background": "head"}, "needs a head mask"),
        ({"registration_of": "head"}, "mni152 has no skull"),
        ({"registration_of": "head", "reference": "a.nii"}, "needs a head mask"),
        ({"structures": "ct"}, "needs hounsfield"),
        (
            {"structures": "ct", "hounsfield": True, "registration": "none", "center_mm": None},
            "needs a registration or a center_mm",
        ),
        ({"hounsfield": True, "bias": "n4"}, "for MR"),
        ({"clip_minimum": 5, "clip_maximum": 5}, "clip_minimum must be below"),
        ({"denoise_time_step": 0.1}, "denoise_time_step"),
        ({"max_spacing_ratio": 0.5}, "max_spacing_ratio"),
        ({"reference_sha256": "abc"}, "reference_sha256"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        override(mni_affine(), changes)


def test_long_voxels_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "thick.nii.gz"
    write_nifti(path, example_head(0), np.diag([1.0, 1.0, 9.0, 1.0]))
    with pytest.raises(VolumeError, match=r"thick\.nii\.gz has voxels of 1 x 1 x 9 mm.*8 times the shortest"):
        prepare_file(path, override(as_is(), {"max_spacing_ratio": 8}))
    prepare_file(path, override(as_is(), {"max_spacing_ratio": 9}))


def with_reference(path: Any) -> Recipe:
    return override(mni_affine(), {"reference": str(path), "registration": "rigid"})


def test_a_reference_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    write_nifti(tmp_path / "atlas.nii.gz", example_head(0), example_affine())
    write_nifti(tmp_path / "other.nii.gz", example_head(1), example_affine())
    first, second = (recipe_of(with_reference(tmp_path / name)) for name in ("atlas.nii.gz", "other.nii.gz"))
    assert first.reference_sha256 != second.reference_sha256
    assert len(str(first.reference_sha256)) == 64
    assert recipe_of(first.model_dump(mode="json")) == first
    monkeypatch.chdir(tmp_path)
    assert recipe_of(with_reference("atlas.nii.gz")) == first  # a relative path becomes absolute
    # By its name alone in the references' folder, the recipe is the same on every machine.
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.chdir("/")
    named = recipe_of(with_reference("atlas.nii.gz"))
    assert (named.reference, named.reference_sha256) == ("atlas.nii.gz", first.reference_sha256)
    assert digest(named) != digest(mni_affine())


def test_a_reference_that_is_gone_or_another_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(SettingError, match=r"recipe\.reference: .*atlas\.nii\.gz: there is no such file"):
        pinned(with_reference(tmp_path / "atlas.nii.gz"))
    atlas, scan = tmp_path / "atlas.nii.gz", tmp_path / "scan.nii.gz"
    write_nifti(atlas, example_head(0), example_affine())
    write_nifti(scan, example_head(1), example_affine())
    recipe = recipe_of(with_reference(atlas))
    kept = recipe.model_dump(mode="json")
    atlas.rename(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(SettingError, match=r"atlas\.nii\.gz: there is no such file.*VESALIUS_REFERENCES") as caught:
        prepare_file(scan, kept)
    assert "\n" not in str(caught.value)
    write_nifti(atlas, example_head(2), example_affine())
    with pytest.raises(SettingError, match=r"atlas\.nii\.gz is another file than the recipe's"):
        prepare_file(scan, kept)
    atlas.unlink()
    folder = tmp_path / "references"
    folder.mkdir()
    (tmp_path / "elsewhere.nii.gz").rename(folder / "atlas.nii.gz")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    record, _ = prepare_file(scan, override(recipe, {"spacing_mm": 8}))
    assert record.notes["registration"]["template"] == "atlas.nii.gz"


def test_a_folder_with_a_dicom_study_is_prepared_like_a_file(tmp_path: Path) -> None:
    """The same voxels as a NIfTI file: a CT is scored from the folder that the archive gives."""
    root = DicomLayout().write_example(tmp_path / "raw")
    folder = Path(DicomLayout().discover(root, ("CT",))[0].series["CT"][0]).parent
    volume = read_series(sorted(folder.iterdir()))
    write_nifti(tmp_path / "same.nii.gz", volume.array, volume.affine)
    _, from_folder = prepare_file(folder, as_is())
    record, from_file = prepare_file(tmp_path / "same.nii.gz", as_is())
    np.testing.assert_array_equal(from_folder.image, from_file.image)
    assert record.channels == ("image",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match=r"empty holds no series"):
        prepare_file(tmp_path / "empty", as_is())
