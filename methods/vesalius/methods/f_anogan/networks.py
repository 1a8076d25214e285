"""Generator, critic and encoder of Kwon et al. 2019, for images of any size and of two or three axes.

Kwon's are for 64 x 64 x 64 voxels: four halvings to 4 x 4 x 4. Here their number is a setting, and a fifth, for 128
voxels, is one more block at the fine end with half the channels, so that the blocks of the coarser grids stay the same.
For one channel of 64 x 64 x 64 and Z = 2500 there are 86,568,512 parameters in the generator, 11,049,664 in the critic
and 92,938,500 in the encoder (86.6, 11.05 and 92.9 million); for 128 x 128 x 128 and five stages 86,623,008,
11,178,848 and 93,067,620.

What covers the whole coarsest grid at once (Kwon's convolutions of 4 x 4 x 4 without padding, and the transposed one at
the generator's entry) is a linear layer: the same weights and sums. No layer has a bias that a normalisation takes away
again (that of batches or instances does, that of layers subtracts one mean from all channels and does not), or the
difference between two scores: its gradient would be rounding alone, which Adam makes steps of.

B items, C channels, ... an image's axes (D, H, W of a volume; h, w of a slice), Z length of a code, F channels.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vesalius.methods.blocks.convolutional import check_output
from vesalius.methods.blocks.frames import Frame
from vesalius.platform.contracts import segmented
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.methods.f_anogan.settings import NetworkSettings, Norm
    from vesalius.platform.contracts import CohortFacts

_SLOPE = 0.2


def frame_of(settings: NetworkSettings, cohort: CohortFacts, shape: tuple[int, ...]) -> Frame:
    """Return the frame of a cohort's images of ``shape``.

    Raises:
        SettingError: a single voxel is left, over which one item has no statistics.
    """
    frame = Frame(shape, settings.stages, len(cohort.channels), cohort.background)
    if math.prod(frame.coarsest) < 2:
        edges = " x ".join(str(num) for num in shape)
        raise SettingError(f"network.stages: {settings.stages} halvings leave one voxel of {edges}: set fewer")
    return frame


class Halvings(nn.Module):
    """What critic and encoder begin with: convolutions of 4, stride 2, normalised from the second on, leaky ReLUs."""

    def __init__(self, settings: NetworkSettings, frame: Frame, norm: Norm) -> None:
        super().__init__()
        self._frame = frame
        convolution = nn.Conv3d if len(frame.shape) == 3 else nn.Conv2d
        blocks: list[nn.Module] = []
        for num_inputs, num_outputs in itertools.pairwise((frame.channels, *reversed(_widths(settings)))):
            is_first = not blocks
            halving = convolution(num_inputs, num_outputs, 4, stride=2, padding=1, bias=is_first or norm == "layer")
            normalised = () if is_first else (_normalisation(norm, num_outputs, len(frame.shape)),)
            blocks.append(nn.Sequential(halving, *normalised, nn.LeakyReLU(_SLOPE)))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor, back: int = 1) -> Tensor:
        """Return (B, F, ...), what the ``back``-th block from the last gives for images (B, C, ...)."""
        blocks = list(self.blocks)[: len(self.blocks) + 1 - back]
        return segmented(blocks, self._frame.pad(image), (nn.Sequential,))


class Critic(nn.Module):
    """Images to scores, higher for real ones; the difference alone means something."""

    def __init__(self, settings: NetworkSettings, frame: Frame) -> None:
        super().__init__()
        self.halvings = Halvings(settings, frame, settings.critic_norm)
        self.score = nn.Linear(settings.width * math.prod(frame.coarsest), 1, bias=False)

    def features(self, image: Tensor, back: int = 1) -> Tensor:
        """Return (B, F, ...), what the ``back``-th block from the last gives for images (B, C, ...)."""
        features: Tensor = self.halvings(image, back)
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Return (B,) float32 scores of images (B, C, ...)."""
        features = self.features(image).flatten(1).float()
        # Scores grow to hundreds, and their differences are what counts: bfloat16 would leave two digits of them. What
        # the layer would do, written as a product that autocast leaves in float32.
        return (features * self.score.weight).sum(1)


class Encoder(nn.Module):
    """Images to codes: the critic's layers, with Z numbers at their end."""

    def __init__(self, settings: NetworkSettings, frame: Frame) -> None:
        super().__init__()
        self._is_bounded = settings.code == "tanh"
        self.halvings = Halvings(settings, frame, settings.encoder_norm)
        self.code = nn.Linear(settings.width * math.prod(frame.coarsest), settings.latent_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, Z) float32 codes of images (B, C, ...)."""
        code: Tensor = self.code(self.halvings(image).flatten(1)).float()
        return torch.tanh(code) if self._is_bounded else code


class Generator(nn.Module):
    """Codes to images: doublings by repetition, each with a convolution of 3, batch normalisation and a ReLU."""

    def __init__(self, settings: NetworkSettings, frame: Frame, cohort: CohortFacts) -> None:
        """Build the layers.

        Raises:
            SettingError: the last activation cannot reach the cohort's intensities.
        """
        super().__init__()
        check_output(settings.output, cohort, "network.output")
        self._frame = frame
        self._output = settings.output
        num_axes = len(frame.shape)
        convolution = nn.Conv3d if num_axes == 3 else nn.Conv2d
        widths = _widths(settings)
        self.entry = nn.Sequential(
            nn.Linear(settings.latent_dim, settings.width * math.prod(frame.coarsest), bias=False),
            nn.Unflatten(1, (settings.width, *frame.coarsest)),
            _normalisation("batch", settings.width, num_axes),
            nn.ReLU(inplace=True),
        )
        layers: list[nn.Module] = []
        for num_inputs, num_outputs in itertools.pairwise(widths):
            layers += [nn.Upsample(scale_factor=2), convolution(num_inputs, num_outputs, 3, padding=1, bias=False)]
            layers += [_normalisation("batch", num_outputs, num_axes), nn.ReLU(inplace=True)]
        self.doublings = nn.Sequential(*layers)
        self.image = nn.Sequential(
            nn.Upsample(scale_factor=2), convolution(widths[-1], frame.channels, 3, padding=1, bias=False)
        )

    def forward(self, code: Tensor) -> Tensor:
        """Return images (B, C, ...) of codes (B, Z), float32."""
        found = segmented([*self.doublings, *self.image], self.entry(code), (nn.Upsample,))
        image = self._frame.crop(found).float()
        if self._output == "sigmoid":
            return torch.sigmoid(image)
        return torch.tanh(image) if self._output == "tanh" else image


def _widths(settings: NetworkSettings) -> Sequence[int]:
    """Return the channels of every grid that has features, from the coarsest on."""
    return [settings.width // 2**stage for stage in range(settings.stages)]


def _normalisation(norm: Norm, num_channels: int, num_axes: int) -> nn.Module:
    if norm == "layer":  # over an item's channels and voxels, a gain and an offset a channel: Schlegl's
        return nn.GroupNorm(1, num_channels)
    if norm == "instance":
        return (nn.InstanceNorm3d if num_axes == 3 else nn.InstanceNorm2d)(num_channels, affine=True)
    return (nn.BatchNorm3d if num_axes == 3 else nn.BatchNorm2d)(num_channels)
