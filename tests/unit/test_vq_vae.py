"""The VQ-VAE: gradients through its codes, layers, the prior as a distribution, scans, restorations, the score."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vesalius.methods.vq_vae import VqVae, VqVaeSettings
from vesalius.methods.vq_vae.network import Autoencoder
from vesalius.methods.vq_vae.prior import CausalConv, Prior
from vesalius.methods.vq_vae.restoration import choose, resample, weighted, weights
from vesalius.methods.vq_vae.scan import Scan
from vesalius.methods.vq_vae.settings import PriorSettings, tiny
from vesalius.platform.config import override
from vesalius.platform.contracts import Batch, CohortFacts, Volume, generator
from vesalius.platform.errors import SettingError
from vesalius.platform.testing.made_up import made_up_batch

if TYPE_CHECKING:
    from collections.abc import Callable

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (10, 13, 9)
PLAIN = {"map.min_pool": 1, "map.average_pool": 1, "map.average_across": 1, "slices.every": 1}
NEVER = 1e9


def facts(channels: tuple[str, ...] = ("T1w",)) -> CohortFacts:
    return CohortFacts(
        subjects=("a", "b"), grid=GRID, spacing_mm=(2.0, 2.0, 2.0), affine=EYE, channels=channels, digest="0"
    )


def volume(number: int, channels: int = 1) -> Volume:
    draw = generator("volume", number)
    brain = torch.zeros(GRID, dtype=torch.bool)
    brain[1:-1, 2:-1, 1:-2] = True
    image = (0.4 + 0.1 * torch.randn((channels, *GRID), generator=draw)) * brain
    return Volume(subject_id=f"v{number}", image=image, brain=brain, spacing_mm=(2.0, 2.0, 2.0), affine=EYE)


def method_of(*channels: str, **changes: Any) -> VqVae:
    torch.manual_seed(0)
    method = VqVae(override(tiny(), changes), facts(channels or ("T1w",))).eval()
    method.mean.fill_(0.4)
    method.deviation.fill_(0.1)
    with torch.no_grad():
        # Untrained, the codes hardly differ: spread them over what the encoder gives.
        method.autoencoder.codebook.copy_(torch.randn(method.autoencoder.codebook.shape, generator=generator("codes")))
        sharpen(method.prior)
    return method


def sharpen(prior: Prior) -> None:
    """Make an untrained prior's distributions differ from one another."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(2.5)


def prior_of(num_codes: int = 7, **changes: Any) -> Prior:
    torch.manual_seed(1)
    given = {"channels": 12, "blocks": 2, "units": 2, "key_size": 4, "dropout": 0.0, **changes}
    prior = Prior(num_codes, PriorSettings(**given)).eval()
    sharpen(prior)
    return prior


def codes_of(num: int, plane: tuple[int, int], num_codes: int = 7) -> Tensor:
    return torch.randint(num_codes, (num, *plane), generator=generator("codes", num, plane))


@pytest.fixture
def linear() -> tuple[Autoencoder, Tensor, Tensor]:
    """An auto-encoder whose encoder gives a leaf and whose decoder multiplies by a known tensor."""
    torch.manual_seed(2)
    network = Autoencoder(1, tiny())
    nn.init.normal_(network.codebook)
    features = torch.randn(3, 8, 2, 2, generator=generator("features")).requires_grad_()
    factor = torch.rand(3, 8, 2, 2, generator=generator("factor")) + 0.5
    network.encode = lambda image, position: features  # type: ignore[method-assign]  # a leaf, to see its gradient
    network.decode = lambda vectors, position: vectors * factor  # type: ignore[method-assign]  # a known gradient
    return network, features, factor


def test_the_codes_are_the_nearest(linear: tuple[Autoencoder, Tensor, Tensor]) -> None:
    network, features, _ = linear
    flat = features.detach().movedim(1, -1).numpy()
    book = network.codebook.detach().numpy()
    distance = ((flat[..., None, :] - book) ** 2).sum(-1)
    np.testing.assert_array_equal(network.codes(features).numpy(), distance.argmin(-1))
    np.testing.assert_array_equal(
        network.vectors(network.codes(features)).detach().numpy(), np.moveaxis(book[distance.argmin(-1)], -1, 1)
    )


