"""The variational auto-encoder of slices: its terms, layers, training stages, and the score by reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from vesalius.methods.blocks import VaeNetwork, gaussian_divergence, reconstruction_error
from vesalius.methods.residual_vae import ResidualVae, ResidualVaeSettings, tiny
from vesalius.methods.vae_restoration import VaeRestorationSettings
from vesalius.platform.config import override
from vesalius.platform.contracts import (
    Augmentation,
    CohortFacts,
    Slices,
    Stage,
    Volume,
    generator,
    spaces,
    vae_baselines_2021,
)
from vesalius.platform.errors import CohortError, SettingError, VolumeError
from vesalius.platform.testing.made_up import made_up_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (10, 13, 9)
PLAIN = {"map.min_pool": 1, "map.average_pool": 1, "slices.every": 1}


def facts(
    channels: tuple[str, ...] = ("T1w",), grid: tuple[int, int, int] = GRID, background: float = 0.0
) -> CohortFacts:
    return CohortFacts(
        subjects=("a", "b"),
        grid=grid,
        spacing_mm=(2.0, 2.0, 2.0),
        affine=EYE,
        channels=channels,
        digest="0",
        background=background,
    )


def volume(number: int, channels: int = 1, grid: tuple[int, int, int] = GRID) -> Volume:
    draw = generator("volume", number)
    brain = torch.zeros(grid, dtype=torch.bool)
    brain[1:-1, 2:-1, 1:-2] = True
    image = (0.4 + 0.1 * torch.randn((channels, *grid), generator=draw)) * brain
    return Volume(subject_id=f"v{number}", image=image, brain=brain, spacing_mm=(2.0, 2.0, 2.0), affine=EYE)


class Alone:
    rank, world_size = 0, 1

    def sum(self, value: Tensor) -> Tensor:
        return value.clone()

    def gather(self, value: Tensor) -> list[Tensor]:
        return [value]


def fit_moments(stage: Stage, volumes: Sequence[Volume]) -> None:
    def refuse(*_: Any) -> float:
        raise AssertionError("this stage has no optimiser")

    no_update: Any = refuse
    stage.begin()
    for one in volumes:
        stage.step(made_up_batch(one.image[None], brain=one.brain[None]), no_update)
    stage.finish(Alone())


def test_the_divergence_is_the_integral() -> None:
    for mean, log_variance in [(0.0, 0.0), (1.3, -0.7), (-0.4, 0.9)]:
        deviation = np.exp(log_variance / 2)
        q, p = stats.norm(mean, deviation), stats.norm(0, 1)
        expected, _ = integrate.quad(lambda z, q=q, p=p: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -12, 12)
        got = gaussian_divergence(torch.tensor([[mean]]), torch.tensor([[log_variance]]))
        assert float(got) == pytest.approx(expected, abs=1e-6)


def test_the_divergences_gradient_is_closed_form_and_it_sums_over_the_latent() -> None:
    mean = torch.randn(3, 5, generator=generator("m")).requires_grad_()
    log_variance = torch.randn(3, 5, generator=generator("v")).requires_grad_()
    total = gaussian_divergence(mean, log_variance)
    each = torch.stack([gaussian_divergence(mean[:, [z]], log_variance[:, [z]]) for z in range(5)])
    torch.testing.assert_close(total, each.sum(0))
    gradients = torch.autograd.grad(total.sum(), [mean, log_variance])
    torch.testing.assert_close(gradients[0], mean.detach())
    torch.testing.assert_close(gradients[1], (log_variance.detach().exp() - 1) / 2)


def test_reconstruction_errors_are_numpys() -> None:
    first, second = (torch.randn(3, 2, 4, 5, generator=generator(name)) for name in "ab")
    gap = (first - second).numpy()
    np.testing.assert_allclose(reconstruction_error(first, second, "l1").numpy(), np.abs(gap).sum((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(reconstruction_error(first, second, "l2").numpy(), (gap**2).sum((1, 2, 3)), rtol=1e-6)


def test_the_papers_network_has_the_parameters_written_out() -> None:
    # entry conv3 and BN; each halving: conv3 without bias, BN; two residual blocks of two conv3 and two BN.
    def block(width: int) -> int:
        return 2 * (9 * width * width + 2 * width)

    encoder = (
        (9 * 1 * 16 + 2 * 16)
        + (9 * 16 * 32 + 2 * 32 + 2 * block(32))
        + (9 * 32 * 64 + 2 * 64 + 2 * block(64))
        + (9 * 64 * 128 + 2 * 128 + 2 * block(128))
        + (9 * 128 * 256 + 2 * 256 + 2 * block(256))
        + (9 * 256 * 256 + 2 * 256 + 2 * block(256))
    )
    decoder = (
        (2 * block(256) + 9 * 256 * 256 + 2 * 256)
        + (2 * block(256) + 9 * 256 * 128 + 2 * 128)
        + (2 * block(128) + 9 * 128 * 64 + 2 * 64)
        + (2 * block(64) + 9 * 64 * 32 + 2 * 32)
        + (2 * block(32) + 9 * 32 * 16 + 2 * 16)
        + (9 * 16 * 1 + 1)
    )
    coarse = 256 * 5 * 5  # 160 halved five times
    assert (encoder, decoder) == (6_481_776, 6_481_265)
    for settings, latent, total in [
        (ResidualVaeSettings(), 10, 13_161_461),
        (VaeRestorationSettings(), 128, 15_427_297),
    ]:
        assert settings.latent_dim == latent
        linear = (coarse * 2 * latent + 2 * latent) + (latent * coarse + coarse)
        network = VaeNetwork(1, (160, 160), settings)
        assert sum(p.numel() for p in network.parameters()) == total == encoder + decoder + linear


def test_layer_shapes_follow_the_plane() -> None:
    settings = override(tiny(), {"widths": [4, 8, 16], "latent_dim": 3})
    network = VaeNetwork(2, (16, 12), settings).eval()
    image = torch.randn(5, 2, 16, 12)
    assert network.encoder(image).shape == (5, 16, 4, 3)
    mean, log_variance = network.encode(image)
    assert mean.shape == log_variance.shape == (5, 3)
    assert network.decode(mean).shape == image.shape


def test_without_divergence_and_noise_the_vae_is_its_auto_encoder() -> None:
    settings = override(tiny(), {"kl_weight": 0})
    network = VaeNetwork(1, (12, 16), settings).eval()
    image = torch.randn(3, 1, 12, 16)
    loss = network.negative_elbo(image, torch.zeros(3, settings.latent_dim), settings)
    torch.testing.assert_close(loss, (image - network.reconstruct(image)).abs().flatten(1).sum(1))
    noisy = network.negative_elbo(image, torch.ones(3, settings.latent_dim), settings)
    assert not torch.allclose(loss, noisy)


def test_the_divergence_counts_by_its_weight() -> None:
    torch.manual_seed(0)
    image, noise = torch.randn(3, 1, 12, 16), torch.randn(3, tiny().latent_dim)
    network = VaeNetwork(1, (12, 16), tiny()).eval()
    with torch.no_grad():
        network.to_latent.bias.add_(1)  # untrained, the latent hardly departs from the prior
    losses = [
        network.negative_elbo(image, noise, override(tiny(), {"kl_weight": weight})) for weight in (0.0, 0.3, 1.0)
    ]
    divergence = gaussian_divergence(*network.encode(image))
    assert float(divergence.detach().min()) > 1
    torch.testing.assert_close(losses[1] - losses[0], 0.3 * divergence, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(losses[2] - losses[0], divergence, rtol=1e-3, atol=1e-3)


def test_noise_is_scaled_by_the_encoders_deviation() -> None:
    settings = override(tiny(), {"kl_weight": 0})
    network = VaeNetwork(1, (12, 16), settings).eval()
    image, noise = torch.randn(3, 1, 12, 16), torch.randn(3, settings.latent_dim)
    mean, log_variance = network.encode(image)
    expected = network.decode(mean + log_variance.exp().sqrt() * noise)
    torch.testing.assert_close(
        network.negative_elbo(image, noise, settings), (image - expected).abs().flatten(1).sum(1)
    )


def test_moments_are_numpys_over_the_brains_alone() -> None:
    method = ResidualVae(tiny(), facts(("T1w", "T2w")))
    volumes = [volume(number, 2) for number in range(3)]
    fit_moments(method.stages()[0], volumes)
    inside = np.concatenate([one.image[:, one.brain].numpy() for one in volumes], axis=1).astype(np.float64)
    np.testing.assert_allclose(method.vae.mean.numpy(), inside.mean(1), rtol=1e-6)
    np.testing.assert_allclose(method.vae.deviation.numpy(), inside.std(1), rtol=1e-6)


def test_brains_without_variation_are_refused_by_the_methods_name() -> None:
    method = ResidualVae(tiny(), facts())
    one = volume(0)
    flat = Volume(
        subject_id="f", image=torch.ones_like(one.image), brain=one.brain, spacing_mm=one.spacing_mm, affine=EYE
    )
    with pytest.raises(CohortError, match="residual_vae: every brain voxel"):
        fit_moments(method.stages()[0], [flat])


def test_standardising_and_back_is_nothing_and_the_padding_is_background() -> None:
    method = ResidualVae(tiny(), facts(background=-1.0))
    method.vae.mean.fill_(0.3)
    method.vae.deviation.fill_(0.2)
    image = torch.rand(4, 1, 10, 13)
    standard = method.vae.standardised(image)
    assert standard.shape == (4, 1, 12, 16)
    torch.testing.assert_close(standard[0, 0, 0, 0], torch.tensor((-1.0 - 0.3) / 0.2))
    torch.testing.assert_close(method.vae.original(standard, (10, 13)), image)


def test_the_augmentation_is_asked_for_once_the_moments_stand_and_is_that_of_z_scored_slices() -> None:
    method = ResidualVae(tiny(), facts())
    moments, vae = method.stages()
    fit_moments(moments, [volume(0), volume(1)])
    mean, deviation = float(method.vae.mean), float(method.vae.deviation)
    assert (mean, deviation) != (0, 1)
    asked = vae.settled().augmentation
    assert isinstance(asked, Augmentation)
    standard = vae_baselines_2021()
    assert (asked.centre - mean) / deviation == pytest.approx(standard.centre)
    assert asked.brightness / deviation == pytest.approx(standard.brightness)
    assert asked.contrast == standard.contrast
    off = ResidualVae(override(tiny(), {"augment": False}), facts())
    assert off.stages()[1].augmentation is None


def test_stages_train_every_fourth_slice_with_statistics_of_a_fixed_group() -> None:
    moments, vae = ResidualVae(ResidualVaeSettings(), facts(grid=(32, 32, 32))).stages()
    assert moments.name == "moments"
    assert not moments.optimizers
    assert isinstance(vae.view, Slices)
    assert (vae.view.axis, vae.view.every) == (2, 4)
    assert (vae.batch_size, vae.group_size) == (64, 16)


def test_the_defaults_are_the_papers() -> None:
    paper = ResidualVaeSettings()
    assert (paper.latent_dim, paper.reconstruction, paper.kl_weight) == (10, "l1", 1)
    assert (paper.epochs, paper.learning_rate, paper.augment) == (600, 1e-4, True)
    assert (paper.map.min_pool, paper.map.average_pool, paper.map.voxels) == (3, 15, "all")


def test_the_stage_trains_at_the_rate_and_as_long_as_set() -> None:
    method = ResidualVae(override(tiny(), {"learning_rate": 2e-3, "epochs": 5}), facts())
    _, vae = method.stages()
    assert vae.epochs == 5
    (optimizer,) = vae.optimizers.values()
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert group["lr"] == 2e-3
    assert {id(p) for p in group["params"]} == {id(p) for p in method.vae.network.parameters()}


def test_the_loss_is_the_negative_elbo_a_pixel_of_z_scored_slices() -> None:
    method = ResidualVae(tiny(), facts()).eval()
    method.vae.mean.fill_(0.4)
    method.vae.deviation.fill_(0.1)
    image = volume(3).image.movedim(-1, 0)
    batch = made_up_batch(image)
    total, count = method.vae.loss(batch)
    assert count == len(image) * 12 * 16
    standard = method.vae.standardised(image)
    mean, log_variance = method.vae.network.encode(standard)
    latent = mean + (log_variance / 2).exp() * batch.normal("latent", (4,))
    error = (standard - method.vae.network.decode(latent)).abs().sum()
    torch.testing.assert_close(total, error + gaussian_divergence(mean, log_variance).sum())


@pytest.mark.parametrize("channels", [("T1w",), ("T1w", "FLAIR")])
def test_the_map_is_the_difference_from_the_reconstruction(channels: tuple[str, ...]) -> None:
    method = ResidualVae(override(tiny(), PLAIN), facts(channels)).eval()
    method.vae.mean.fill_(0.4)
    method.vae.deviation.fill_(0.1)
    scan = volume(0, len(channels))
    with torch.no_grad():
        (score,) = method.score([scan])
        for number in range(GRID[2]):
            standard = method.vae.standardised(scan.image[..., number][None])
            difference = (standard - method.vae.network.reconstruct(standard)).abs().mean(1)[0, 1:11, 1:14]
            torch.testing.assert_close(score.map[..., number], difference, rtol=1e-4, atol=1e-5)
    assert score.restoration is not None
    gap = ((scan.image - score.restoration) / 0.1).abs().mean(0)
    torch.testing.assert_close(gap, score.map, rtol=1e-3, atol=1e-4)


def test_every_fourth_map_is_replicated_and_volumes_do_not_see_one_another() -> None:
    method = ResidualVae(override(tiny(), {**PLAIN, "slices.every": 4, "slices.together": 2}), facts()).eval()
    scans = [volume(0), volume(1), volume(2)]
    with torch.no_grad():
        together = method.score(scans)
        alone = [method.score([scan])[0] for scan in scans]
    for score, own in zip(together, alone, strict=True):
        torch.testing.assert_close(score.map, own.map, rtol=1e-4, atol=1e-5)
        assert torch.equal(score.map[..., 0], score.map[..., 2])
        assert not torch.equal(score.map[..., 2], score.map[..., 3])


def test_other_planes_and_channels_are_refused() -> None:
    method = ResidualVae(tiny(), facts()).eval()
    with pytest.raises(VolumeError, match="v0: its slices are 10 voxels"):
        method.score([volume(0, grid=(10, 12, 9))])
    with pytest.raises(VolumeError, match="v0: the volume has 2 channels"):
        method.score([volume(0, channels=2)])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"widths": [8]}, "widths needs two positive numbers"),
        ({"group_slices": 3}, r"batch_slices \(8\) must be a multiple of group_slices \(3\)"),
        ({"latent_dim": 0}, "latent_dim"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        override(tiny(), change)


def test_a_study_finds_what_to_search() -> None:
    assert {"latent_dim", "kl_weight", "learning_rate"} <= set(spaces(ResidualVaeSettings))
