"""The f-AnoGAN's game: what a critic under its penalty comes to, what a generator learns, and when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vesalius.methods.f_anogan import FAnoGAN, FAnoGANSettings
from vesalius.methods.f_anogan.objectives import slopes
from vesalius.methods.f_anogan.settings import CriticWatchSettings
from vesalius.methods.f_anogan.watch import CriticWatch
from vesalius.platform.config import override
from vesalius.platform.contracts import precision as precision_rule
from vesalius.platform.errors import DivergenceError, SettingError
from vesalius.platform.testing.made_up import made_up_batch, made_up_facts
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone
from vesalius.platform.training.update import Updater

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.platform.contracts import Batch, Stage

GRID = (9, 10, 7)
NUM = 4
PLAIN = {"network.output": "linear", "batch_size": NUM, "group_size": NUM}


def small(**changes: Any) -> FAnoGAN:
    torch.manual_seed(0)
    settings = FAnoGAN.presets()["tiny"]
    assert isinstance(settings, FAnoGANSettings)
    cohort = made_up_facts(GRID, channels=("CT",), background=-1.0, ceiling=1.0)
    return FAnoGAN(override(settings, {**PLAIN, **changes}), cohort).eval()


def images(seed: int = 0, num: int = NUM) -> Tensor:
    return 2 * torch.rand((num, 1, *GRID), generator=torch.Generator().manual_seed(seed)) - 1


def batch_of(image: Tensor, step: int = 0) -> Batch:
    return made_up_batch(image, stage="gan", step=step, num_steps=1_000)


class Shifted(nn.Module):
    """Generates the real images, all moved by the same amount: their distance is its length, whatever the pairing."""

    def __init__(self, image: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("image", image)
        self.shift = nn.Parameter(shift)

    def forward(self, code: Tensor) -> Tensor:
        moved: Tensor = self.get_buffer("image")[: len(code)] + self.shift
        return moved


def shift_of(length: float) -> Tensor:
    shift = torch.randn(1, *GRID, generator=torch.Generator().manual_seed(5))
    moved: Tensor = shift * (length / shift.norm())
    return moved


def play(
    method: FAnoGAN, image: Tensor, steps: int, stage: Stage | None = None, **changes: Any
) -> list[Mapping[str, float]]:
    stage = stage or method.stages()[0]
    method.eval().requires_grad_(False)
    for module in stage.trains:
        module.train().requires_grad_(True)
    stage.begin()
    update = Updater(stage, Alone(), training_settings(**changes), torch.device("cpu"))
    return [{k: float(v) for k, v in stage.step(batch_of(image, step), update).items()} for step in range(steps)]


@pytest.mark.parametrize(("length", "weight"), [(1.0, 10.0), (3.0, 10.0), (3.0, 3.0)])
def test_a_critic_under_its_penalty_comes_to_the_closed_form(length: float, weight: float) -> None:
    """Of images W apart a critic of slope c gains c W - lambda (c - 1)^2: most at c = 1 + W / (2 lambda)."""
    method = small(**{"game.penalty_weight": weight, "game.learning_rate": 1e-3, "game.critic_steps": 10_000})
    image = images()
    method.generator = Shifted(image, shift_of(length))
    last = play(method, image, 500)[-60:]
    slope, seen, apart = (
        float(np.mean([metrics[name] for metrics in last])) for name in ("slope", "distance", "apart")
    )
    expected = 1 + length / (2 * weight)
    assert slope == pytest.approx(expected, abs=0.06)
    assert apart == pytest.approx(length, rel=1e-5)
    # What it sees of the distance is no more than its slope allows, and most of that.
    assert 0.8 * expected * length < seen < 1.03 * slope * length
    assert last[-1]["steepness"] == pytest.approx(1, abs=0.1)
    # Its Lipschitz estimate: between any two points no steeper than at the steepest between them.
    real, fake = image, image + method.generator.get_parameter("shift").detach()
    shares = torch.rand(40, 2, NUM, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    critic = method.critic.eval()
    with torch.no_grad():
        estimates = []
        for first, second in shares:
            x, y = real + first * (fake - real), real + second * (fake - real)
            estimates.append((critic(x) - critic(y)).abs() / (x - y).flatten(1).norm(dim=1))
    grid = torch.linspace(0, 1, 60).view(-1, 1, 1)
    steepest = torch.stack([slopes(critic, real, fake, share.expand(NUM, 1)).detach() for share in grid]).amax(0)
    estimate = torch.stack(estimates).amax(0)
    assert bool((estimate <= 1.02 * steepest).all())
    assert float(estimate.max()) == pytest.approx(expected, rel=0.2)


def test_without_its_penalty_a_critic_runs_away() -> None:
    method = small(**{"game.penalty_weight": 0.0, "game.learning_rate": 3e-3, "game.critic_steps": 10_000})
    image = images()
    method.generator = Shifted(image, shift_of(3.0))
    assert play(method, image, 60)[-1]["slope"] > 10


@pytest.mark.parametrize("norm", ["layer", "batch", "instance"])
def test_in_bfloat16_training_begins_as_in_float32_and_stays_finite(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on CUDA: on a CPU such convolutions are kept out of bfloat16, though those of this network are right there.
    monkeypatch.setattr(precision_rule, "convolves_unsafely", lambda _: False)
    logs: dict[str, list[Mapping[str, float]]] = {}
    moved: dict[str, dict[str, Tensor]] = {}
    for precision in ("fp32", "bf16"):
        method = small(**{"network.critic_norm": norm})
        begin = {name: value.detach().clone() for name, value in method.named_parameters()}
        scores: set[torch.dtype] = set()
        features: set[torch.dtype] = set()
        method.critic.register_forward_hook(lambda _, __, found, seen=scores: seen.add(found.dtype))
        method.critic.halvings.register_forward_hook(lambda _, __, found, seen=features: seen.add(found.dtype))
        gan, *restoring = method.stages()
        logs[precision] = play(method, images(), 12, gan, precision=precision)
        gone = {name: (value - begin[name]).detach().flatten() for name, value in method.named_parameters()}
        moved[precision] = {
            network: torch.cat([value for name, value in gone.items() if name.startswith(network)])
            for network in ("critic", "generator")
        }
        for stage in restoring:
            logs[precision] += play(method, images(), 12, stage, precision=precision)
        # The penalty's features are of float32 in either, and so is every score.
        assert scores == {torch.float32}
        assert features == ({torch.float32} if precision == "fp32" else {torch.float32, torch.bfloat16})
        assert all(bool(torch.isfinite(value).all()) for value in method.state_dict().values())
        assert all(np.isfinite(list(metrics.values())).all() for metrics in logs[precision])
    # The first four steps of game and encoder. A bfloat16 is true to 0.004 of itself; up to 0.012 was measured, since
    # Adam's first steps are as long where a gradient is rounding.
    for step in (*range(4), *range(12, 16)):
        for name, value in logs["fp32"][step].items():
            assert logs["bf16"][step][name] == pytest.approx(value, rel=0.02, abs=0.02), (step, name)
    for network, least in (("critic", 0.99), ("generator", 0.95)):
        alike = nn.functional.cosine_similarity(moved["bf16"][network], moved["fp32"][network], dim=0)
        assert float(alike) > least, network


def test_a_generator_moves_towards_the_data() -> None:
    method = small(**{"game.learning_rate": 3e-3, "game.critic_steps": 2})
    image = images()
    method.generator = Shifted(image, shift_of(3.0))
    apart = [metrics["apart"] for metrics in play(method, image, 250)]
    assert apart[0] == pytest.approx(3.0, rel=1e-5)
    assert np.mean(apart[-20:]) < 2.0


def test_the_generators_loss_is_the_critics_score_of_its_own_codes() -> None:
    method = small()
    batch = batch_of(images())
    loss, num = method.generator_loss(batch)
    codes = {name: batch.normal(name, (8,)) for name in ("generator", "critic")}
    scores = {name: method.critic(method.generator(code)).sum() for name, code in codes.items()}
    assert num == NUM
    torch.testing.assert_close(loss, -scores["generator"])
    assert not torch.isclose(loss, -scores["critic"])
    # Codes are of N(0, 1), which the paper draws them from: a uniform one has no value beyond 1.
    assert float(batch.normal("generator", (500,)).abs().max()) > 2.5


@pytest.mark.parametrize("kappa", [0.0, 0.7])
def test_restoration_is_trained_on_eq_6(kappa: float) -> None:
    method = small(feature_weight=kappa)
    batch = batch_of(images())
    loss, num, observed = method.restoration_loss(batch)
    with torch.no_grad():
        restored = method.generator(method.encoder(batch.image))
        features = [method.critic.features(values).double().numpy() for values in (batch.image, restored)]
    in_image = ((batch.image - restored).double().numpy() ** 2).mean(axis=(1, 2, 3, 4)).sum()
    in_features = ((features[0] - features[1]) ** 2).mean(axis=(1, 2, 3, 4)).sum()
    assert num == NUM
    assert float(loss.detach()) == pytest.approx(in_image + kappa * in_features, rel=1e-4)
    assert float(observed["image"].detach()) == pytest.approx(in_image, rel=1e-4)
    assert float(observed["features"].detach()) == pytest.approx(in_features, rel=1e-4)


def test_both_terms_of_eq_6_have_a_gradient() -> None:
    """Against finite differences of the encoder's last bias; kappa is large, so that features count."""
    method = small(feature_weight=100.0)
    image = images()
    bias: Any = method.encoder.get_parameter("code.bias")
    for network in (method.encoder, method.critic):
        blocks: Any = network.get_submodule("halvings.blocks")
        for block in blocks:
            block[-1] = nn.Softplus()  # a kink within a difference would count

    def lost() -> Tensor:
        found = method.generator(method.encoder(image))
        wanted, restored = (method.critic.features(values, 1) for values in (image, found))
        total: Tensor = (image - found).square().mean() + 100 * (wanted - restored).square().mean()
        return total * NUM

    bias.requires_grad_(True)
    loss, _, _ = method.restoration_loss(batch_of(image))
    (gradient,) = torch.autograd.grad(loss, bias)
    direction = torch.randn(8, generator=torch.Generator().manual_seed(1))
    ends = []
    with torch.no_grad():
        for step in (1e-2, -2e-2):
            bias.add_(direction, alpha=step)
            ends.append(float(lost()))
    expected = (ends[0] - ends[1]) / 2e-2
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=0.1)
    assert abs(expected) > 0.01


