"""The whole way by the command line: files, store, run, figures, a map in the file's own space, a champion."""

from __future__ import annotations

import csv
import json
import shutil
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
    assert done.stdout, done.exception
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
        # The lesions are smaller than the default averaging window.
        plain = ("--set", "method.map.average_pool=1", "--workers", 0)
        runs[method] = call("train", method, folder / "cohort", *plain, "--name", method, "--home", home)
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
        kept = json.loads((Path(run["folder"]) / "evaluations" / "test.json").read_text())
        for key in FIGURE_KEYS[1:]:
            name = f"test/{row['voxel_set']}/{key}"
            assert tracked[name] == pytest.approx(row[key])
            assert kept[row["voxel_set"]][key] == row[key]
            chosen = f"validation/{row['voxel_set']}/{key}"
            assert tracked[chosen] == pytest.approx(card[chosen])
        assert {name.split("/")[0] for name in card} == {"validation"}
    atlas = next(row for row in document["figures"] if row["run"] == "healthy_atlas" and row["voxel_set"] == "all")
    assert atlas["average_precision"] > 0.8  # a bright cube in a quiet head


def test_choosing_and_reporting_splits_are_kept_apart(cohort: SimpleNamespace) -> None:
    from vesalius.platform.models import read_card

    card = read_card(Path(cohort.runs["healthy_atlas"]["model"]))
    assert {threshold.split for threshold in card.thresholds.values()} == {"validation"}
    done = CliRunner().invoke(app, ["evaluate", "healthy_atlas", "--split", "tset", "--home", str(cohort.home)])
    assert done.exit_code == 2
    assert "did you mean 'test'?" in done.stderr


def test_the_cards_figures_are_those_of_the_split_its_thresholds_come_from(cohort: SimpleNamespace) -> None:
    from sklearn.metrics import average_precision_score

    from vesalius.platform.models import read_card
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore

    store, run = CohortStore.open(cohort.store), cohort.runs["healthy_atlas"]
    scores = ScoreStore.open(Path(run["folder"]) / "scores" / "validation")
    values, labels = [], []
    for record in store.subjects("validation"):
        lesion = store.mask(record.subject_id, "lesion")
        values.append(scores.map(record.subject_id).astype(np.float64).ravel())
        labels.append(np.zeros(values[-1].size, bool) if lesion is None else lesion.ravel())
    expected = average_precision_score(np.concatenate(labels), np.concatenate(values))
    metrics = read_card(Path(run["model"])).metrics
    assert metrics["validation/all/average_precision"] == pytest.approx(expected, abs=1e-9)


def other_store(cohort: SimpleNamespace, path: Path, splits: tuple[str, ...], factor: float) -> Path:
    """Write a store of the cohort's subjects of some splits, their images ``factor`` times as bright."""
    from vesalius.platform.store import CohortStore, SubjectArrays

    own = CohortStore.open(cohort.store)
    other = CohortStore.create(path, recipe=own.recipe, channels=own.channels)
    with other.lock():
        records = []
        for record in own.subjects():
            if record.split in splits:
                name = record.subject_id
                image = (own.image(name) * factor).astype(np.float32)
                arrays = SubjectArrays(image=image, brain=own.brain(name), lesion=own.mask(name, "lesion"))
                records.append(other.write(record.model_copy(update={"arrays": {}}), arrays))
        other.commit(records)
    return path


def test_another_store_leaves_the_models_thresholds_alone(cohort: SimpleNamespace, tmp_path: Path) -> None:
    run = cohort.runs["intensity_threshold"]
    card = Path(run["model"]) / "model.json"
    before = card.read_bytes()
    own = {voxels: one["value"] for voxels, one in json.loads(before)["thresholds"].items()}
    brighter = other_store(cohort, tmp_path / "brighter", ("validation", "test"), 1.5)
    bare = other_store(cohort, tmp_path / "bare", ("test",), 1.5)
    found = {}
    for store in (brighter, bare):
        document = call("evaluate", "intensity_threshold", "--store", store, "--home", cohort.home)
        found[store] = {row["voxel_set"]: row["threshold"]["value"] for row in document["figures"]}
        (kept,) = (Path(run["folder"]) / "evaluations").glob(f"{store.name}-*-test.json")
        rows = json.loads(kept.read_text())
        assert {voxels: row["threshold"]["value"] for voxels, row in rows.items()} == found[store]
        assert card.read_bytes() == before
    assert found[bare] == own
    assert all(found[brighter][voxels] != own[voxels] for voxels in own)


def test_a_copy_of_the_runs_own_store_is_its_own(cohort: SimpleNamespace, tmp_path: Path) -> None:
    run = cohort.runs["intensity_threshold"]
    before = (Path(run["model"]) / "model.json").read_bytes()
    copy = shutil.copytree(cohort.store, tmp_path / "moved")
    call("evaluate", "intensity_threshold", "--store", copy, "--home", cohort.home)
    assert not list((Path(run["folder"]) / "evaluations").glob("moved-*"))
    assert (Path(run["model"]) / "model.json").read_bytes() == before


def test_evaluating_between_promotions_makes_no_other_version(cohort: SimpleNamespace) -> None:
    told = ("promote", "healthy_atlas", "--name", "again", "--home", cohort.home)
    first = call(*told)
    call("evaluate", "healthy_atlas", "--home", cohort.home)
    shutil.rmtree(Path(cohort.runs["healthy_atlas"]["folder"]) / "scores")  # timed anew, found the same
    call("evaluate", "healthy_atlas", "--split", "gate", "--home", cohort.home)
    from vesalius.platform.registry import history

    assert call(*told)["version"] == first["version"] == "1"
    assert [facts.version for facts in history("again", home=cohort.home)] == ["1"]


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


