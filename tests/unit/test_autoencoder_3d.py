"""The 3D autoencoder: its layers counted by hand and held against 2D ones, its map against SciPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from vesalius.methods.autoencoder_3d import Autoencoder3D, Autoencoder3DSettings, VolumeAutoencoder
from vesalius.methods.autoencoder_3d.network import decoder_channels, encoder_channels
from vesalius.methods.autoencoder_3d.settings import NetworkSettings
from vesalius.methods.blocks.convolutional import Encoder, TrunkSettings, stage_channels
from vesalius.platform.config import override
from vesalius.platform.contracts import CohortFacts, Volume
from vesalius.platform.errors import SettingError, VolumeError
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone, Updater
from vesalius.platform.training.plan import Plan

if TYPE_CHECKING:
    from vesalius.platform.store import CohortStore

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (13, 10, 9)


def facts(grid: tuple[int, int, int] = GRID, **changes: Any) -> CohortFacts:
    values = {"channels": ("CT",), "background": 0.25, **changes}
    return CohortFacts(subjects=("a", "b"), grid=grid, spacing_mm=(1.0, 1.0, 1.0), affine=EYE, digest="0", **values)


def tiny(**changes: Any) -> Autoencoder3DSettings:
    settings = Autoencoder3D.presets()["tiny"]
    assert isinstance(settings, Autoencoder3DSettings)
    return override(settings, changes)


def volume(seed: int, grid: tuple[int, int, int] = GRID, channels: int = 1) -> Volume:
    image = torch.rand((channels, *grid), generator=torch.Generator().manual_seed(seed))
    return Volume(subject_id=f"v{seed}", image=image, brain=image[0] > 0.3, spacing_mm=(1.0, 1.0, 1.0), affine=EYE)


def settle(network: nn.Module) -> None:
    """Give statistics as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, torch.Tensor)
                tensor.data.uniform_(0.5, 1.5)


# ---- layers


COUNTS = {1: 140_654, 2: 167_094, 4: 404_091, 8: 1_088_181, 16: 3_296_745, 32: 11_075_409, 64: 40_078_881}