def test_every_stage_takes_its_own_settings() -> None:
    method = small(
        **{
            "game.learning_rate": 1e-3, "game.beta1": 0.25, "game.beta2": 0.75, "game.epochs": 3,
            "encoder.learning_rate": 2e-3, "encoder.epochs": 5, "fine_tuning.learning_rate": 4e-3,
            "fine_tuning.epochs": 7,
        }
    )  # fmt: skip
    gan, encoder, tuning = method.stages()
    assert [stage.epochs for stage in (gan, encoder, tuning)] == [3, 5, 7]
    assert [stage.selectable for stage in (gan, encoder, tuning)] == [False, True, True]
    for name in ("critic", "generator"):
        group = gan.optimizers[name].param_groups[0]
        assert (group["lr"], group["betas"]) == (1e-3, (0.25, 0.75))
    rates = [stage.optimizers[stage.name].param_groups[0]["lr"] for stage in (encoder, tuning)]
    assert rates == [2e-3, 4e-3]


def test_spreads_are_the_images_own() -> None:
    method = small()
    batch = batch_of(images())
    _, num, observed = method.critic_loss(batch)
    with torch.no_grad():
        fake = method.generator(batch.normal("critic", (8,))).numpy()
    for name, values in (("real", batch.image.numpy()), ("fake", fake)):
        assert float(observed[f"{name}_variance"]) == pytest.approx(num * values.var(axis=0).mean(), rel=1e-4)
    apart = np.sqrt(((batch.image.numpy() - fake) ** 2).sum(axis=(1, 2, 3, 4))).sum()
    assert float(observed["apart"]) == pytest.approx(apart, rel=1e-5)


