"""What a method says of its memory and of where it parts from its paper."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.footprint import footprint
from vesalius.methods import METHODS
from vesalius.methods.healthy_atlas import HealthyAtlas, HealthyAtlasSettings
from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.settings import tiny
from vesalius.platform.contracts import Batch, CohortFacts, Method, MethodSettings, Slices, Stage
from vesalius.platform.tables import lookup


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


def test_activations_follow_points_and_codes_follow_subjects() -> None:
    small = footprint(ImplicitField, tiny(), num_subjects=10)
    more = footprint(ImplicitField, tiny().model_copy(update={"points": 4 * 1024}), num_subjects=30)
    assert more.num_parameters - small.num_parameters == 20 * tiny().latent_dim
    (few,), (many,) = small.stages, more.stages
    assert many.activation_bytes == pytest.approx(16 * few.activation_bytes, rel=0.1)  # 4,096 points to 256
    assert (few.stage, few.batch_size) == ("decoder", 4)


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


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_states_its_memory_and_its_deviations(name: str) -> None:
    kind = lookup(METHODS, name, "method")
    done = CliRunner().invoke(app, ["methods", name, "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["memory"] is not None
    assert document["memory"]["grid"] == [64, 64, 64]
    assert [row["paper"] for row in document["deviations"]] == [one.paper for one in kind.deviations]
    for one in kind.deviations:
        assert all(text.strip() for text in (one.paper, one.here, one.why))
    text = " ".join(
        CliRunner().invoke(app, ["methods", name, "--grid", "64,64,32"], env={"COLUMNS": "160"}).stdout.split()
    )
    assert "memory of training on 64 x 64 x 32 voxels" in text


@pytest.mark.parametrize("name", ["implicit_field", "healthy_atlas", "intensity_threshold"])
def test_the_first_methods_have_their_deviations_written_down(name: str) -> None:
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
