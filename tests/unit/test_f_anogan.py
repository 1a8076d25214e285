"""The f-AnoGAN of volumes: its networks, its losses against closed forms, its stages, its score."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vesalius.methods.blocks.frames import Frame
from vesalius.methods.f_anogan import FAnoGAN, FAnoGANSettings
from vesalius.methods.f_anogan.networks import Critic, Encoder, Generator, frame_of
from vesalius.methods.f_anogan.objectives import critic_loss, distance, generator_loss, slopes
from vesalius.methods.f_anogan.settings import NetworkSettings
from vesalius.platform.config import override
from vesalius.platform.errors import SettingError, VolumeError
from vesalius.platform.testing.made_up import made_up_batch, made_up_facts, made_up_volume
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone, Checkpoints, train
from vesalius.platform.training.update import Updater

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.contracts import Batch, CohortFacts, Volume
    from vesalius.platform.store import CohortStore

GRID = (9, 10, 7)
CPU = torch.device("cpu")


def facts(grid: tuple[int, int, int] = GRID, **changes: Any) -> CohortFacts:
    return made_up_facts(grid, **{"channels": ("CT",), "background": -1.0, "ceiling": 1.0, **changes})


def small(cohort: CohortFacts | None = None, /, **changes: Any) -> FAnoGAN:
    torch.manual_seed(0)
    settings = FAnoGAN.presets()["tiny"]
    assert isinstance(settings, FAnoGANSettings)
    return FAnoGAN(override(settings, {"network.output": "tanh", **changes}), cohort or facts()).eval()


def images(num: int, shape: tuple[int, ...] = GRID, seed: int = 0) -> Tensor:
    return 2 * torch.rand((num, 1, *shape), generator=torch.Generator().manual_seed(seed)) - 1


def volume(seed: int = 0, shape: tuple[int, int, int] = GRID) -> Volume:
    image = images(1, shape, seed)[0]
    return made_up_volume(image, image[0] > -0.5, f"v{seed}")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("edge", "stages", "finer"),
    [(64, 4, (0, 0, 0)), (128, 5, (54_496, 129_184, 129_120))],
)
def test_the_networks_layers_and_totals(edge: int, stages: int, finer: tuple[int, int, int]) -> None:
    cohort = facts((edge,) * 3)
    settings = NetworkSettings(stages=stages)
    frame = frame_of(settings, cohort, cohort.grid)
    assert frame.coarsest == (4, 4, 4)
    with torch.device("meta"):
        generator, critic, encoder = (
            Generator(settings, frame, cohort),
            Critic(settings, frame),
            Encoder(settings, frame),
        )
        image = generator(torch.zeros(2, 2_500))
        assert image.shape == (2, 1, edge, edge, edge)
        assert critic(image).shape == (2,)
        assert encoder(image).shape == (2, 2_500)
        assert critic.features(image).shape == (2, 512, 4, 4, 4)
        assert critic.features(image, 2).shape == (2, 256, 8, 8, 8)
    # 86.6, 11.05 and 92.9 million, as the layers say them: kernels of 3 and of 4, and what covers the coarsest grid.
    doublings = 27 * (512 * 256 + 256 * 128 + 128 * 64 + 64) + 2 * (512 + 256 + 128 + 64)
    halvings = 64 * (64 + 64 * 128 + 128 * 256 + 256 * 512) + 64 + 2 * (128 + 256 + 512)
    assert 2_500 * 512 * 64 + doublings == 86_568_512
    # Three biases more in the critic, whose layer normalisation leaves them.
    assert halvings + 128 + 256 + 512 + 512 * 64 == 11_049_664
    assert halvings + 2_500 * (512 * 64 + 1) == 92_938_500
    found = (count(generator) - 86_568_512, count(critic) - 11_049_664, count(encoder) - 92_938_500)
    assert found == finer


@pytest.mark.parametrize("norm", ["batch", "instance", "layer"])
def test_batch_normalisation_alone_mixes_items(norm: str) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings(stages=2, width=8, critic_norm=norm)
    critic = Critic(settings, frame_of(settings, facts(), GRID)).train()
    assert count(critic) == 64 * (4 + 4 * 8) + 4 + 2 * 8 + 8 * 3 * 3 * 2 + (8 if norm == "layer" else 0)
    together = critic(images(3))
    alone = critic(images(3)[:1])
    assert torch.allclose(together[:1], alone, atol=1e-5) == (norm != "batch")


def test_a_frame_pads_with_the_background_and_crops_what_it_padded() -> None:
    frame = Frame((9, 10, 8), 2, 1, -1.0)
    assert frame.coarsest == (3, 3, 2)
    image = images(2, (9, 10, 8)).abs()
    padded = frame.pad(image)
    assert padded.shape == (2, 1, 12, 12, 8)
    assert torch.equal(frame.crop(padded), image)
    assert int((padded == -1).sum()) == padded.numel() - image.numel()
    assert frame.pad(padded[..., 1:10, 1:11, :]).shape == padded.shape


@pytest.mark.parametrize(
    ("changes", "cohort", "words"),
    [
        ({"network.stages": 4}, facts(), "4 halvings leave one voxel of 9 x 10 x 7"),
        ({"network.width": 9}, facts(), "9 channels cannot be halved 1 times"),
        ({"feature_block": 3}, facts(), "the critic has 2 blocks"),
        ({"batch_size": 5}, facts(), "does not part into groups of 2"),
        ({}, facts(ceiling=None), "set network.output to linear"),
        ({"network.output": "sigmoid"}, facts(), "set network.output to tanh or linear"),
        ({"network.output": "sigmoid"}, facts(ceiling=2.0), "reach from -1 to 2: set network.output to linear"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], cohort: CohortFacts, words: str) -> None:
    changes = {"network.width": 8, **changes}
    with pytest.raises(SettingError, match=words):
        small(cohort, **changes)


def test_a_linear_critic_has_the_slope_of_its_weights_everywhere() -> None:
    weight = torch.randn(1, *GRID, generator=torch.Generator().manual_seed(1)).requires_grad_()
    real, fake, mix = images(4, seed=1), images(4, seed=2), torch.rand(4, 1)
    slope = slopes(lambda image: (image * weight).flatten(1).sum(1), real, fake, mix)
    length = weight.detach().norm()
    torch.testing.assert_close(slope.detach(), length.expand(4))
    (gradient,) = torch.autograd.grad((slope - 1).square().sum(), weight)
    torch.testing.assert_close(gradient, 4 * 2 * (length - 1) * weight.detach() / length)


def test_the_slope_is_taken_between_the_images_item_by_item() -> None:
    weight = torch.rand(1, *GRID).requires_grad_()
    real, fake, mix = images(3, seed=1), images(3, seed=2), torch.tensor([[0.0], [0.25], [1.0]])
    slope = slopes(lambda image: (weight * image.square() / 2).flatten(1).sum(1), real, fake, mix)
    between = torch.stack([fake[0], 0.25 * real[1] + 0.75 * fake[1], real[2]])
    expected = (weight.detach() * between).flatten(1).norm(dim=1)
    torch.testing.assert_close(slope.detach(), expected)
    # The second derivative, in closed form: d(slope)/d(weight) = weight x^2 / slope.
    (gradient,) = torch.autograd.grad((slope - 1).square().sum(), weight)
    by_item = 2 * (expected - 1) / expected
    torch.testing.assert_close(gradient, (by_item.view(-1, 1, 1, 1, 1) * weight.detach() * between.square()).sum(0))


@pytest.mark.parametrize("norm", ["batch", "instance", "layer"])
def test_the_penaltys_gradient_is_that_of_finite_differences(norm: str) -> None:
    """Of a batch's statistics an item's slope is not its own; what is computed has its derivative all the same."""
    critic = small(**{"network.critic_norm": norm}).critic.train().double()
    # A kink between the two ends of a difference is a jump of the slope, which no derivative knows.
    for block in critic.halvings.blocks:
        assert isinstance(block, nn.Sequential)
        block[-1] = nn.Softplus()
    with torch.no_grad():
        critic.score.weight.mul_(10)  # slopes about one, whose penalty is neither flat nor the square alone

    # The critic casts its scores to float32, which a difference of a thousandth would not outlast.
    def scored(image: Tensor) -> Tensor:
        found: Tensor = critic.score(critic.features(image.double()).flatten(1)).squeeze(1)
        return found

    real, fake, mix = images(2, seed=1), images(2, seed=2), torch.tensor([[0.3], [0.6]])

    def penalty() -> Tensor:
        return (slopes(scored, real, fake, mix).double() - 1).square().sum()

    parameters = list(critic.parameters())
    torch.autograd.backward(penalty(), inputs=parameters)
    for parameter in parameters:
        assert parameter.grad is not None
        # Along each number's own sign, so that none of them takes another's part away.
        lengths = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        direction = lengths * parameter.grad.sign()
        direction /= torch.linalg.vector_norm(direction)
        expected = float((parameter.grad * direction).sum())
        assert expected > 0.01
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-3)
            ends.append(float(penalty().detach()))
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-3)
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(expected, rel=5e-3)


def test_a_flat_critic_has_a_slope_of_zero_and_a_finite_penalty() -> None:
    critic = small().critic.train()
    nn.init.zeros_(critic.score.weight)
    slope = slopes(critic, images(2, seed=1), images(2, seed=2), torch.rand(2, 1))
    assert torch.equal(slope.detach(), torch.zeros(2))
    gradients = torch.autograd.grad((slope - 1).square().sum(), list(critic.parameters()), allow_unused=True)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)


def test_slopes_are_of_float32_whatever_the_autocast() -> None:
    critic = small().critic.train()
    given = images(2, seed=1), images(2, seed=2), torch.rand(2, 1)
    plain = slopes(critic, *given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(slopes(critic, *given), plain)


def test_scores_are_of_float32_whatever_the_autocast() -> None:
    critic = small().critic
    with torch.no_grad():
        critic.score.weight.mul_(1_000)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, features = critic(images(2)), critic.features(images(2)).flatten(1).float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (features @ critic.score.weight.T)[:, 0].detach(), rtol=1e-4, atol=1e-3)


def test_the_losses_are_numpys() -> None:
    random = np.random.default_rng(0)
    real, fake, slope = random.normal(size=(3, 5))
    x, g, s = (torch.tensor(values) for values in (real, fake, slope))
    np.testing.assert_allclose(critic_loss(x, g, s, 10.0), fake - real + 10 * (slope - 1) ** 2, rtol=1e-12)
    np.testing.assert_allclose(generator_loss(g), -fake)
    left, right = random.random((2, 4, 2, 3, 3, 3), dtype=np.float32)
    found = distance(torch.tensor(left), torch.tensor(right))
    np.testing.assert_allclose(found, ((left - right) ** 2).mean(axis=(1, 2, 3, 4)), rtol=1e-6)


def test_an_items_draws_are_its_own_so_that_shares_add_up_to_the_batch() -> None:
    method = small().requires_grad_(True)
    batch = made_up_batch(images(4))
    whole, num, observed = method.critic_loss(batch)
    parts = [method.critic_loss(batch.select(start, start + 2)) for start in (0, 2)]
    assert num == sum(part[1] for part in parts) == 4
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0])
    for name in ("distance", "penalty", "slope"):
        torch.testing.assert_close(observed[name], parts[0][2][name] + parts[1][2][name])
    torch.testing.assert_close(
        method.generator_loss(batch)[0], sum(method.generator_loss(batch.select(at, at + 1))[0] for at in range(4))
    )


def test_the_critics_loss_is_eq_2_of_its_own_networks() -> None:
    method = small(**{"game.penalty_weight": 3.0}).requires_grad_(True)
    batch = made_up_batch(images(4))
    loss, _, observed = method.critic_loss(batch)
    fake = method.generator(batch.normal("critic", (8,))).detach()
    slope = slopes(method.critic, batch.image, fake, batch.uniform("mix", (1,)))
    apart = method.critic(batch.image) - method.critic(fake)
    torch.testing.assert_close(loss, (3 * (slope - 1).square() - apart).sum())
    torch.testing.assert_close(observed["penalty"], 3 * (slope - 1).square().sum())


def test_the_generator_is_updated_in_every_nth_step() -> None:
    method = small(**{"game.critic_steps": 5})
    called: list[tuple[int, str]] = []

    class Noted:
        observed: Mapping[str, float] = {"real_variance": 4.0, "fake_variance": 1.0, "slope": 1.0, "apart": 1.0}

        def __call__(self, optimizer: str, loss: Any, batch: Batch) -> float:
            called.append((batch.step, optimizer))
            return 0.0

    metrics = [method.stages()[0].step(made_up_batch(images(2), step=step), Noted()) for step in range(12)]
    assert [name for _, name in called].count("critic") == 12
    assert [step for step, name in called if name == "generator"] == [4, 9]
    assert [step for step, logged in enumerate(metrics) if "generator_loss" in logged] == [4, 9]
    assert metrics[0]["spread"] == 0.5


def test_an_update_of_the_one_player_leaves_the_other_alone() -> None:
    method = small()
    stage = method.stages()[0]
    for module in stage.trains:
        module.train().requires_grad_(True)
    update = Updater(stage, Alone(), training_settings(), CPU)
    players = {"critic": (method.critic, method.critic_loss), "generator": (method.generator, method.generator_loss)}
    for name, (module, loss) in players.items():
        before = {player: [p.clone() for p in of.parameters()] for player, (of, _) in players.items()}
        update(name, loss, made_up_batch(images(4)))  # type: ignore[arg-type]  # two losses of one make
        for player, (of, _) in players.items():
            same = [torch.equal(old, new) for old, new in zip(before[player], of.parameters(), strict=True)]
            assert not any(same) if of is module else all(same), (name, player)


class Linear(nn.Module):
    """A toy generator or encoder: one matrix over all values."""

    def __init__(self, weight: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.shape = shape

    def forward(self, given: Tensor) -> Tensor:
        return (given.flatten(1) @ self.weight.T).view(-1, *self.shape)


@pytest.mark.parametrize("stage", ["encoder", "fine_tuning"])
def test_an_encoder_that_inverts_the_generator_stays_and_another_comes_nearer(stage: str) -> None:
    grid = (8, 4, 2)
    method = small(facts(grid), **{"network.output": "linear", "encoder.learning_rate": 1e-3})
    # A permutation times two and its inverse: no product is rounded.
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    matrix = 2 * torch.eye(64)[order]
    method.generator = Linear(matrix, (1, *grid))
    image = images(4, grid)

    def run(encoder: Tensor, steps: int) -> list[float]:
        method.encoder = Linear(encoder, (64,))
        (learning,) = (found for found in method.stages() if found.name == stage)
        method.eval().requires_grad_(False)
        for module in learning.trains:
            module.train().requires_grad_(True)
        update = Updater(learning, Alone(), training_settings(), CPU)
        return [float(learning.step(made_up_batch(image, step=step), update)["loss"]) for step in range(steps)]

    inverse = matrix.T / 4
    assert run(inverse.clone(), 3) == [0.0, 0.0, 0.0]
    assert torch.equal(method.encoder.get_parameter("weight"), inverse)
    assert torch.equal(method.generator.get_parameter("weight"), matrix)
    losses = run(inverse + 0.05 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1)), 60)
    assert losses[-1] < 0.2 * losses[0]


def test_each_stage_trains_what_it_names_and_nothing_else(toy_store: CohortStore, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = FAnoGAN.presets()["tiny"]
    method = FAnoGAN(settings, toy_store.facts())  # type: ignore[arg-type]  # the preset is its own
    start = {name: value.clone() for name, value in method.state_dict().items()}
    train(method, toy_store, training_settings(), tmp_path, device=CPU)
    changed = {}
    for stage in ("gan", "encoder", "fine_tuning"):
        after = FAnoGAN(settings, toy_store.facts())  # type: ignore[arg-type]  # the preset is its own
        checkpoints = Checkpoints(tmp_path)
        checkpoints.load_weights(checkpoints.end_of(stage), after)
        state = after.state_dict()
        changed[stage] = {name.split(".")[0] for name in state if not torch.equal(state[name], start[name])}
        start = {name: value.clone() for name, value in state.items()}
    expected = {
        "gan": {"generator", "critic", "watch"},
        "encoder": {"encoder"},
        "fine_tuning": {"generator", "encoder"},
    }
    assert changed == expected


def test_without_epochs_there_is_no_fine_tuning() -> None:
    assert [stage.name for stage in small().stages()] == ["gan", "encoder", "fine_tuning"]
    assert [stage.name for stage in small(**{"fine_tuning.epochs": 0}).stages()] == ["gan", "encoder"]


@pytest.mark.parametrize("block", [1, 2])
@torch.no_grad()
def test_map_and_score_are_those_of_eqs_4_to_6(block: int) -> None:
    method = small(feature_weight=0.7, feature_block=block)
    scan = volume(3)
    (score,) = method.score([scan])
    image = scan.image[None]
    restored = method.generator(method.encoder(image))
    assert score.restoration is not None
    torch.testing.assert_close(score.restoration, restored[0])
    np.testing.assert_allclose(score.map, (image - restored)[0, 0].abs().numpy(), rtol=1e-6)
    wanted, found = (method.critic.features(values, block).double().numpy() for values in (image, restored))
    loss = ((image - restored).double().numpy() ** 2).mean() + 0.7 * ((wanted - found) ** 2).mean()
    assert score.image_score == pytest.approx(loss, rel=1e-5)


@torch.no_grad()
def test_scores_do_not_depend_on_company_and_may_be_taken_from_the_map() -> None:
    scans = [volume(seed) for seed in range(3)]
    together = small(together=8).score(scans)
    by_two = small(together=2).score(scans, effort="quick")
    for left, right in zip(together, by_two, strict=True):
        torch.testing.assert_close(left.map, right.map)
        assert left.image_score == pytest.approx(right.image_score)
    settings = {"image_score": "map", "map.image_score": "max", "map.voxels": "brain"}
    (score,) = small(**settings).score(scans[:1])
    assert score.image_score == float(score.map.max())
    assert float(score.map[~scans[0].brain].abs().max()) == 0


@torch.no_grad()
def test_of_several_channels_the_largest_difference_counts() -> None:
    method = small(facts(channels=("T1w", "T2w")))
    image = torch.cat([volume(1).image, volume(2).image])
    scan = made_up_volume(image, image[0] > 0)
    (score,) = method.score([scan])
    assert score.restoration is not None
    torch.testing.assert_close(score.map, (image - score.restoration).abs().amax(0))


def test_another_grid_is_refused_with_both_named() -> None:
    with pytest.raises(VolumeError, match=r"v0: it has 8 x 10 x 7 voxels of 1 x 1 x 1 mm .* on 9 x 10 x 7 voxels"):
        small().score([volume(0, (8, 10, 7))])


def test_the_papers_figures_are_the_defaults() -> None:
    settings = FAnoGANSettings()
    network, game = settings.network, settings.game
    assert (network.latent_dim, network.code, network.output, network.critic_norm) == (2_500, "tanh", "tanh", "layer")
    assert (game.critic_steps, game.penalty_weight, game.learning_rate) == (5, 10.0, 1e-4)
    assert (game.beta1, game.beta2, settings.feature_weight) == (0.0, 0.9, 1.0)
    # The iterations of the codes, in batches of four of 532 volumes.
    batches = [math.ceil(532 * epochs / 4) for epochs in (game.epochs, settings.encoder.epochs)]
    assert batches == pytest.approx([200_000, 50_000], rel=0.01)
    adam = small().stages()[0].optimizers["critic"].param_groups[0]
    assert adam["betas"] == (0.0, 0.9)
    assert SimpleNamespace(**small().stages()[1].optimizers["encoder"].param_groups[0]).alpha == pytest.approx(0.9)