# ---- when it is over


def watched(steps: int, weight: float = 10.0, /, **observed: float) -> dict[str, float]:
    watch = CriticWatch(CriticWatchSettings(grace=20, window=10), weight)
    watch.begin()
    plain = {"slope": 1.0, "apart": 20.0, "real_variance": 4.0, "fake_variance": 1.0, **observed}
    found: dict[str, float] = {}
    for step in range(steps):
        found = watch.see(plain, batch_of(images(num=1), step))
    return found


def test_a_healthy_game_goes_on() -> None:
    assert watched(60) == {"steepness": pytest.approx(0.5), "spread": pytest.approx(0.5)}
    # Images far apart rightly make a steep critic.
    assert watched(60, slope=11.0, apart=200.0)["steepness"] == pytest.approx(1)
    assert watched(60, 0.0, slope=1e6)["steepness"] == 0.0
    assert watched(60, real_variance=0.0, fake_variance=0.0)["spread"] == 1.0


@pytest.mark.parametrize(
    ("observed", "words"),
    [
        ({"slope": 7.0}, r"the critic has run away from its penalty at step 20 of stage 'gan': .* was 3.5 times"),
        ({"fake_variance": 4e-4}, r"the generator has collapsed at step 20 of stage 'gan': .* by 1 % of what real"),
    ],
)
def test_a_game_that_is_over_stops_after_its_grace(observed: dict[str, float], words: str) -> None:
    watched(20, **observed)
    with pytest.raises(DivergenceError, match=words):
        watched(21, **observed)


def test_a_resumed_watch_judges_as_an_unbroken_one() -> None:
    watch, other = (CriticWatch(CriticWatchSettings(grace=2, window=5), 10.0) for _ in range(2))
    observed = {"slope": 1.5, "apart": 3.0, "real_variance": 4.0, "fake_variance": 1.0}
    watch.see(observed, batch_of(images(num=1)))
    other.load_state_dict(watch.state_dict())
    later = {**observed, "slope": 2.5}
    assert watch.see(later, batch_of(images(num=1), 1)) == other.see(later, batch_of(images(num=1), 1))
    assert float(other.seen) == 2


def test_a_setting_of_the_map_that_the_score_does_not_read_is_refused() -> None:
    with pytest.raises(SettingError, match=r"map\.image_score has no effect on the score of Eq\. 6"):
        small(**{"map.image_score": "max"})
    assert small(**{"map.image_score": "max", "image_score": "map"}).settings.map.image_score == "max"
