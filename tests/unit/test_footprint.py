"""What a method says of its memory and of where it parts from its paper."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.footprint import _Kept, batch_of_noise, footprint, made_up_cohort
from vesalius.methods import METHODS
from vesalius.methods.f_anogan import FAnoGAN, FAnoGANSettings
from vesalius.methods.healthy_atlas import HealthyAtlas, HealthyAtlasSettings
from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.settings import tiny
from vesalius.methods.residual_vae import ResidualVae
from vesalius.methods.residual_vae import tiny as tiny_vae
from vesalius.platform.config import override
from vesalius.platform.contracts import Batch, CohortFacts, Method, MethodSettings, Slices, Stage
from vesalius.platform.tables import lookup
from vesalius.platform.training import Alone, TrainingSettings, Updater


class LinearSettings(MethodSettings):
    batch_size: int = 4


class Linear(Method):
    """One layer over the values of an 8 x 8 slice: what autograd keeps of it is written on paper."""

    settings_type: ClassVar[type[MethodSettings]] = LinearSettings
    settings: LinearSettings

    def __init__(self, settings: LinearSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.layer = nn.Linear(64, 16)

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name="fit",
                view=Slices(),
                batch_size=self.settings.batch_size,
                epochs=1,
                trains=(self.layer,),
                optimizers={"adam": torch.optim.Adam(self.layer.parameters())},
                step=lambda batch, update: {"loss": update("adam", self.loss, batch)},
            )
        ]

    def loss(self, batch: Batch) -> tuple[torch.Tensor, int]:
        return F.softplus(self.layer(batch.image.flatten(1))).sum(), len(batch)

    def score(self, volumes: Any, *, effort: Any = "full") -> Any:
        return []


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_a_layer_takes_what_can_be_counted_by_hand(batch_size: int) -> None:
    found = footprint(Linear, LinearSettings(batch_size=batch_size), (8, 8, 5))
    num = 64 * 16 + 16
    assert found.num_parameters == num
    assert found.parameter_bytes == 4 * num
    (stage,) = found.stages
    assert stage.gradient_bytes == 4 * num
    # Adam: two moments of each number, and the step of each of two tensors.
    assert stage.optimizer_bytes == 2 * 4 * num + 2 * 4
    # The layer keeps its inputs (64 an item), softplus its inputs (16 an item).
    assert stage.activation_bytes == 4 * (64 + 16) * batch_size
    assert found.peak_bytes == found.parameter_bytes + 3 * 4 * num + 8 + stage.activation_bytes


class Box:
    """Holds a tensor that autograd keeps; dies with the graph."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


class Live:
    """What autograd keeps at a time, in bytes, while a true update runs: the most of it."""

    def __init__(self, method: Method) -> None:
        self.own = {value.untyped_storage().data_ptr() for value in method.state_dict().values()}
        self.alive: dict[int, list[int]] = {}
        self.most = 0

    def pack(self, value: torch.Tensor) -> Box:
        box, storage = Box(value), value.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.alive.setdefault(storage.data_ptr(), [storage.nbytes(), 0])[1] += 1
            weakref.finalize(box, self.drop, storage.data_ptr())
            self.most = max(self.most, sum(size for size, _ in self.alive.values()))
        return box

    def drop(self, pointer: int) -> None:
        self.alive[pointer][1] -= 1
        if not self.alive[pointer][1]:
            del self.alive[pointer]


def training_batch(kind: type[Method], settings: MethodSettings, stage_name: str) -> tuple[Method, Stage, Batch]:
    """Return a method, a stage that is about to train, and a whole batch of it."""
    method = kind(settings, made_up_cohort(GRID, 40))
    (stage,) = [one for one in method.stages() if one.name == stage_name]
    method.eval().requires_grad_(False)
    for module in stage.trains:
        module.train().requires_grad_(True)
    return method, stage, batch_of_noise(method, stage, stage.batch_size)


GRID = (32, 32, 32)
VAE = override(tiny_vae(), {"batch_slices": 24, "group_slices": 4})
FIELD = override(tiny(), {"points": 3_000, "batch_volumes": 5})


@pytest.mark.parametrize(
    ("kind", "settings", "stage_name"), [(ResidualVae, VAE, "vae"), (ImplicitField, FIELD, "decoder")]
)
def test_the_platforms_update_keeps_as_much_at_a_time(
    kind: type[Method], settings: MethodSettings, stage_name: str
) -> None:
    method, stage, batch = training_batch(kind, settings, stage_name)
    update = Updater(stage, Alone(), TrainingSettings(precision="fp32"), torch.device("cpu"))
    live = Live(method)
    with torch.autograd.graph.saved_tensors_hooks(live.pack, lambda box: box.value):
        stage.step(batch, update)
    assert not live.alive
    (found,) = footprint(kind, settings, GRID).stages
    assert found.batch_size == stage.batch_size
    assert found.activation_bytes == pytest.approx(live.most, rel=1e-3)


