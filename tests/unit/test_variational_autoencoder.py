"""The variational autoencoder: its divergence, its limit, its draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vesalius.methods.autoencoder import Autoencoder, AutoencoderSettings
from vesalius.methods.blocks.autoencoders import draw_code, restore_by_posterior
from vesalius.methods.blocks.variational import gaussian_divergence
from vesalius.methods.variational_autoencoder import VariationalAutoencoder, VariationalAutoencoderSettings
from vesalius.platform.config import override
from vesalius.platform.testing.made_up import made_up_batch, made_up_facts, made_up_volume

if TYPE_CHECKING:
    from vesalius.platform.contracts import Batch, CohortFacts

GRID = (18, 21, 5)


def facts() -> CohortFacts:
    return made_up_facts(GRID)


def batch(num: int = 4, step: int = 0) -> Batch:
    image = torch.rand((num, 1, *GRID[:2]), generator=torch.Generator().manual_seed(step))
    return made_up_batch(image, stage="autoencoder", step=step, num_steps=10, brain=image[:, 0] > 0.3)


def small(**changes: Any) -> VariationalAutoencoder:
    torch.manual_seed(0)
    settings = VariationalAutoencoder.presets()["tiny"]
    assert isinstance(settings, VariationalAutoencoderSettings)
    return VariationalAutoencoder(override(settings, changes), facts())


def test_the_divergence_is_the_closed_form() -> None:
    mean, log_sigma = 2 * torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.randn(3, 4, 2, 2, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, log_sigma.exp()), Normal(torch.zeros(()), torch.ones(()))).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_divergence(mean, 2 * log_sigma), expected)
    # One number by hand: N(1, e^2) from N(0, 1) is (1 + e^2 - 1 - 2) / 2.
    by_hand = (math.e**2 - 2) / 2
    assert float(gaussian_divergence(torch.ones(1, 1), 2 * torch.ones(1, 1))) == pytest.approx(by_hand)
    assert float(gaussian_divergence(torch.zeros(1, 9), torch.zeros(1, 9))) == 0


def test_the_divergence_is_what_draws_say() -> None:
    random = np.random.default_rng(0)
    mean, log_sigma = np.array([0.7, -1.2]), np.array([-0.5, 0.3])
    sigma = np.exp(log_sigma)
    noise = random.standard_normal((400_000, 2))
    code = mean + sigma * noise
    gaps = (-log_sigma - noise**2 / 2 + code**2 / 2).sum(axis=1)  # log q - log p; the constants cancel
    found = float(gaussian_divergence(torch.tensor(mean)[None], 2 * torch.tensor(log_sigma)[None]))
    assert abs(gaps.mean() - found) < 4 * gaps.std() / np.sqrt(len(gaps))


def test_draws_have_the_posteriors_mean_and_deviation() -> None:
    mean, log_sigma = torch.tensor([3.0, -1.0]), torch.tensor([-2.0, 0.5])
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    code = draw_code(mean, log_sigma, noise)
    torch.testing.assert_close(code.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(code.std(0), log_sigma.exp(), atol=0.02, rtol=0)


@pytest.mark.parametrize("bottleneck", ["dense", "spatial"])
def test_without_divergence_and_without_draws_it_is_the_autoencoder(bottleneck: str) -> None:
    variational = small(kl_weight=0, sampled=False, **{"bottleneck.kind": bottleneck})
    settings = Autoencoder.presets()["tiny"]
    assert isinstance(settings, AutoencoderSettings)
    plain = Autoencoder(override(settings, {"bottleneck.kind": bottleneck}), facts())
    weights = variational.network.state_dict()
    plain.network.load_state_dict({name: value for name, value in weights.items() if "log_sigma" not in name})
    items = batch()
    loss, num, _ = variational.loss(items)
    expected, expected_num = plain.loss(items)
    assert (loss.item(), num) == (expected.item(), expected_num)
    torch.autograd.backward([loss, expected])
    for name, parameter in plain.network.named_parameters():
        twin = variational.network.get_parameter(name)
        assert parameter.grad is not None
        assert twin.grad is not None
        assert float(parameter.grad.abs().max()) > 0
        assert torch.equal(twin.grad, parameter.grad), name
    with torch.no_grad():
        plain.eval()
        variational.eval()
        assert torch.equal(plain.network(items.image), variational.network(items.image))
    # And with either of them it is not.
    for changes in ({"kl_weight": 1, "sampled": False}, {"kl_weight": 0, "sampled": True}):
        other = small(**changes, **{"bottleneck.kind": bottleneck})
        other.network.load_state_dict(weights)
        assert other.loss(items)[0].item() != expected.item()


def test_the_loss_is_the_bound_divided_by_the_slices_values() -> None:
    method = small(kl_weight=0.5)
    items = batch()
    loss, num, observed = method.loss(items)
    with torch.no_grad():
        mean, log_sigma = method.network.posterior(items.image)
        noise = items.normal("posterior", method.network.code_shape)
        restored = method.network.decode(mean + log_sigma.exp() * noise)
        distance = np.abs((restored - items.image).numpy()).sum(axis=(1, 2, 3))
        gap = kl_divergence(Normal(mean, log_sigma.exp()), Normal(0.0, 1.0)).flatten(1).sum(1).numpy()
    values = 18 * 21
    assert num == 4
    assert float(loss.detach()) == pytest.approx(float((distance + 0.5 * gap).sum()) / values, rel=1e-5)
    assert float(observed["reconstruction"].detach()) == pytest.approx(float(distance.sum()) / values, rel=1e-5)
    assert float(observed["divergence"].detach()) == pytest.approx(float(gap.sum()) / values, rel=1e-5)


@torch.no_grad()
def test_a_restoration_from_draws_is_their_mean_and_gives_their_deviation() -> None:
    network = small().network.eval()
    image = batch().image
    noise = torch.randn(4, 5, *network.code_shape, generator=torch.Generator().manual_seed(0))
    mean, log_sigma = network.posterior(image)
    draws = torch.stack([network.decode(mean + log_sigma.exp() * noise[:, i]) for i in range(5)]).numpy()
    restored = restore_by_posterior(network, image, noise)
    np.testing.assert_allclose(restored.image.numpy(), draws.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(restored.extras["spread"].numpy(), draws.std(0, ddof=1)[:, 0], rtol=1e-3, atol=1e-6)
    none = restore_by_posterior(network, image, noise[:, :0])
    torch.testing.assert_close(none.image, network.decode(mean))
    assert not none.extras
    one = restore_by_posterior(network, image, noise[:, :1])
    np.testing.assert_allclose(one.image.numpy(), draws[0], rtol=1e-4, atol=1e-6)
    assert not one.extras  # one draw has no deviation: a map of zeros would say that it is certain


@torch.no_grad()
def test_the_quick_effort_takes_the_mean() -> None:
    method = small(samples=3, **{"slices.every": 1}).eval()
    image = torch.rand((1, *GRID), generator=torch.Generator().manual_seed(0))
    scan = made_up_volume(image, image[0] > 0.3)
    (full,), (quick,) = method.score([scan]), method.score([scan], effort="quick")
    assert full.extras["spread"].shape == GRID
    assert float(full.extras["spread"].min()) > 0
    assert not quick.extras
    assert quick.restoration is not None
    mean = method.network(scan.image.movedim(3, 0)).movedim(0, 3)
    torch.testing.assert_close(quick.restoration, mean)
