"""Studies that learn from earlier ones: in MLflow, which a team shares, and in a home where tracking is off."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.pipeline import StudyRequest, TrialTrainer, base_of, begin_study, tracked_study
from vesalius.infra.pipeline.earlier_studies import earlier_study
from vesalius.platform import cluster
from vesalius.platform.errors import StudyError
from vesalius.platform.progress import silent
from vesalius.platform.tracking import client, start_run
from vesalius.tuning import Population, Record, Start, find_study
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.storage import Patience
from vesalius.tuning.testing import BASE, toy_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.store import CohortStore
    from vesalius.tuning import StudyFolder

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own and Optuna's


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Track at one place; workers of Ray take it from the environment that they were started in."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('team')}/team.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        with cluster.session(2):
            yield uri


def call(home: Path, *arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in (*arguments, "--home", home)])


def tune(home: Path, store: CohortStore, name: str, *more: object) -> Any:
    base = ("tune", "intensity_threshold", store.path, "--set", "training.device=cpu", "--name", name, "--json")
    return call(home, *base, *more)


def told(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def sentence(result: Any) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def begun(home: Path, store: CohortStore, name: str, said: list[str], **changes: Any) -> StudyFolder:
    """Begin a study and drive it nowhere."""
    request: dict[str, Any] = {
        "method": "intensity_threshold",
        "store": str(store.path),
        "name": name,
        "space": {"smoothing": [1, 3, 5]},
        "set": {"training.device": "cpu"},
        **changes,
    }
    return begin_study(StudyRequest(**request), home=home, say=said.append, progress=silent)


@pytest.mark.long
def test_a_team_learns_through_mlflow(
    toy_store: CohortStore, healthy_store: CohortStore, tmp_path: Path, team: str
) -> None:
    one, other = tmp_path / "one", tmp_path / "two"
    old = told(tune(one, toy_store, "old", "--space", "smoothing=1,3,5", "--trials", 3))
    assert old["counts"]["complete"] == 3
    new = tune(
        other, toy_store, "new", "--space", "smoothing=1,3,5,7", "--learn-from", "old", "--trials", 2, "--concurrent", 1
    )
    document = told(new)
    assert "learnt from 3 trials of old" in " ".join(new.stderr.split())
    assert document["learnt"] == {"old": 3}
    assert document["trials"][0]["number"] == 0
    assert min(row["number"] for row in document["trials"][1:]) >= 4, "one to three are theirs"
    learnt = {one.number: one for one in find_study(other, "new").spec.learnt}
    for row in old["trials"]:
        assert learnt[row["number"]].values == row["values"]
        assert learnt[row["number"]].figures["average_precision"] == row["figures"]["average_precision"]
    again = call(other, "study", "new", "--json")
    assert told(again)["learnt"] == {"old": 3}
    assert "learnt from 3 trials of old" in call(other, "study", "new").stdout
    # Of another cohort nothing is comparable: the best are run.
    said: list[str] = []
    far = begun(other, healthy_store, "far", said, learn_from=("old",))
    assert len(said) == 2, said
    assert "it is of another cohort" in said[1]
    figures = {row["number"]: row["figures"]["healthy_image_score"] for row in old["trials"]}
    assert far.spec.objectives == ("healthy_image_score",)
    assert figures[far.spec.learnt[0].number] == max(figures.values())
    assert not any(one.is_known for one in far.spec.learnt)
    # A second study of that name on the same server is told apart by its run.
    tags = {"vesalius_study_key": "k", "vesalius_study": "old", "method": "intensity_threshold", "cohort_digest": "d"}
    second = start_run(team, "old", "old", {"objectives": ["auroc"], "num_workers": 1, "criterion": None}, tags)
    refused = tune(other, toy_store, "twice", "--space", "smoothing=1,3", "--learn-from", "old")
    assert second in sentence(refused)
    mlflow = client(team)
    runs = mlflow.search_runs([mlflow.get_experiment_by_name("old").experiment_id])
    (first,) = {run.info.run_id for run in runs if "vesalius_study_key" in run.data.tags} - {second}
    found = earlier_study(first, method="intensity_threshold", home=other)
    assert (found.name, len(found.trials)) == (f"old@{first[:8]}", 3)
    assert earlier_study(second, method="intensity_threshold", home=other).trials == ()


def test_mlflow_knows_of_a_trial_where_it_was_stopped(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    study = begun(tmp_path, toy_store, "old", [])
    tags = {"vesalius_study_key": study.spec.token, "vesalius_study": "old", "method": study.spec.method}
    params = {"objectives": ["average_precision"], "num_workers": 1, "criterion": study.spec.criterion}
    parent = start_run(uri, "old", "old", params, {**tags, "cohort_digest": toy_store.digest})
    trainer = TrialTrainer(tmp_path, parent)
    for number, smoothing in enumerate((1, 3, 5)):
        trainer.start(study.spec, number, {"method.smoothing": smoothing})
    trainer.start(study.spec, 1, {"method.smoothing": 3}, seed=4)
    trainer.abandon(study.spec, Record(number=1, ending="pruned", percent=25, passed=0.125))
    trainer.abandon(study.spec, Record(number=2, ending="failed", reason="diverged"))
    (found,) = earlier_study("old", method="intensity_threshold", home=tmp_path).trials
    assert (found.number, found.percent, found.passed, found.figures) == (1, 25, 0.125, {})
    (learnt,) = begun(tmp_path, toy_store, "new", [], learn_from=("old",)).spec.learnt
    assert (learnt.values, learnt.percent, learnt.passed) == ({"method.smoothing": 3}, 25, 0.125)


def test_where_tracking_is_off_the_home_is_asked(
    toy_store: CohortStore, healthy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    old = begun(tmp_path, toy_store, "old", [])
    ledger = Ledger(old.spec, base_of(old.spec), old.spec.storage, Patience(old.spec.storage))
    numbers = []
    for figure in (0.2, 0.4):
        trial = ledger.draw()
        assert trial is not None
        numbers.append(trial.number)
        ledger.end(trial, Record(number=trial.number, ending="complete", figures={"average_precision": figure}))
    ledger.close()
    said: list[str] = []
    spec = begun(tmp_path, toy_store, "new", said, learn_from=("old", "old")).spec
    assert spec.learn_from == ("old",)
    assert [(one.number, one.figures) for one in spec.learnt] == [
        (numbers[0], {"average_precision": 0.2}),
        (numbers[1], {"average_precision": 0.4}),
    ]
    assert said == []
    far = begun(tmp_path, healthy_store, "far", said, learn_from=("old",)).spec
    assert [(one.number, one.is_known) for one in far.learnt] == [(one, False) for one in numbers[::-1]], "best first"
    assert "it is of another cohort" in said[-1]
    outside = begun(tmp_path, toy_store, "outside", said, space={"smoothing": [7, 9]}, learn_from=("old",)).spec
    assert outside.learnt == ()
    assert said[-1] == "nothing is learnt from study 'old': no trial of it lies in the spaces"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/empty.db")
    late = begun(tmp_path, toy_store, "late", said, learn_from=("old",)).spec
    assert len(late.learnt) == 2, "MLflow has never heard of it"


def test_what_cannot_be_learnt_from_is_a_sentence(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    begun(tmp_path, toy_store, "old", [])
    file = tmp_path / "study.yaml"
    file.write_text(
        f"method: intensity_threshold\nstore: {toy_store.path}\nlearn_from: odl\nspace: {{smoothing: [1, 3]}}"
    )
    atlas = ("tune", "healthy_atlas", toy_store.path, "--space", "training.seed=1,2")
    for arguments, match in (
        (("tune", "--file", file), "no study 'odl' in"),
        (("tune", "--file", file, "--learn-from", "nothing"), "no study 'nothing' in"),
        (
            (*atlas, "--learn-from", "old"),
            "of intensity_threshold, and healthy_atlas learns from studies of its own",
        ),
        (("tune", "--resume", "old", "--learn-from", "old"), "leave out --learn-from"),
        (("tune", "--file", file, "--learn-from", "old"), "study 'old' has not begun"),
    ):
        assert match in sentence(call(tmp_path, *arguments))
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["old"]


@pytest.mark.parametrize("is_tracked", [False, True], ids=["home", "mlflow"])
def test_what_trials_took_over_is_known_of_an_earlier_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_tracked: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db" if is_tracked else "off")
    start = Start(run="first", stages=("one",), weights_sha256="a" * 64, trains=True, has_passes=True)
    study = toy_study(tmp_path, start=start)
    method = study.spec.method
    if is_tracked:
        with tracked_study(study, tmp_path):
            pass
        shutil.rmtree(study.path)
    else:
        monkeypatch.setattr("vesalius.infra.pipeline.earlier_studies.base_of", lambda spec: BASE)
        Ledger(study.spec, BASE, study.spec.storage, Patience(study.spec.storage)).close()
    assert earlier_study("toy", method=method, home=tmp_path).start_sha256 == "a" * 64


@pytest.mark.parametrize("is_tracked", [False, True], ids=["home", "mlflow"])
def test_a_population_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_tracked: bool) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db" if is_tracked else "off")
    study = toy_study(tmp_path, population=Population(size=2, generations=2), trials=4, sampler="random")
    method = study.spec.method
    if is_tracked:
        with tracked_study(study, tmp_path):
            pass
        shutil.rmtree(study.path)
    with pytest.raises(StudyError, match="'toy' is a population"):
        earlier_study("toy", method=method, home=tmp_path)
