"""``--from RUN@STAGE``: only where the other run's weights mean the same here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from vesalius.infra import pipeline
from vesalius.platform.errors import RunError, SettingError
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore


def _start(home: Path, store: CohortStore, name: str, method: str = "implicit_field", **changes: object) -> RunFolder:
    start_from = changes.pop("start_from", None)
    assignments = [f"method.{key}={value}" for key, value in changes.items()]
    return pipeline.start_run(
        method,
        store.path,
        home=home,
        preset="tiny",
        assignments=["training.threads=1", *assignments],
        num_workers=0,
        name=name,
        start_from=None if start_from is None else str(start_from),
    )


def test_a_run_starts_after_anothers_finished_stage(toy_store: CohortStore, tmp_path: Path) -> None:
    first = _start(tmp_path, toy_store, "first", epochs=2)
    pipeline.train(first)
    second = _start(tmp_path, toy_store, "second", epochs=2, start_from="first@intensity_classes")
    pipeline.train(second)
    checkpoints = Checkpoints(second.checkpoints)
    assert checkpoints.names()[0] == "0001-00000000", "the first stage was not trained again"
    last = checkpoints.last()
    assert last is not None
    ours = load_file(second.checkpoints / last / "weights.safetensors")
    theirs = load_file(first.checkpoints / last / "weights.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

    with pytest.raises(SettingError, match="expected RUN@STAGE"):
        _start(tmp_path, toy_store, "x", epochs=2, start_from="first")
    with pytest.raises(SettingError, match=r"up to 'intensity_classes' read: num_classes \(5 there, 4 here\);"):
        _start(tmp_path, toy_store, "x", epochs=2, num_classes=4, start_from="first@intensity_classes")
    with pytest.raises(SettingError, match=r"up to 'decoder' read: latent_dim \(8 there, 4 here\);"):
        _start(tmp_path, toy_store, "x", epochs=2, latent_dim=4, start_from="first@decoder")
    with pytest.raises(RunError, match="no stage 'decodr': its stages are intensity_classes, decoder"):
        _start(tmp_path, toy_store, "x", epochs=2, start_from="first@decodr")
    with pytest.raises(RunError, match="'decoder' is the last stage of implicit_field: nothing is left to train"):
        _start(tmp_path, toy_store, "x", epochs=2, start_from="first@decoder")
    with pytest.raises(RunError, match="did you mean 'first'"):
        _start(tmp_path, toy_store, "x", epochs=2, start_from="frist@decoder")
    with pytest.raises(RunError, match="trained implicit_field, not healthy_atlas"):
        _start(tmp_path, toy_store, "x", method="healthy_atlas", start_from="first@intensity_classes")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["first", "second"], "nothing was left behind"


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(run.model / "weights.safetensors")
    return weights


def test_what_later_stages_read_may_differ_and_gives_what_training_anew_gives(
    toy_store: CohortStore, tmp_path: Path
) -> None:
    # Of these the codes' first values and those of the network come to be others, of the same and of another shape.
    changes: dict[str, Any] = {
        "epochs": 2,
        "code_init_std": 0.5,
        "hidden_layers": 6,
        "latent_dim": 4,
        "encoder.epochs": 1,
    }
    first = _start(tmp_path, toy_store, "first", epochs=1)
    pipeline.train(first)
    anew = _start(tmp_path, toy_store, "anew", **changes)
    pipeline.train(anew)
    second = _start(tmp_path, toy_store, "second", **changes, start_from="first@intensity_classes")
    pipeline.train(second)
    assert Checkpoints(second.checkpoints).names()[0] == "0001-00000000", "the first stage was not trained again"
    ours, theirs = _weights(second), _weights(anew)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_after_the_last_stage_settings_of_scoring_may_differ(toy_store: CohortStore, tmp_path: Path) -> None:
    first = _start(tmp_path, toy_store, "first", epochs=2)
    card = pipeline.train(first)
    changes: dict[str, Any] = {"epochs": 2, "restoration.steps": "[7]", "map.average_pool": 1}
    second = _start(tmp_path, toy_store, "second", **changes, start_from="first@decoder")
    other = pipeline.train(second)
    assert (other.stage, other.step, other.weights_sha256) == (card.stage, card.step, card.weights_sha256)
    assert other.settings["restoration"]["steps"] == [7]
    told, said = pipeline.describe_run(first, card), pipeline.describe_run(second, other)
    assert said["seconds"] == told["seconds"], "the training that it rests on has cost what it has cost"
    assert said["start_from"] == "first@decoder"


def test_a_stage_more_than_the_other_run_had_is_trained(toy_store: CohortStore, tmp_path: Path) -> None:
    first = _start(tmp_path, toy_store, "first", epochs=2)
    pipeline.train(first)
    changes: dict[str, Any] = {"epochs": 2, "encoder.epochs": 1, "restoration.start": "encoder"}
    second = _start(tmp_path, toy_store, "second", **changes, start_from="first@decoder")
    pipeline.train(second)
    ours, theirs = _weights(second), _weights(first)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    assert any(name.startswith("encoder.") for name in ours)
