"""Where training is autocast to bfloat16: where the device multiplies it, and its gradients are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from vesalius.infra.pipeline import start_run
from vesalius.methods.autoencoder_3d import Autoencoder3D, Autoencoder3DSettings
from vesalius.platform.config import override
from vesalius.platform.contracts import precision, trains_in_bfloat16
from vesalius.platform.errors import SettingError
from vesalius.platform.training import Alone, TrainingSettings, Updater
from vesalius.platform.training.plan import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SLICES = [nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU())]
VOLUMES = [nn.Linear(2, 2), nn.Sequential(nn.ConvTranspose3d(16, 16, 3), nn.ReLU())]


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_pays", lambda _: True)


@pytest.mark.usefixtures("pays")
def test_on_a_cpu_volumes_are_convolved_in_float32_and_slices_in_bfloat16() -> None:
    assert trains_in_bfloat16("auto", CPU, SLICES)
    assert not trains_in_bfloat16("auto", CPU, VOLUMES)
    assert trains_in_bfloat16("auto", CUDA, VOLUMES)
    assert trains_in_bfloat16("bf16", CUDA, VOLUMES)
    for trained in (SLICES, VOLUMES):
        assert not trains_in_bfloat16("fp32", CPU, trained)
    with pytest.raises(SettingError, match=r"training\.precision=bf16: on a CPU .* take fp32 or auto"):
        trains_in_bfloat16("bf16", CPU, VOLUMES)


def test_where_bfloat16_is_emulated_it_is_taken_on_demand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_pays", lambda _: False)
    assert not trains_in_bfloat16("auto", CPU, SLICES)
    assert trains_in_bfloat16("bf16", CPU, SLICES)


@pytest.mark.usefixtures("pays")
def test_a_network_of_volumes_learns_on_a_cpu_and_bf16_is_refused_before_it_begins(toy_store: CohortStore) -> None:
    # Channels and grids on which weight gradients in bfloat16 were off by their own size or not finite.
    settings = override(Autoencoder3DSettings(), {"network.width": 16, "network.stages": 2})
    torch.manual_seed(0)
    method = Autoencoder3D(settings, toy_store.facts())
    (stage,) = method.stages()
    training = TrainingSettings(device="cpu")
    plan = Plan(method, toy_store, training, Alone(), CPU)
    update = Updater(stage, Alone(), training, CPU)
    batches = plan.batches(0, 0)
    stage.step(next(iter(batches)), update)
    batches.close()  # type: ignore[attr-defined]  # a generator: its readers end with it
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() < 1e3, name
    with pytest.raises(SettingError, match=r"training\.precision=bf16"):
        Plan(method, toy_store, TrainingSettings(device="cpu", precision="bf16"), Alone(), CPU)


def test_a_run_that_would_learn_wrongly_is_not_begun(toy_store: CohortStore, tmp_path: Path) -> None:
    assignments = ["method.network.stages=2", "training.precision=bf16", "training.device=cpu"]
    for num_workers in (0, 2):
        with pytest.raises(SettingError, match=r"training\.precision=bf16"):
            start_run("autoencoder_3d", toy_store.path, home=tmp_path, assignments=assignments, num_workers=num_workers)
    assert not (tmp_path / "runs").exists()
