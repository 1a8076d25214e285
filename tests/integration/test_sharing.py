"""What trials of one study have in common is trained once, and comes to what training it again would come to."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from vesalius.infra import pipeline
from vesalius.platform.training import Checkpoints, State
from vesalius.platform.training.selection import validation_subjects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore
    from vesalius.tuning import StudySpec

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return tmp_path / "home"


def study(home: Path, store: CohortStore, **changes: Any) -> StudySpec:
    given = {
        "method": "implicit_field",
        "store": str(store.path),
        "preset": "tiny",
        "set": {"training.threads": 1, "training.device": "cpu", "method.epochs": 2},
        "space": {"num_classes": "3,5", "latent_dim": "4,8", "restoration.steps": "5,30"},
        "concurrent": 1,
        "name": "common",
        **changes,
    }
    request = pipeline.StudyRequest.model_validate(given)
    return pipeline.begin_study(request, home=home, say=print, progress=lambda *_: None).spec


def begun(spec: StudySpec, home: Path, number: int, seed: int | None = None, /, **values: Any) -> RunFolder:
    chosen = {f"method.{key.replace('__', '.')}": value for key, value in values.items()}
    return pipeline.TrialTrainer(home).start(spec, number, chosen, seed)


def state(run: RunFolder) -> State:
    checkpoints = Checkpoints(run.checkpoints)
    last = checkpoints.last()
    assert last is not None
    return checkpoints.state(last)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run.model / "weights.safetensors")
    return found


def assert_same(one: RunFolder, other: RunFolder) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_trials_share_the_stages_that_they_have_in_common(toy_store: CohortStore, home: Path, tmp_path: Path) -> None:
    spec = study(home, toy_store)
    first = begun(spec, home, 0)
    assert first.spec.shared_from is None
    pipeline.train(first)
    # Other codes' length and another restoration, the same classes; k of its own; a seed of its own.
    second = begun(spec, home, 1, latent_dim=4)
    assert second.spec.shared_from == "common-0000@intensity_classes"
    pipeline.train(second)
    assert Checkpoints(second.checkpoints).names()[0] == "0001-00000000", "the first stage was not trained again"
    assert state(second).inherited == ("intensity_classes",)
    assert state(second).seconds["intensity_classes"] == state(first).seconds["intensity_classes"]
    assert begun(spec, home, 2, num_classes=3).spec.shared_from is None
    assert begun(spec, home, 3, 7).spec.shared_from is None
    # Whose decoder's best was chosen by scoring with 30 steps is not the one that 5 would have chosen.
    assert begun(spec, home, 4, restoration__steps="[5]").spec.shared_from == "common-0000@intensity_classes"

    alone = begun(study(tmp_path / "alone", toy_store), tmp_path / "alone", 1, latent_dim=4)
    assert alone.spec.shared_from is None
    pipeline.train(alone)
    assert_same(second, alone)
    assert state(alone).steps == state(second).steps


@pytest.mark.parametrize("what", ["gone", "cut", "of another shape"])
def test_what_cannot_be_read_any_more_is_trained(toy_store: CohortStore, home: Path, tmp_path: Path, what: str) -> None:
    spec = study(home, toy_store)
    first = begun(spec, home, 0)
    pipeline.train(first)
    second = begun(spec, home, 1, latent_dim=4)
    assert second.spec.shared_from == "common-0000@intensity_classes"
    file = first.checkpoints / "0001-00000000" / "weights.safetensors"
    if what == "gone":
        shutil.rmtree(first.path)
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        other = begun(spec, home, 5, num_classes=3)
        pipeline.train(other)
        shutil.copyfile(other.checkpoints / "0001-00000000" / "weights.safetensors", file)
    pipeline.train(second)
    assert state(second).inherited == ()
    alone = begun(study(tmp_path / "alone", toy_store), tmp_path / "alone", 1, latent_dim=4)
    pipeline.train(alone)
    assert_same(second, alone)


def test_a_trial_that_was_stopped_shares_what_it_has_finished(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = study(home, toy_store)
    first = begun(spec, home, 0)

    def stopped(*arguments: Any, **options: Any) -> Iterator[None]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vesalius.methods.implicit_field.method.ImplicitField.loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(first)
    assert not first.model.exists()
    assert begun(spec, home, 1, latent_dim=4).spec.shared_from == "common-0000@intensity_classes"


def test_without_a_validation_pass_all_that_is_trained_is_shared(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(store: CohortStore, num: int) -> tuple[str, list[Any]]:
        return validation_subjects(store, num)[0], []

    monkeypatch.setattr("vesalius.infra.pipeline.sharing.validation_subjects", none)
    monkeypatch.setattr("vesalius.platform.training.selection.validation_subjects", none)
    spec = study(home, toy_store)
    pipeline.train(begun(spec, home, 0))
    pipeline.train(begun(spec, home, 1, latent_dim=4))
    third = begun(spec, home, 2, latent_dim=4, restoration__steps="[5]")
    assert third.spec.shared_from == "common-0001@decoder", "the one that has most in common"
    pipeline.train(third)
    assert state(third).inherited == ("intensity_classes", "decoder")
    assert torch.equal(weights(third)["codes.weight"], weights(begun(spec, home, 1, latent_dim=4))["codes.weight"])


def test_a_study_of_a_run_shares_what_comes_after_it(toy_store: CohortStore, home: Path) -> None:
    given: dict[str, Any] = {"method": "vq_vae", "space": {}, "set": {"training.threads": 1, "training.device": "cpu"}}
    pipeline.train(begun(study(home, toy_store, **given), home, 0))
    given = {"preset": None, "set": {}, "name": "later", "from": "common-0000@moments"}
    spec = study(home, toy_store, **given, method="vq_vae", space={"prior.learning_rate": "0.01,0.02"})
    first = begun(spec, home, 0)
    assert (first.spec.start_from, first.spec.shared_from) == ("common-0000@moments", None)
    pipeline.train(first)
    second = begun(spec, home, 1, prior__learning_rate=0.02)
    assert (second.spec.start_from, second.spec.shared_from) == ("common-0000@moments", "later-0000@autoencoder")
    shutil.rmtree(first.path)
    pipeline.train(second)
    assert state(second).inherited == ("moments",), "and where that is gone, what the study starts from is left"
