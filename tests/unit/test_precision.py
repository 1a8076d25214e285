"""Where training is autocast to bfloat16: where the device multiplies it, and its gradients are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from vesalius.infra.footprint import batch_of_noise, made_up_cohort
from vesalius.infra.pipeline import start_run
from vesalius.methods.autoencoder_3d import Autoencoder3D
from vesalius.methods.autoencoder_3d.settings import tiny
from vesalius.methods.blocks.adversarial import AdversarySettings, Discriminator, discriminator_loss
from vesalius.methods.implicit_field import ImplicitField
from vesalius.platform.config import override
from vesalius.platform.contracts import Slices, Stage, bfloat16_pays, precision, trains_in_bfloat16
from vesalius.platform.errors import SettingError
from vesalius.platform.testing.made_up import made_up_batch
from vesalius.platform.training import Alone, TrainingSettings, Updater
from vesalius.platform.training.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from vesalius.platform.contracts import Batch, Method, Update
    from vesalius.platform.contracts.stage import LossSum
    from vesalius.platform.store import CohortStore

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SLICES = [nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 1, 3), nn.Linear(2, 2))]
UNSAFE = {
    "volumes": [nn.Linear(2, 2), nn.Sequential(nn.ConvTranspose3d(16, 16, 3), nn.ReLU())],
    "a parameter of three axes": [nn.ParameterList([torch.zeros(2, 2, 3, 3, 3)])],
    "halved slices": [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 16, 3, stride=2))],
    "doubled slices": [nn.ConvTranspose2d(16, 1, 3, stride=2)],
    "one axis of slices": [nn.Conv2d(1, 16, 3, stride=(1, 2))],
    "lines": [nn.Conv1d(1, 16, 3, stride=3)],
}


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_pays", lambda _: True)


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("trained", UNSAFE.values(), ids=UNSAFE)
def test_on_a_cpu_volumes_and_strides_are_convolved_in_float32(trained: list[nn.Module]) -> None:
    assert not trains_in_bfloat16("auto", CPU, trained)
    assert not trains_in_bfloat16("fp32", CPU, trained)
    with pytest.raises(SettingError, match=r"training\.precision=bf16: on a CPU .* take fp32 or auto"):
        trains_in_bfloat16("bf16", CPU, trained)
    assert trains_in_bfloat16("auto", CUDA, trained)
    assert trains_in_bfloat16("bf16", CUDA, trained)
    assert not trains_in_bfloat16("fp32", CUDA, trained)


@pytest.mark.usefixtures("pays")
def test_what_is_right_in_bfloat16_is_trained_in_it_on_a_cpu_too() -> None:
    assert trains_in_bfloat16("auto", CPU, SLICES)
    assert trains_in_bfloat16("bf16", CPU, SLICES)
    assert not trains_in_bfloat16("fp32", CPU, SLICES)


def test_where_bfloat16_is_emulated_it_is_taken_on_demand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_pays", lambda _: False)
    assert not trains_in_bfloat16("auto", CPU, SLICES)
    assert trains_in_bfloat16("bf16", CPU, SLICES)


class Watched:
    """The platform's update, and whether losses were computed under autocast."""

    def __init__(self, stage: Stage, precision: str) -> None:
        settings = TrainingSettings.model_validate({"device": "cpu", "precision": precision})
        self._update = Updater(stage, Alone(), settings, CPU)
        self.observed: Mapping[str, float] = {}
        self.autocast: list[bool] = []

    def __call__(self, optimizer: str, loss: Callable[[Batch], LossSum], batch: Batch) -> float:
        def watched(part: Batch) -> LossSum:
            self.autocast.append(torch.is_autocast_enabled("cpu"))
            return loss(part)

        found = self._update(optimizer, watched, batch)
        self.observed = self._update.observed
        return found


