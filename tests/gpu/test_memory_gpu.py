"""Memory on a CUDA device: what is computed again is what was kept, and the allocator gives out less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from vesalius.infra.footprint import batch_of_noise, made_up_cohort
from vesalius.methods import METHODS
from vesalius.platform.config import override
from vesalius.platform.tables import lookup
from vesalius.platform.testing.descent import descend
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone, Updater
from vesalius.platform.training.memory import PeakMemory, lay_out

if TYPE_CHECKING:
    from vesalius.platform.contracts import Method

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

CASES = {
    "vq_vae": ({"batch_slices": 16, "group_slices": 16}, (64, 64, 8), 0.8),
    "autoencoder_3d": ({"network.stages": 4}, (64, 64, 64), 1.0),
    "f_anogan": ({"network.width": 64, "network.latent_dim": 64}, (64, 64, 64), 1.0),
}
"""Changes of the paper's settings, grid, and to what fraction the peak falls."""


def stepped(name: str, **changes: object) -> tuple[torch.Tensor, int]:
    """Return what a step of the first stage that learns by gradients changes, and the peak of another one."""
    device = torch.device("cuda")
    kind: type[Method] = lookup(METHODS, name, "method")
    of_method, grid, _ = CASES[name]
    training = training_settings(device="cuda", **changes)
    torch.manual_seed(0)
    method = kind(override(kind.presets()["paper"], of_method), made_up_cohort(grid, 8))
    lay_out(method, training, device)
    stage = next(stage for stage in method.stages() if stage.optimizers)
    method.eval().requires_grad_(False)
    for module in stage.trains:
        module.train().requires_grad_(True)
    update = Updater(stage, Alone(), training, device)
    stage.begin()
    batch = batch_of_noise(method, stage, stage.batch_size).to(device)
    weights = [parameter for module in stage.trains for parameter in module.parameters()]
    before = [parameter.detach().clone() for parameter in weights]
    torch.manual_seed(1)
    stage.step(batch, update)
    change = torch.cat([(now.detach() - was).flatten() for now, was in zip(weights, before, strict=True)])
    peak = PeakMemory(device)
    peak.begin()
    stage.step(batch, update)
    return change, peak.read()


def _exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    descend(monkeypatch)  # Adam's first step is a sign: where a gradient is rounding, that is a coin


def _assert_alike(change: torch.Tensor, other: torch.Tensor) -> None:
    """A hundredth of the whole step: a tenth of the weights left out, or turned round, is far beyond it."""
    length = torch.linalg.vector_norm(other)
    assert length > 0
    assert torch.linalg.vector_norm(change - other) < 0.01 * length


@pytest.mark.parametrize("name", CASES)
def test_computed_again_less_is_held_and_the_steps_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _exactly(monkeypatch)
    kept, whole = stepped(name)
    again, less = stepped(name, checkpoint_activations=True)
    _assert_alike(again, kept)
    assert less < CASES[name][2] * whole


@pytest.mark.parametrize("name", ["autoencoder_3d", "f_anogan"])
def test_channels_last_gives_the_same_steps_to_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _exactly(monkeypatch)
    plain, _ = stepped(name)
    laid_out, _ = stepped(name, channels_last=True)
    _assert_alike(laid_out, plain)
