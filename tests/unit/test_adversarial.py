"""Adversarial training: losses and discriminator, the watch, and whom a gradient reaches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.methods.anogan import AnoGAN
from vesalius.methods.anovaegan import AnoVAEGAN
from vesalius.methods.blocks.adversarial import (
    Adversary,
    AdversarySettings,
    Discriminator,
    Watch,
    WatchSettings,
    discriminator_loss,
    generator_loss,
)
from vesalius.methods.context_autoencoder_gan import ContextAutoencoderGAN
from vesalius.platform.config import flatten, override
from vesalius.platform.contracts import Batch, CohortFacts, generator
from vesalius.platform.errors import DivergenceError, SettingError
from vesalius.platform.testing.made_up import made_up_batch, made_up_facts
from vesalius.platform.training import TrainingSettings
from vesalius.platform.training.collective import Alone
from vesalius.platform.training.update import Updater

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.platform.contracts import Method, Stage

GRID = (18, 21, 5)


def facts(grid: tuple[int, int, int] = GRID) -> CohortFacts:
    return made_up_facts(grid, ceiling=1.0)


def batch(num: int = 8, step: int = 0) -> Batch:
    """Slices with a disc whose size, brightness and place differ."""
    draw = generator("slices", step)
    size, place = 4 + 3 * torch.rand(num, 1, 1, generator=draw), 3 * torch.randn(num, 2, 1, 1, generator=draw)
    row, column = torch.meshgrid(*(torch.arange(n) - n / 2.0 for n in GRID[:2]), indexing="ij")
    disc = (row - place[:, 0]) ** 2 + (column - place[:, 1]) ** 2 < size**2
    image = (disc * (0.4 + 0.5 * torch.rand(num, 1, 1, generator=draw)))[:, None]
    return made_up_batch(image, stage="gan", step=step, brain=disc)


def build(method_type: type[Method], **changes: Any) -> Any:
    torch.manual_seed(0)
    # The paper's last activation; the tiny preset goes without, for cohorts that are not scaled.
    last = flatten(method_type.presets()["paper"])["trunk.output"]
    method = method_type(override(method_type.presets()["tiny"], {"trunk.output": last, **changes}), facts())
    return method.train()


def updater(stage: Stage) -> Updater:
    return Updater(stage, Alone(), TrainingSettings(device="cpu", precision="fp32"), torch.device("cpu"))


def reached(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in module.parameters())


def test_losses_are_numpys_cross_entropies() -> None:
    real, fake = 3 * torch.randn(50, dtype=torch.float64), 3 * torch.randn(50, dtype=torch.float64)
    right, wrong = (1 / (1 + np.exp(-logits.numpy())) for logits in (real, fake))
    np.testing.assert_allclose(discriminator_loss(real, fake).numpy(), -np.log(right) - np.log(1 - wrong), rtol=1e-10)
    np.testing.assert_allclose(generator_loss(fake).numpy(), -np.log(wrong), rtol=1e-10)
    undecided = torch.zeros(1)
    assert float(discriminator_loss(undecided, undecided)) == pytest.approx(2 * math.log(2))


def test_losses_stay_finite_and_keep_a_slope_far_out() -> None:
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = generator_loss(logits)
    np.testing.assert_allclose(loss.detach().numpy(), [1e4, 0])
    torch.autograd.backward(loss.sum())
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), [-1, 0])  # what is most surely seen through learns most
    np.testing.assert_allclose(discriminator_loss(-logits, logits).detach().numpy(), [0, 2e4])


def test_the_discriminators_layers_and_total() -> None:
    with torch.device("meta"):
        network = Discriminator(AdversarySettings(), facts((256, 256, 20)), 2)
        assert network.features(torch.zeros(2, 1, 256, 256)).shape == (2, 256, 8, 8)
        assert network(torch.zeros(2, 1, 256, 256)).shape == (2,)
    total = 25 * 32 + 32  # conv5 to 32, with a bias
    total += 25 * (32 * 128 + 128 * 256 + 3 * 256 * 256) + 2 * (128 + 4 * 256)  # five halvings, normalised
    total += 256 * 8 * 8 * 512 + 512 + 512 + 1  # two linear layers
    assert total == 14_229_569
    assert sum(parameter.numel() for parameter in network.parameters()) == total


def test_three_halvings_of_64_pixels_are_larsens() -> None:
    with torch.device("meta"):
        network = Discriminator(AdversarySettings(stages=3), facts((64, 64, 4)), 2)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.stride[0]) for layer in layers] == [(32, 1), (128, 2), (256, 2), (256, 2)]
    assert [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)] == [512, 1]


def test_a_discriminator_deeper_than_the_slices_is_refused() -> None:
    with pytest.raises(SettingError, match=r"adversary\.stages: 5 halvings leave one pixel of slices of 18 x 21"):
        Discriminator(AdversarySettings(width=2), facts(), 2)


def test_what_is_watched_is_counted_by_slice() -> None:
    torch.manual_seed(0)
    adversary = Adversary(AdversarySettings(width=2, stages=2), facts(), 2)
    real, fake = batch().image, 0.5 * batch(step=1).image
    with torch.no_grad():
        on_real, on_fake = adversary.discriminator(real), adversary.discriminator(fake)
        loss, num, observed = adversary.loss(real, fake)
    assert num == 8
    assert float(loss) == pytest.approx(float(discriminator_loss(on_real, on_fake).sum()))
    assert float(observed["real_accuracy"]) == np.count_nonzero(on_real.numpy() > 0)
    assert float(observed["fake_accuracy"]) == np.count_nonzero(on_fake.numpy() < 0)
    for name, slices in (("real_variance", real), ("fake_variance", fake)):
        assert float(observed[name]) == pytest.approx(8 * np.var(slices.numpy(), axis=0).mean(), rel=1e-5)


def figures(real: float = 0.8, fake: float = 0.7, ratio: float = 0.6) -> dict[str, float]:
    values = (real, fake, 2.0, 2.0 * ratio**2)
    return dict(zip(Watch.NAMES, values, strict=True))


def watching(watch: Watch, steps: int, **changes: float) -> dict[str, float]:
    seen: dict[str, float] = {}
    items = batch(2)
    for step in range(steps):
        seen = watch.see(figures(**changes), replace(items, step=step))
    return seen


def test_a_healthy_game_goes_on() -> None:
    watch = Watch(WatchSettings())
    seen = watching(watch, 2_000)
    assert seen == pytest.approx({"real_accuracy": 0.8, "fake_accuracy": 0.7, "spread": 0.6})
    # A strong discriminator still teaches, and so does one that is always right on one side alone.
    watching(watch, 1_500, real=0.99, fake=0.98)
    watching(watch, 4_000, real=1.0, fake=0.9)


def test_a_discriminator_that_has_won_stops_the_game() -> None:
    watch = Watch(WatchSettings(grace=10, window=20))
    watching(watch, 30)
    with pytest.raises(
        DivergenceError, match=r"the discriminator has won at step \d+ of stage 'gan': .*lower adversary\.learning_rate"
    ):
        watching(watch, 1_000, real=1.0, fake=1.0)
    assert int(watch.seen) - 30 > 20  # one lucky batch is not enough


def test_a_generator_of_one_image_stops_the_game() -> None:
    watch = Watch(WatchSettings(grace=10, window=20))
    watching(watch, 30)
    with pytest.raises(DivergenceError, match=r"the generator has collapsed at step \d+ of stage 'gan': .* of what"):
        watching(watch, 1_000, ratio=0.01)


def test_nothing_is_judged_before_the_grace_is_over() -> None:
    watch = Watch(WatchSettings(grace=50, window=5))
    watching(watch, 50, ratio=0.0, real=1.0, fake=1.0)
    with pytest.raises(DivergenceError, match="step 0 "):
        watching(watch, 1, ratio=0.0)


def test_limits_that_never_stop_never_do() -> None:
    watch = Watch(WatchSettings(grace=0, window=1, accuracy=1, spread=0))
    watching(watch, 5, ratio=0.0, real=1.0, fake=1.0)


def test_moving_averages_are_numpys_and_survive_their_buffers() -> None:
    settings = WatchSettings(window=7)
    random = np.random.default_rng(0)
    values = random.uniform(0.1, 1, (30, 4))
    watch = Watch(settings)
    seen: dict[str, float] = {}
    for step, row in enumerate(values):
        if step == 13:
            state, watch = watch.state_dict(), Watch(settings)
            watch.load_state_dict(state)
        seen = watch.see(dict(zip(Watch.NAMES, row.tolist(), strict=True)), batch(2, step))
    weights = (1 - 1 / 7) ** np.arange(30)[::-1]
    real, fake, real_variance, fake_variance = weights @ values / weights.sum()
    expected = {"real_accuracy": real, "fake_accuracy": fake, "spread": np.sqrt(fake_variance / real_variance)}
    assert seen == pytest.approx(expected, rel=1e-12)
    watch.begin()
    assert all(not bool(buffer.any()) for buffer in watch.buffers())


def played(method: Method, steps: int) -> Mapping[str, Any]:
    (stage,) = method.stages()
    stage.begin()
    update = updater(stage)
    seen: Mapping[str, Any] = {}
    for step in range(steps):
        seen = stage.step(batch(8, step), update)
    return seen


_EARLY = {"adversary.watch.grace": 10, "adversary.watch.window": 10}


def test_in_training_an_opponent_that_stands_still_loses() -> None:
    method = build(AnoGAN, **_EARLY, learning_rate=1e-9, **{"adversary.learning_rate": 1e-2, "adversary.width": 4})
    with pytest.raises(DivergenceError, match="the discriminator has won"):
        played(method, 400)


@pytest.mark.parametrize("method_type", [AnoGAN, AnoVAEGAN, ContextAutoencoderGAN])
def test_in_training_a_generator_of_one_image_is_noticed(method_type: type[Method]) -> None:
    method = build(method_type, **_EARLY, learning_rate=1e-9)
    way_back = method.generator.entry[0] if method_type is AnoGAN else method.network.back
    with torch.no_grad():
        way_back.weight.zero_()
    with pytest.raises(DivergenceError, match="the generator has collapsed at step 10 of stage 'gan'"):
        played(method, 400)


@pytest.mark.parametrize("method_type", [AnoVAEGAN, ContextAutoencoderGAN])
def test_beside_a_reconstruction_a_discriminator_may_be_right(method_type: type[Method]) -> None:
    strong = {"learning_rate": 1e-9, "adversary.learning_rate": 1e-2, "adversary.width": 4, "adversary.watch.spread": 0}
    assert played(build(method_type, **_EARLY, **strong), 40)["fake_accuracy"] > 0.9
    with pytest.raises(DivergenceError, match="the discriminator has won"):
        played(build(method_type, **_EARLY, **strong, **{"adversary.watch.accuracy": 0.9}), 40)


def test_in_training_equal_opponents_play_on() -> None:
    method = build(AnoGAN, **_EARLY, learning_rate=3e-3, **{"adversary.learning_rate": 1e-3})
    seen = played(method, 60)
    assert seen["spread"] > 0.05
    assert min(seen["real_accuracy"], seen["fake_accuracy"]) < 0.999


@pytest.mark.parametrize("method_type", [AnoGAN, AnoVAEGAN, ContextAutoencoderGAN])
def test_each_update_moves_its_own_and_leaves_nothing_in_the_other(method_type: type[Method]) -> None:
    method = build(method_type)
    (stage,) = method.stages()
    ours, theirs = next(name for name in stage.optimizers if name != "discriminator"), "discriminator"
    discriminator = method.adversary.discriminator
    opponent = method.generator if method_type is AnoGAN else method.network
    losses = {
        ours: method.generator_loss if method_type is AnoGAN else method.loss,
        theirs: method.discriminator_loss,
    }
    for name, moves, stays in ((ours, opponent, discriminator), (theirs, discriminator, opponent)):
        method.zero_grad(set_to_none=True)
        before = [parameter.clone() for parameter in stays.parameters()]
        updater(stage)(name, losses[name], batch())
        assert reached(moves)
        assert all(parameter.grad is None for parameter in stays.parameters())
        assert all(torch.equal(old, new) for old, new in zip(before, stays.parameters(), strict=True))


@pytest.mark.parametrize("method_type", [AnoVAEGAN, ContextAutoencoderGAN])
@pytest.mark.parametrize("reaches", ["decoder", "all"])
def test_the_adversarial_gradient_reaches_what_the_setting_says(method_type: type[Method], reaches: str) -> None:
    method = build(method_type, adversarial_reaches=reaches)
    items = batch()
    _, _, observed = method.loss(items)
    observed["adversarial"].backward()
    trunk = method.network.trunk
    assert reached(trunk.decoder)
    assert reached(method.network.back)
    assert reached(trunk.encoder) is (reaches == "all")
    assert reached(method.network.mean) is (reaches == "all")


def test_the_divergence_has_a_gradient_to_the_encoder_alone() -> None:
    method = build(AnoVAEGAN)
    _, _, observed = method.loss(batch())
    observed["divergence"].backward()
    assert reached(method.network.trunk.encoder)
    assert reached(method.network.mean)
    assert not reached(method.network.trunk.decoder)
    assert not reached(method.network.back)


def test_the_terms_are_weighted_by_lambda() -> None:
    method = build(AnoVAEGAN, lambda_1=2.0, lambda_2=0.3, lambda_3=0.05)
    loss, num, observed = method.loss(batch())
    terms = {name: float(value.detach()) for name, value in observed.items()}
    expected = 2 * terms["reconstruction"] + 0.3 * terms["divergence"] + 0.05 * terms["adversarial"]
    assert num == 8
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_both_updates_of_a_step_see_the_same_slices() -> None:
    method = build(AnoVAEGAN)
    with torch.no_grad():
        first, again = (method._code(batch())[0] for _ in range(2))
    assert torch.equal(first, again)


def test_the_code_is_drawn_from_its_posterior_anew_in_each_step() -> None:
    method = build(AnoVAEGAN)
    items = batch()
    with torch.no_grad():
        mean, log_sigma = method.network.posterior(items.image)
        codes = []
        for step in (0, 1):
            held = replace(items, step=step)  # the same slices: only the draw may differ
            noise = held.normal("posterior", method.network.code_shape)
            codes.append(method._code(held)[0])
            torch.testing.assert_close(codes[-1], mean + log_sigma.exp() * noise)
    assert not torch.equal(*codes)
