"""The AnoGAN: its generator, its search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from vesalius.methods.anogan import AnoGAN, AnoGANSettings
from vesalius.methods.anogan.method import Generator
from vesalius.methods.anogan.search import mapping_loss, search_codes
from vesalius.methods.blocks.autoencoders import DEMO
from vesalius.methods.blocks.convolutional import TrunkSettings
from vesalius.platform.config import override
from vesalius.platform.testing.made_up import made_up_facts, made_up_volume

if TYPE_CHECKING:
    from vesalius.platform.contracts import CohortFacts

GRID = (18, 21, 5)


def facts(grid: tuple[int, int, int] = GRID) -> CohortFacts:
    return made_up_facts(grid, ceiling=1.0)


def small(**changes: Any) -> AnoGAN:
    torch.manual_seed(0)
    settings = AnoGAN.presets()["tiny"]
    assert isinstance(settings, AnoGANSettings)
    method = AnoGAN(override(settings, {"trunk.output": "tanh", **changes}), facts()).eval()
    # A fresh generator's slices hardly differ: a few times its weights make codes tell.
    with torch.no_grad():
        method.generator.entry.get_parameter("0.weight").mul_(3)
        method.generator.decoder.image.weight.mul_(3)
    return method


def search(method: AnoGAN, image: torch.Tensor, start: torch.Tensor, **changes: Any) -> torch.Tensor:
    values = {"steps": 40, "learning_rate": 0.05, "feature_weight": 0.1} | changes
    return search_codes(method.generator, method.adversary.discriminator.features, image, start, **values)


def codes(num: int, seed: int) -> torch.Tensor:
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(seed))


def losses(method: AnoGAN, image: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    features = method.adversary.discriminator.features
    generated = method.generator(code)
    return mapping_loss(image, generated, features(image), features(generated), 0.1)


def test_the_generators_layers_and_total() -> None:
    with torch.device("meta"):
        network = Generator(TrunkSettings(), 64, facts((256, 256, 20)), 2)
        assert network(torch.zeros(2, 64)).shape == (2, 1, 256, 256)
    linear, decoder = 64 * 256 * 16 * 16, 4_201_057  # the decoder of all variants with four stages
    assert sum(parameter.numel() for parameter in network.parameters()) == linear + decoder == 8_395_361


def test_the_mapping_loss_is_numpys() -> None:
    random = np.random.default_rng(0)
    image, generated = random.random((3, 1, 6, 5)), random.random((3, 1, 6, 5))
    wanted, found = random.random((3, 4, 2, 2)), random.random((3, 4, 2, 2))
    residual = np.abs(image - generated).sum(axis=(1, 2, 3))
    features = np.abs(wanted - found).sum(axis=(1, 2, 3))
    x, g, f, h = (torch.tensor(values) for values in (image, generated, wanted, found))
    loss = mapping_loss(x, g, f, h, 0.1)
    np.testing.assert_allclose(loss.numpy(), 0.9 * residual + 0.1 * features, rtol=1e-6)


@torch.no_grad()
def test_a_search_that_starts_at_the_true_code_stays_there() -> None:
    method = small()
    true = codes(3, seed=1)
    image = method.generator(true)
    assert torch.equal(search(method, image, true), true)
    elsewhere = search(method, image, true + 0.5)
    assert float((elsewhere - true - 0.5).abs().min()) > 0


@torch.no_grad()
def test_a_search_comes_nearer_slice_by_slice() -> None:
    method = small()
    true, start = codes(6, seed=1), codes(6, seed=2)
    image = method.generator(true)
    before, after = (losses(method, image, code) for code in (start, search(method, image, start, steps=100)))
    assert bool((after < 0.5 * before).all()), (before, after)


@torch.no_grad()
def test_a_slice_is_found_alike_alone_and_among_others() -> None:
    # In double precision: in single a product of five rows rounds otherwise than one of one row on some processors,
    # and forty steps make thousandths of it.
    method = small().double()
    features = method.adversary.discriminator.features
    start = codes(5, seed=2).double()
    image = method.generator(codes(5, seed=1).double())

    def found(rows: slice) -> torch.Tensor:
        def exact(slices: torch.Tensor) -> torch.Tensor:
            return features(slices.double())

        return search_codes(
            method.generator, exact, image[rows], start[rows], steps=40, learning_rate=0.05, feature_weight=0.1
        )

    together = found(slice(None))
    assert float((together - start).abs().min()) > 0
    for at in range(5):
        torch.testing.assert_close(found(slice(at, at + 1))[0], together[at], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_only_the_codes_get_gradients() -> None:
    method = small()
    method.requires_grad_(True)
    search(method, method.generator(codes(2, seed=1)), codes(2, seed=2), steps=2)
    assert all(parameter.grad is None for parameter in method.parameters())


@torch.no_grad()
def test_slices_of_all_volumes_share_the_passes_and_quick_takes_fewer() -> None:
    settings = {"search.steps": 6, "search.quick_steps": 2, "slices.every": 1, "slices.together": 10}
    method = small(**settings)
    scans = []
    for seed in range(2):
        image = torch.rand((1, *GRID), generator=torch.Generator().manual_seed(seed))
        scan = made_up_volume(image, image[0] > 0.3, f"v{seed}")
        scans.append(scan)
    sizes: list[int] = []
    handle = method.generator.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
    full = method.score(scans)
    assert sizes == [10] * 7  # six steps and the slices that were found, two volumes of five in one batch
    sizes.clear()
    quick = method.score(scans, effort="quick")
    assert sizes == [10] * 3
    handle.remove()
    assert not torch.equal(full[0].map, quick[0].map)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"search.learning_rate": 0.2},
        {"search.feature_weight": 0.9},
        {"search.steps": 3},
        {"slices.axis": 1, "slices.together": 4},
    ],
)
@torch.no_grad()
def test_a_score_is_the_search_of_its_settings_from_the_volumes_own_start(changes: dict[str, Any]) -> None:
    raw = {"map.median_pool": 1, "map.voxels": "all", "map.erosion": 0, "slices.every": 1}
    method = small(**{"slices.axis": 2, **raw, **changes})
    wanted = method.settings.search
    image = torch.rand((1, *GRID), generator=torch.Generator().manual_seed(7))
    scan = made_up_volume(image, image[0] > 0.3)
    (score,) = method.score([scan])
    axis = method.settings.slices.axis
    slices = image.movedim(axis + 1, 0)
    start = torch.randn(GRID[axis], 4, generator=scan.generator("code"))
    code = search(
        method,
        slices,
        start,
        steps=wanted.steps,
        learning_rate=wanted.learning_rate,
        feature_weight=wanted.feature_weight,
    )
    restored = method.generator(code).movedim(0, axis + 1)
    assert score.restoration is not None
    torch.testing.assert_close(score.restoration, restored, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score.map, (image - restored)[0].abs(), rtol=1e-4, atol=1e-4)


def test_the_demo_searches_every_second_slice_and_has_the_papers_rates() -> None:
    demo = AnoGAN.presets()["demo"]
    assert isinstance(demo, AnoGANSettings)
    # The autoencoders' demo scores all slices, at a pass each; a search is forty of them.
    assert (demo.slices.every, demo.slices.scored, DEMO["slices.scored"]) == (2, "replicated", "all")
    assert demo.learning_rate == demo.adversary.learning_rate == 1e-4
    assert demo.trunk.output == "tanh"


def test_the_papers_figures_are_the_defaults() -> None:
    settings = AnoGANSettings()
    assert (settings.latent_dim, settings.epochs, settings.search.steps) == (64, 82, 100)
    assert (settings.learning_rate, settings.adversary.learning_rate) == (1e-4, 1e-4)
    assert settings.search.feature_weight == pytest.approx(0.1)
