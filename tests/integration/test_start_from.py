"""``--from RUN@STAGE``: only where the other run's weights mean the same here."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    with pytest.raises(SettingError, match=r"latent_dim \(8 there, 4 here\)"):
        _start(tmp_path, toy_store, "x", epochs=2, latent_dim=4, start_from="first@intensity_classes")
    with pytest.raises(RunError, match="no finished stage 'decodr'"):
        _start(tmp_path, toy_store, "x", epochs=2, start_from="first@decodr")
    with pytest.raises(RunError, match="'decoder' is the last stage of implicit_field: nothing is left to train"):
        _start(tmp_path, toy_store, "x", epochs=2, start_from="first@decoder")
    with pytest.raises(RunError, match="did you mean 'first'"):
        _start(tmp_path, toy_store, "x", epochs=2, start_from="frist@decoder")
    with pytest.raises(RunError, match="trained implicit_field, not healthy_atlas"):
        _start(tmp_path, toy_store, "x", method="healthy_atlas", start_from="first@intensity_classes")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["first", "second"], "nothing was left behind"
