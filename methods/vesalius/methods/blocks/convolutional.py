"""The convolutional trunk of Baur et al. 2018: the layers of Larsen et al. 2016, for planes of any size.

Larsen's layers are for 64 x 64 pixels and end in a plane of 8 x 8. Here the number of halvings is a setting: four take
256 x 256 to the bottleneck of 16 x 16 that the paper settles on, five to 8 x 8. Up to three they are Larsen's own
(64, 128, 256 channels); each further one keeps his widest, 256.

What stands between encoder and decoder is no part of the trunk, so that all variants that share a bottleneck's
resolution share its layers and their number of parameters, as the paper asks for. For one channel and the paper's
width: 6,866,465 parameters with four stages (16 x 16), 10,144,289 with five (8 x 8).

B items, C channels, h, w a slice, r, s the bottleneck's plane, F channels of its features.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vesalius.methods.blocks.slices import crop_plane, pad_plane, padded_plane
from vesalius.platform.config import Settings
from vesalius.platform.contracts import Choice, segmented, setting
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from vesalius.platform.contracts import CohortFacts

_KERNEL = 5
_WIDEST = 4
_LARSEN = "Larsen et al. 2016, section 4 and code"

Output = Literal["linear", "sigmoid", "tanh"]
"""A last activation: none, or one that gives [0, 1] or [-1, 1]."""


class TrunkSettings(Settings):
    """Depth and width of encoder and decoder, and the range of what they give."""

    width: int = setting(
        64,
        "channels of the encoder's first stage; the second has twice as many, all others four times as many",
        source=f"Baur et al. 2018, section 3: as in {_LARSEN}",
        ge=2,
        space=Choice(values=(16, 32, 64)),
    )
    stages: int = setting(
        4,
        "halvings between the slice and the bottleneck: 256 pixels become 16 by four, 8 by five",
        source="Baur et al. 2018, Table 1: 16 x 16",
        ge=1,
        le=8,
        space=Choice(values=(3, 4, 5)),
    )
    output: Output = setting(
        "linear",
        "the decoder's last activation: none, or one that keeps slices in [0, 1] or [-1, 1], for a cohort scaled to "
        "within that range",
        source=f"this implementation; tanh in {_LARSEN}, for images in [-1, 1]",
    )


def stage_channels(width: int, stages: int) -> tuple[int, ...]:
    """Return the channels that each stage of the encoder gives."""
    return tuple(width * min(2**stage, _WIDEST) for stage in range(stages))


def bottleneck_plane(cohort: CohortFacts, axis: int, stages: int) -> tuple[int, int]:
    """Return (r, s), what ``stages`` halvings leave of the cohort's slices across ``axis``, padded to whole pixels.

    Raises:
        SettingError: a single pixel is left, over which a batch of one slice has no statistics.
    """
    r, s = (num // 2**stages for num in padded_plane(cohort, axis, 2**stages))
    if r * s < 2:
        h, w = (num for at, num in enumerate(cohort.grid) if at != axis)
        raise SettingError(
            f"stages: {stages} halvings leave one pixel of slices of {h} x {w}: set fewer, so that 2 x 2 are left"
        )
    return r, s


def check_output(output: Output, cohort: CohortFacts, name: str = "trunk.output") -> None:
    """Refuse a last activation that cannot reach what the recipe leaves: the gap would pass for an anomaly.

    Args:
        output: the activation.
        cohort: whose intensities it must reach.
        name: of the setting, for the message.

    Raises:
        SettingError: names the setting and what fits.
    """
    if output == "linear":
        return
    low = 0.0 if output == "sigmoid" else -1.0
    gives = f"output: a {output} gives [{low:g}, 1]"
    if cohort.ceiling is None:
        raise SettingError(
            f"{gives} but the cohort's recipe does not scale intensities, so that some may lie beyond: prepare the "
            f"cohort with a scale (--set recipe.scale=percentile), or set {name} to linear"
        )
    if cohort.background < low or cohort.ceiling > 1:
        fits = f"set {name} to "
        fits += "tanh or linear" if cohort.background >= -1 and cohort.ceiling <= 1 else "linear"
        raise SettingError(
            f"{gives} but the cohort's intensities reach from {cohort.background:g} to {cohort.ceiling:g}: {fits}"
        )


class Encoder(nn.Sequential):
    """Slices (B, C, h, w) to features (B, F, r, s): conv5 of stride 2, batch normalisation and ReLU a stage.

    Convolutions have no bias: the normalisation that follows would take it away, and what is left of its gradient is
    rounding, which Adam makes steps of.
    """

    def __init__(self, settings: TrunkSettings, num_channels: int) -> None:
        sizes = (num_channels, *stage_channels(settings.width, settings.stages))
        super().__init__(*itertools.chain.from_iterable(_halving(*pair) for pair in itertools.pairwise(sizes)))

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of slices padded to what the stages divide; each stage is a segment."""
        return segmented(self, image, (nn.Conv2d,))