def halved_slices() -> tuple[Stage, Batch]:
    """Return the stage of a discriminator whose last kernels of 5 halve an edge of one pixel, and a batch."""
    cohort = made_up_cohort((8, 48, 16), 4)
    discriminator = Discriminator(AdversarySettings(), cohort, axis=0)

    def loss(batch: Batch) -> LossSum:
        real, fake = discriminator(batch.image), discriminator(batch.image.flip(-1))
        return discriminator_loss(real, fake).sum(), len(batch)

    def step(batch: Batch, update: Update) -> Mapping[str, float]:
        return {"loss": update("adam", loss, batch)}

    stage = Stage(
        name="discriminator",
        view=Slices(axis=0),
        batch_size=4,
        group_size=4,
        epochs=1,
        step=step,
        trains=(discriminator,),
        optimizers={"adam": torch.optim.Adam(discriminator.parameters())},
    )
    image = torch.rand(4, 1, 48, 16, generator=torch.Generator().manual_seed(0))
    return stage, made_up_batch(image, stage=stage.name)


def of_method(kind: type[Method], grid: tuple[int, int, int], **changes: Any) -> tuple[Stage, Batch]:
    """Return a method's first stage with optimisers, and a batch of noise."""
    method = kind(override(kind.presets()["tiny"], changes), made_up_cohort(grid, 4))
    stage = next(stage for stage in method.stages() if stage.optimizers)
    return stage, batch_of_noise(method, stage, 4)


def volumes() -> tuple[Stage, Batch]:
    """Return the stage of an autoencoder whose kernels of 5 halve edges of 3 to 8 voxels, and a batch."""
    return of_method(Autoencoder3D, (16, 12, 12), **{"network.width": 16, "network.stages": 3})


def points() -> tuple[Stage, Batch]:
    """Return the stage of an implicit field, which convolves nothing, and a batch."""
    return of_method(ImplicitField, (16, 12, 12))


def one_step(made: Callable[[], tuple[Stage, Batch]], precision: str) -> tuple[list[Tensor], list[bool]]:
    """Return the gradients of a stage's first step, and whether its losses were computed under autocast."""
    torch.manual_seed(0)
    stage, batch = made()
    update = Watched(stage, precision)
    stage.begin()
    stage.step(batch, update)
    parameters = [p for module in stage.trains for p in module.parameters()]
    return [p.grad for p in parameters if p.grad is not None], update.autocast


@pytest.mark.usefixtures("pays")
def test_the_losses_of_a_stage_are_computed_as_the_rule_says() -> None:
    for made, in_bfloat16 in ((halved_slices, False), (volumes, False), (points, True)):
        _, autocast = one_step(made, "auto")
        assert set(autocast) == {in_bfloat16}, made.__name__


@pytest.mark.skipif(not bfloat16_pays(CPU), reason="this CPU emulates bfloat16: auto is float32 here whatever the rule")
@pytest.mark.parametrize("made", [halved_slices, volumes])
def test_gradients_are_those_of_float32(made: Callable[[], tuple[Stage, Batch]]) -> None:
    """In bfloat16 those of these shapes are not finite, or off by their own size, unless memory happens to be zero."""
    expected, _ = one_step(made, "fp32")
    found, _ = one_step(made, "auto")
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_a_stage_that_would_learn_wrongly_is_not_planned(toy_store: CohortStore) -> None:
    method = Autoencoder3D(tiny(), toy_store.facts())
    with pytest.raises(SettingError, match=r"training\.precision=bf16"):
        Plan(method, toy_store, TrainingSettings(device="cpu", precision="bf16"), Alone(), CPU)


BF16 = ["method.network.stages=2", "training.precision=bf16"]


@pytest.mark.parametrize(("num_workers", "device"), [(0, "cpu"), (2, "cpu"), (0, "auto"), (1, "auto")])
def test_a_run_that_would_learn_wrongly_is_not_begun(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assignments = [*BF16, f"training.device={device}"]
    with pytest.raises(SettingError, match=r"training\.precision=bf16"):
        start_run("autoencoder_3d", toy_store.path, home=tmp_path, assignments=assignments, num_workers=num_workers)
    assert not (tmp_path / "runs").exists()


def test_a_cluster_is_trusted_to_have_devices_that_are_not_here(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nobody is asked before training
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    run = start_run("autoencoder_3d", toy_store.path, home=tmp_path, assignments=BF16, num_workers=1)
    assert run.spec.training.precision == "bf16"