def test_the_decoders_gradient_passes_the_codes_unchanged(linear: tuple[Autoencoder, Tensor, Tensor]) -> None:
    network, features, factor = linear
    image = torch.randn(3, 8, 2, 2, generator=generator("image"))
    reconstruction, _, _ = network.losses(image, torch.zeros(3))
    vectors = network.vectors(network.codes(features)).detach()
    expected = -torch.sign(image - vectors * factor) * factor / 32  # 8 x 2 x 2 values a slice
    to_features, to_codebook = torch.autograd.grad(
        reconstruction.sum(), [features, network.codebook], allow_unused=True
    )
    torch.testing.assert_close(to_features, expected)
    assert to_codebook is None
    np.testing.assert_allclose(
        reconstruction.detach().numpy(), np.abs((image - vectors * factor).numpy()).mean((1, 2, 3)), rtol=1e-6
    )


def test_codebook_and_commitment_pull_from_either_side(linear: tuple[Autoencoder, Tensor, Tensor]) -> None:
    network, features, _ = linear
    _, codebook, commitment = network.losses(torch.zeros(3, 8, 2, 2), torch.zeros(3))
    codes = network.codes(features)
    gap = (features - network.vectors(codes)).detach()
    expected = gap.square().mean((1, 2, 3))
    torch.testing.assert_close(codebook, expected)
    torch.testing.assert_close(commitment, expected)
    book = np.zeros(tuple(network.codebook.shape))
    for place in itertools.product(range(3), range(2), range(2)):
        item, row, column = place
        book[int(codes[place])] -= 2 * gap[item, :, row, column].numpy() / 32
    to_features, to_book = torch.autograd.grad(
        codebook.sum(), [features, network.codebook], allow_unused=True, retain_graph=True
    )
    assert to_features is None
    np.testing.assert_allclose(to_book.numpy(), book, rtol=1e-5, atol=1e-7)
    to_features, to_book = torch.autograd.grad(commitment.sum(), [features, network.codebook], allow_unused=True)
    assert to_book is None
    torch.testing.assert_close(to_features, 2 * gap / 32)


def test_the_papers_auto_encoder_has_the_parameters_written_out() -> None:
    def gated(width: int) -> int:  # BN, conv3, conv3 to twice the width, BN
        return 2 * width + (9 * width * width + width) + (9 * width * 2 * width + 2 * width) + 4 * width

    encoder = (
        (49 * 2 * 16 + 16 + 2 * 16)  # image and position
        + (2 * gated(16) + 25 * 16 * 32 + 32 + 2 * 32)
        + (2 * gated(32) + 25 * 32 * 64 + 64 + 2 * 64)
        + (2 * gated(64) + 25 * 64 * 256 + 256 + 2 * 256)
        + gated(256)
    )
    decoder = (
        (9 * 257 * 256 + 256 + 2 * 256)  # vectors and position
        + (2 * gated(256) + 36 * 256 * 64 + 64 + 2 * 64)
        + (2 * gated(64) + 36 * 64 * 32 + 32 + 2 * 32)
        + (2 * gated(32) + 36 * 32 * 16 + 16 + 2 * 16)
        + (gated(16) + 16 + 1)
    )
    assert (encoder, decoder) == (2_540_368, 5_104_049)
    network = Autoencoder(1, VqVaeSettings())
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder + 128 * 256 == 7_677_185
    assert float(network.codebook.detach().abs().max()) <= 1 / 128
    assert float(network.codebook.detach().std()) == pytest.approx(1 / 128 / math.sqrt(3), rel=0.05)


def test_the_papers_prior_has_the_parameters_written_out() -> None:
    # Seen of a 7 x 7 window: three rows above and three to the left. Of 3 x 3: three above, one left, itself.
    entry = (3 * 7 + 3) * 128 * 128 + 128 + 3 * 128
    unit = 5 * 128 * 128 + 128 + 5 * 128 * 256 + 256
    attention = (131 * 16 + 16) + (259 * (16 + 128) + 16 + 128) + (128 * 256 + 256) + 128 * 256
    total = entry + 4 * (4 * unit + attention) + 128 * 128 + 128
    assert sum(p.numel() for p in Prior(128, PriorSettings()).parameters()) == total == 4_769_920


