"""Volumes back as NIfTI: the very voxels where nothing was resampled, in the file's own space always."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.prepare import prepare
from vesalius.datasets.recipes import Recipe, as_is
from vesalius.datasets.steps import dice
from vesalius.infra.cli.app import app
from vesalius.infra.exporting import export_volumes
from vesalius.platform.contracts import Score
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.scoring import ScoreInfo, ScoreRecord, ScoreStore
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (40, 48, 36)
CHANNELS = ("T1w", "FLAIR")


def las(degrees: float = 12.0) -> NDArray[np.float64]:
    """Return an oblique affine that runs to the left: nothing in it is canonical."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ np.diag([-1.5, 1.25, 2.0])
    affine[:3, 3] = (31.0, -28.0, -40.0)
    return affine


def raw_subject(folder: Path, subject_id: str, *, lesion: bool = True) -> RawSubject:
    """Write a subject whose lesion touches nothing: an ellipsoid in a brain in a box."""
    random = np.random.default_rng(7)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.8
    spot = (((grid.T - (0.3, -0.2, 0.1)) / (0.25, 0.2, 0.3)) ** 2).sum(axis=-1).T < 1
    files = {}
    for name, array in {
        "T1w": np.where(brain, random.uniform(50, 100, SHAPE), 0).astype(np.float32),
        "FLAIR": np.where(brain, random.uniform(10, 90, SHAPE), 0).astype(np.float32),
        "brain": brain.astype(np.uint8),
        "lesion": (spot & brain).astype(np.uint8),
    }.items():
        files[name] = str(folder / f"{subject_id}_{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, las()), files[name])
    return RawSubject(
        subject_id=subject_id,
        images={"T1w": files["T1w"], "FLAIR": files["FLAIR"]},
        brain_mask=files["brain"],
        lesion_mask=files["lesion"] if lesion else None,
        origin=subject_id,
    )


def stored(folder: Path, recipe: Recipe, *, lesions: tuple[bool, ...] = (True,)) -> CohortStore:
    store = CohortStore.create(folder / "store", recipe=recipe.model_dump(mode="json"), channels=CHANNELS)
    with store.lock():
        for number, lesion in enumerate(lesions):
            raw = raw_subject(folder, f"sub-{number:02d}", lesion=lesion)
            store.commit([store.write(*prepare(raw, recipe, CHANNELS))])
    return CohortStore.open(store.path)


def load(path: Path | str) -> tuple[NDArray[Any], NDArray[np.float64], np.dtype[Any]]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine, image.get_data_dtype()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> CohortStore:
    """Return a store that keeps its sources' grid and intensities: two subjects, the first with a lesion."""
    return stored(tmp_path_factory.mktemp("untouched"), as_is(), lesions=(True, False))


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# ---- the round trip


@pytest.mark.parametrize(("what", "name"), [("brain", "brain"), ("lesion", "lesion")])
def test_a_mask_left_alone_comes_back_voxel_by_voxel(
    untouched: CohortStore, tmp_path: Path, what: Any, name: str
) -> None:
    report = export_volumes(untouched, ["sub-00"], [what], tmp_path)
    found, affine, dtype = load(report.files[0].path)
    original, expected, _ = load(untouched.path.parent / f"sub-00_{name}.nii.gz")
    assert dtype == np.uint8
    assert np.allclose(affine, expected, rtol=0, atol=1e-5)
    assert np.array_equal(found, original)


def test_an_image_left_alone_comes_back_voxel_by_voxel(untouched: CohortStore, tmp_path: Path) -> None:
    report = export_volumes(untouched, ["sub-00"], ["image"], tmp_path)
    assert [Path(file.path).name for file in report.files] == ["sub-00_image_T1w.nii.gz", "sub-00_image_FLAIR.nii.gz"]
    for file in report.files:
        found, affine, dtype = load(file.path)
        original, expected, _ = load(untouched.path.parent / f"sub-00_{file.channel}.nii.gz")
        assert dtype == np.float32
        assert np.allclose(affine, expected, rtol=0, atol=1e-5)
        assert np.array_equal(found, original)


@pytest.mark.parametrize(("spacing_mm", "least"), [(1.0, 0.99), (1.5, 0.96), (2.0, 0.88), (4.0, 0.79)])
def test_a_mask_on_another_grid_comes_back_as_well_as_its_voxels_allow(
    tmp_path: Path, spacing_mm: float, least: float
) -> None:
    """A lesion of 1.9 ml, 15 x 11 x 20 mm, in voxels of 1.5 x 1.25 x 2 mm: measured 1.000, 0.982, 0.899, 0.815."""
    recipe = as_is().model_copy(update={"spacing_mm": (spacing_mm,) * 3, "box_mm": (80.0, 80.0, 96.0)})
    store = stored(tmp_path, recipe)
    file = export_volumes(store, ["sub-00"], ["lesion"], tmp_path / "out").files[0]
    found, affine, _ = load(file.path)
    original, expected, _ = load(tmp_path / "sub-00_lesion.nii.gz")
    assert np.allclose(affine, expected, rtol=0, atol=1e-5)
    assert found.shape == original.shape
    assert dice(found > 0, original > 0) >= least


def test_the_prepared_grid_is_the_stores_own(untouched: CohortStore, tmp_path: Path) -> None:
    record = untouched.record("sub-00")
    report = export_volumes(untouched, ["sub-00"], ["image", "lesion"], tmp_path, grid="prepared")
    for file, values in zip(
        report.files, [*untouched.image("sub-00"), untouched.mask("sub-00", "lesion")], strict=True
    ):
        found, affine, _ = load(file.path)
        assert np.array_equal(found, values)
        assert np.allclose(affine, record.affine, rtol=0, atol=1e-5)


def test_labels_keep_their_values_and_type(phantom_store: CohortStore, tmp_path: Path) -> None:
    subject = phantom_store.subjects()[0].subject_id
    file = export_volumes(phantom_store, [subject], ["structures"], tmp_path).files[0]
    found, _, dtype = load(file.path)
    assert dtype == np.uint8
    assert np.array_equal(found, np.asarray(phantom_store.structures(subject)))


def test_a_mask_that_fills_its_grid_does_not_fill_the_file(tmp_path: Path) -> None:
    """Where the prepared box ends, a mask ends: 0 outside, whatever lies inside."""
    recipe = as_is().model_copy(update={"spacing_mm": (2.0,) * 3, "box_mm": (16.0, 16.0, 16.0)})
    store = stored(tmp_path, recipe)
    assert store.brain("sub-00").all()
    found, _, _ = load(export_volumes(store, ["sub-00"], ["brain"], tmp_path / "out").files[0].path)
    volume_ml = found.sum() * 1.5 * 1.25 * 2.0 / 1000
    assert volume_ml == pytest.approx(16**3 / 1000, rel=0.15)


# ---- maps of a run


def scored(folder: Path, store: CohortStore, subject_id: str) -> ScoreStore:
    record = store.record(subject_id)
    info = ScoreInfo(
        method="m", model_digest="0", cohort_digest=store.digest, store=str(store.path), split=record.split
    )
    values = torch.from_numpy(store.image(subject_id)[0] / 100)
    kept = {name: getattr(record, name) for name in ("channels", "shape", "spacing_mm", "affine", "source")}
    score_record = ScoreRecord(subject_id=subject_id, image_score=1.0, seconds=0.1, has_lesion=True, **kept)
    with ScoreStore.writing(folder, info) as scores:
        scores.write(score_record, Score(map=values, image_score=1.0))
        scores.finish()
    return ScoreStore.open(folder)


def test_a_map_goes_home_to_the_file(untouched: CohortStore, tmp_path: Path) -> None:
    scores = scored(tmp_path / "scores", untouched, "sub-00")
    file = export_volumes(untouched, ["sub-00"], ["map"], tmp_path / "out", scores_of=lambda _: scores).files[0]
    found, affine, dtype = load(file.path)
    original, expected, _ = load(untouched.path.parent / "sub-00_T1w.nii.gz")
    assert dtype == np.float32
    assert np.allclose(affine, expected, rtol=0, atol=1e-5)
    assert np.array_equal(found, (original / 100).astype(np.float16).astype(np.float32))
    with pytest.raises(CohortError, match="has no restoration"):
        export_volumes(untouched, ["sub-00"], ["restoration"], tmp_path / "out", scores_of=lambda _: scores)


def test_further_maps_go_home_too(untouched: CohortStore, tmp_path: Path) -> None:
    record = untouched.record("sub-00")
    image = torch.from_numpy(untouched.image("sub-00")[0])
    info = ScoreInfo(method="m", model_digest="0", cohort_digest=untouched.digest, store="s", split=record.split)
    kept = {name: getattr(record, name) for name in ("channels", "shape", "spacing_mm", "affine", "source")}
    score = Score(map=image / 100, image_score=1.0, extras={"spread": image / 200, "rarity": image / 50})
    with ScoreStore.writing(tmp_path / "scores", info) as writing:
        writing.write(ScoreRecord(subject_id="sub-00", image_score=1.0, seconds=0.1, has_lesion=True, **kept), score)
        writing.finish()
    scores = ScoreStore.open(tmp_path / "scores")
    report = export_volumes(untouched, ["sub-00"], ["map", "extras"], tmp_path / "out", scores_of=lambda _: scores)
    names = [Path(file.path).name for file in report.files]
    assert names == ["sub-00_map.nii.gz", "sub-00_extras_rarity.nii.gz", "sub-00_extras_spread.nii.gz"]
    assert [file.channel for file in report.files] == [None, "rarity", "spread"]
    map_values, affine, _ = load(report.files[0].path)
    for file, factor in zip(report.files[1:], (2.0, 0.5), strict=True):
        values, own, _ = load(file.path)
        assert np.array_equal(own, affine)
        assert np.allclose(values, factor * map_values, rtol=2e-3, atol=1e-6)
    plain = scored(tmp_path / "plain", untouched, "sub-00")
    with pytest.raises(CohortError, match="has no extras"):
        export_volumes(untouched, ["sub-00"], ["extras"], tmp_path / "none", scores_of=lambda _: plain)


def test_the_verb_finds_the_maps_of_a_run(untouched: CohortStore, tmp_path: Path) -> None:
    from vesalius.platform.runs import RunSpec, create_run

    spec = RunSpec(
        run_id="r1", method="m", settings={}, store=str(untouched.path), cohort_digest=untouched.digest, created="now"
    )
    run = create_run(tmp_path / "home", spec)
    arguments = ("export", untouched.path, "sub-00", "--run", "r1", "--home", tmp_path / "home", "--out", tmp_path)
    missing = call(*arguments)
    assert missing.exit_code == 2
    assert "vesalius score r1 --split test" in " ".join(missing.stderr.split())
    scored(run.scores("test"), untouched, "sub-00")
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    assert [Path(file["path"]).name for file in json.loads(done.stdout)["files"]] == ["sub-00_map.nii.gz"]
    assert load(tmp_path / "sub-00_map.nii.gz")[0].shape == SHAPE


# ---- what is refused


def test_nothing_is_overwritten_unless_told(untouched: CohortStore, tmp_path: Path) -> None:
    standing = tmp_path / "sub-00_lesion.nii.gz"
    standing.write_text("mine")
    with pytest.raises(SettingError, match=r"sub-00_lesion.nii.gz exists already: .* --force"):
        export_volumes(untouched, ["sub-00"], ["image", "lesion"], tmp_path)
    assert standing.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["sub-00_lesion.nii.gz"]
    export_volumes(untouched, ["sub-00"], ["lesion"], tmp_path, force=True)
    assert load(standing)[0].any()


def test_one_file_holds_one_volume(untouched: CohortStore, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is one file and 2 are to be written"):
        export_volumes(untouched, ["sub-00"], ["image"], tmp_path / "one.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(SettingError, match="is a folder"):
        export_volumes(untouched, ["sub-00"], ["brain"], tmp_path / "folder.nii")
    export_volumes(untouched, ["sub-00"], ["brain"], tmp_path / "brain.nii")
    assert load(tmp_path / "brain.nii")[0].any()


def test_a_subject_without_it_is_named(untouched: CohortStore, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"subject sub-01 has no lesion, only image, brain$"):
        export_volumes(untouched, ["sub-00", "sub-01"], ["lesion"], tmp_path)
    assert not list(tmp_path.iterdir())
    report = export_volumes(untouched, ["sub-00", "sub-01"], ["lesion"], tmp_path, lenient=True)
    assert [file.subject_id for file in report.files] == ["sub-00"]
    assert report.without == {"lesion": ("sub-01",)}
    with pytest.raises(CohortError, match="no subject asked for has a head"):
        export_volumes(untouched, ["sub-00", "sub-01"], ["head"], tmp_path, lenient=True)


# ---- the verb


def test_the_verb_writes_and_says_what(untouched: CohortStore, tmp_path: Path) -> None:
    done = call("export", untouched.path, "--all", "--what", "lesion", "--what", "brain", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    names = [Path(file["path"]).name for file in document["files"]]
    assert names == ["sub-00_lesion.nii.gz", "sub-00_brain.nii.gz", "sub-01_brain.nii.gz"]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert document["without"] == {"lesion": ["sub-01"]}
    assert document["files"][0]["shape"] == list(SHAPE)
    table = call("export", untouched.path, "sub-00", "--what", "brain", "--grid", "prepared", "--out", tmp_path / "b")
    assert "sub-00_brain.nii.gz" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sub-0"], "say where to write with --out"),
        (["--out", "OUT"], "give ids of subjects or --all"),
        (["sub-00", "--all", "--out", "OUT"], "give ids of subjects or --all"),
        (["sub-03", "--out", "OUT"], "unknown subject 'sub-03': did you mean 'sub-0"),
        (["sub-00", "--what", "lesions", "--out", "OUT"], "did you mean 'lesion'?"),
        (["sub-00", "--grid", "nativ", "--out", "OUT"], "did you mean 'native'?"),
        (["sub-00", "--what", "map", "--out", "OUT"], "--what map needs --run RUN"),
        (["sub-00", "--what", "image", "--run", "x", "--out", "OUT"], "--run goes with --what map"),
        (["sub-00", "--run", "x", "--home", "OUT", "--out", "OUT"], "no run 'x'"),
        (["sub-00", "--split", "test", "--out", "OUT"], "--split goes with --all"),
        (["--all", "--split", "gate", "--out", "OUT"], "holds no subject in the split 'gate'"),
    ],
)
def test_a_slip_is_one_sentence_and_nothing_is_written(
    untouched: CohortStore, tmp_path: Path, arguments: list[str], words: str
) -> None:
    out = tmp_path / "out"
    done = call("export", untouched.path, *(str(out) if argument == "OUT" else argument for argument in arguments))
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
