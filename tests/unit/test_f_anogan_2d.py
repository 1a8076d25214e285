"""The f-AnoGAN of slices: what differs from that of volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vesalius.methods.f_anogan_2d import FAnoGAN2D, FAnoGAN2DSettings
from vesalius.platform.config import override
from vesalius.platform.contracts import CohortFacts, Slices, Volume
from vesalius.platform.errors import VolumeError
from vesalius.platform.testing.made_up import made_up_facts, made_up_volume

GRID = (9, 10, 8)


def facts(grid: tuple[int, int, int] = GRID) -> CohortFacts:
    return made_up_facts(grid, channels=("CT",), background=-1.0, ceiling=1.0)


def small(**changes: Any) -> FAnoGAN2D:
    torch.manual_seed(0)
    settings = FAnoGAN2D.presets()["tiny"]
    assert isinstance(settings, FAnoGAN2DSettings)
    return FAnoGAN2D(override(settings, {"network.output": "tanh", **changes}), facts()).eval()


def volume(seed: int = 0, shape: tuple[int, int, int] = GRID) -> Volume:
    image = 2 * torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed)) - 1
    return made_up_volume(image, image[0] > -0.5, f"v{seed}")


def test_the_networks_are_the_volumes_with_one_axis_less() -> None:
    with torch.device("meta"):
        method = FAnoGAN2D(FAnoGAN2DSettings(), facts((64, 64, 64)))
        image = method.generator(torch.zeros(2, 128))
        assert image.shape == (2, 1, 64, 64)
        assert method.encoder(image).shape == (2, 128)
    halvings = 16 * (64 + 64 * 128 + 128 * 256 + 256 * 512) + 64 + 2 * (128 + 256 + 512)
    doublings = 9 * (512 * 256 + 256 * 128 + 128 * 64 + 64) + 2 * (512 + 256 + 128 + 64)
    expected = {
        method.critic: halvings + 128 + 256 + 512 + 512 * 16,
        method.encoder: halvings + 128 * (512 * 16 + 1),
        method.generator: 128 * 512 * 16 + doublings,
    }
    for module, num in expected.items():
        assert sum(parameter.numel() for parameter in module.parameters()) == num


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_map_and_score_are_those_of_the_slices(axis: int) -> None:
    method = small(**{"slices.axis": axis, "slices.every": 1, "slices.together": 3})
    scan = volume(3)
    score = method.score([scan, volume(4)])[0]
    slices = scan.image.movedim(axis + 1, 0)
    restored = method.generator(method.encoder(slices))
    assert score.restoration is not None
    torch.testing.assert_close(score.restoration, restored.movedim(0, axis + 1))
    torch.testing.assert_close(score.map, (slices - restored).movedim(0, axis + 1)[0].abs())
    wanted, found = method.critic.features(slices).numpy(), method.critic.features(restored).numpy()
    loss = ((slices - restored).numpy() ** 2).mean() + ((wanted - found) ** 2).mean()
    assert score.image_score == pytest.approx(loss, rel=1e-5)


@torch.no_grad()
def test_of_several_channels_the_largest_difference_counts() -> None:
    torch.manual_seed(0)
    settings = override(FAnoGAN2D.presets()["tiny"], {"network.output": "tanh", "slices.every": 1})
    assert isinstance(settings, FAnoGAN2DSettings)
    method = FAnoGAN2D(settings, facts().model_copy(update={"channels": ("T1w", "T2w")})).eval()
    image = torch.cat([volume(1).image, volume(2).image])
    scan = made_up_volume(image, image[0] > -2)
    (score,) = method.score([scan])
    assert score.restoration is not None
    torch.testing.assert_close(score.map, (image - score.restoration).abs().amax(0))


@torch.no_grad()
def test_outside_the_middle_nothing_is_looked_at() -> None:
    scan = volume(3)
    (score,) = small(**{"slices.first": 0.25, "slices.last": 0.75}).score([scan])
    assert score.restoration is not None
    assert float(score.map[..., :2].abs().max()) == float(score.map[..., 6:].abs().max()) == 0
    assert torch.equal(score.restoration[..., 6:], scan.image[..., 6:])
    assert float(score.map[..., 2:6].min()) > 0


@torch.no_grad()
def test_the_volumes_number_may_be_the_maps() -> None:
    (score,) = small(**{"image_score": "map", "map.image_score": "max"}).score([volume()])
    assert score.image_score == float(score.map[volume().brain].max())


def test_slices_of_another_make_are_refused() -> None:
    with pytest.raises(VolumeError, match="v0: its slices are 8 voxels"):
        small().score([volume(0, (8, 10, 8))])


def test_the_papers_slices_are_the_defaults() -> None:
    settings = FAnoGAN2DSettings()
    assert settings.slices.view() == Slices(axis=2, extent=(0.4, 0.6))
    assert (settings.network.latent_dim, settings.batch_size, settings.fine_tuning.epochs) == (128, 64, 0)
    method = FAnoGAN2D(override(settings, {"network.width": 8, "network.stages": 2}), facts())
    assert [stage.name for stage in method.stages()] == ["gan", "encoder"]
    # 200,000 and 50,000 batches of 64, 12 slices of 64 for each of 532 volumes.
    batches = np.array([settings.game.epochs, settings.encoder.epochs]) * 532 * 12 / 64
    np.testing.assert_allclose(batches, [200_000, 50_000], rtol=0.01)