def test_the_papers_latent_is_20_by_20_of_256() -> None:
    network = Autoencoder(1, VqVaeSettings()).eval()
    with torch.no_grad():
        features = network.encode(torch.zeros(1, 1, 160, 160), torch.zeros(1))
        assert features.shape == (1, 256, 20, 20)
        assert network.codes(features).shape == (1, 20, 20)
        assert network.decode(features, torch.zeros(1)).shape == (1, 1, 160, 160)


def test_slices_are_coded_and_decoded_by_their_axial_position() -> None:
    network = Autoencoder(1, tiny()).eval()
    image = torch.randn(1, 1, 12, 16, generator=generator("image")).expand(2, -1, -1, -1)
    features = network.encode(image, torch.tensor([-0.5, 0.5]))
    assert not torch.allclose(features[0], features[1])
    decoded = network.decode(features[:1].expand(2, -1, -1, -1), torch.tensor([-0.5, 0.5]))
    assert not torch.allclose(decoded[0], decoded[1])


@pytest.mark.parametrize(("size", "strict", "taps"), [(7, True, 24), (7, False, 25), (3, False, 5), (5, True, 12)])
def test_a_causal_convolution_is_a_masked_one(size: int, strict: bool, taps: int) -> None:
    layer = CausalConv(2, 3, size, strict=strict)
    assert layer.weight.shape == (3, 2, taps)
    kernel = np.zeros((3, 2, size * size), dtype=np.float32)
    kernel[:, :, :taps] = layer.weight.detach().numpy()
    features = torch.randn(2, 6, 5, 2, generator=generator("features"))
    expected = nn.functional.conv2d(
        features.movedim(-1, 1), torch.from_numpy(kernel).view(3, 2, size, size), layer.bias, padding=size // 2
    ).movedim(1, -1)
    torch.testing.assert_close(layer(features), expected, rtol=1e-4, atol=1e-5)


def test_a_later_code_changes_no_earlier_distribution_and_every_earlier_one_counts() -> None:
    prior = prior_of()
    plane = (3, 4)
    codes, position = codes_of(1, plane), torch.tensor([0.2])
    with torch.no_grad():
        before = prior(codes, position).view(12, -1)
        for place in range(12):
            changed = codes.clone().view(1, -1)
            changed[0, place] = (changed[0, place] + 3) % 7
            after = prior(changed.view_as(codes), position).view(12, -1)
            assert torch.equal(after[: place + 1], before[: place + 1])
            if place < 11:
                # Attention reaches from every place to every later one.
                assert not (after[place + 1 :] == before[place + 1 :]).all(1).any()


def test_the_prior_is_a_distribution_over_whole_slices() -> None:
    prior = prior_of(num_codes=2)
    every = torch.tensor(list(itertools.product(range(2), repeat=6))).view(-1, 2, 3)
    with torch.no_grad():
        surprise = prior.surprise(every, torch.full((64,), -0.3))
    assert float((-surprise.double().flatten(1).sum(1)).exp().sum()) == pytest.approx(1, abs=1e-5)
    assert float(surprise.std()) > 0.05


def test_the_prior_knows_place_and_axial_position() -> None:
    prior = prior_of()
    codes = torch.zeros(2, 4, 4, dtype=torch.int64)
    with torch.no_grad():
        logits = prior(codes, torch.tensor([-0.5, 0.5]))
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[0, 3, 2], logits[0, 3, 3])


def uncached(prior: Prior, codes: Tensor, position: Tensor, uniform: Tensor, threshold: float) -> Tensor:
    """The published way: a whole pass for every place."""
    restored = codes.clone()
    for row in range(codes.shape[1]):
        for column in range(codes.shape[2]):
            logits = prior(restored, position)[:, row, column]
            restored[:, row, column] = choose(logits, restored[:, row, column], uniform[:, row, column], threshold)
    return restored


@pytest.mark.parametrize("plane", [(6, 5), (1, 9), (9, 1), (3, 8)])
def test_a_scans_logits_are_those_of_whole_passes(plane: tuple[int, int]) -> None:
    prior = prior_of()
    codes, position = codes_of(4, plane), torch.linspace(-0.5, 0.5, 4)
    with torch.no_grad():
        expected = prior(codes, position).flatten(1, 2)
        scan = Scan(prior, position, plane)
        for place in range(plane[0] * plane[1]):
            torch.testing.assert_close(scan.logits(), expected[:, place], rtol=1e-4, atol=1e-4)
            scan.put(codes.flatten(1)[:, place])


