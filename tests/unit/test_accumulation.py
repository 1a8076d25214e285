"""Gradient accumulation: a batch that passes in parts has the loss and the gradients of one that passes whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from vesalius.infra.footprint import batch_of_noise, made_up_cohort
from vesalius.methods import METHODS
from vesalius.platform.config import override
from vesalius.platform.tables import lookup
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone, Updater

if TYPE_CHECKING:
    from vesalius.platform.contracts import Batch, Method, Stage
    from vesalius.platform.contracts.stage import LossSum

CPU = torch.device("cpu")
GRID = (16, 12, 16)
NUM, SIZE = 7, 3
"""Items, and how many pass at once: 3, 3 and 1, of which a mean of means would weigh the last three times."""


@dataclass(frozen=True)
class Case:
    """A loss of a method.

    Attributes:
        method: in the table.
        optimizer: that the loss is stepped with.
        loss: its name in the method.
        settings: changes to the preset ``tiny``.
    """

    method: str
    optimizer: str
    loss: str
    settings: dict[str, Any]


CASES = {
    # A distance an item, summed.
    "sum of items": Case("position_regression", "adam", "loss", {}),
    # A mean over a volume's voxels, summed over volumes.
    "sum of means": Case("autoencoder_3d", "adam", "loss", {"network.norm": "instance"}),
    # A mean over all points, with a code an item and what it costs.
    "sum of points": Case("implicit_field", "adam", "loss", {}),
    # Eq. 2 with a gradient of a gradient an item, and what is watched beside it.
    "layers' penalty": Case("f_anogan", "critic", "critic_loss", {"network.critic_norm": "layer"}),
    "instances' penalty": Case("f_anogan", "critic", "critic_loss", {"network.critic_norm": "instance"}),
}


def made(case: Case) -> tuple[Method, Stage, Batch]:
    """Return a method, its stage with the optimiser, without groups, and a batch of it."""
    kind: type[Method] = lookup(METHODS, case.method, "method")
    torch.manual_seed(0)
    method = kind(override(kind.presets()["tiny"], case.settings), made_up_cohort(GRID, NUM))
    stage = next(stage for stage in method.stages() if case.optimizer in stage.optimizers)
    method.eval().requires_grad_(False)
    for module in stage.trains:
        # A generator whose batches have statistics of their own would make other images of a part than of the whole.
        module.train(case.method != "f_anogan").requires_grad_(True)
    return method, replace(stage, group_size=1), replace(batch_of_noise(method, stage, NUM), num_steps=100)


def parameters_of(stage: Stage, optimizer: str) -> list[Tensor]:
    return [parameter for group in stage.optimizers[optimizer].param_groups for parameter in group["params"]]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert any(bool(gradient.any()) for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parts_of_a_batch_add_up_to_the_whole(case: Case) -> None:
    method, stage, batch = made(case)
    loss = getattr(method, case.loss)
    parameters = parameters_of(stage, case.optimizer)
    total, count, *beside = loss(batch)
    mean = total / count
    expected = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
    lengths: list[int] = []

    def counted(part: Batch) -> LossSum:
        lengths.append(len(part))
        found: LossSum = loss(part)
        return found

    update = Updater(stage, Alone(), training_settings(micro_batch_size=SIZE), CPU)
    assert update(case.optimizer, counted, batch) == pytest.approx(float(mean.detach()), rel=1e-5)
    assert lengths == [3, 3, 1]
    assert_same([parameter.grad for parameter in parameters if parameter.grad is not None], list(expected))
    # Spreads between the images of a part are of that part.
    for name in update.observed.keys() - {"real_variance", "fake_variance"}:
        assert update.observed[name] == pytest.approx(float(beside[0][name].detach()) / count, rel=1e-4), name


def test_groups_with_statistics_of_their_own_add_up_too() -> None:
    """A critic and a generator of batch normalisation: what is whole here is a group, and six images are three."""
    case = Case("f_anogan", "critic", "critic_loss", {"network.critic_norm": "batch"})
    method, stage, seven = made(case)
    batch, stage = seven.select(0, 6), replace(stage, group_size=2)
    for module in stage.trains:
        module.train()
    parameters = parameters_of(stage, case.optimizer)
    loss = getattr(method, case.loss)
    groups = [loss(batch.select(start, start + 2))[0] for start in (0, 2, 4)]
    mean = sum(groups[1:], groups[0]) / 6
    expected = torch.autograd.grad(mean, parameters)
    # What passes at once is the group, whatever else is asked for.
    update = Updater(stage, Alone(), training_settings(micro_batch_size=5), CPU)
    assert update(case.optimizer, loss, batch) == pytest.approx(float(mean.detach()), rel=1e-5)
    assert_same([parameter.grad for parameter in parameters if parameter.grad is not None], list(expected))


@pytest.mark.parametrize("kept", [[0, 1, 6], [6], []], ids=str)
def test_items_that_are_masked_weigh_nothing(kept: list[int]) -> None:
    """Of three parts one keeps two items of three, one keeps none, and one all that it has."""
    case = CASES["sum of items"]
    method, stage, batch = made(case)
    parameters = parameters_of(stage, case.optimizer)

    def loss(part: Batch) -> tuple[Tensor, int]:
        rows = torch.tensor([row for row, item in enumerate(part.items.tolist()) if item in kept], dtype=torch.int64)
        found: tuple[Tensor, int] = getattr(method, case.loss)(part.take(rows))
        return found

    before = [parameter.detach().clone() for parameter in parameters]
    update = Updater(stage, Alone(), training_settings(micro_batch_size=SIZE), CPU)
    if not kept:
        assert update(case.optimizer, loss, batch) == 0.0
        assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
        return
    alone = getattr(method, case.loss)(batch.take(torch.tensor(kept)))[0] / len(kept)
    expected = torch.autograd.grad(alone, parameters)
    assert update(case.optimizer, loss, batch) == pytest.approx(float(alone.detach()), rel=1e-5)
    assert_same([parameter.grad for parameter in parameters if parameter.grad is not None], list(expected))