def test_many_points_keep_what_is_allocated_for_them_and_weights_once() -> None:
    # Wide and few points: the normalised weights, which are kept once, are a large part of it.
    settings = override(tiny(), {"width": 256, "points": 700, "batch_volumes": 3})
    method, _, batch = training_batch(ImplicitField, settings, "decoder")
    assert isinstance(method, ImplicitField)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = method.loss(batch)
    allocated = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    (found,) = footprint(ImplicitField, settings, GRID).stages
    assert found.activation_bytes == pytest.approx(allocated, rel=0.01)
    assert kept[0].requires_grad


def test_codes_follow_subjects() -> None:
    small = footprint(ImplicitField, tiny(), num_subjects=10)
    more = footprint(ImplicitField, tiny(), num_subjects=30)
    assert more.num_parameters - small.num_parameters == 20 * tiny().latent_dim


def test_what_learns_without_gradients_takes_its_buffers_alone() -> None:
    found = footprint(HealthyAtlas, HealthyAtlasSettings(), (10, 12, 8))
    assert found.stages == ()
    assert found.peak_bytes == found.parameter_bytes == 2 * 4 * 10 * 12 * 8


def test_the_probe_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    footprint(Linear, LinearSettings(), (8, 8, 5))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "f_anogan_2d" else name for name in METHODS]
)
def test_a_method_states_its_memory_and_its_deviations(name: str) -> None:
    kind = lookup(METHODS, name, "method")
    done = CliRunner().invoke(app, ["methods", name, "--grid", "64,64,32", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["memory"] is not None
    assert document["memory"]["grid"] == [64, 64, 32]
    assert [row["paper"] for row in document["deviations"]] == [one.paper for one in kind.deviations]
    for one in kind.deviations:
        assert all(text.strip() for text in (one.paper, one.here, one.why))


def test_memory_is_said_of_the_grid_asked_for_else_of_64_cubes() -> None:
    asked = {"": "64 x 64 x 64", "64,64,32": "64 x 64 x 32"}
    for grid, said in asked.items():
        words = ["methods", "autoencoder", *(["--grid", grid] if grid else [])]
        text = " ".join(CliRunner().invoke(app, words, env={"COLUMNS": "160"}).stdout.split())
        assert f"memory of training on {said} voxels" in text


@pytest.mark.parametrize(
    "name",
    [
        "implicit_field",
        "implicit_field_2d",
        "residual_vae",
        "vae_restoration",
        "vq_vae",
        "healthy_atlas",
        "intensity_threshold",
    ],
)
def test_methods_have_their_deviations_written_down(name: str) -> None:
    assert lookup(METHODS, name, "method").deviations


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["implicit_field", "--grid", "160"], "--grid is '160': expected three numbers"),
        (["implicit_field", "--grid", "160,0,160"], "expected three numbers of voxels"),
        (["--grid", "8,8,8"], "--grid goes with the name of a method"),
    ],
)
def test_a_grid_that_is_none_is_said(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["methods", *arguments])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def test_the_update_that_keeps_most_is_found_in_whatever_step_it_comes() -> None:
    # The f-AnoGAN's generator is updated in every fifth step: what that keeps does not depend on how often it comes.
    small = FAnoGAN.presets()["tiny"]
    found = []
    for critic_steps in (1, 5):
        counted = footprint(
            FAnoGAN, override(small, {"game.critic_steps": critic_steps, "network.width": 64}), (8, 8, 8)
        )
        found.append(counted.stages[0].activation_bytes)
    assert found[0] == found[1]


def test_a_graph_of_gradients_is_let_go_before_the_next_update() -> None:
    settings = FAnoGAN.presets()["tiny"]
    assert isinstance(settings, FAnoGANSettings)
    method = FAnoGAN(settings, made_up_cohort((16, 16, 16), 4))
    (stage, *_) = method.stages()
    seen: list[weakref.ref[Tensor]] = []

    def loss(batch: Batch) -> tuple[Tensor, int]:
        image = batch.image.clone().requires_grad_()
        seen.append(weakref.ref(image))
        (gradient,) = torch.autograd.grad(method.critic(image).sum(), image, create_graph=True)
        return gradient.square().sum(), len(batch)

    gc.disable()
    try:
        _Kept(method, stage)("critic", loss, batch_of_noise(method, stage, 2))
        assert seen[0]() is None
    finally:
        gc.enable()
