"""The whole way by the command line: files, store, run, figures, a map in the file's own space, a champion."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.platform.evaluation import FIGURE_KEYS

# Left-handed, permuted and shifted: voxel axes run to anterior, to left, and upwards.
AFFINE = np.array([[0.0, -4.0, 0.0, 50.0], [4.0, 0.0, 0.0, -70.0], [0.0, 0.0, 4.0, -20.0], [0.0, 0.0, 0.0, 1.0]])
SHAPE = (20, 18, 16)


def call(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code in (0, 1), done.stderr
    return json.loads(done.stdout)


def head(seed: int, lesion: tuple[int, int, int] | None) -> tuple[Any, Any]:
    """Return a volume in file space and its lesion, a cube of 3 voxels round ``lesion``."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.8
    image = brain * (1.0 + 0.2 * grid[0] + random.normal(0, 0.03, SHAPE))
    mask = np.zeros(SHAPE, np.uint8)
    if lesion is not None:
        mask[tuple(slice(c - 1, c + 2) for c in lesion)] = 1
        image = image + 0.8 * mask
    return image.astype(np.float32), mask


LESIONS = [(12, 6, 9), (7, 11, 6), (9, 8, 11), (13, 10, 7), (6, 7, 8), (11, 12, 9)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("pipeline")
    rows = []
    plan: list[tuple[str, tuple[int, int, int] | None]] = [("train", None)] * 6
    for split, places in (("validation", LESIONS[:2]), ("gate", LESIONS[2:4]), ("test", LESIONS[4:])):
        plan += [(split, place) for place in places] + [(split, None)]
    for index, (split, place) in enumerate(plan):
        image, mask = head(index, place)
        row = {"subject_id": f"{split}-{index:02d}", "T1w": f"{index}.nii.gz", "split": split, "lesion_mask": ""}
        nibabel.Nifti1Image(image, AFFINE).to_filename(folder / row["T1w"])
        if place is not None:
            row["lesion_mask"] = f"{index}_lesion.nii.gz"
            nibabel.Nifti1Image(mask, AFFINE).to_filename(folder / row["lesion_mask"])
        rows.append(row)
    with (folder / "subjects.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    files, sheet = folder / "subjects.csv", folder / "sheet.png"
    report = call("ingest", "manifest", files, folder / "cohort", "--recipe", "as_is", "--montage", sheet)
    assert len(report["added"]) == len(plan)
    assert report["splits"] == {"train": 6, "validation": 3, "gate": 3, "test": 3}
    assert Path(report["montage"]).stat().st_size > 10_000
    home = folder / "home"
    runs = {}
    for method in ("intensity_threshold", "healthy_atlas"):
        runs[method] = call("train", method, folder / "cohort", "--workers", 0, "--name", method, "--home", home)
    return SimpleNamespace(folder=folder, home=home, store=folder / "cohort", runs=runs)


def test_a_second_ingest_changes_nothing(cohort: SimpleNamespace) -> None:
    again = call("ingest", "manifest", cohort.folder / "subjects.csv", cohort.store, "--recipe", "as_is")
    assert (again["added"], len(again["unchanged"])) == ([], 15)
    assert again["digest"] == call("check", cohort.store)["digest"] == cohort.runs["healthy_atlas"]["cohort_digest"]


def test_figures_carry_the_same_keys_everywhere(cohort: SimpleNamespace, tmp_path: Path) -> None:
    picture = tmp_path / "maps.png"
    document = call("evaluate", *cohort.runs, "--home", cohort.home, "--picture", picture)
    assert {(row["method"], row["voxel_set"]) for row in document["figures"]} == {
        (method, voxels) for method in cohort.runs for voxels in ("all", "brain")
    }
    assert picture.stat().st_size > 10_000
    import mlflow

    for row in document["figures"]:
        assert set(FIGURE_KEYS) <= set(row)
        assert row["threshold"]["split"] == "validation"
        run = cohort.runs[row["run"]]
        tracked = mlflow.MlflowClient(run["mlflow_tracking_uri"]).get_run(run["mlflow_run_id"]).data.metrics
        card = json.loads((Path(run["model"]) / "model.json").read_text())["metrics"]
        for key in FIGURE_KEYS[1:]:
            name = f"test/{row['voxel_set']}/{key}"
            assert tracked[name] == pytest.approx(row[key])
            assert card[name] == row[key]
    atlas = next(row for row in document["figures"] if row["run"] == "healthy_atlas" and row["voxel_set"] == "all")
    assert atlas["average_precision"] > 0.8  # a bright cube in a quiet head


def test_choosing_and_reporting_splits_are_kept_apart(cohort: SimpleNamespace) -> None:
    from vesalius.platform.models import read_card

    card = read_card(Path(cohort.runs["healthy_atlas"]["model"]))
    assert {threshold.split for threshold in card.thresholds.values()} == {"validation"}
    done = CliRunner().invoke(app, ["evaluate", "healthy_atlas", "--split", "tset", "--home", str(cohort.home)])
    assert done.exit_code == 2
    assert "did you mean 'test'?" in done.stderr


def test_a_map_lies_on_the_lesion_in_the_files_own_space(cohort: SimpleNamespace, tmp_path: Path) -> None:
    place = (13, 7, 10)
    image, mask = head(99, place)
    file = tmp_path / "patient.nii.gz"
    nibabel.Nifti1Image(image, AFFINE).to_filename(file)
    answer = call("score", "healthy_atlas", file, "--out", tmp_path / "out", "--home", cohort.home)
    found: Any = nibabel.load(answer["written"]["map"])
    assert found.shape == SHAPE
    assert np.array_equal(found.affine, AFFINE)
    values = np.asarray(found.dataobj)
    above = values >= answer["threshold"]
    assert 2 * (above & (mask > 0)).sum() / (above.sum() + mask.sum()) > 0.8
    assert np.unravel_index(values.argmax(), SHAPE) in {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    assert answer["anomalous_ml"] == pytest.approx(above.sum() * 64 / 1000, abs=1e-3)
    assert Path(answer["written"]["picture"]).stat().st_size > 10_000
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["patient.png", "patient_map.nii.gz", "patient_restoration.nii.gz"]


def test_a_split_is_scored_into_files(cohort: SimpleNamespace, tmp_path: Path) -> None:
    document = call("score", "healthy_atlas", "--split", "test", "--out", tmp_path, "--home", cohort.home)
    by_id = {row["subject_id"]: row for row in document["subjects"]}
    assert {row["has_lesion"] for row in by_id.values()} == {True, False}
    for index, place in ((12, LESIONS[4]), (13, LESIONS[5])):
        row = by_id[f"test-{index:02d}"]
        values = np.asarray(nibabel.load(row["written"]["map"]).dataobj)
        distance = np.abs(np.array(np.unravel_index(values.argmax(), SHAPE)) - place)
        assert distance.max() <= 1
    healthy = min(by_id.values(), key=lambda row: row["image_score"])
    assert not healthy["has_lesion"]


def test_the_gate_decides_and_a_rollback_goes_back(cohort: SimpleNamespace, tmp_path: Path) -> None:
    def promote(*arguments: object) -> tuple[int, Any, str]:
        told = ["promote", *map(str, arguments), "--name", "n", "--home", str(cohort.home), "--json"]
        done = CliRunner().invoke(app, told)
        return done.exit_code, json.loads(done.stdout), done.stderr

    code, first, _ = promote("intensity_threshold")
    assert (code, first["promoted"], first["champion_version"]) == (0, True, None)
    code, second, _ = promote("healthy_atlas")
    assert (code, second["promoted"]) == (0, True)
    assert second["lower_bound"] > 0
    code, third, said = promote("intensity_threshold")
    assert (code, third["promoted"]) == (1, False)
    assert f"fell short of the champion by {third['short_by']:.4f}" in said
    image, _ = head(98, None)
    nibabel.Nifti1Image(image, AFFINE).to_filename(tmp_path / "x.nii.gz")
    answer = call("score", "models:/n@champion", tmp_path / "x.nii.gz", "--out", tmp_path / "o", "--home", cohort.home)
    assert answer["method"] == "healthy_atlas"
    code, back, _ = promote("--rollback")
    assert (code, back["version"]) == (0, first["version"])
    assert promote("--rollback")[0] == 2


def test_control_c_says_how_to_go_on(cohort: SimpleNamespace, tmp_path: Path) -> None:
    arguments = [
        "train", "implicit_field", str(cohort.store), "--preset", "tiny", "--workers", "0", "--name", "long",
        "--home", str(tmp_path), "--set", "method.epochs=1000000", "--set", "training.checkpoint_every=20",
    ]  # fmt: skip
    program = [sys.executable, "-c", "from vesalius.infra.cli import main; main()"]
    process = subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "long"
    try:
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/0001-*")) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "vesalius train --resume long" in err
    assert json.loads((run / "state.json").read_text())["state"] == "interrupted"