class Decoder(nn.Module):
    """Features (B, F, r, s) to slices (B, C, h, w): the encoder mirrored, then a conv5.

    The features are normalised and rectified first, as Larsen's are behind their linear layer. Each stage doubles the
    plane (backconv5 of stride 2, batch normalisation, ReLU); channels are the encoder's in reverse, with the last stage
    half the encoder's first: Larsen's 256, 128, 32.

    Attributes:
        num_features: F.
        plane: (r, s).
    """

    def __init__(self, settings: TrunkSettings, cohort: CohortFacts, axis: int) -> None:
        """Build the layers.

        Raises:
            SettingError: the bottleneck's plane is a single pixel, or the output cannot hold the intensities.
        """
        super().__init__()
        check_output(settings.output, cohort)
        channels = stage_channels(settings.width, settings.stages)
        self.num_features = channels[-1]
        self.plane = bottleneck_plane(cohort, axis, settings.stages)
        h, w = (num for at, num in enumerate(cohort.grid) if at != axis)
        self._slice = (h, w)
        sizes = (self.num_features, *channels[:0:-1], settings.width // 2)
        self.entry = nn.Sequential(nn.BatchNorm2d(self.num_features), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(*itertools.chain.from_iterable(_doubling(*p) for p in itertools.pairwise(sizes)))
        self.image = nn.Conv2d(sizes[-1], len(cohort.channels), _KERNEL, padding=_KERNEL // 2)
        self._output = settings.output

    def forward(self, features: Tensor) -> Tensor:
        """Return slices, cropped to the cohort's plane, float32."""
        found = segmented([*self.stages, self.image], self.entry(features), (nn.ConvTranspose2d,))
        image = crop_plane(found, self._slice).float()
        if self._output == "sigmoid":
            return torch.sigmoid(image)
        return torch.tanh(image) if self._output == "tanh" else image


class Trunk(nn.Module):
    """Encoder and decoder of slices across one axis of a cohort's grid.

    Slices are padded with the cohort's background to what the stages divide, and cropped again. With a range of its own
    (sigmoid, tanh) the decoder saturates at the background, where most of a slice lies and where an l1 loss then hardly
    moves it; so none is the default, and the loss alone keeps slices in the range that the recipe made.
    """

    def __init__(self, settings: TrunkSettings, cohort: CohortFacts, axis: int) -> None:
        """Build the layers; errors as those of :class:`Decoder`."""
        super().__init__()
        self.encoder = Encoder(settings, len(cohort.channels))
        self.decoder = Decoder(settings, cohort, axis)
        self._padded = padded_plane(cohort, axis, 2**settings.stages)
        self._background = cohort.background

    def features(self, image: Tensor) -> Tensor:
        """Return (B, F, r, s) of slices (B, C, h, w)."""
        features: Tensor = self.encoder(pad_plane(image, self._padded, self._background))
        return features


def _halving(num_inputs: int, num_outputs: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(num_inputs, num_outputs, _KERNEL, stride=2, padding=_KERNEL // 2, bias=False)
    return conv, nn.BatchNorm2d(num_outputs), nn.ReLU(inplace=True)


def _doubling(num_inputs: int, num_outputs: int) -> tuple[nn.Module, ...]:
    conv = nn.ConvTranspose2d(
        num_inputs, num_outputs, _KERNEL, stride=2, padding=_KERNEL // 2, output_padding=1, bias=False
    )
    return conv, nn.BatchNorm2d(num_outputs), nn.ReLU(inplace=True)
