"""The f-AnoGAN's networks against Kwon's layers, written with functions alone, and its padding and activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.methods.blocks.frames import Frame
from vesalius.methods.f_anogan.networks import Critic, Encoder, Generator, frame_of
from vesalius.methods.f_anogan.settings import NetworkSettings
from vesalius.platform.contracts import CohortFacts

if TYPE_CHECKING:
    from torch import nn

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
NORMS = ("batch", "instance", "layer")
WIDTH, LENGTH = 16, 10


def facts(edge: int) -> CohortFacts:
    return CohortFacts(
        subjects=("a", "b"), grid=(edge,) * 3, spacing_mm=(1.0, 1.0, 1.0), affine=EYE, digest="0", channels=("CT",),
        background=-1.0, ceiling=1.0,
    )  # fmt: skip


def made(num_axes: int, **changes: Any) -> tuple[Generator, Critic, Encoder]:
    """Return networks of 32 voxels an axis, three halvings; gains and offsets are no ones and zeros."""
    torch.manual_seed(0)
    settings = NetworkSettings.model_validate({"width": WIDTH, "stages": 3, "latent_dim": LENGTH, **changes})
    cohort = facts(32)
    frame = frame_of(settings, cohort, (32,) * num_axes)
    networks = (Generator(settings, frame, cohort), Critic(settings, frame), Encoder(settings, frame))
    with torch.no_grad():
        for network in networks:
            for name, parameter in network.named_parameters():
                if parameter.ndim == 1:  # biases, gains and offsets: at zero and one they would hide what they do
                    parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
    return networks


def normalised(found: Tensor, layer: Any, norm: str) -> Tensor:
    """Return the formulas, over which axes is all that differs."""
    axes = list(range(2, found.ndim))
    over = {"batch": [0, *axes], "instance": axes, "layer": [1, *axes]}[norm]
    mean, variance = found.mean(over, keepdim=True), found.var(over, unbiased=False, keepdim=True)
    shape = (1, -1, *[1] * len(axes))
    whole: Tensor = (found - mean) / torch.sqrt(variance + 1e-5) * layer.weight.view(shape) + layer.bias.view(shape)
    return whole


def halved(network: Any, image: Tensor, norm: str) -> Tensor:
    convolve = F.conv3d if image.ndim == 5 else F.conv2d
    found = image
    for number, block in enumerate(network.halvings.blocks):
        found = convolve(found, block[0].weight, block[0].bias, stride=2, padding=1)
        if number:
            found = normalised(found, block[1], norm)
        found = torch.where(found > 0, found, 0.2 * found)
    return found


def doubled(found: Tensor) -> Tensor:
    for axis in range(2, found.ndim):
        found = found.repeat_interleave(2, axis)
    return found


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_the_critic_is_kwons(num_axes: int, norm: str) -> None:
    _, critic, _ = made(num_axes, critic_norm=norm, encoder_norm="batch" if norm != "batch" else "layer")
    image = torch.rand(3, 1, *(32,) * num_axes) * 2 - 1
    found = halved(critic, image, norm)
    torch.testing.assert_close(critic.features(image), found, rtol=1e-4, atol=1e-5)
    # His last convolution is as large as the coarsest grid, without padding.
    convolve = F.conv3d if num_axes == 3 else F.conv2d
    scores = convolve(found, critic.score.weight.view(1, WIDTH, *(4,) * num_axes)).flatten()
    torch.testing.assert_close(critic(image), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("code", ["tanh", "linear"])
@torch.no_grad()
def test_the_encoder_is_kwons_with_the_papers_tanh(num_axes: int, norm: str, code: str) -> None:
    _, _, encoder = made(
        num_axes, encoder_norm=norm, critic_norm="instance" if norm != "instance" else "layer", code=code
    )
    image = torch.rand(3, 1, *(32,) * num_axes) * 2 - 1
    convolve = F.conv3d if num_axes == 3 else F.conv2d
    weight = encoder.code.weight.view(LENGTH, WIDTH, *(4,) * num_axes)
    found = convolve(halved(encoder, image, norm), weight, encoder.code.bias).flatten(1)
    expected = torch.tanh(found) if code == "tanh" else found
    assert float((expected - found).abs().max()) > 0.01 or code == "linear"
    torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("output", ["tanh", "sigmoid", "linear"])
@torch.no_grad()
def test_the_generator_is_kwons(num_axes: int, output: str) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings.model_validate({"width": WIDTH, "stages": 3, "latent_dim": LENGTH, "output": output})
    cohort = facts(32).model_copy(update={"background": 0.0}) if output == "sigmoid" else facts(32)
    generator = Generator(settings, frame_of(settings, cohort, (32,) * num_axes), cohort)
    code = 3 * torch.randn(4, LENGTH)
    transposed = F.conv_transpose3d if num_axes == 3 else F.conv_transpose2d
    convolve = F.conv3d if num_axes == 3 else F.conv2d
    entry: Any = generator.entry
    weight = entry[0].weight.t().reshape(LENGTH, WIDTH, *(4,) * num_axes)
    found = transposed(code.view(4, LENGTH, *[1] * num_axes), weight)
    found = normalised(found, entry[2], "batch").clamp(min=0)
    layers: Any = generator.doublings
    for first in range(0, len(layers), 4):
        found = convolve(doubled(found), layers[first + 1].weight, padding=1)
        found = normalised(found, layers[first + 2], "batch").clamp(min=0)
    image: Any = generator.image
    found = convolve(doubled(found), image[1].weight, padding=1)
    expected = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": lambda values: values}[output](found)
    torch.testing.assert_close(generator(code), expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_has_a_bias_where_the_norm_does_not_take_it_away() -> None:
    def biases(network: nn.Module) -> list[str]:
        return [name for name, p in network.named_parameters() if p.ndim == 1 and ".0.bias" in name]

    for norm in NORMS:
        _, critic, encoder = made(3, critic_norm=norm, encoder_norm=norm)
        # Layer normalisation subtracts one mean from all channels, so that a channel's own shift stays.
        num = 3 if norm == "layer" else 1
        assert len(biases(critic)) == len(biases(encoder)) == num
        if norm == "layer":
            critic(torch.rand(2, 1, 32, 32, 32)).sum().backward()
            gradients = [critic.get_parameter(name).grad for name in biases(critic)]
            assert all(gradient is not None and float(gradient.abs().max()) > 1e-3 for gradient in gradients)


@pytest.mark.parametrize("background", [-1.0, 0.25])
def test_padding_is_the_cohorts_background(background: float) -> None:
    frame = Frame((5, 6), 2, 1, background)
    image = torch.full((1, 1, 5, 6), 7.0)
    padded = frame.pad(image)
    assert padded.shape == (1, 1, 8, 8)
    assert set(padded.flatten().tolist()) == {7.0, background}
    assert torch.equal(frame.crop(padded), image)
