"""Studies on a real Ray: to their end, past failures, within a time, and on again."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.pipeline.tuning import StudyRequest, TrialTrainer, begin_study
from vesalius.platform import cluster
from vesalius.platform.errors import SettingError, StoreError, StudyError
from vesalius.platform.progress import silent
from vesalius.platform.runs import find_run
from vesalius.platform.store import CohortStore
from vesalius.platform.store.lock import exclusive
from vesalius.tuning import StudyFolder, analyse, drive, find_study
from vesalius.tuning.testing import BASE, ToyTrainer, toy_study, worth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with cluster.session(2):
        yield


def driven(study: StudyFolder, home: Path, budget_seconds: float | None = None, **trainer: Any) -> Any:
    return drive(study, BASE, ToyTrainer(str(home), **trainer), budget_seconds=budget_seconds)


def log(home: Path) -> list[str]:
    return (home / "log").read_text().splitlines()


def test_a_study_comes_to_its_end(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=7, pruner="asha")
    seen: list[tuple[int, int, str]] = []
    ended = drive(study, BASE, ToyTrainer(str(tmp_path)), progress=lambda d, t, n: seen.append((d, t, n)))
    assert ended.is_finished
    found = analyse(study)
    assert len(found.trials) == 7
    assert {row.state for row in found.trials} <= {"complete", "pruned"}
    start = found.trials[0]
    assert start.is_start
    assert start.state == "complete"
    assert start.figures["average_precision"] == pytest.approx(worth({}))
    assert [percent for percent, _ in start.curve] == [int(100 * step / 9) for step in range(1, 10)]
    assert found.best is not None
    trained = [line for line in log(tmp_path) if line.startswith("train")]
    assert len(trained) == len(set(trained)) == 7
    assert seen[-1][:2] == (7, 7)
    assert any("2 under way" in note for _, _, note in seen), "two trials side by side"
    again = driven(study, tmp_path)
    assert again.is_finished
    assert [line for line in log(tmp_path) if line.startswith("train")] == trained, "nothing is left to do"


def test_a_stopped_trial_that_is_slow_to_let_go_takes_no_other_with_it(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=4, concurrent=1, pruner="asha", space={"x": "0.8..1.0"})
    assert driven(study, tmp_path, budget_seconds=240, seconds=0.1, closing=4.0).is_finished
    counts = analyse(study).counts
    assert counts["pruned"] >= 1, "the start is far better than all of the space"
    assert sum(counts.values()) == 4
    assert not counts.get("running")
    assert sum(line.startswith("train") for line in log(tmp_path)) == 4


def test_a_failed_trial_is_not_a_failed_study(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=8, space={"k": "1..8"}, sampler="random")
    assert driven(study, tmp_path, wrong={"method.k": (7, "memory")}).is_finished
    found = analyse(study)
    failed = [row for row in found.trials if row.state == "failed"]
    assert failed
    assert {row.values["method.k"] for row in failed} <= {7, 8}
    assert all(row.reason.startswith("out of memory") for row in failed)
    assert found.counts["failed"] + found.counts["complete"] == 8


@pytest.mark.parametrize(
    ("how", "reason"), [("diverges", "the loss is not finite"), ("defect", "ValueError: a defect")]
)
def test_where_every_trial_fails_the_study_stops(tmp_path: Path, ray_session: None, how: str, reason: str) -> None:
    study = toy_study(tmp_path, trials=20)
    with pytest.raises(StudyError, match=f"every trial has failed so far, the last one because: {reason}"):
        driven(study, tmp_path, wrong={"method.x": (0.0, how)})
    assert sum(line.startswith("train") for line in log(tmp_path)) <= 5


def test_what_is_wrong_for_all_stops_the_study_and_loses_nothing(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=4)
    with pytest.raises(StoreError, match="the store is gone"):
        driven(study, tmp_path, wrong={"method.x": (0.0, "store")})
    assert driven(study, tmp_path).is_finished
    assert analyse(study).counts["complete"] == 4


def test_a_time_that_is_over_leaves_trials_to_go_on_with(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=4)
    ended = driven(study, tmp_path, budget_seconds=6, seconds=0.6)
    assert not ended.is_finished
    counts = analyse(study).counts
    assert counts["running"] >= 1
    assert driven(study, tmp_path).is_finished
    assert analyse(study).counts["complete"] == 4
    judged = [line for line in log(tmp_path) if line.startswith("judge")]
    assert len(judged) == len(set(judged)) == 4


def test_several_objectives(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, objectives=("average_precision", "seconds_per_volume"), criterion=None, trials=5)
    assert driven(study, tmp_path).is_finished
    found = analyse(study)
    assert found.front
    assert found.counts["complete"] == 5


def test_one_driver_at_a_time_drives_a_study_from_a_folder(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path)
    with exclusive(study.lock), pytest.raises(StudyError, match=r"studies/toy is being written by process \d+"):
        driven(study, tmp_path)


def test_a_lost_storage_is_refused(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=1)
    driven(study, tmp_path)
    (study.path / "optuna.db").unlink()
    with pytest.raises(StudyError, match="holds nothing of study 'toy', of which trials have ended"):
        driven(study, tmp_path)


def test_more_than_fits_is_a_sentence_and_no_deadlock(tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(SettingError, match="use --concurrent 1"):
        driven(toy_study(tmp_path, num_workers=2, concurrent=2), tmp_path)


# ---- methods


def test_runs_that_are_another_studys_are_not_taken_for_its_own(toy_store: CohortStore, home: Path) -> None:
    request = StudyRequest(
        method="intensity_threshold", store=str(toy_store.path), name="own", space={"smoothing": [1, 3]},
        set={"training.device": "cpu"},
    )  # fmt: skip

    def begin() -> StudyFolder:
        return begin_study(request, home=home, say=lambda said: None, progress=silent)

    study, trainer = begin(), TrialTrainer(home)
    run = trainer.start(study.spec, 1, {"method.smoothing": 1})
    assert trainer.start(study.spec, 1, {"method.smoothing": 1}).path == run.path, "a trial goes on"
    with pytest.raises(StudyError, match=r"own-0001.*is of other settings than trial 1 of study 'own'"):
        trainer.start(study.spec, 1, {"method.smoothing": 3})
    begun = run.path.parent / "own-0002"
    begun.mkdir()
    assert trainer.start(study.spec, 2, {"method.smoothing": 3}).spec.settings["smoothing"] == 3
    foreign = run.path.parent / "own-0003" / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(StudyError, match=r"own-0003 is no run and holds notes.txt"):
        trainer.start(study.spec, 3, {"method.smoothing": 1})
    assert foreign.read_text() == "mine"
    shutil.rmtree(study.path)
    with pytest.raises(StudyError, match=r"runs of a study 'own' exist already \(own-0001"):
        begin()
    assert not study.path.exists()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return tmp_path / "home"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_tune_and_study_on_a_method(toy_store: CohortStore, home: Path, ray_session: None) -> None:
    result = call(
        "tune", "implicit_field", toy_store.path, "--preset", "tiny", "--trials", 3, "--space", "num_classes=4..8",
        "--space", "prior_sigma=log:1e-2..1", "--set", "training.device=cpu", "--name", "small", "--home", home,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["finished"]
    assert document["objectives"] == {"average_precision": "maximize"}
    assert [row["run"] for row in document["trials"]] == ["small-0000", "small-0001", "small-0002"]
    start = document["trials"][0]
    assert start["is_start"]
    assert 0 < start["figures"]["average_precision"] <= 1
    assert {"seconds_per_volume", "training_seconds", "peak_memory", "brain/auroc"} <= set(start["figures"])
    # A trial is a run like any other: bit for bit the one of `vesalius train`.
    train = call(
        "train", "implicit_field", toy_store.path, "--preset", "tiny", "--set", "training.device=cpu", "--set",
        f"training.threads={find_study(home, 'small').spec.training.threads}", "--workers", 0, "--name", "plain",
        "--home", home, "--json",
    )  # fmt: skip
    assert train.exit_code == 0, train.stderr
    weights = [find_run(home, name).model / "weights.safetensors" for name in ("plain", "small-0000")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    told = call("study", "small", "--home", home, "--json")
    assert json.loads(told.stdout)["trials"] == document["trials"]
    shown = call("study", "small", "--home", home)
    assert "the settings it started from" in shown.stdout

    more = call("tune", "--resume", "small", "--trials", 4, "--home", home, "--json")
    assert more.exit_code == 0, more.stderr
    assert json.loads(more.stdout)["trials"][:3] == document["trials"]
    assert len(json.loads(more.stdout)["trials"]) == 4


def test_healthy_validation_is_judged_and_said(healthy_store: CohortStore, home: Path, ray_session: None) -> None:
    result = call(
        "tune", "intensity_threshold", healthy_store.path, "--trials", 2, "--space", "smoothing=1,3", "--set",
        "training.device=cpu", "--home", home, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "no validation subject has outlined lesions" in result.stderr
    document = json.loads(result.stdout)
    assert document["objectives"] == {"healthy_image_score": "maximize"}
    assert {row["state"] for row in document["trials"]} == {"complete"}


def test_synthetic_lesions_make_a_healthy_cohort_one_to_detect_in(
    healthy_store: CohortStore, home: Path, tmp_path: Path, ray_session: None
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (record, *_) = healthy_store.subjects("validation")
    mask = np.zeros(record.shape, np.uint8)
    mask[4:9, 3:8, 2:6] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.asarray(record.affine)), masks / "lesion.nii.gz")
    result = call(
        "tune", "intensity_threshold", healthy_store.path, "--trials", 2, "--space", "smoothing=1,3", "--set",
        "training.device=cpu", "--lesions", masks, "--name", "planted", "--home", home, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["objectives"] == {"average_precision": "maximize"}
    assert all(row["figures"]["average_precision"] > 0 for row in document["trials"])
    planted = CohortStore.open(find_study(home, "planted").spec.store)
    assert planted.path != healthy_store.path
    assert any(one.has_lesion for one in planted.subjects("validation"))
    for split in ("train", "test"):
        assert [one.arrays for one in planted.subjects(split)] == [one.arrays for one in healthy_store.subjects(split)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--space", "code_sigma=1..2"], "did you mean 'method.prior_sigma'?"),
        (["--space", "num_classes=9..4"], "is empty"),
        (["--space", "num_classes=4..400"], "the value 400 is refused"),
        (["--space", "points"], "declares no space of 'method.points'"),
        (["--space", "=3"], "expected KEY=SPACE"),
        (["--trials", "0"], "a study has 1 or more"),
        (["--objective", "test_auroc"], "a study never sees them"),
        (["--objective", "aproc"], "unknown objective"),
        (["--sampler", "tp"], "unknown sampler"),
        (["--pruner", "ash"], "unknown pruner"),
        (["--pruner", "asha", "--objective", "seconds_per_volume"], "say nothing of seconds_per_volume"),
        (["--workers", "64"], "it would wait for ever"),
        (["--concurrent", "99"], "use --concurrent"),
        (["--storage", "nowhere"], "expected sqlite:///FILE"),
        (["--set", "method.wdth=3"], "did you mean 'method.width'?"),
        (["--budget", "soon"], "expected a time"),
        (["--gpus", "1.5"], "above 1 it is a whole number"),
        (["--name", "a/b"], "cannot name a study"),
        (["--lesions", "nowhere"], "is not a folder"),
        (["--resume", "nothing", "--sampler", "tpe"], "no study 'nothing'"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(
    toy_store: CohortStore, home: Path, arguments: list[str], match: str
) -> None:
    result = call("tune", "implicit_field", toy_store.path, "--preset", "tiny", "--home", home, *arguments)
    assert result.exit_code == 2, result.output
    assert match in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not list(home.glob("studies/*/study.json"))
    assert not list(home.glob("runs/*"))


def test_a_study_goes_on_with_its_own_cohort_and_spaces_alone(
    toy_store: CohortStore, healthy_store: CohortStore, home: Path, ray_session: None
) -> None:
    begun = call(
        "tune", "intensity_threshold", toy_store.path, "--trials", 1, "--space", "smoothing=1,3", "--set",
        "training.device=cpu", "--name", "own", "--home", home,
    )  # fmt: skip
    assert begun.exit_code == 0, begun.stderr
    for arguments, match in (
        (["intensity_threshold", healthy_store.path], "is of another cohort than"),
        (["healthy_atlas", toy_store.path], "is of intensity_threshold, not of healthy_atlas"),
        (["--space", "smoothing=1,3,5"], "searches other spaces (method.smoothing=1,3)"),
        (["--objective", "auroc"], "is judged by average_precision"),
        (["--sampler", "random"], "leave out --sampler"),
        (["--trials", "0"], "a study has 1 or more"),
        (["--concurrent", "99"], "use --concurrent"),
    ):
        result = call("tune", *arguments, "--resume", "own", "--home", home)
        assert result.exit_code == 2
        assert match in " ".join(result.stderr.split())
    same = call(
        "tune", "intensity_threshold", toy_store.path, "--space", "smoothing=1,3", "--resume", "own", "--home", home
    )
    assert same.exit_code == 0, same.stderr


def test_a_study_file_is_what_options_are(
    toy_store: CohortStore, home: Path, tmp_path: Path, ray_session: None
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        f"method: intensity_threshold\nstore: {toy_store.path}\ntrials: 5\nname: filed\nset: {{training.device: cpu}}\n"
        "space:\n  smoothing: [1, 3]\n  direction: both,high\n"
    )
    result = call("tune", "--file", file, "--trials", 2, "--home", home, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert len(document["trials"]) == 2
    assert set(document["trials"][1]["values"]) == {"method.smoothing", "method.direction"}
    file.write_text("method: intensity_threshold\nstore: x\nsplit: test\n")
    refused = call("tune", "--file", file, "--home", home)
    assert refused.exit_code == 2
    assert "split" in refused.stderr


@pytest.mark.long
def test_a_trial_of_two_workers(toy_store: CohortStore, home: Path) -> None:
    result = call(
        "tune", "implicit_field", toy_store.path, "--preset", "tiny", "--trials", 2, "--space", "num_classes=4..8",
        "--set", "training.device=cpu", "--workers", 2, "--name", "two", "--home", home, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["trials"][0]["state"] == "complete"
    assert document["trials"][0]["curve"], "validation passes of Ray Train's workers reach the study"
    assert find_run(home, "two-0000").spec.num_workers == 2


@pytest.mark.long
def test_a_stopped_trial_of_two_workers_makes_room_for_the_next(toy_store: CohortStore, home: Path) -> None:
    # The samples that the network has to tell apart vanish in noise: all but the start are worse.
    result = call(
        "tune", "implicit_field", toy_store.path, "--preset", "tiny", "--trials", 4, "--space",
        "learning_rate=log:1e-9..1e-8", "--set", "training.device=cpu", "--set", "training.validate_every=2",
        "--workers", 2, "--concurrent", 1, "--pruner", "asha", "--name", "stopped", "--budget", "5m", "--home", home,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["finished"]
    states = [row["state"] for row in document["trials"]]
    assert len(states) == 4
    assert "pruned" in states[:-1], "one is stopped, and another one follows"
    assert set(states) <= {"complete", "pruned"}
