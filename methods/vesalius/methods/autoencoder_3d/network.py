"""The network: the dense autoencoder of Baur et al. 2021 with cubes in the place of squares.

Bieder et al. 2022 take that layout; its 3D form is their figure 8, which the text at hand lacks. Baur's layers are in
public code: conv5 of stride 2 with normalisation and leaky ReLU a halving, 32 channels doubling up to 128; a
conv1 to an eighth of the channels, a linear layer to the code of 128, and both again backwards; normalisation and ReLU;
transposed conv5 of stride 2, 128 channels halving down to 32; a conv1 to the image. Here every kernel has a third axis
and 32 is the width m, so that m = 32 has Baur's channels. His 256 x 256 pixels leave 8 x 8 for five halvings, and so do
the paper's 256-cubes.

For one channel, a 256-cube, five halvings and Z = 128 there are 3,296,745 parameters at m = 16, and 11,075,409 at
Baur's 32; decision 20 has the table.

B items, C channels, D, H, W a volume, F = 4 m channels on the coarsest grid, Z length of a code.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vesalius.methods.blocks.frames import Frame
from vesalius.platform.contracts import segmented
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from vesalius.methods.autoencoder_3d.settings import NetworkSettings
    from vesalius.platform.contracts import CohortFacts

_KERNEL = 5
_WIDEST = 4
_NARROWING = 8
_SLOPE = 0.3


def encoder_channels(width: int, stages: int) -> tuple[int, ...]:
    """Return the channels after each halving: m, doubled up to 4 m."""
    return tuple(width * min(2**stage, _WIDEST) for stage in range(stages))


def decoder_channels(width: int, stages: int) -> tuple[int, ...]:
    """Return the channels after each doubling: 4 m, halved down to m."""
    return tuple(max(width, _WIDEST * width // 2**stage) for stage in range(stages))


class VolumeAutoencoder(nn.Module):
    """Encoder, dense bottleneck, decoder.

    Volumes are padded with the cohort's background to what the halvings divide, and cropped again. A convolution that a
    normalisation follows has no bias: what is left of its gradient is rounding, which Adam makes steps of.

    Attributes:
        frame: what the halvings make of the cohort's grid.
    """

    def __init__(self, settings: NetworkSettings, cohort: CohortFacts) -> None:
        """Build the layers.

        Raises:
            SettingError: a single voxel is left, over which an item has no statistics.
        """
        super().__init__()
        self.frame = Frame(cohort.grid, settings.stages, len(cohort.channels), cohort.background)
        num_voxels = math.prod(self.frame.coarsest)
        if num_voxels < 2:
            edges = " x ".join(str(num) for num in cohort.grid)
            raise SettingError(f"network.stages: {settings.stages} halvings leave one voxel of {edges}: set fewer")
        self._norm = nn.BatchNorm3d if settings.norm == "batch" else nn.InstanceNorm3d
        down = (self.frame.channels, *encoder_channels(settings.width, settings.stages))
        num_features = down[-1]
        up = (num_features, *decoder_channels(settings.width, settings.stages))
        num_narrow = max(1, num_features // _NARROWING)
        num_units = num_narrow * num_voxels
        self.encoder = nn.Sequential(*itertools.chain(*(self._halving(*pair) for pair in itertools.pairwise(down))))
        self.code = nn.Sequential(
            nn.Conv3d(num_features, num_narrow, 1), nn.Flatten(), nn.Linear(num_units, settings.latent_dim)
        )
        self.back = nn.Sequential(
            nn.Linear(settings.latent_dim, num_units),
            nn.Unflatten(1, (num_narrow, *self.frame.coarsest)),
            nn.Conv3d(num_narrow, num_features, 1, bias=False),
            self._normalisation(num_features),
            nn.ReLU(inplace=True),
        )
        self.decoder = nn.Sequential(*itertools.chain(*(self._doubling(*pair) for pair in itertools.pairwise(up))))
        self.image = nn.Conv3d(up[-1], self.frame.channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Return codes (B, Z) of volumes (B, C, D, H, W)."""
        code: Tensor = self.code(segmented(self.encoder, self.frame.pad(image), (nn.Conv3d,)))
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return volumes (B, C, D, H, W) float32 of codes (B, Z)."""
        image = segmented([*self.decoder, self.image], self.back(code), (nn.ConvTranspose3d,))
        return self.frame.crop(image).float()

    def forward(self, image: Tensor) -> Tensor:
        """Return reconstructions of volumes (B, C, D, H, W), float32."""
        return self.decode(self.encode(image))

    def _normalisation(self, num_channels: int) -> nn.Module:
        return self._norm(num_channels, affine=True)

    def _halving(self, num_inputs: int, num_outputs: int) -> tuple[nn.Module, ...]:
        conv = nn.Conv3d(num_inputs, num_outputs, _KERNEL, stride=2, padding=_KERNEL // 2, bias=False)
        return conv, self._normalisation(num_outputs), nn.LeakyReLU(_SLOPE, inplace=True)

    def _doubling(self, num_inputs: int, num_outputs: int) -> tuple[nn.Module, ...]:
        conv = nn.ConvTranspose3d(
            num_inputs, num_outputs, _KERNEL, stride=2, padding=_KERNEL // 2, output_padding=1, bias=False
        )
        return conv, self._normalisation(num_outputs), nn.LeakyReLU(_SLOPE, inplace=True)