@pytest.mark.parametrize("threshold", [0.0, 1.5, 3.0])
def test_cached_resampling_gives_the_codes_of_whole_passes(threshold: float) -> None:
    prior = prior_of()
    codes, position = codes_of(6, (6, 5)), torch.linspace(-0.5, 0.5, 6)
    uniform = torch.rand(6, 6, 5, generator=generator("uniform"))
    with torch.no_grad():
        restored = resample(prior, codes, position, uniform, threshold)
        assert torch.equal(restored, uncached(prior, codes, position, uniform, threshold))
    assert not torch.equal(restored, codes)


def test_an_infinite_threshold_keeps_every_code_and_a_finite_one_those_before_the_first_unlikely() -> None:
    prior = prior_of()
    codes, position = codes_of(5, (4, 4)), torch.zeros(5)
    uniform = torch.rand(5, 4, 4, generator=generator("uniform"))
    with torch.no_grad():
        assert torch.equal(resample(prior, codes, position, uniform, math.inf), codes)
        surprise = prior.surprise(codes, position)
        restored = resample(prior, codes, position, uniform, 2.0)
    for number in range(5):
        first = int((surprise[number].flatten() > 2.0).nonzero()[0])
        assert torch.equal(restored[number].flatten()[:first], codes[number].flatten()[:first])


def test_codes_are_drawn_by_the_inverse_of_the_distribution_function() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    uniform = torch.tensor([0.0, 0.05, 0.15, 0.45, 0.95, 0.999999])
    drawn = choose(logits.expand(6, 4), torch.zeros(6, dtype=torch.int64), uniform, 0.0)
    assert drawn.tolist() == [0, 0, 1, 2, 3, 3]
    kept = choose(logits.expand(2, 4), torch.tensor([0, 3]), torch.tensor([0.5, 0.5]), -math.log(0.2))
    assert kept.tolist() == [2, 3]


