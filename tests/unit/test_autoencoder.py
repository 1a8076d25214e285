"""Trunk and bottleneck of the 2018 autoencoders, against NumPy and the paper's sizes; scores by residual."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal
from torch import nn

from vesalius.methods.anogan import AnoGAN
from vesalius.methods.anovaegan import AnoVAEGAN
from vesalius.methods.autoencoder import Autoencoder, AutoencoderSettings
from vesalius.methods.blocks.autoencoders import reconstruction_loss
from vesalius.methods.blocks.convolutional import Trunk, TrunkSettings
from vesalius.methods.blocks.residuals import Restored, score_by_residual
from vesalius.methods.context_autoencoder_gan import ContextAutoencoderGAN
from vesalius.methods.variational_autoencoder import VariationalAutoencoder
from vesalius.platform.config import flatten, override
from vesalius.platform.contracts import Choice, CohortFacts, Method, Range, Slices, Volume, spaces
from vesalius.platform.errors import SettingError, VolumeError

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (18, 21, 7)
PAPER_GRID = (256, 256, 20)


def facts(grid: tuple[int, int, int] = GRID, channels: tuple[str, ...] = ("T1w",), **more: Any) -> CohortFacts:
    return CohortFacts(
        subjects=("a", "b"), grid=grid, spacing_mm=(1.0, 1.0, 1.0), affine=EYE, channels=channels, digest="0", **more
    )


def volume(seed: int, channels: int = 1, grid: tuple[int, int, int] = GRID) -> Volume:
    image = torch.rand((channels, *grid), generator=torch.Generator().manual_seed(seed))
    return Volume(subject_id=f"v{seed}", image=image, brain=image[0] > 0.3, spacing_mm=(1.0, 1.0, 1.0), affine=EYE)


def tiny(**changes: Any) -> AutoencoderSettings:
    settings = Autoencoder.presets()["tiny"]
    assert isinstance(settings, AutoencoderSettings)
    return override(settings, changes)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


ROWS = [
    # method, preset, trunk, bottleneck, code
    (Autoencoder, "dense_512", 6_866_465, 2 * 65_536 * 512, (512,)),
    (Autoencoder, "spatial_8", 10_144_289, 2 * 256 * 64, (64, 8, 8)),
    (Autoencoder, "spatial_16", 6_866_465, 2 * 256 * 64, (64, 16, 16)),
    (ContextAutoencoderGAN, "paper", 6_866_465, 2 * 256 * 64, (64, 16, 16)),
    (VariationalAutoencoder, "dense_512", 6_866_465, 3 * 65_536 * 512 + 512, (512,)),
    (VariationalAutoencoder, "spatial_16", 6_866_465, 3 * 256 * 64 + 64, (64, 16, 16)),
    (AnoVAEGAN, "paper", 6_866_465, 3 * 256 * 64 + 64, (64, 16, 16)),
]


@pytest.mark.parametrize(("method_type", "preset", "trunk", "bottleneck", "code"), ROWS)
def test_rows_of_the_table_share_the_trunk_and_differ_in_the_bottleneck(
    method_type: type[Method], preset: str, trunk: int, bottleneck: int, code: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        method = method_type(method_type.presets()[preset], facts(PAPER_GRID))
        network: Any = method.network
        image = torch.zeros(2, 1, 256, 256)
        assert network.encode(image).shape == (2, *code)
        assert network(image).shape == image.shape
    assert method.code_shape() == network.code_shape == code
    assert count(network.trunk) == trunk
    assert count(network) == trunk + bottleneck
    four_stages = trunk == 6_866_465
    with torch.device("meta"):
        reference = Trunk(TrunkSettings(stages=4 if four_stages else 5), facts(PAPER_GRID), 2)
    shapes = {name: value.shape for name, value in network.trunk.state_dict().items()}
    assert shapes == {name: value.shape for name, value in reference.state_dict().items()}


def test_the_trunks_total_is_the_sum_of_larsens_layers() -> None:
    def stage(num_inputs: int, num_outputs: int) -> int:
        return 25 * num_inputs * num_outputs + 2 * num_outputs  # 5 x 5 kernels; gain and shift of the normalisation

    encoder = stage(1, 64) + stage(64, 128) + stage(128, 256) + stage(256, 256)
    entry = 2 * 256
    decoder = stage(256, 256) + stage(256, 256) + stage(256, 128) + stage(128, 32)
    image = 25 * 32 + 1
    assert (encoder, entry + decoder + image) == (2_665_408, 4_201_057)
    assert encoder + entry + decoder + image == 6_866_465
    assert 6_866_465 + 2 * stage(256, 256) == 10_144_289


def test_three_stages_on_64_pixels_are_larsens() -> None:
    with torch.device("meta"):
        trunk = Trunk(TrunkSettings(stages=3), facts((64, 64, 4), ("R", "G", "B")), 2)
    down = [layer for layer in trunk.encoder if isinstance(layer, nn.Conv2d)]
    up = [layer for layer in trunk.decoder.stages if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in down] == [64, 128, 256]
    assert [layer.out_channels for layer in up] == [256, 128, 32]
    assert trunk.decoder.image.out_channels == 3
    assert all(layer.kernel_size == (5, 5) for layer in (*down, *up, trunk.decoder.image))
    assert trunk.decoder.plane == (8, 8)


def _normalised(layer: Any, x: np.ndarray) -> np.ndarray:
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    moved = (x - layer.running_mean.numpy()[:, None, None]) * scale.detach().numpy()[:, None, None]
    rectified: np.ndarray = np.maximum(moved + layer.bias.detach().numpy()[:, None, None], 0)
    return rectified


def _correlated(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.stack([sum(signal.correlate2d(one, k, "same") for one, k in zip(x, row, strict=True)) for row in weight])


def test_the_trunk_is_numpys() -> None:
    torch.manual_seed(0)
    trunk = Trunk(TrunkSettings(width=2, stages=2), facts((8, 11, 3), background=0.25), 2).double()
    for layer in trunk.modules():
        if isinstance(layer, nn.BatchNorm2d):  # statistics as after training
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                assert isinstance(tensor, torch.Tensor)
                tensor.data.uniform_(0.5, 1.5)
    trunk.eval()
    image = torch.rand(1, 1, 8, 11, dtype=torch.float64)
    with torch.no_grad():
        features = trunk.features(image)
        decoded = trunk.decoder(features)[0]
    x = np.pad(image[0].numpy(), ((0, 0), (0, 0), (0, 1)), constant_values=0.25)
    for conv, norm, _ in zip(*[iter(trunk.encoder)] * 3, strict=True):
        x = _normalised(norm, _correlated(conv.weight.detach().numpy(), x)[:, ::2, ::2])
    np.testing.assert_allclose(features[0].numpy(), x, rtol=1e-10)
    x = _normalised(trunk.decoder.entry[0], x)
    for conv, norm, _ in zip(*[iter(trunk.decoder.stages)] * 3, strict=True):
        spread = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2]))
        spread[:, ::2, ::2] = x
        turned = conv.weight.detach().numpy()[:, :, ::-1, ::-1].swapaxes(0, 1)
        x = _normalised(norm, _correlated(turned, spread))
    last = trunk.decoder.image
    assert last.bias is not None
    x = _correlated(last.weight.detach().numpy(), x) + last.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(decoded.numpy(), x[:, :, :11], rtol=1e-5)


@pytest.mark.parametrize(("output", "low", "high"), [("sigmoid", 0, 1), ("tanh", -1, 1)])
def test_a_last_activation_keeps_slices_in_its_range(output: str, low: float, high: float) -> None:
    torch.manual_seed(0)
    trunk = Trunk(override(TrunkSettings(width=2, stages=2), {"output": output}), facts(ceiling=1.0), 2)
    wild = 1e3 * torch.randn(4, trunk.decoder.num_features, *trunk.decoder.plane)
    trunk.decoder.image.weight.data *= 100
    image = trunk.decoder(wild).detach()
    assert low <= float(image.min()) < low + 0.1
    assert high - 0.1 < float(image.max()) <= high


def test_the_loss_is_the_mean_l1_distance_of_each_slice() -> None:
    image, other = torch.rand(3, 2, 5, 4), torch.rand(3, 2, 5, 4)
    expected = np.abs(image.numpy() - other.numpy()).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(reconstruction_loss(image, other).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 8, "group_size": 3}, r"batch of 8 slices does not part into groups of 3: set batch_size"),
        ({"trunk.stages": 9}, r"trunk\.stages"),
        ({"bottleneck.kind": "fluid"}, r"bottleneck\.kind"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tiny(**changes)


def test_a_trunk_deeper_than_the_slices_is_refused() -> None:
    with pytest.raises(SettingError, match=r"stages: 5 halvings leave one pixel of slices of 18 x 21"):
        Autoencoder(tiny(**{"trunk.stages": 5}), facts())


@pytest.mark.parametrize(
    ("output", "background", "ceiling", "message"),
    [
        ("sigmoid", 0.0, 1.0, None),
        ("tanh", 0.0, 1.0, None),
        ("tanh", -1.0, 1.0, None),
        ("linear", -2.0, 100.0, None),
        ("linear", 0.0, None, None),
        ("sigmoid", -1.0, 1.0, r"sigmoid gives \[0, 1\] but .* from -1 to 1: set trunk\.output to tanh or linear"),
        ("sigmoid", 0.0, 2.0, r"sigmoid gives \[0, 1\] but .* from 0 to 2: set trunk\.output to linear"),
        ("tanh", 0.0, 1.5, r"tanh gives \[-1, 1\] but .* from 0 to 1\.5: set trunk\.output to linear"),
        ("tanh", -2.0, 1.0, r"tanh gives \[-1, 1\] but .* from -2 to 1: set trunk\.output to linear"),
        (
            "sigmoid",
            0.0,
            None,
            r"does not scale intensities.*scale=percentile\), or set trunk\.output to linear",
        ),
        ("tanh", 0.0, None, r"does not scale intensities.*scale=percentile\), or set trunk\.output to linear"),
    ],
)
def test_a_last_activation_that_cannot_reach_the_cohorts_intensities_is_refused(
    output: str, background: float, ceiling: float | None, message: str | None
) -> None:
    settings, cohort = tiny(**{"trunk.output": output}), facts(background=background, ceiling=ceiling)
    if message is None:
        Autoencoder(settings, cohort)
        return
    with pytest.raises(SettingError, match=message):
        Autoencoder(settings, cohort)


def test_the_stage_takes_the_settings_slices_in_whole_groups() -> None:
    (stage,) = Autoencoder(tiny(**{"slices.axis": 1, "slices.every": 3}), facts()).stages()
    assert stage.view == Slices(axis=1, every=3)
    assert (stage.batch_size, stage.group_size) == (8, 4)


FAMILY: list[type[Method]] = [Autoencoder, VariationalAutoencoder, ContextAutoencoderGAN, AnoVAEGAN, AnoGAN]


@pytest.mark.parametrize("method_type", FAMILY)
def test_the_papers_epochs_batches_and_rates_reach_the_stage(method_type: type[Method]) -> None:
    generates = method_type is AnoGAN
    with torch.device("meta"):
        (stage,) = method_type(method_type.presets()["paper"], facts(PAPER_GRID, ceiling=1.0)).stages()
    assert (stage.epochs, stage.batch_size, stage.group_size) == (82 if generates else 190, 8, 8)
    assert stage.view == Slices()
    found = {
        name: [(group["lr"], group["betas"]) for group in optimizer.param_groups]
        for name, optimizer in stage.optimizers.items()
    }
    whole, against = {"adam": [(1e-3, (0.9, 0.999))]}, {"discriminator": [(1e-4, (0.5, 0.999))]}
    expected = {
        Autoencoder: whole,
        VariationalAutoencoder: whole,
        ContextAutoencoderGAN: {**against, "autoencoder": whole["adam"]},
        AnoVAEGAN: {**against, "autoencoder": whole["adam"]},
        AnoGAN: {**against, "generator": against["discriminator"]},
    }
    assert found == expected[method_type]


@pytest.mark.parametrize("method_type", FAMILY)
def test_other_rates_and_moments_reach_the_optimisers(method_type: type[Method]) -> None:
    own, theirs, beta1 = 0.011, 0.022, 0.33
    changes: dict[str, Any] = {"learning_rate": own, "epochs": 3.5, "batch_size": 12}
    if method_type not in (Autoencoder, VariationalAutoencoder):
        changes |= {"adversary.learning_rate": theirs, "adversary.beta1": beta1}
    method = method_type(override(method_type.presets()["tiny"], changes), facts())
    (stage,) = method.stages()
    assert (stage.epochs, stage.batch_size) == (3.5, 12)
    covered = []
    for name, optimizer in stage.optimizers.items():
        (group,) = optimizer.param_groups
        assert group["lr"] == (theirs if name == "discriminator" else own)
        adversarial = name in ("discriminator", "generator")
        assert group["betas"] == ((beta1 if adversarial else 0.9), 0.999)
        covered += group["params"]
    assert {id(parameter) for parameter in covered} == {id(parameter) for parameter in method.parameters()}
    assert len(covered) == len(list(method.parameters()))


@pytest.mark.parametrize("method_type", FAMILY)
def test_what_has_no_effect_is_not_searched(method_type: type[Method]) -> None:
    found = spaces(method_type.settings_type)
    assert "map.outside" not in found
    assert all(flatten(preset)["map.min_pool"] == 1 for preset in method_type.presets().values())
    assert all(flatten(preset)["map.average_pool"] == 1 for preset in method_type.presets().values())
    if method_type is AnoGAN:
        assert found["search.steps"] == Range(low=20, high=500, log=True)
    else:
        size = found["bottleneck.size"]
        assert isinstance(size, Choice)
        assert {flatten(method_type.presets()[name])["bottleneck.size"] for name in ("paper", "demo")} <= {*size.values}
        assert 512 in size.values


@pytest.mark.parametrize("method_type", FAMILY)
def test_deviations_name_settings_that_there_are(method_type: type[Method]) -> None:
    assert len(method_type.deviations) > 8
    leaves = flatten(method_type.settings_type())
    known = {*leaves, *(key.rpartition(".")[0] for key in leaves)}
    named: set[str] = set()
    for deviation in method_type.deviations:
        assert deviation.paper
        assert deviation.why
        for bracket in re.findall(r"\(([a-z_0-9., ]+)\)", deviation.here):
            named |= set(bracket.split(", "))
    # The shared ones name what one method of the family may lack.
    if method_type is AnoGAN:
        named -= {"bottleneck.kind", "bottleneck.size"}
    assert named <= known, named - known
    assert len(named) > 6
    counts = Counter(method_type.deviations)
    assert max(counts.values()) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_a_score_is_the_residual_of_the_slices_looked_at(axis: int) -> None:
    torch.manual_seed(1)
    raw = {"map.median_pool": 1, "map.voxels": "all", "map.erosion": 0, "map.image_score": "max"}
    settings = tiny(**raw, **{"slices.axis": axis, "slices.every": 1, "slices.first": 0.3, "slices.together": 3})
    method = Autoencoder(settings, facts(channels=("T1w", "FLAIR"))).eval()
    scans = [volume(1, channels=2), volume(2, channels=2)]
    first = round(0.3 * GRID[axis])
    for scan, score in zip(scans, method.score(scans), strict=True):
        slices = scan.image.movedim(axis + 1, 0)[first:]
        restored = method.network(slices).movedim(0, axis + 1)
        looked_at = [slice(None)] * 3
        looked_at[axis] = slice(first, None)
        inside = tuple(looked_at)
        assert score.restoration is not None
        torch.testing.assert_close(score.restoration[:, *inside], restored)
        expected = torch.zeros(GRID)
        expected[inside] = (scan.image[:, *inside] - restored).abs().amax(0)
        torch.testing.assert_close(score.map, expected)
        assert score.image_score == pytest.approx(float(score.map[scan.brain].max()))
        outside = [slice(None)] * 3
        outside[axis] = slice(0, first)
        assert torch.equal(score.restoration[:, *outside], scan.image[:, *outside])


def test_a_residual_of_one_sign_is_half_of_its_size() -> None:
    assert AutoencoderSettings().map.residual == "absolute"  # the paper's
    scan = volume(1)
    wrong = torch.linspace(-1, 1, scan.image[0, :, :, 0].numel()).reshape(scan.image.shape[1:3])
    maps = {}
    for residual in ("absolute", "brighter", "darker"):
        settings = tiny(**{"map.median_pool": 1, "map.voxels": "all", "map.erosion": 0, "map.residual": residual})
        (score,) = score_by_residual(
            [scan],
            lambda image, _: Restored(image=image - wrong),
            cohort=facts(),
            slices=settings.slices.model_copy(update={"every": 1}),
            maps=settings.map,
            device=torch.device("cpu"),
        )
        maps[residual] = score.map
    torch.testing.assert_close(maps["brighter"], wrong.clamp(min=0)[..., None].expand(GRID))
    torch.testing.assert_close(maps["darker"], (-wrong).clamp(min=0)[..., None].expand(GRID))
    torch.testing.assert_close(maps["brighter"] + maps["darker"], maps["absolute"])


@torch.no_grad()
def test_the_papers_post_processing_is_the_default() -> None:
    from scipy import ndimage

    torch.manual_seed(1)
    method = Autoencoder(tiny(**{"map.median_pool": 5, "slices.every": 1}), facts()).eval()
    assert method.settings.map == AutoencoderSettings().map
    scan = volume(1)
    (score,) = method.score([scan])
    assert score.restoration is not None
    residual = (scan.image - score.restoration).abs()[0].numpy()
    eroded = ndimage.binary_erosion(scan.brain.numpy(), border_value=1)
    core = (slice(2, -2),) * 3  # at the volume's border the windows are clipped, which scipy does otherwise
    expected = ndimage.median_filter(residual, size=5) * eroded
    assert eroded[core].any()
    np.testing.assert_allclose(score.map.numpy()[core], expected[core], rtol=1e-5)
    assert not score.map.numpy()[~eroded].any()


def test_volumes_of_another_make_are_refused_by_name() -> None:
    method = Autoencoder(tiny(), facts()).eval()
    with pytest.raises(VolumeError, match=r"v1: the volume has 2 channels but the model was trained on 1"):
        method.score([volume(1, channels=2)])
    with pytest.raises(VolumeError, match=r"v1: its slices are"):
        method.score([volume(1, grid=(18, 20, 7))])
