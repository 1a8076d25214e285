"""Layouts: what they find in trees as people keep them."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import vesalius.datasets.layouts
from vesalius.datasets import LAYOUTS
from vesalius.datasets.admission import check_ids, choose_modalities
from vesalius.datasets.layouts.bids import BidsLayout
from vesalius.datasets.layouts.manifest import ManifestLayout
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.layouts.tabular import labels_of, value_of
from vesalius.datasets.recipes import RECIPES, recipe_named
from vesalius.platform.config import override
from vesalius.platform.errors import CohortError, SettingError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_table_and_folder_hold_together() -> None:
    """Every class in the folder that can write an example is in the table, and the other way round."""
    package = vesalius.datasets.layouts
    found = set()
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        found |= {
            f"{loaded.__name__}:{name}"
            for name, value in vars(loaded).items()
            if isinstance(value, type)
            and value.__module__ == loaded.__name__
            and hasattr(value, "write_example")
            and name != "Layout"
        }
    assert found == {entry.path for entry in LAYOUTS.values()}


def test_every_layouts_recipe_is_in_the_table() -> None:
    from vesalius.platform.tables import resolve

    for entry in LAYOUTS.values():
        assert resolve(entry.path).default_recipe in RECIPES


def test_bids_sessions_derivatives_and_demographics(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_FLAIR.nii",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_acq-fast_T1w.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_space-MNI_desc-brain_mask.nii.gz",
        "derivatives/b/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/b/sub-02/ses-2/anat/sub-02_ses-2_label-lesion_roi.nii.gz",
        "derivatives/b/sub-02/ses-2/anat/sub-02_ses-2_dseg.nii.gz",
    )
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tIQ\tgroup\tsplit\tlabel:anomalous\n01\t50\tn/a\tcontrol\t\tfalse\nsub-02\t3.5\t007\tn/a\ttest\ttrue\n"
    )
    layout = BidsLayout()
    assert layout.modalities(tmp_path) == ("FLAIR", "T1w")
    one, first, second = layout.discover(tmp_path, ["T1w", "FLAIR"])
    assert [raw.subject_id for raw in (one, first, second)] == ["sub-01", "sub-02_ses-1", "sub-02_ses-2"]
    assert [raw.person for raw in (one, first, second)] == ["sub-01", "sub-02", "sub-02"]
    assert list(one.images) == ["T1w", "FLAIR"]
    assert list(second.images) == ["T1w"]
    assert one.brain_mask == str(tmp_path / "derivatives/b/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert (first.lesion_mask, first.structures) == (None, None)
    assert second.lesion_mask is not None
    assert second.structures is not None
    assert (one.demographics, one.group, one.split) == ({"age": 50, "IQ": None}, "control", None)
    assert (second.demographics, second.group, second.split) == ({"age": 3.5, "IQ": "007"}, None, "test")
    assert (one.labels, second.labels) == ({"anomalous": False}, {"anomalous": True})


def test_two_images_of_one_modality_are_a_problem_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_run-1_T1w.nii.gz", "sub-01/anat/sub-01_run-2_T1w.nii.gz")
    (raw,) = BidsLayout().discover(tmp_path, ["T1w"])
    assert raw.problem is not None
    assert "run-1" in raw.problem
    assert "run-2" in raw.problem


def test_two_derivatives_of_one_kind_are_a_problem_by_name(tmp_path: Path) -> None:
    """Which of two pipelines' masks is right nobody can know here; a Mac's shadow of a file is none."""
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/._sub-01_T1w.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/a/sub-01/anat/._sub-01_desc-brain_mask.nii.gz",
    )
    (raw,) = BidsLayout().discover(tmp_path, ["T1w"])
    assert (raw.problem, Path(raw.images["T1w"]).name) == (None, "sub-01_T1w.nii.gz")
    assert raw.brain_mask == str(tmp_path / "derivatives/a/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    touch(tmp_path, "derivatives/b/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    (raw,) = BidsLayout().discover(tmp_path, ["T1w"])
    assert raw.problem is not None
    assert "sub-01 has 2 files of its brain_mask (derivatives/a/sub-01" in raw.problem
    assert "derivatives/b/sub-01" in raw.problem


def test_what_is_no_bids_tree_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="not a BIDS tree"):
        BidsLayout().modalities(tmp_path)
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii")
    (tmp_path / "participants.tsv").write_text("id\tage\nsub-01\t3\n")
    with pytest.raises(CohortError, match=r"participants\.tsv has no column participant_id"):
        BidsLayout().discover(tmp_path, ["T1w"])
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t3\n01\t4\n")
    with pytest.raises(CohortError, match="line 3 names 'sub-01' a second time"):
        BidsLayout().discover(tmp_path, ["T1w"])


def manifest(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cohort.csv"
    path.write_text(text)
    return path


def test_manifest_columns(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        "subject_id,person,T1w,FLAIR,lesion_mask,split,group,age,label:fracture\n"
        "b,p,t/b.nii.gz,t/bf.nii,,train,x,n/a,false\n"
        "\n"
        f"a,p,{tmp_path}/a.nii.gz,,m/a.nii,,,61,true\n",
    )
    layout = ManifestLayout()
    assert layout.modalities(path) == ("FLAIR", "T1w")
    a, b = layout.discover(path, ["T1w"])
    assert (a.subject_id, b.subject_id) == ("a", "b")
    assert b.images == {"T1w": str(tmp_path / "t/b.nii.gz")}
    assert a.images == {"T1w": str(tmp_path / "a.nii.gz")}
    assert a.lesion_mask == str(tmp_path / "m/a.nii")
    assert (a.person, b.person) == ("p", "p")
    assert (a.split, b.split) == (None, "train")
    assert (a.demographics, b.demographics) == ({"age": 61}, {"age": None})
    assert (a.labels, b.labels) == ({"fracture": True}, {"fracture": False})
    assert b.origin == f"{path} line 2"
    assert a.origin == f"{path} line 4"


def test_a_column_of_analyze_pairs_is_a_modality(tmp_path: Path) -> None:
    root = manifest(tmp_path, "subject_id,T1w,T2w,note\na,a.nii,b.HDR,c\nb,b.nii.gz,b.img,d\n")
    assert ManifestLayout().modalities(root) == ("T1w", "T2w")
    (one, _) = ManifestLayout().discover(root, ["T2w"])
    assert one.demographics == {"note": "c"}


def test_a_spreadsheets_semicolons_are_understood(tmp_path: Path) -> None:
    path = manifest(tmp_path, "\ufeffsubject_id;image;site\r\na;a.nii;Basel, CH\r\n")
    (raw,) = ManifestLayout().discover(path, ["image"])
    assert raw.demographics == {"site": "Basel, CH"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("subject,image\na,a.nii\n", "no column subject_id: did you mean 'subject'"),
        ("subject_id,age\na,3\n", "no column of images"),
        ("subject_id,image,image\na,a.nii,b.nii\n", "column 'image' twice"),
        ("subject_id,image\na,a.nii,surplus\n", "line 2 has 3 cells"),
    ],
)
def test_a_bad_manifest_is_named_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = manifest(tmp_path, text)
    with pytest.raises(CohortError, match=words) as caught:
        ManifestLayout().modalities(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00subject_id")
    with pytest.raises(CohortError, match="not UTF-8"):
        ManifestLayout().modalities(tmp_path / "x.csv")
    with pytest.raises(CohortError, match="cannot be read"):
        ManifestLayout().modalities(tmp_path / "y.csv")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("50", 50), ("-3", -3), ("3.50", 3.5), ("1e3", 1000.0), ("007", "007"), ("1e999", "1e999"), ("n/a", None),
        ("", None), ("NaN", None), ("true", True), ("False", False), ("F32.0", "F32.0"), ("0", 0), (".5", 0.5),
    ],
)  # fmt: skip
def test_cells(text: str, value: object) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_modalities_are_chosen_by_name(tmp_path: Path) -> None:
    assert choose_modalities(("FLAIR", "T1w"), ["T1w", "FLAIR"], tmp_path) == ("T1w", "FLAIR")
    assert choose_modalities(("T1w",), [], tmp_path) == ("T1w",)
    with pytest.raises(SettingError, match=r"unknown modality 'T1': did you mean 'T1w'\? .* holds FLAIR, T1w"):
        choose_modalities(("FLAIR", "T1w"), ["T1"], tmp_path)
    with pytest.raises(SettingError, match="choose with --modality"):
        choose_modalities(("FLAIR", "T1w"), [], tmp_path)
    with pytest.raises(SettingError, match="named twice"):
        choose_modalities(("FLAIR", "T1w"), ["T1w", "T1w"], tmp_path)


@pytest.mark.parametrize("bad", ["../evil", "a/b", "..", ".hidden", "", "a b", "x" * 129])
def test_ids_that_cannot_name_a_folder_are_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"line 7: .*cannot be a subject id"):
        check_ids([RawSubject(subject_id=bad, origin="cohort.csv line 7")], tmp_path)


@pytest.mark.parametrize("twin", ["sub-1", "SUB-1"])
def test_a_duplicate_subject_is_refused_with_both_places(twin: str, tmp_path: Path) -> None:
    subjects = [RawSubject(subject_id="sub-1", origin="line 2"), RawSubject(subject_id=twin, origin="line 5")]
    with pytest.raises(CohortError, match=r"twice \(line 2 and line 5\)"):
        check_ids(subjects, tmp_path)


def test_recipes_by_name_and_their_grids() -> None:
    recipe = recipe_named("mni_affine")
    assert recipe.target_grid() == (80, 96, 80)
    assert override(recipe, {"spacing_mm": "1"}).target_grid() == (160, 192, 160)
    assert override(recipe, {"spacing_mm": "[2.5, 2, 4]"}).target_grid() == (64, 96, 40)
    assert override(recipe, {"grid": "64"}).target_grid() == (64, 64, 64)
    with pytest.raises(SettingError, match="did you mean 'mni_affine'"):
        recipe_named("mni_afine")
    with pytest.raises(SettingError, match="needs a spacing_mm"):
        override(recipe, {"spacing_mm": "null"})
    with pytest.raises(SettingError, match="percentile_low must be below"):
        override(recipe, {"percentile_low": "99"})
    with pytest.raises(SettingError, match="did you mean 'spacing_mm'"):
        override(recipe, {"spacing": "1"})


def test_every_recipe_in_the_table_stands() -> None:
    for name in RECIPES:
        recipe = recipe_named(name)
        assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(("cell", "answer"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_what_is_anomalous_is_said_by_ones_and_zeros_too(cell: str, *, answer: bool) -> None:
    assert labels_of({"label:anomalous": cell, "label:stage": "1"}) == {"anomalous": answer, "stage": 1}
    assert type(labels_of({"label:anomalous": cell})["anomalous"]) is bool


def test_what_is_anomalous_is_not_guessed() -> None:
    with pytest.raises(CohortError, match="label:anomalous is 'yes': expected true or false"):
        labels_of({"label:anomalous": "yes"})
    assert labels_of({"label:anomalous": "n/a"}) == {}
