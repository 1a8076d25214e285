"""Encoder, codebook and decoder of slices, layers as in the authors' public code.

::

    encoder  conv7 C+1 > w0, BN; each halving: two gated blocks of w, conv5 stride 2 w > w', BN; a gated block
    decoder  conv3 w_L+1 > w_L, BN; each doubling: two gated blocks of w', transposed conv6 stride 2 w' > w, BN;
             a gated block, ELU, conv1 w0 > C

The one channel more is the slice's axial position. (The code's first convolution lacks its padding, which its authors
call an oversight; ours has it.)

Shapes: B slices, C channels, H W the plane as padded, h w the latent plane, D length of a code, K codes.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.platform.contracts import segmented

if TYPE_CHECKING:
    from vesalius.methods.vq_vae.settings import VqVaeSettings


class GatedBlock(nn.Module):
    """BN, ELU, conv3, ELU, dropout, conv3 to twice the channels, BN, GLU, added to the input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ELU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.GLU(1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        gated: Tensor = self.inner(features)
        return features + gated


class Autoencoder(nn.Module):
    """The first stage's network.

    Attributes:
        codebook: (K, D), drawn from U(-1/K, 1/K), learnt by gradients (no moving averages).
    """

    def __init__(self, channels: int, settings: VqVaeSettings) -> None:
        super().__init__()
        widths, dropout = settings.widths, settings.dropout
        encoder: list[nn.Module] = [nn.Conv2d(channels + 1, widths[0], 7, padding=3), nn.BatchNorm2d(widths[0])]
        for before, after in itertools.pairwise(widths):
            encoder += [GatedBlock(before, dropout) for _ in range(settings.blocks)]
            encoder += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.BatchNorm2d(after)]
        encoder.append(GatedBlock(widths[-1], dropout))
        decoder: list[nn.Module] = [nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1), nn.BatchNorm2d(widths[-1])]
        for before, after in itertools.pairwise(reversed(widths)):
            decoder += [GatedBlock(before, dropout) for _ in range(settings.blocks)]
            decoder += [nn.ConvTranspose2d(before, after, 6, stride=2, padding=2), nn.BatchNorm2d(after)]
        decoder += [GatedBlock(widths[0], dropout), nn.ELU(), nn.Conv2d(widths[0], channels, 1)]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        self.codebook = nn.Parameter(torch.empty(settings.num_codes, widths[-1]))
        nn.init.uniform_(self.codebook, -1 / settings.num_codes, 1 / settings.num_codes)

    def encode(self, image: Tensor, position: Tensor) -> Tensor:
        """Return features (B, D, h, w) float32 of slices (B, C, H, W) at axial positions (B,)."""
        return segmented(self.encoder, _with_position(image, position), (nn.Conv2d, GatedBlock)).float()

    def codes(self, features: Tensor) -> Tensor:
        """Return the nearest code of each place, (B, h, w) int64; of equally near ones the first."""
        flat = features.detach().movedim(1, -1)
        # Products of long vectors decide between near codes: always in float32.
        with torch.autocast(features.device.type, enabled=False):
            distance = self.codebook.detach().square().sum(1) - 2 * flat @ self.codebook.detach().t()
        return distance.argmin(-1)

    def vectors(self, codes: Tensor) -> Tensor:
        """Return the codes' vectors: (B, h, w) -> (B, D, h, w)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def decode(self, vectors: Tensor, position: Tensor) -> Tensor:
        """Return slices (B, C, H, W) float32 of vectors (B, D, h, w)."""
        begins = (nn.ConvTranspose2d, GatedBlock)
        return segmented(self.decoder, _with_position(vectors, position), begins).float()

    def losses(self, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of each slice's absolute differences, codebook and commitment losses, (B,) each.

        The decoder's gradient passes the choice of codes unchanged (straight through); the codebook follows the
        features, and the features commit to the codebook.
        """
        features = self.encode(image, position)
        vectors = self.vectors(self.codes(features))
        restored = self.decode(features + (vectors - features).detach(), position)
        return (
            (image - restored).abs().flatten(1).mean(1),
            (features.detach() - vectors).square().flatten(1).mean(1),
            (features - vectors.detach()).square().flatten(1).mean(1),
        )


def _with_position(maps: Tensor, position: Tensor) -> Tensor:
    plane = position.to(maps.dtype)[:, None, None, None].expand(-1, 1, *maps.shape[-2:])
    return torch.cat([maps, plane], dim=1)