@pytest.mark.parametrize(("width", "total"), COUNTS.items())
def test_parameters_are_the_sum_of_the_layers(width: int, total: int) -> None:
    def stage(num_inputs: int, num_outputs: int) -> int:
        return 125 * num_inputs * num_outputs + 2 * num_outputs  # 5 x 5 x 5 kernels; gain and shift

    m, features, narrow = width, 4 * width, max(1, width // 2)
    encoder = stage(1, m) + stage(m, 2 * m) + stage(2 * m, 4 * m) + 2 * stage(4 * m, 4 * m)
    units = narrow * 8**3
    code = (features + 1) * narrow + (units + 1) * 128
    back = 129 * units + narrow * features + 2 * features
    decoder = stage(4 * m, 4 * m) + stage(4 * m, 2 * m) + stage(2 * m, m) + 2 * stage(m, m)
    assert encoder + code + back + decoder + m + 1 == total
    with torch.device("meta"):
        network = VolumeAutoencoder(NetworkSettings(width=width), facts((256, 256, 256)))
    assert sum(parameter.numel() for parameter in network.parameters()) == total


def test_every_layer_gives_what_it_should_of_a_256_cube() -> None:
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        shapes.append((type(module).__name__, tuple(output.shape[1:])))

    with torch.device("meta"):
        network = VolumeAutoencoder(NetworkSettings(width=32), facts((256, 256, 256)))
        for module in network.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
                module.register_forward_hook(note)
        assert network(torch.zeros(1, 1, 256, 256, 256)).shape == (1, 1, 256, 256, 256)
    down = [("Conv3d", (num, edge, edge, edge)) for num, edge in ((32, 128), (64, 64), (128, 32), (128, 16), (128, 8))]
    middle = [
        ("Conv3d", (16, 8, 8, 8)),
        ("Linear", (128,)),
        ("Linear", (16 * 512,)),
        ("Conv3d", (128, 8, 8, 8)),
    ]
    up = [(128, 16), (64, 32), (32, 64), (32, 128), (32, 256)]
    doublings = [("ConvTranspose3d", (num, edge, edge, edge)) for num, edge in up]
    assert shapes == [*down, *middle, *doublings, ("Conv3d", (1, 256, 256, 256))]


def in_planes(weight: torch.Tensor) -> torch.Tensor:
    """Return 2D kernels as the middle planes of 3D ones that see one plane alone."""
    cubes = weight.new_zeros(*weight.shape[:2], 5, 5, 5)
    cubes[:, :, 2] = weight
    return cubes


@torch.no_grad()
def test_slice_by_slice_the_encoder_is_the_2d_trunks() -> None:
    torch.manual_seed(0)
    stages, width = 3, 4
    assert encoder_channels(width, stages) == stage_channels(width, stages)
    network = VolumeAutoencoder(NetworkSettings(width=width, stages=stages), facts((16, 24, 16))).double()
    flat = Encoder(TrunkSettings(width=width, stages=stages), 1).double()
    settle(flat)
    for place, (mine, its) in enumerate(zip(network.encoder, flat, strict=True)):
        if isinstance(its, nn.Conv2d):
            assert isinstance(mine, nn.Conv3d)
            mine.weight.copy_(in_planes(its.weight))
        elif isinstance(its, nn.BatchNorm2d):
            mine.load_state_dict(its.state_dict())
        else:
            flat[place] = nn.LeakyReLU(0.3)  # Baur's activation of 2021 in the place of that of 2018
    network.eval()
    flat.eval()
    image = torch.rand(1, 1, 16, 24, 16, dtype=torch.float64)
    features = network.encoder(image)
    # Three halvings keep every eighth plane.
    for plane in range(2):
        torch.testing.assert_close(features[:, :, plane], flat(image[:, :, 8 * plane]), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_slice_by_slice_the_decoder_mirrors_it() -> None:
    torch.manual_seed(0)
    stages, width = 3, 4
    assert decoder_channels(width, stages) == (16, 8, 4)
    network = VolumeAutoencoder(NetworkSettings(width=width, stages=stages), facts((16, 16, 24))).double()
    settle(network.decoder)
    network.eval()
    features = torch.rand(1, 16, 2, 2, 3, dtype=torch.float64)
    expected = features[:, :, 1]
    for conv, norm, _ in zip(*[iter(network.decoder)] * 3, strict=True):
        flat = conv.weight[:, :, 2].clone()
        conv.weight.copy_(in_planes(flat))
        expected = F.conv_transpose2d(expected, flat, stride=2, padding=2, output_padding=1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        expected = (expected - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        expected = torch.where(expected > 0, expected, 0.3 * expected)
    found = network.decoder(features)
    assert found.shape == (1, 4, 16, 16, 24)
    torch.testing.assert_close(found[:, :, 8], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", [(8, 8, 8), (13, 10, 9), (7, 16, 5)])
def test_grids_that_the_halvings_do_not_divide_are_padded_with_background_and_cropped(
    grid: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    network = VolumeAutoencoder(tiny().network, facts(grid)).eval()
    image = torch.rand(2, 1, *grid)
    wide = [-(-num // 4) * 4 for num in grid]
    sides = [((lack := whole - num) // 2, lack - lack // 2) for whole, num in zip(wide, grid, strict=True)]
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), *sides], constant_values=0.25)
    np.testing.assert_array_equal(network.frame.pad(image).numpy(), padded)
    with torch.no_grad():
        whole = VolumeAutoencoder(tiny().network, facts((wide[0], wide[1], wide[2]))).eval()
        whole.load_state_dict(network.state_dict())
        expected = whole(torch.from_numpy(padded))
        found = network(image)
    cut = tuple(slice(low, low + num) for (low, _), num in zip(sides, grid, strict=True))
    assert found.shape == image.shape
    torch.testing.assert_close(found, expected[:, :, cut[0], cut[1], cut[2]])


def test_too_many_halvings_are_refused() -> None:
    with pytest.raises(SettingError, match="4 halvings leave one voxel of 13 x 10 x 9: set fewer"):
        Autoencoder3D(tiny(**{"network.stages": 4}), facts())


# ---- loss and score


def test_the_loss_is_numpys_l1() -> None:
    torch.manual_seed(0)
    method = Autoencoder3D(tiny(), facts()).eval()
    image = torch.stack([volume(seed).image for seed in range(3)])
    with torch.no_grad():
        batch: Any = type("Images", (), {"image": image, "__len__": lambda self: 3})()
        total, count = method.loss(batch)
        restored = method.network(image).numpy()
    assert count == 3
    assert float(total) == pytest.approx(np.abs(image.numpy() - restored).mean(axis=(1, 2, 3, 4)).sum(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2])
def test_the_paper_erodes_and_for_fractures_takes_the_median(channels: int) -> None:
    torch.manual_seed(0)
    cohort = facts(channels=("CT", "CT2")[:channels])
    case = volume(1, channels=channels)
    presets = Autoencoder3D.presets()
    for name, filtered in (
        ("paper", lambda error: ndimage.grey_erosion(error, size=(5, 5, 5), mode="nearest")),
        ("fracture", lambda error: ndimage.median_filter(error, size=5, mode="nearest")),
    ):
        settings = override(presets[name], {"network.width": 2, "network.stages": 2})
        assert isinstance(settings, Autoencoder3DSettings)
        method = Autoencoder3D(settings, cohort).eval()
        (score,) = method.score([case])
        error = np.abs(case.image.numpy() - method.network(case.image[None])[0].numpy()).max(axis=0)
        inner = (slice(2, -2),) * 3  # at the faces a window of ours holds what there is, SciPy's repeats it
        np.testing.assert_allclose(score.map.numpy()[inner], filtered(error)[inner], rtol=1e-5, atol=1e-7)
        assert score.image_score == pytest.approx(float(score.map[case.brain].max()))
        assert score.restoration is not None
        assert score.restoration.shape == case.image.shape


@torch.no_grad()
def test_a_dot_is_eroded_away_and_a_cube_is_not() -> None:
    method = Autoencoder3D(override(Autoencoder3DSettings(), {"network.width": 1, "network.stages": 2}), facts()).eval()
    for parameter in method.network.image.parameters():
        parameter.zero_()  # every reconstruction is 0, so that the error is the volume
    image = torch.zeros(1, *GRID)
    image[0, 1, 1, 1] = 5.0
    image[0, 4:10, 3:8, 2:7] = 2.0
    case = Volume(subject_id="v", image=image, brain=image[0] > -1, spacing_mm=(1.0, 1.0, 1.0), affine=EYE)
    (score,) = method.score([case])
    assert {tuple(place) for place in score.map.nonzero().tolist()} == {(6, 5, 4), (7, 5, 4)}
    assert score.image_score == 2.0


def test_a_volume_of_another_grid_is_refused() -> None:
    method = Autoencoder3D(tiny(), facts()).eval()
    with pytest.raises(VolumeError, match="v1: it has 8 x 8 x 8 voxels of 1 x 1 x 1 mm but the model was trained on"):
        method.score([volume(1, (8, 8, 8))])


# ---- settings


def test_a_batch_parts_into_groups_or_needs_none(toy_store: CohortStore) -> None:
    with pytest.raises(SettingError, match="a batch of 5 volumes does not part into groups of 2"):
        tiny(batch_size=5)
    settings = tiny(**{"batch_size": 5, "network.norm": "instance"})
    method = Autoencoder3D(settings, toy_store.facts())
    plan = Plan(method, toy_store, training_settings(), Alone(), torch.device("cpu"))
    assert [stage.group_size for stage in plan.stages] == [1]
    assert [stage.group_size for stage in Autoencoder3D(tiny(), toy_store.facts()).stages()] == [2]


def test_without_batch_statistics_volumes_may_pass_one_after_the_other(toy_store: CohortStore) -> None:
    settings = tiny(**{"network.norm": "instance"})
    weights = []
    for size in (None, 1):
        torch.manual_seed(0)
        method = Autoencoder3D(settings, toy_store.facts())
        training = training_settings(micro_batch_size=size)
        plan = Plan(method, toy_store, training, Alone(), torch.device("cpu"))
        method.train().requires_grad_(True)
        update = Updater(plan.stages[0], Alone(), training, torch.device("cpu"))
        seen: list[int] = []
        method.network.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        plan.stages[0].step(next(iter(plan.batches(0, 0))), update)
        assert seen == ([4] if size is None else [1] * 4)
        weights.append(
            torch.cat([parameter.grad.flatten() for parameter in method.parameters() if parameter.grad is not None])
        )
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
