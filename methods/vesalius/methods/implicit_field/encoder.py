"""An encoder that gives a restoration its first code.

The paper proposes one, trained after the auto-decoder, and did not build it (section 3). Ours looks at the classes'
intensities over coarse cells of the cohort's box, so that a volume or slice of any grid can be encoded.

Shapes: B items, A spatial axes (3 of a volume, 2 of a slice), c cells along each, Z length of a code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.contracts import Batch

_HALVINGS = 3
_HIDDEN_UNITS = 256


def cell_weights(num: int, spacing_mm: float, box_mm: float, cells: int) -> Tensor:
    """Return (cells, num) float32: the part of each cell of the box that each voxel of a centred axis fills.

    Rows sum to one where the axis covers the cell, to less where it ends before the box does.
    """
    index = torch.arange(num, dtype=torch.float64)
    cell = torch.arange(cells, dtype=torch.float64)
    start = (index - num / 2) * spacing_mm
    edge = (cell / cells - 0.5) * box_mm
    size = box_mm / cells
    last = torch.minimum(start + spacing_mm, edge[:, None] + size)
    first = torch.maximum(start, edge[:, None])
    return ((last - first).clamp(min=0) / size).float()


def on_cells(
    image: Tensor, spacing_mm: Sequence[float], box_mm: Sequence[float], cells: int, background: float
) -> Tensor:
    """Return the mean intensity of each cell of the box: (B, *A axes) -> (B, c, ..., c) float32.

    Beyond the image there is background. The mean is exact at any resolution: a cell weighs voxels by their overlap.
    """
    coarse = image - background
    for axis, (spacing, box) in enumerate(zip(spacing_mm, box_mm, strict=True), start=1):
        weights = cell_weights(image.shape[axis], spacing, box, cells).to(image.device)
        coarse = torch.tensordot(coarse, weights, dims=([axis], [1])).movedim(-1, axis)
    return coarse + background


class CodeEncoder(nn.Module):
    """Cells to a code: three strided convolutions, then two linear layers, the position beside the features.

    Before it is trained it answers with its output's bias, whatever it sees.
    """

    def __init__(self, *, num_axes: int, num_position: int, cells: int, width: int, latent_dim: int) -> None:
        super().__init__()
        convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv3d if num_axes == 3 else nn.Conv2d
        layers: list[nn.Module] = []
        num_inputs = 1
        for level in range(_HALVINGS):
            layers += [convolution(num_inputs, width << level, 3, stride=2, padding=1), nn.ReLU()]
            num_inputs = width << level
        self.features = nn.Sequential(*layers, nn.Flatten())
        num_features = num_inputs * (cells // 2**_HALVINGS) ** num_axes
        self.hidden = nn.Sequential(nn.Linear(num_features + num_position, _HIDDEN_UNITS), nn.ReLU())
        self.output = nn.Linear(_HIDDEN_UNITS, latent_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, cells: Tensor, position: Tensor) -> Tensor:
        """Return codes (B, Z) for cells (B, c, ..., c) and what is known of an item's place, (B, 1) or (B, 0)."""
        features = self.features(cells.unsqueeze(1))
        code: Tensor = self.output(self.hidden(torch.cat([features, position.to(features.dtype)], dim=1)))
        return code


def draw_voxels(batch: Batch, num: int, shape: Sequence[int]) -> Tensor:
    """Return (B, K, A) int64 indices of voxels of each item, drawn uniformly from its noise.

    Where an item has no more than ``num`` voxels it gives each of them once.
    """
    sizes = torch.tensor(shape)
    if num >= math.prod(shape):
        every = torch.stack(torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij"), dim=-1)
        index = every.flatten(0, -2).expand(len(batch), -1, -1)
    else:
        # An axis at a time: one float32 cannot tell apart the voxels of a large volume.
        drawn = batch.uniform("points", (num, len(shape))).cpu()
        index = torch.minimum((drawn * sizes).long(), sizes - 1)
    return index.to(batch.image.device)
