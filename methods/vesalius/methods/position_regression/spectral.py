"""Convolutions divided by their spectral norm (Miyato et al. 2018), estimated once a step and not once a forward.

``torch.nn.utils.parametrizations.spectral_norm`` moves its estimate in every forward of a module in training mode. The
norm would then depend on how many micro-batches a step is split into, and a rank whose patches were all discarded
would keep an older one. Here the stage moves the estimate after each update, on every rank alike, so that it fits the
weights that are validated, saved and scored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FIRST_ITERATIONS = 15
"""Power iterations of a new layer, as torch's own parametrisation takes."""


class SpectralConvolution(nn.Module):
    """An unpadded 3D convolution of stride 1 whose weights are divided by their largest singular value.

    The weights are taken as a matrix of (out channels, in channels * kernel^3), as Miyato et al. 2018 do; the bias is
    left as it is. A gradient passes through the norm, its singular vectors held fixed.

    Attributes:
        weight: (O, I, k, k, k), before the division.
        bias: (O,).
        left: (O,) estimate of the left singular vector.
        right: (I k^3,) estimate of the right one.
    """

    left: Tensor
    right: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))
        # As nn.Conv3d begins; of the weights only their direction matters.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(in_channels * kernel**3)
        nn.init.uniform_(self.bias, -bound, bound)
        self.register_buffer("left", F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(in_channels * kernel**3), dim=0))
        self.iterate(_FIRST_ITERATIONS)

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Move the estimated singular vectors by power iterations on the weights as they are."""
        matrix = self.weight.flatten(1)
        for _ in range(times):
            self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))
            self.left.copy_(F.normalize(matrix @ self.right, dim=0))

    def norm(self) -> Tensor:
        """Return the estimated spectral norm of the weights, a number with a graph."""
        # Number by number and in float32 also under autocast, which would round a matrix product to bfloat16.
        return (self.weight.flatten(1) * torch.outer(self.left, self.right)).sum()

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, O, D - k + 1, ...) of an image (B, I, D, H, W)."""
        return F.conv3d(image, self.weight / self.norm(), self.bias)
