"""Studies on a real Ray: to their end, past failures, within a time, and on again."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.pipeline import StudyRequest, TrialTrainer, begin_study
from vesalius.platform.errors import SettingError, StoreError, StudyError
from vesalius.platform.progress import silent
from vesalius.platform.runs import find_run
from vesalius.platform.store import CohortStore
from vesalius.platform.store.lock import exclusive
from vesalius.platform.tracking import client
from vesalius.platform.training import TrainingSettings
from vesalius.tuning import (
    Record,
    StudyFolder,
    StudySpec,
    analyse,
    compare_seeds,
    create_study,
    drive,
    find_study,
    repeat,
)
from vesalius.tuning.testing import BASE, ToyTrainer, toy_spec, toy_study, worth

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.runs import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


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
    study = toy_study(tmp_path, trials=3, concurrent=1, pruner="asha", space={"x": "0.8..1.0"})
    assert driven(study, tmp_path, budget_seconds=240, seconds=0.1, closing=4.0).is_finished
    counts = analyse(study).counts
    assert counts["pruned"] >= 1, "the start is far better than all of the space"
    assert sum(counts.values()) == 3
    assert not counts.get("running")
    assert sum(line.startswith("train") for line in log(tmp_path)) == 3


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


# ---- trained again with other seeds


def test_best_and_start_are_trained_again_once_for_each_seed(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=4, criterion=None)
    driven(study, tmp_path)
    found = analyse(study)
    assert found.best not in (None, 0)
    rows = [row for row in found.trials if row.number in (0, found.best)]
    seen: list[tuple[int, int, str]] = []
    trainer = ToyTrainer(str(tmp_path))
    repeat(study, rows, [1, 2], trainer, lambda done, total, note: seen.append((done, total, note)))
    assert seen[0][:2] == (0, 4)
    assert seen[-1][:2] == (4, 4)
    compared = compare_seeds(study, found)
    assert compared is not None
    for row in compared.rows:
        assert row.best is not None
        assert row.start is not None
        assert row.start.figures["average_precision"] == pytest.approx(worth({}) - 0.001 * row.seed)
        assert row.best.run_id == f"toy-{found.best:04d}-seed{row.seed}"
    trained = [line for line in log(tmp_path) if "seed" in line]
    assert len(trained) == 8, "four trained, four judged"
    (study.path / "seeds" / f"{found.best:04d}-2.json").unlink()
    repeat(study, rows, [1, 2, 3], trainer)
    again = [line for line in log(tmp_path) if "train" in line and "seed" in line][4:]
    assert sorted(again) == sorted(
        [f"train toy-{found.best:04d}-seed{seed}" for seed in (2, 3)] + ["train toy-0000-seed3"]
    )
    assert analyse(study).counts == found.counts, "they are no trials"
    with exclusive(study.lock), pytest.raises(StudyError, match="is being written by process"):
        repeat(study, rows, [4], trainer)


@pytest.mark.long
def test_a_training_that_fails_is_no_pair_and_is_tried_again(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, trials=3, criterion=None)
    driven(study, tmp_path)
    found = analyse(study)
    rows = [row for row in found.trials if row.number in (0, found.best)]
    repeat(study, rows, [1, 2], ToyTrainer(str(tmp_path), wrong={"seed": (2, "diverges")}))
    compared = compare_seeds(study, found)
    assert compared is not None
    assert len(compared.differences) == 1
    assert compared.rows[1].best is not None
    assert compared.rows[1].best.reason.startswith("the loss is not finite")
    repeat(study, rows, [1, 2], ToyTrainer(str(tmp_path)))
    compared = compare_seeds(study, found)
    assert compared is not None
    assert compared.interval is not None
    with pytest.raises(StoreError, match="the store is gone"):
        repeat(study, rows, [3], ToyTrainer(str(tmp_path), wrong={"seed": (3, "store")}))
    assert study.record(0, 3) is None


class _Dies(ToyTrainer):
    """Its process ends where a training with seed 2 is to begin."""

    def train(self, run: RunFolder) -> None:
        if run.run_id.endswith("-seed2"):
            os._exit(1)
        super().train(run)


def test_a_training_whose_worker_dies_is_closed_and_says_so(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = toy_study(tmp_path, trials=2, criterion=None, concurrent=1, training=TrainingSettings(max_failures=0))
    driven(study, tmp_path)
    rows = analyse(study).trials
    study.keep(Record(number=0, ending="failed", reason="of an earlier call"), 2)
    asked: list[Any] = []
    monkeypatch.setattr("vesalius.tuning.repeating.check_resources", lambda *_, **asks: asked.append(asks["nodes"]))
    repeat(study, rows[:1], [1, 2], _Dies(str(tmp_path)))
    record = study.record(0, 2)
    assert record is not None
    assert record.reason.startswith("its worker process died")
    assert "abandon toy-0000-seed2" in log(tmp_path)
    assert "abandon toy-0000-seed1" not in log(tmp_path)
    assert (done := study.record(0, 1)) is not None
    assert done.ending == "complete"
    assert [len(nodes) for nodes in asked] == [1], "what fits is counted by machine"


class _TellsOfItself(ToyTrainer):
    """Says which process judged a run."""

    def judge(self, run: RunFolder, spec: StudySpec) -> dict[str, float]:
        return {**super().judge(run, spec), "peak_memory": 1.0, "process": float(os.getpid())}


@pytest.mark.long
def test_a_trial_judged_by_its_processs_memory_has_one_of_its_own(tmp_path: Path, ray_session: None) -> None:
    for name, objectives in (("shared", ("average_precision",)), ("own", ("average_precision", "peak_memory"))):
        study = toy_study(tmp_path, name=name, trials=3, concurrent=1, criterion=None, objectives=objectives)
        drive(study, BASE, _TellsOfItself(str(tmp_path)))
        processes = {one.figures["process"] for one in analyse(study).trials}
        assert len(processes) == (3 if name == "own" else 1)


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
    elsewhere = study.spec.model_copy(
        update={"training": study.spec.training.model_copy(update={"device": "auto", "threads": 7})}
    )
    again = trainer.start(elsewhere, 1, {"method.smoothing": 1})
    assert again.spec.training == elsewhere.training, "what is half-way goes on where the study computes from now on"
    assert again.spec == run.spec, "and so it is kept"
    seeded = study.spec.model_copy(update={"training": study.spec.training.model_copy(update={"seed": 9})})
    with pytest.raises(StudyError, match="is of other training settings than trial 1"):
        trainer.start(seeded, 1, {"method.smoothing": 1})
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


@pytest.mark.long
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
    # A trial is a run like any other: bit for bit the one of `vesalius train` that validates as often, since the best
    # of more passes may be another.
    chosen = find_study(home, "small").spec.training
    train = call(
        "train", "implicit_field", toy_store.path, "--preset", "tiny", "--set", "training.device=cpu", "--set",
        f"training.threads={chosen.threads}", "--set", f"training.validations={chosen.validations}", "--workers", 0,
        "--name", "plain", "--home", home, "--json",
    )  # fmt: skip
    assert train.exit_code == 0, train.stderr
    weights = [find_run(home, name).model / "weights.safetensors" for name in ("plain", "small-0000")]
    is_same = weights[0].read_bytes() == weights[1].read_bytes()
    assert is_same, "a difference of files this long takes minutes to print"
    told = call("study", "small", "--home", home, "--json")
    assert json.loads(told.stdout)["trials"] == document["trials"]
    shown = call("study", "small", "--home", home)
    assert "the settings it started from" in shown.stdout

    more = call("tune", "--resume", "small", "--trials", 4, "--home", home, "--json")
    assert more.exit_code == 0, more.stderr
    assert json.loads(more.stdout)["trials"][:3] == document["trials"]
    assert len(json.loads(more.stdout)["trials"]) == 4


@pytest.mark.long
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


@pytest.mark.long
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


def test_a_study_is_tracked_compared_shown_and_promoted(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / "home"
    begun = call(
        "tune", "intensity_threshold", toy_store.path, "--trials", 2, "--space", "smoothing=1,3", "--set",
        "training.device=cpu", "--name", "told", "--home", home, "--json",
    )  # fmt: skip
    assert begun.exit_code == 0, begun.stderr
    more = call("tune", "--resume", "told", "--trials", 3, "--home", home)
    assert more.exit_code == 0, more.stderr
    assert "the spaces hold nothing that was not tried" in more.stderr
    document = json.loads(call("study", "told", "--home", home, "--json").stdout)
    best = document["best"]
    mlflow = client(f"sqlite:///{home}/mlflow.db")
    experiment = mlflow.get_experiment_by_name("told").experiment_id

    def runs() -> tuple[Any, dict[str, Any]]:
        every = mlflow.search_runs([experiment])
        (parent,) = [run for run in every if "mlflow.parentRunId" not in run.data.tags]
        children = {run.info.run_name: run for run in every if run is not parent}
        assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
        return parent, children

    parent, children = runs()
    rows = {row["number"]: row for row in document["trials"]}
    assert set(children) == {row["run"] for row in rows.values()}, "and one parent, though there were two calls"
    assert parent.data.params["space.method.smoothing"] == "1,3"
    assert parent.data.metrics["trials/complete"] == 2
    figures = rows[best]["figures"]
    assert parent.data.metrics["best/average_precision"] == pytest.approx(figures["average_precision"])
    assert [name for name, run in children.items() if run.data.tags.get("vesalius_best") == "true"] == [
        f"told-{best:04d}"
    ]
    child = children[f"told-{best:04d}"].data
    assert child.metrics["trial/average_precision"] == pytest.approx(figures["average_precision"])
    assert child.metrics["trial/peak_memory"] > 0
    assert child.metrics["trial/training_seconds"] >= 0

    seeds = call("study", "told", "--seeds", 2, "--html", tmp_path / "page", "--home", home, "--json")
    if best == 0:
        assert seeds.exit_code == 2
        assert "has the settings that it started from" in " ".join(seeds.stderr.split())
    else:
        assert seeds.exit_code == 0, seeds.stderr
        compared = json.loads(seeds.stdout)["seeds"]
        assert [row["seed"] for row in compared["rows"]] == [1, 2]
        # Nothing of this method depends on the seed.
        assert compared["rows"][0]["best"]["figures"]["average_precision"] == figures["average_precision"]
        parent, children = runs()
        assert children[f"told-{best:04d}-seed1"].data.tags["vesalius_seed"] == "1"
        assert parent.data.metrics["seeds/difference"] == pytest.approx(compared["mean"])
        assert find_run(home, f"told-{best:04d}-seed2").spec.training.seed == 2
        page = (tmp_path / "page" / "index.html").read_text()
        assert "vesalius study told --seeds 5" in page
        early = call("study", "told", "--test", "--home", home)
        assert early.exit_code == 2
        assert "has 2 of 3 trials" in " ".join(early.stderr.split())
        assert call("tune", "--resume", "told", "--trials", 2, "--home", home).exit_code == 0
        held_out = call("study", "told", "--test", "--html", tmp_path / "page", "--home", home, "--json")
        assert held_out.exit_code == 0, held_out.stderr
        test = json.loads(held_out.stdout)["test"]
        assert test["split"] == "test"
        runs_of_one = [test["rows"][0][word]["run_id"] for word in ("best", "start")]
        evaluated = json.loads(call("evaluate", *runs_of_one, "--home", home, "--json").stdout)["figures"]
        theirs = [one["average_precision"] for one in evaluated if one["voxel_set"] == "all"]
        assert test["differences"] == pytest.approx([theirs[0] - theirs[1]] * 2)
        assert "On the test split" in (tmp_path / "page" / "index.html").read_text()
        assert json.loads(call("study", "told", "--home", home, "--json").stdout)["test"] == test, "it is kept"

    promoted = call("study", "told", "--promote", "brain", "--home", home, "--json")
    assert promoted.exit_code == 0, promoted.stderr
    assert json.loads(promoted.stdout)["promotion"]["promoted"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nothing"], "no study 'nothing'"),
        (["own", "--seeds", "1"], "has an interval over 2 seeds or more"),
        (["own", "--html", "FILE"], "is not a page of this kind"),
        (["own", "--promote", "brain"], "has not begun"),
        (["own", "--seeds", "3"], "has not begun"),
        (["own", "--test"], "has not begun"),
    ],
)
def test_what_a_study_cannot_show_is_a_sentence(
    toy_store: CohortStore, home: Path, tmp_path: Path, arguments: list[str], match: str
) -> None:
    file = tmp_path / "mine.html"
    file.write_text("mine")
    cohort = {"store": str(toy_store.path), "cohort_digest": toy_store.digest}
    spec = toy_spec(home, name="own", storage=f"sqlite:///{home}/own.db", **cohort)
    create_study(home, spec)
    result = call("study", *[str(file) if one == "FILE" else one for one in arguments], "--home", home)
    assert result.exit_code == 2, result.output
    assert match in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert file.read_text() == "mine"


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
        (["--pruner", "asha:0"], "from 1 to 99 behind asha or median"),
        (["--pruner", "none:33"], "from 1 to 99 behind asha or median"),
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
        "decoder_lr=log:1e-9..1e-8", "--set", "training.device=cpu", "--set", "training.validate_every=2",
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
