"""How a study begins, or does not: what is refused leaves nothing behind."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sqlalchemy.engine.default import DefaultDialect
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.pipeline import StudyRequest, begin_study, check_resumed, tracked_study
from vesalius.infra.pipeline.studies import cluster_resources
from vesalius.platform import tracking
from vesalius.platform.errors import CohortError, SettingError, StudyError
from vesalius.platform.progress import silent
from vesalius.tuning import create_study
from vesalius.tuning.storage import VARIABLE
from vesalius.tuning.testing import toy_spec, toy_study

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return tmp_path / "home"


def refused(home: Path, store: CohortStore, *arguments: object) -> str:
    """Return the sentence of a study that does not begin, and of which nothing is left."""
    result = call(home, store, *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not list(home.glob("studies/*"))
    return " ".join(result.stderr.split())


def call(home: Path, store: CohortStore, *arguments: object) -> Any:
    base = ("tune", "intensity_threshold", store.path, "--space", "smoothing=1,3", "--set", "training.device=cpu")
    return CliRunner().invoke(app, [str(one) for one in (*base, "--home", home, "--trials", 1, *arguments)])


def test_a_password_is_asked_of_the_environment_before_anything_is_made(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlalchemy.engine.URL.get_dialect", lambda url: DefaultDialect)
    monkeypatch.setattr(DefaultDialect, "import_dbapi", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    said = refused(home, toy_store, "--storage", "postgresql://me:se/cret@host/db", "--name", "shared")
    assert f"set {VARIABLE} to the whole address" in said
    assert "cret" not in said


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
        ("sqlite://", "is in memory"),
        ("sqlite:///:memory:", "is in memory"),
    ],
)
def test_a_storage_that_was_never_there_is_refused_at_once(
    toy_store: CohortStore, home: Path, address: str, match: str
) -> None:
    assert match in refused(home, toy_store, "--storage", address)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--pruner", "asha", "--objective", "healthy_image_score"], "say nothing of healthy_image_score"),
        (["--objective", "average_precision", "--objective", "average_precision"], "given twice"),
        ([], "the masks are bad"),
    ],
)
def test_lesions_that_come_to_nothing_leave_no_copy(
    healthy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], match: str
) -> None:
    def plant(store: CohortStore, out: Path, *others: object, **options: object) -> None:
        (out / "half").mkdir(parents=True)
        raise CohortError("the masks are bad")

    monkeypatch.setattr("vesalius.datasets.lesions.plant_lesions", plant)
    assert match in refused(home, healthy_store, "--lesions", home, *arguments)


def test_a_study_goes_on_with_the_cohort_that_lesions_were_set_into(
    toy_store: CohortStore, healthy_store: CohortStore, home: Path
) -> None:
    spec = toy_spec(home, store=str(toy_store.path), cohort_digest=toy_store.digest, source_digest=healthy_store.digest)
    study = create_study(home, spec)
    check_resumed(study, {"store": str(healthy_store.path)}, home)
    check_resumed(study, {"store": str(toy_store.path)}, home)


@pytest.mark.parametrize(
    ("pruner", "chosen", "passes"), [(None, {}, 9), ("none", {}, 4), (None, {"training.validations": 6}, 6)]
)
def test_trials_that_may_be_stopped_have_a_pass_where_the_first_rung_stands(
    toy_store: CohortStore, home: Path, pruner: str | None, chosen: dict[str, int], passes: int
) -> None:
    request = StudyRequest(
        method="implicit_field",
        store=str(toy_store.path),
        preset="tiny",
        set={"training.device": "cpu", **chosen},
        space={"num_classes": "4..6"},
        pruner=pruner,
    )
    study = begin_study(request, home=home, say=print, progress=silent)
    assert study.spec.training.validations == passes


def begun(home: Path, store: CohortStore, **asked: Any) -> Any:
    base = {"method": "intensity_threshold", "store": str(store.path), "name": "begun", "trials": 1, **asked}
    return begin_study(StudyRequest(**base), home=home, say=lambda _: None, progress=silent)


def test_the_order_of_spaces_says_nothing(toy_store: CohortStore, home: Path) -> None:
    spaces = {"smoothing": [1, 3], "direction": "both,high"}
    study = begun(home, toy_store, space=spaces, set={"training.device": "cpu"})
    backwards = dict(reversed(spaces.items()))
    check_resumed(study, {"space": backwards}, home)
    other = study.spec.model_copy(update={"searched": tuple(reversed(study.spec.searched))})
    assert other.terms() == study.spec.terms(), "drivers that share a study agree"
    with pytest.raises(StudyError, match="searches other spaces"):
        check_resumed(study, {"space": {"smoothing": [1, 3]}}, home)


def test_settings_are_set_by_the_keys_that_they_are_searched_by(toy_store: CohortStore, home: Path) -> None:
    asked: dict[str, Any] = {"space": {"direction": "both,high"}, "set": {"smoothing": 3, "training.device": "cpu"}}
    assert begun(home, toy_store, **asked).spec.settings["smoothing"] == 3
    with pytest.raises(SettingError, match="is set twice"):
        begun(home, toy_store, set={"smoothing": 3, "method.smoothing": 1}, name="twice")


def test_a_setting_given_beside_a_file_wins_whatever_its_key(
    toy_store: CohortStore, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("set: {smoothing: 3}\n")
    said = refused(home, toy_store, "--file", file, "--set", "method.smoothing=none")
    assert "is set twice" not in said
    assert "none" in said


def test_an_error_is_not_hidden_by_what_is_said_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'")

    ended: list[str] = []
    module = importlib.import_module("vesalius.infra.pipeline.tracked_study")
    monkeypatch.setattr(module, "_begin", lambda *_: "parent")
    monkeypatch.setattr(module, "analyse", broken)
    monkeypatch.setattr(tracking, "is_tracking_off", lambda: False)
    monkeypatch.setattr(tracking, "end_run", lambda _uri, _run, status: ended.append(status))
    with pytest.raises(StudyError, match="the real one"), tracked_study(toy_study(tmp_path), tmp_path):
        raise StudyError("the real one")
    assert ended == ["FAILED"]


def convolving(store: CohortStore, device: str, **request: Any) -> StudyRequest:
    """Return what asks for a study of a method that a CPU trains wrongly in bfloat16."""
    own = {"training.device": device, **request.pop("set", {})}
    return StudyRequest(method="autoencoder_3d", store=str(store.path), preset="tiny", set=own, name="s", **request)


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize(
    "request_of",
    [
        {"space": {"training.precision": "fp32,bf16"}},
        {"space": {"network.latent_dim": "32,64"}, "set": {"training.precision": "bf16"}},
    ],
    ids=["searched", "set"],
)
def test_a_study_whose_trials_would_learn_wrongly_is_not_begun(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch, request_of: dict[str, Any], device: str
) -> None:
    monkeypatch.setattr("vesalius.infra.pipeline.beginning.cluster_resources", lambda: ({"CPU": 2.0, "GPU": 0.0}, None))
    with pytest.raises(SettingError, match=r"training\.precision=bf16: on a CPU"):
        begin_study(convolving(toy_store, device, **request_of), home=home, say=lambda _: None, progress=silent)
    assert not list(home.glob("studies/*"))


def test_a_study_on_a_clusters_devices_may_train_in_bfloat16(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials' device decides, when a study begins and when it goes on, and not the driver's."""
    monkeypatch.setattr("vesalius.infra.pipeline.beginning.cluster_resources", lambda: ({"CPU": 2.0, "GPU": 1.0}, None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    space = {"training.precision": "fp32,bf16"}
    request = convolving(toy_store, "auto", space=space)
    study = begin_study(request, home=home, say=lambda _: None, progress=silent)
    assert study.spec.gpus == 1
    check_resumed(study, {"space": space}, home)
    with pytest.raises(SettingError, match=r"training\.precision=bf16: on a CPU"):
        begin_study(
            request.model_copy(update={"gpus": 0.0, "name": "t"}), home=home, say=lambda _: None, progress=silent
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_that_was_planned_on_cpus_takes_no_device_that_comes_later(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    there = {"CPU": 4.0, "GPU": 0.0}
    monkeypatch.setattr("vesalius.infra.pipeline.beginning.cluster_resources", lambda: (there, None))
    request = convolving(toy_store, "auto", space={"network.latent_dim": "32,64"}, workers=workers)
    study = begin_study(request, home=home, say=lambda _: None, progress=silent)
    assert (study.spec.gpus, study.spec.training.device) == (0.0, "cpu")
    with pytest.raises(SettingError, match="GPU"):
        begin_study(request.model_copy(update={"gpus": 1.0, "name": "g"}), home=home, say=print, progress=silent)
    there["GPU"] = 2.0
    other = begin_study(request.model_copy(update={"name": "t"}), home=home, say=lambda _: None, progress=silent)
    assert other.spec.gpus > 0
    assert other.spec.training.device == "auto"


def test_a_study_that_is_planned_on_cpus_of_a_cluster_that_may_grow_says_so(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = [{"CPU": 4.0}, [{"CPU": 4.0}]]
    monkeypatch.setattr("vesalius.infra.pipeline.beginning.cluster_resources", lambda: tuple(found))
    said: list[str] = []

    def begin(name: str, device: str = "auto", **asked: Any) -> None:
        request = convolving(toy_store, device, space={"network.latent_dim": "32,64"}, **asked)
        begin_study(request.model_copy(update={"name": name}), home=home, say=said.append, progress=silent)

    begin("grows-not")
    monkeypatch.setenv("VESALIUS_GROWS_TO", "CPU=64,GPU=4")
    begin("asked-for", gpus=0.0)
    begin("named", device="cpu")
    found[1] = None
    begin("no-cluster")
    found[1] = [found[0]]
    assert not [sentence for sentence in said if "GPU" in sentence]
    begin("grows")
    assert [sentence for sentence in said if sentence.startswith("the cluster has no GPU now, though it may grow")]


def test_a_cluster_that_is_joined_is_asked_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 1.0}]
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr("vesalius.infra.pipeline.studies.session", contextlib.nullcontext)
    monkeypatch.setattr("vesalius.infra.pipeline.studies.alive_nodes", lambda: nodes)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    assert cluster_resources() == ({"CPU": 4.0}, nodes)
