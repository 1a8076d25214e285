"""Studies whose trials start after a run's finished stages: what is searched, what is not trained again."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra import pipeline
from vesalius.infra.cli.app import app
from vesalius.platform.models import read_card
from vesalius.platform.runs import find_run
from vesalius.platform.training import Checkpoints
from vesalius.tuning import analyse, find_study

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
ONE_THREAD = ("--set", "training.threads=1", "--set", "training.device=cpu")


@pytest.fixture(scope="module")
def trained(toy_store: CohortStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with a trained and judged run, ``first``."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        result = call(
            "train", "implicit_field", toy_store.path, "--preset", "tiny", "--set", "method.epochs=2", *ONE_THREAD,
            "--workers", 0, "--name", "first", "--home", home,
        )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    shutil.copytree(trained, tmp_path / "home")
    return tmp_path / "home"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_inference_is_searched_on_a_trained_run(home: Path, ray_session: None) -> None:
    result = call(
        "tune", "--from", "first", "--trials", 3, "--space", "restoration.steps=5,30,60", "--space", "map.average_pool",
        "--name", "later", "--concurrent", 1, "--home", home, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    first = find_run(home, "first")
    card = read_card(first.model)
    spec = find_study(home, "later").spec
    assert spec.start is not None
    assert (spec.start.text, spec.pruner, spec.criterion) == ("first@decoder", "none", None)
    rows = {row.number: row for row in analyse(find_study(home, "later")).trials}
    assert len(rows) == 3
    for name in ("average_precision", "best_dice", "auroc"):
        assert rows[0].figures[name] == card.metrics[f"validation/all/{name}"], "the start is the run itself"
    seconds = sum(pipeline.describe_run(first, card)["seconds"].values())
    for row in rows.values():
        run = find_run(home, row.run)
        assert run.spec.start_from == "first@decoder"
        assert Checkpoints(run.checkpoints).names() == ["0002-00000000"], "nothing was trained"
        assert read_card(run.model).weights_sha256 == card.weights_sha256
        assert row.figures["training_seconds"] == pytest.approx(seconds, abs=0.02)
    assert len({row.figures["average_precision"] for row in rows.values()}) > 1
    seeds = call("study", "later", "--seeds", 2, "--home", home)
    assert seeds.exit_code == 2
    assert "train nothing after first@decoder" in " ".join(seeds.stderr.split())
    # Another run in the place of the first one is not what the trials so far have started from.
    shutil.rmtree(first.path)
    again = call("tune", "--resume", "later", "--trials", 4, "--home", home)
    assert again.exit_code == 2
    assert "starts from first@decoder, which cannot be read" in " ".join(again.stderr.split())


@pytest.mark.long
def test_a_trained_run_is_searched_on_a_copy_with_lesions(
    home: Path, toy_store: CohortStore, tmp_path: Path, ray_session: None
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    record = next(one for one in toy_store.subjects("validation") if not one.has_lesion)
    mask = np.zeros(record.shape, np.uint8)
    mask[4:9, 3:8, 2:6] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.asarray(record.affine)), masks / "lesion.nii.gz")
    result = call(
        "tune", "--from", "first", "--trials", 1, "--space", "restoration.steps=5,30", "--lesions", masks, "--name",
        "planted", "--concurrent", 1, "--home", home, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    spec = find_study(home, "planted").spec
    assert spec.start is not None
    assert spec.source_digest == toy_store.digest
    (row,) = analyse(find_study(home, "planted")).trials
    first, run = find_run(home, "first"), find_run(home, row.run)
    assert run.spec.cohort_digest == spec.cohort_digest != toy_store.digest
    assert read_card(run.model).weights_sha256 == read_card(first.model).weights_sha256
    more = call("tune", "--resume", "planted", "--trials", 2, "--home", home, "--json")
    assert more.exit_code == 0, more.stderr
    assert len({row["figures"]["average_precision"] for row in json.loads(more.stdout)["trials"]}) == 2


def test_a_later_stage_is_trained_and_searched(home: Path, ray_session: None) -> None:
    result = call(
        "tune", "implicit_field", "--from", "first@intensity_classes", "--trials", 2, "--space", "latent_dim=4,8",
        "--name", "later", "--concurrent", 1, "--home", home, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    spec = find_study(home, "later").spec
    assert spec.pruner == "asha", "its trials make validation passes"
    rows = analyse(find_study(home, "later")).trials
    assert {row.values["method.latent_dim"] for row in rows} == {4, 8}
    for row in rows:
        assert Checkpoints(find_run(home, row.run).checkpoints).names()[0] == "0001-00000000"
    # The start is trained as the run was: its own figures come out again.
    card = read_card(find_run(home, "first").model)
    assert rows[0].figures["average_precision"] == card.metrics["validation/all/average_precision"]


def test_what_is_searched_by_default_is_what_is_read_later(home: Path) -> None:
    request = pipeline.StudyRequest.model_validate({"from": "first", "name": "wide"})
    study = pipeline.begin_study(request, home=home, say=print, progress=lambda *_: None)
    keys = {one.key.removeprefix("method.") for one in study.spec.searched}
    assert {"restoration.steps", "restoration.learning_rate", "map.average_pool", "mode_pool_scoring"} <= keys
    assert not {key for key in keys if key.startswith("encoder.")} - {"encoder.code_weight", "encoder.learning_rate"}
    assert not keys & {"latent_dim", "num_classes", "decoder_lr", "prior_sigma"}
    steps = next(one for one in study.spec.searched if one.key == "method.restoration.steps")
    assert "[30]" in steps.probes(), "the run's own value lies in the space"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--from", "first", "--space", "latent_dim=4,8"], "is read by the stage 'decoder', which trials take over"),
        (["--from", "first", "--space", "num_classes=4..8"], "is read by the stage 'intensity_classes'"),
        (["--from", "first", "--set", "method.latent_dim=4"], "other settings that its stages up to 'decoder' read"),
        (["--from", "first", "--space", "training.seed=1,2"], "changes nothing after first@decoder, the last stage"),
        (["--from", "first", "--set", "training.seed=7"], "'training.seed' changes nothing after first@decoder"),
        (["--from", "first", "--pruner", "asha"], "none is made after first@decoder"),
        (["--from", "first", "--preset", "tiny"], "both say where settings start"),
        (["--from", "first@"], "expected RUN or RUN@STAGE"),
        (["--from", "first@decodr"], "no stage 'decodr'"),
        (["--from", "frist"], "did you mean 'first'"),
        (["healthy_atlas", "--from", "first"], "trained implicit_field, not healthy_atlas"),
        (["implicit_field", "OTHER", "--from", "first"], "was trained on another cohort"),
    ],
)
def test_what_does_not_fit_a_run_is_a_sentence(
    healthy_store: CohortStore, home: Path, arguments: list[str], match: str
) -> None:
    given = [healthy_store.path if one == "OTHER" else one for one in arguments]
    result = call("tune", *given, "--home", home)
    assert result.exit_code == 2, result.output
    assert match in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not list(home.glob("studies/*"))


def test_trials_of_a_study_share_a_stage(home: Path, toy_store: CohortStore, ray_session: None) -> None:
    result = call(
        "tune", "implicit_field", toy_store.path, "--preset", "tiny", "--set", "method.epochs=2", *ONE_THREAD,
        "--space", "latent_dim=4,8", "--trials", 2, "--pruner", "none", "--name", "full", "--concurrent", 1,
        "--home", home, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    first, second = (find_run(home, row.run) for row in analyse(find_study(home, "full")).trials)
    assert (first.spec.shared_from, second.spec.shared_from) == (None, "full-0000@intensity_classes")
    assert Checkpoints(second.checkpoints).names()[0] == "0001-00000000"


@pytest.mark.long
def test_a_study_file_names_the_run(home: Path, tmp_path: Path, ray_session: None) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("from: first\ntrials: 1\nspace: {restoration.steps: [5, 30]}\n")
    result = call("tune", "--file", file, "--name", "filed", "--home", home, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["trials"][0]["values"] == {"method.restoration.steps": "[30]"}