GATES = """
subgroups: {by: [labels.side], min_lesions: 2, worse_by: 1.0}
seconds: {limit: 600, volumes: 1}
lineage: {}
"""


def test_gates_of_a_file_are_asked_recorded_and_shown(cohort: SimpleNamespace, tmp_path: Path) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text(GATES)
    told = ("promote", "healthy_atlas", "--name", "asked", "--home", cohort.home)
    done = CliRunner().invoke(app, [*map(str, told), "--gates", str(gates)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no gate subject has 'labels.side'" in done.stderr
    gates.write_text(GATES.replace("subgroups", "# subgroups"))
    dry = call(*told, "--gates", gates, "--dry-run")
    assert (dry["passed"], dry["promoted"], dry["record"]) == (True, False, None)
    assert "asked" not in [row["name"] for row in call("registry", "--home", cohort.home)["models"]]
    real = call(*told, "--gates", gates, "--why", "the first of its kind")
    assert [one["gate"] for one in real["verdicts"]] == ["better", "seconds", "lineage"]
    assert all(one["outcome"] in ("passed", "does not apply") for one in real["verdicts"])
    # One healthy subject cannot tell, and that hides none of the other answers.
    gates.write_text(GATES.replace("subgroups", "# subgroups") + "false_positives: {limit: 0.5}\n")
    refused = CliRunner().invoke(app, ["promote", "intensity_threshold", *map(str, told[2:]), "--gates", str(gates)])
    assert refused.exit_code == 1
    assert "kept back by" in refused.stderr
    assert "the gate holds 1 healthy subjects and 2 are asked for" in refused.stderr
    assert [gate in refused.stdout for gate in ("better", "false_positives", "seconds", "lineage")] == [True] * 4
    document = call("registry", "asked", "--home", cohort.home)
    assert (document["champion"], document["challenger"]) == ("1", "2")
    assert [one["kind"] for one in document["decisions"]] == ["promoted", "kept back"]
    assert document["decisions"][0]["why"] == "the first of its kind"
    shown = CliRunner().invoke(app, ["registry", "asked", "--home", str(cohort.home)])
    assert "the first of its kind" in shown.stdout
    version = call("registry", "asked", "champion", "--home", cohort.home)
    assert version["records"][0]["full"]["gates"]["seconds"]["volumes"] == 1
    assert version["card"]["title"] == "asked, version 1"
    assert call("registry", "asked", "--settle", "--home", cohort.home) == document
    printed = CliRunner().invoke(app, ["registry", "--gates"])
    gates.write_text(printed.stdout)
    assert call(*told, "--gates", gates)["sentence"].endswith("is the champion of 'asked' already (version 1)")


def test_a_card_says_what_was_computed(cohort: SimpleNamespace, tmp_path: Path) -> None:
    call("evaluate", "healthy_atlas", "--home", cohort.home)
    page, text = tmp_path / "card.html", tmp_path / "card.md"
    card = call("card", "healthy_atlas", "--home", cohort.home, "--html", page, "--markdown", text)
    titles = [section["title"] for section in card["sections"]]
    assert titles == [
        "Model Details",
        "Intended Use",
        "Factors",
        "Metrics",
        "Evaluation Data",
        "Training Data",
        "Quantitative Analyses",
        "Ethical Considerations",
        "Caveats and Recommendations",
    ]
    kept = json.loads((Path(cohort.runs["healthy_atlas"]["folder"]) / "evaluations" / "test.json").read_text())
    assert card["figures"]["test"] == kept
    low, high = kept["all"]["intervals"]["average_precision"]
    precision = f"{kept['all']['average_precision']:.3f} ({low:.3f} to {high:.3f})"
    assert precision in text.read_text()
    assert precision in page.read_text()
    assert card["identity"]["cohort_digest"] == cohort.runs["healthy_atlas"]["cohort_digest"]
    changed = next(one for one in card["sections"][0]["tables"] if "not the defaults" in one["title"])
    assert ["method.map.average_pool", "1"] in [row[:2] for row in changed["rows"]]
    data = next(one for one in card["sections"] if one["title"] == "Evaluation Data")["tables"][0]
    assert [row[:4] for row in data["rows"]] == [
        ["train", "6", "0", "0"],
        ["validation", "3", "2", "2"],
        ["gate", "3", "2", "2"],
        ["test", "3", "2", "2"],
    ]
    # No subject, and no path of this machine.
    assert "test-12" not in page.read_text()
    assert str(tmp_path.parent) not in page.read_text()
    promoted = call("promote", "healthy_atlas", "--name", "carded", "--home", cohort.home)
    registered = call("card", "models:/carded@champion", "--home", cohort.home)
    assert registered["title"] == "carded, version 1"
    assert registered["figures"]["gate"]["all"]["average_precision"] == pytest.approx(promoted["average_precision"])
    assert registered == call("card", "models:/carded/1", "--home", cohort.home)
    done = CliRunner().invoke(app, ["card", "healthy_atlsa", "--home", str(cohort.home)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean 'healthy_atlas'?" in done.stderr


def heed_interrupts() -> None:
    """Undo what a shell does to tests in the background: a process that is started ignoring SIGINT goes on to."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_control_c_says_how_to_go_on(cohort: SimpleNamespace, tmp_path: Path) -> None:
    arguments = [
        "train", "implicit_field", str(cohort.store), "--preset", "tiny", "--workers", "0", "--name", "long",
        "--home", str(tmp_path), "--set", "method.epochs=1000000", "--set", "training.checkpoint_every=20",
    ]  # fmt: skip
    program = [sys.executable, "-c", "from vesalius.infra.cli import main; main()"]
    run = tmp_path / "runs" / "long"
    with subprocess.Popen(
        [*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
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
