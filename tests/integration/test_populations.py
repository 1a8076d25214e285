"""Populations on a real Ray: the same as without it; one member is a plain training; what does not go is a sentence."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.pipeline import StudyRequest, TrialTrainer, begin_study
from vesalius.infra.pipeline.populations import check_generations
from vesalius.infra.pipeline.training import method_type
from vesalius.platform.progress import silent
from vesalius.platform.runs import find_run
from vesalius.platform.tracking import client
from vesalius.platform.training import TrainingSettings
from vesalius.tuning import VALIDATIONS, Population, analyse, drive, find_study
from vesalius.tuning.testing import BASE, CRITERION, ToyTrainer, toy_study

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


SMALL = ("--preset", "tiny", "--set", "training.device=cpu", "--set", "training.threads=1", "--json")


def test_generations_of_a_toy(tmp_path: Path, ray_session: None) -> None:
    study = toy_study(tmp_path, population=Population(size=3, generations=3), trials=9, concurrent=2, sampler="random")
    trainer = ToyTrainer(str(tmp_path), wrong={"method.k": (8, "diverges")})
    assert drive(study, BASE, trainer, budget_seconds=0.0).is_finished is False
    assert drive(study, BASE, trainer).is_finished
    found = analyse(study)
    assert [row.number for row in found.trials] == list(range(9))
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(line for line in lines if line.startswith("train")) == [f"train toy-{n:04d}" for n in range(9)]
    assert found.start == 6
    assert [percent for percent, _ in found.trials[3].curve] == [44, 55, 66]
    assert found.trials[3].figures[CRITERION] == pytest.approx(found.trials[3].curve[-1][1])
    assert all(row.parent is None or row.parent_sha256 for row in found.trials)


@pytest.mark.long
def test_one_member_is_a_plain_training(
    phantom_store: CohortStore, home: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    result = call(
        "tune", "anovaegan", phantom_store.path, *SMALL, "--population", 1, "--generations", 3, "--name", "one",
        "--home", home,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    train = call("train", "anovaegan", phantom_store.path, *SMALL, "--workers", 0, "--name", "plain", "--home", home)
    assert train.exit_code == 0, train.output
    weights = [find_run(home, name).model / "weights.safetensors" for name in ("plain", "one-0002")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    searched = {one.key for one in find_study(home, "one").spec.searched}
    assert "method.learning_rate" in searched
    assert "method.bottleneck.size" not in searched, "declared, but fixed"
    resumed = call("train", "--resume", "one-0001", "--home", home)
    assert resumed.exit_code == 2
    assert "pauses at 67 % of its training, where other runs go on" in " ".join(resumed.stderr.split())
    for arguments, match in (
        (("tune", "--resume", "one", "--trials", 9), "leave --trials out"),
        (("tune", "--resume", "one", "--generations", 9), "leave out --generations"),
        (("study", "one", "--seeds", 3), "changed on its way"),
        (("study", "one", "--test"), "changed on its way"),
    ):
        refused = call(*arguments, "--home", home)
        assert refused.exit_code == 2, refused.output
        assert match in " ".join(refused.stderr.split())


@pytest.mark.long
def test_a_mutation_is_new_settings_and_the_digest_of_the_parents_weights(
    phantom_store: CohortStore, home: Path, ray_session: None
) -> None:
    result = call(
        "tune", "anovaegan", phantom_store.path, *SMALL, "--population", 2, "--generations", 2, "--name", "two",
        "--space", "learning_rate=log:1e-4..1e-1", "--home", home,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["trials"]
    assert [row["state"] for row in rows] == ["paused", "paused", "complete", "complete"]
    for row in rows[2:]:
        run, parent = find_run(home, row["run"]), find_run(home, f"two-{row['parent']:04d}")
        forerunner, paused = run.spec.forerunner, parent.paused
        assert forerunner is not None
        assert paused is not None
        assert (forerunner.run, forerunner.checkpoint) == (parent.run_id, paused.checkpoint)
        weights = (parent.checkpoints / paused.checkpoint / "weights.safetensors").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()
        assert forerunner.weights_sha256 == row["parent_sha256"] == digest
        assert run.spec.settings["learning_rate"] == row["values"]["method.learning_rate"]
        tags = client(str(run.spec.mlflow_tracking_uri)).get_run(str(run.spec.mlflow_run_id)).data.tags
        assert tags["vesalius_parent_trial"] == str(row["parent"])
        assert tags["vesalius_parent_weights"] == digest
        assert row["figures"]["training_seconds"] > 0
    assert not (find_run(home, "two-0000").model / "model.json").exists()
    assert find_run(home, "two-0000").state == "paused"
    shown = call("study", "two", "--home", home)
    assert "parent" in shown.stdout
    assert "paused at 53 %" in shown.stdout, "after 8 of 15 steps"


@pytest.mark.long
def test_members_of_two_workers(phantom_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a session around it: the cores that one member's workers had are free for the next one's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    result = call(
        "tune", "anovaegan", phantom_store.path, *SMALL, "--population", 2, "--generations", 2, "--name", "two",
        "--space", "learning_rate=log:1e-4..1e-1", "--workers", 2, "--concurrent", 1, "--budget", "6m", "--home", home,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["state"] for row in document["trials"]] == ["paused", "paused", "complete", "complete"]
    for row in document["trials"][2:]:
        run, parent = find_run(home, row["run"]), find_run(home, f"two-{row['parent']:04d}")
        assert run.spec.num_workers == 2
        assert parent.paused is not None
        assert parent.paused.weights_sha256 == row["parent_sha256"]


@pytest.mark.parametrize(
    ("method", "arguments", "match"),
    [
        ("anovaegan", ["--population", "3"], "give both, such as --population 8 --generations 5"),
        ("anovaegan", ["--population", "3", "--generations", "4000"], "steps (anovaegan"),
        ("anovaegan", ["--population", "3", "--generations", "3", "--trials", "9"], "members x generations"),
        ("anovaegan", ["--population", "3", "--generations", "3", "--pruner", "asha"], "are replaced, not stopped"),
        ("anovaegan", ["--population", "3", "--generations", "3", "--sampler", "tpe"], "perturbed, not sampled"),
        ("anovaegan", ["--population", "3", "--generations", "3", "--storage", "sqlite:///x"], "one driver's home"),
        ("anovaegan", ["--population", "3", "--generations", "3", "--from", "run"], "--from does not go with"),
        ("anovaegan", ["--population", "3", "--generations", "3", "--from", "run@stage"], "--from does not go with"),
        ("anovaegan", ["--population", "3", "--generations", "3", "--learn-from", "old"], "--learn-from does not go"),
        (
            "anovaegan",
            ["--population", "3", "--generations", "3", "--space", "bottleneck.size=16,32"],
            "method.bottleneck.size must not change there: leave it out",
        ),
        (
            "anovaegan",
            ["--population", "3", "--generations", "3", "--objective", "seconds_per_volume"],
            "which says nothing of seconds_per_volume",
        ),
        (
            "anovaegan",
            ["--population", "3", "--generations", "3", "--objective", "average_precision", "--objective", "auroc"],
            "which says nothing of average_precision and auroc",
        ),
        ("intensity_threshold", ["--population", "3", "--generations", "3"], "no space of a setting that may change"),
    ],
)
def test_what_does_not_go_is_a_sentence_and_leaves_nothing(
    phantom_store: CohortStore, home: Path, method: str, arguments: list[str], match: str
) -> None:
    result = call("tune", method, phantom_store.path, *SMALL, "--home", home, *arguments)
    assert result.exit_code == 2, result.output
    assert match in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not list(home.glob("studies/*/study.json"))
    assert not list(home.glob("runs/*"))


def test_members_take_nothing_over_from_one_another_but_what_they_go_on_from(
    phantom_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    monkeypatch.setattr("vesalius.infra.pipeline.training.find_shared", lambda *arguments: "another@anovaegan")
    begun: dict[str, Any] = {}
    for name, more in (("plain", {}), ("members", {"population": 2, "generations": 2})):
        request = StudyRequest(
            method="anovaegan",
            store=str(phantom_store.path),
            preset="tiny",
            name=name,
            set={"training.device": "cpu"},
            space={"learning_rate": "log:1e-4..1e-1"},
            **more,
        )
        spec = begin_study(request, home=home, say=lambda said: None, progress=silent).spec
        run = TrialTrainer(home).start(spec, 1, {"method.learning_rate": 1e-3})
        begun[name] = (run.spec.shared_from, run.spec.until, spec.training.validations, spec.pruner)
    assert begun == {
        "plain": ("another@anovaegan", 1.0, VALIDATIONS, "asha"),
        "members": (None, 0.5, TrainingSettings().validations, "none"),
    }


def test_pauses_before_anything_can_be_scored_are_said(phantom_store: CohortStore) -> None:
    kind = method_type("f_anogan")
    settings = kind.presets()["tiny"]
    said = check_generations(kind, settings, phantom_store, Population(size=3, generations=5))
    assert said.startswith("members are compared at 3 of 4 pauses")
    assert "before its stage 'encoder'" in said, "the game alone has nothing to restore with"
    whole = method_type("anovaegan")
    population = Population(size=3, generations=5)
    assert check_generations(whole, whole.presets()["tiny"], phantom_store, population) == ""