@pytest.mark.parametrize("num_codes", [1, 2, 5, 64, 100])
def test_codes_are_drawn_alike_where_only_deterministic_operations_are(
    num_codes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(50, num_codes, generator=generator("logits"))
    uniform = torch.rand(50, generator=generator("uniform"))
    codes = torch.zeros(50, dtype=torch.int64)
    expected = choose(logits, codes, uniform, -1.0)
    monkeypatch.setattr(torch.Tensor, "cumsum", None)  # CUDA's of floats is refused there
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(choose(logits, codes, uniform, -1.0), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_weights_are_numpys_softmax_and_sum_to_one() -> None:
    difference = (
        torch.rand(4, 3, 5, 6, generator=generator("difference")) * torch.tensor([0.1, 1, 2, 4])[:, None, None, None]
    )
    weight = weights(difference, 3.0)
    scaled = 3 / difference.numpy().astype(np.float64).mean((2, 3))
    expected = np.exp(scaled - scaled.max(0))
    np.testing.assert_allclose(weight.numpy(), expected / expected.sum(0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(weight.sum(0), torch.ones(3))
    difference[1:3] = 0  # two restorations that equal the image share all weight
    torch.testing.assert_close(weights(difference, 3.0)[:, 0], torch.tensor([0.0, 0.5, 0.5, 0.0]))


def test_mean_and_spread_are_numpys_weighted_ones() -> None:
    restorations = torch.randn(4, 3, 2, 5, 6, generator=generator("r"))
    weight = torch.rand(4, 3, generator=generator("w")).softmax(0)
    mean, spread = weighted(restorations, weight)
    for item in range(3):
        values, w = restorations[:, item].numpy(), weight[:, item].numpy()
        expected = np.average(values, axis=0, weights=w)
        np.testing.assert_allclose(mean[item].numpy(), expected, rtol=1e-4, atol=1e-6)
        deviation = np.sqrt(np.average((values - expected) ** 2, axis=0, weights=w)).mean(0)
        np.testing.assert_allclose(spread[item].numpy(), deviation, rtol=1e-4, atol=1e-6)


def slices_of(scan: Volume) -> tuple[Tensor, Tensor]:
    position = (2 * torch.arange(GRID[2]) + 1) / GRID[2] - 1
    return scan.image.movedim(-1, 0), position / 2


@pytest.mark.parametrize("channels", [("T1w",), ("T1w", "FLAIR")])
def test_without_resampling_the_restoration_is_the_reconstruction(channels: tuple[str, ...]) -> None:
    method = method_of(*channels, **PLAIN, **{"resampling.threshold": NEVER})
    scan = volume(0, len(channels))
    image, position = slices_of(scan)
    with torch.no_grad():
        (score,) = method.score([scan])
        standard = method.standardised(image)
        codes = method.codes(standard, position)
        assert bool((codes != codes[0, 0, 0]).any())
        decoded = method.autoencoder.decode(method.autoencoder.vectors(codes), position)
    expected = (standard - decoded).abs().mean(1)[:, 1:11, 1:14].movedim(0, -1)
    torch.testing.assert_close(score.map, expected, rtol=1e-4, atol=1e-5)
    assert score.restoration is not None
    restored = (decoded * 0.1 + 0.4)[..., 1:11, 1:14].movedim(0, -1)
    torch.testing.assert_close(score.restoration, restored, rtol=1e-4, atol=1e-5)
    assert float(score.extras["spread"].max()) < 1e-5


def test_the_map_weighs_several_restorations_and_their_spread_is_given() -> None:
    method = method_of(**PLAIN, **{"resampling.threshold": 1.0})
    scan = volume(0)
    image, position = slices_of(scan)
    with torch.no_grad():
        (score,) = method.score([scan])
        standard = method.standardised(image)
        codes = method.codes(standard, position)
        uniform = torch.rand(3, *codes.shape, generator=scan.generator("codes"))
        restorations = [
            method.autoencoder.decode(
                method.autoencoder.vectors(uncached(method.prior, codes, position, level, 1.0)), position
            )[..., 1:11, 1:14]
            for level in uniform
        ]
    gaps = np.stack([np.abs((standard[..., 1:11, 1:14] - one).numpy()[:, 0]) for one in restorations])
    factor = np.exp(3 / gaps.mean((2, 3)))
    expected = (factor[..., None, None] * gaps).sum(0) / factor.sum(0)[:, None, None]
    np.testing.assert_allclose(score.map.numpy(), np.moveaxis(expected, 0, -1), rtol=1e-3, atol=1e-4)
    assert float(score.extras["spread"].max()) > 0.01
    assert tuple(score.extras["spread"].shape) == GRID


def test_the_volumes_number_sums_the_unlikely_codes() -> None:
    method = method_of(**PLAIN, unlikely=2.5)
    scan = volume(0)
    image, position = slices_of(scan)
    with torch.no_grad():
        (score,) = method.score([scan])
        surprise = method.prior.surprise(method.codes(method.standardised(image), position), position).numpy()
    assert score.image_score == pytest.approx(float(surprise[surprise > 2.5].sum()), rel=1e-4)
    assert 0 < (surprise > 2.5).sum() < surprise.size
    by_map = method_of(**PLAIN, image_score="map", **{"map.image_score": "max"})
    with torch.no_grad():
        (other,) = by_map.score([scan])
    assert other.image_score == pytest.approx(float(other.map[scan.brain].max()))


def test_a_volume_among_others_is_the_volume_alone_and_quick_makes_fewer_restorations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = method_of(**PLAIN, **{"slices.together": 4, "resampling.sequences": 7})
    scans = [volume(0), volume(1)]
    with torch.no_grad():
        together = method.score(scans)
        for scan, score in zip(scans, together, strict=True):
            (alone,) = method.score([scan])
            torch.testing.assert_close(alone.map, score.map, rtol=1e-3, atol=1e-4)
            assert alone.image_score == pytest.approx(score.image_score, rel=1e-4)
    made: list[int] = []
    whole: Callable[..., Tensor] = method.restorations

    def counted(codes: Tensor, position: Tensor, uniform: Tensor) -> Tensor:
        made.append(len(uniform))
        return whole(codes, position, uniform)

    monkeypatch.setattr(method, "restorations", counted)
    with torch.no_grad():
        method.score([scans[0]])
        method.score([scans[0]], effort="quick")
    assert made == [3, 2]
    assert method.capacity() == 4


@pytest.mark.parametrize(("axis", "expected"), [(0, (3, 7, 7)), (1, (7, 3, 7)), (2, (7, 7, 3))])
def test_the_averaging_window_of_2020_is_thin_across_slices(axis: int, expected: tuple[int, int, int]) -> None:
    settings = override(tiny(), {"map.average_pool": 7, "map.average_across": 3, "slices.axis": axis})
    assert VqVae(settings, facts())._window() == expected


def test_the_defaults_are_the_papers() -> None:
    paper = VqVaeSettings()
    assert VqVae(override(tiny(), {"map": paper.map.model_dump()}), facts())._window() == (15, 15, 15)
    assert (paper.map.min_pool, paper.map.average_pool) == (3, 15)
    assert (paper.resampling.threshold, paper.unlikely, paper.resampling.restorations) == (5, 7, 8)
    assert (paper.num_codes, paper.epochs, paper.prior.epochs) == (128, 600, 600)
    assert (paper.learning_rate, paper.prior.learning_rate, paper.clip_value) == (1e-4, 1e-4, 1)
    assert (paper.batch_slices, paper.slices.every, paper.resampling.quick_restorations) == (64, 4, 2)


def test_the_stages_train_at_the_rates_and_as_long_as_set() -> None:
    method = method_of(learning_rate=2e-3, epochs=5, **{"prior.learning_rate": 7e-3, "prior.epochs": 6})
    _, autoencoder, prior = method.stages()
    assert (autoencoder.epochs, prior.epochs) == (5, 6)
    for stage, module, rate in ((autoencoder, method.autoencoder, 2e-3), (prior, method.prior, 7e-3)):
        (optimizer,) = stage.optimizers.values()
        assert isinstance(optimizer, torch.optim.Adam)
        (group,) = optimizer.param_groups
        assert group["lr"] == rate
        assert {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}


def batch_of(scan: Volume) -> Batch:
    image, position = slices_of(scan)
    return made_up_batch(image, num_steps=1, brain=scan.brain.movedim(-1, 0), position=2 * position[:, None])


def test_losses_are_means_over_slices_and_over_codes() -> None:
    method = method_of()
    batch = batch_of(volume(0))
    image, position = slices_of(volume(0))
    with torch.no_grad():
        total, num = method.autoencoder_loss(batch)
        parts = method.autoencoder.losses(method.standardised(image), position)
        torch.testing.assert_close(total, sum(part.sum() for part in parts))
        assert num == GRID[2]
        nats, num_codes = method.prior_loss(batch)
        codes = method.codes(method.standardised(image), position)
        log_p = method.prior(codes, position).log_softmax(-1).numpy()
    expected = -np.take_along_axis(log_p, codes.numpy()[..., None], axis=-1).sum()
    assert float(nats) == pytest.approx(float(expected), rel=1e-5)
    assert num_codes == GRID[2] * 3 * 4  # 12 x 16 as padded, halved twice


def test_the_prior_learns_the_codes_that_scoring_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(num_codes=64)
    seen: list[Tensor] = []

    def surprise(codes: Tensor, position: Tensor) -> Tensor:
        seen.append(codes)
        return torch.zeros(codes.shape)

    monkeypatch.setattr(method.prior, "surprise", surprise)
    num_moved = 0
    with torch.no_grad():
        for scan in map(volume, range(8)):
            image, position = slices_of(scan)
            expected = method.codes(method.standardised(image), position)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                num_moved += int((method.codes(method.standardised(image), position) != expected).sum())
                method.prior_loss(batch_of(scan))
            assert torch.equal(seen.pop(), expected)
    assert num_moved > 0  # bfloat16 does take the other one of two near codes


def test_gradients_of_the_first_stage_are_clipped_by_value_before_the_step() -> None:
    method = method_of()
    _, autoencoder, prior = method.stages()
    assert (autoencoder.selectable, prior.selectable) == (False, True)
    assert (autoencoder.group_size, prior.group_size) == (4, 1)
    parameters = list(method.autoencoder.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, -3.0)
    parameters[0].grad = torch.full_like(parameters[0], 0.25)
    autoencoder.optimizers["adam"].step()
    assert bool((parameters[0].grad == 0.25).all())
    assert all(bool((p.grad == -1).all()) for p in parameters[1:] if p.grad is not None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"widths": [8]}, "widths needs two positive numbers"),
        ({"group_slices": 3}, r"batch_slices \(8\) must be a multiple of group_slices \(3\)"),
        ({"map.average_across": 2}, "average_across: expected an odd number of voxels"),
        ({"resampling.threshold": -1}, "resampling.threshold"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        override(tiny(), change)
