"""Autoregressive prior over the codes of a slice, after PixelSNAIL (Chen et al. 2018).

Codes are ordered in raster scan: row by row, left to right. The distribution of a code is a function of the codes
before it, of its place, and of the slice's axial position (as in the authors' public code).

::

    entry   causal conv7 of the codes before (one-hot K > F), plus a linear map of the place
    block   residual units: ELU, causal conv3 F > F, ELU, dropout, causal conv3 F > 2F, GLU, added;
            causal attention (one head): queries from [features, place], keys and values from
            [the block's input, features, place]; GLU(linear(ELU(features)) + linear(ELU(attended))), added
    exit    ELU, linear F > K

The code's two stacks (rows above, and the row's left) are one here, its attention is not at half resolution, and the
weights are not normalised. Features stand last, so that a layer serves a whole slice and a single place alike.

Shapes: B slices, h w the latent plane, P = h w places, F channels, K codes, A length of a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.platform.contracts import segment

if TYPE_CHECKING:
    from vesalius.methods.vq_vae.settings import PriorSettings

ENTRY_SIZE, UNIT_SIZE = 7, 3
PLACE = 3


class CausalConv(nn.Module):
    """Convolution that sees the rows above, the row's left and, unless ``strict``, the place itself.

    Attributes:
        weight: (outputs, inputs, taps): the window's places in raster order, up to the last one seen.
        bias: (outputs,).
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, strict: bool) -> None:
        super().__init__()
        self.size, self.reach, self.rows = size, size // 2, size // 2 + 1
        self.taps = self.reach * size + self.reach + (0 if strict else 1)
        whole = nn.Conv1d(inputs, outputs, self.taps)  # its initialisation knows the number of inputs that count
        self.weight = nn.Parameter(whole.weight.detach())
        self.bias = nn.Parameter(whole.bias.detach() if whole.bias is not None else torch.zeros(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, h, w, outputs) from (B, h, w, inputs)."""
        kernel = F.pad(self.weight, (0, self.rows * self.size - self.taps))
        kernel = kernel.view(*self.weight.shape[:2], self.rows, self.size)
        padded = F.pad(features.movedim(-1, 1), (self.reach, self.reach, self.reach, 0))
        return F.conv2d(padded, kernel, self.bias).movedim(1, -1)


class Unit(nn.Module):
    """A gated residual unit."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = CausalConv(channels, channels, UNIT_SIZE, strict=False)
        self.dropout = nn.Dropout(dropout)
        self.second = CausalConv(channels, 2 * channels, UNIT_SIZE, strict=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return features + F.glu(self.second(self.dropout(F.elu(self.first(F.elu(features))))), dim=-1)


class Block(nn.Module):
    """Residual units, then attention to all places up to each."""

    def __init__(self, settings: PriorSettings) -> None:
        super().__init__()
        channels = settings.channels
        self.units = nn.ModuleList(Unit(channels, settings.dropout) for _ in range(settings.units))
        self.query = nn.Linear(channels + PLACE, settings.key_size)
        self.key_value = nn.Linear(2 * channels + PLACE, settings.key_size + channels)
        self.from_features = nn.Linear(channels, 2 * channels)
        self.from_attended = nn.Linear(channels, 2 * channels, bias=False)
        self.key_size, self.channels = settings.key_size, channels

    def queries(self, features: Tensor, place: Tensor) -> Tensor:
        """Return (..., A)."""
        query: Tensor = self.query(torch.cat([features, place], dim=-1))
        return query

    def keys_values(self, start: Tensor, features: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return (..., A) and (..., F)."""
        both = self.key_value(torch.cat([start, features, place], dim=-1))
        key, value = both.split([self.key_size, self.channels], dim=-1)
        return key, value

    def merge(self, features: Tensor, attended: Tensor) -> Tensor:
        """Return features with what was attended to."""
        gated = self.from_features(F.elu(features)) + self.from_attended(F.elu(attended))
        return features + F.glu(gated, dim=-1)

    def forward(self, start: Tensor, place: Tensor) -> Tensor:
        """Return (B, h, w, F) from features (B, h, w, F) at places (B, h, w, 3)."""
        features = start
        for unit in self.units:
            features = unit(features)
        key, value = self.keys_values(start, features, place)
        query = self.queries(features, place)
        query, key, value = query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.merge(features, attended.view_as(features))


class Prior(nn.Module):
    """The second stage's network."""

    def __init__(self, num_codes: int, settings: PriorSettings) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.entry = CausalConv(num_codes, settings.channels, ENTRY_SIZE, strict=True)
        self.from_place = nn.Linear(PLACE, settings.channels, bias=False)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.exit = nn.Linear(settings.channels, num_codes)

    def forward(self, codes: Tensor, position: Tensor) -> Tensor:
        """Return logits (B, h, w, K) float32 of every code given those before it.

        Args:
            codes: (B, h, w) int64.
            position: (B,) the slices' axial positions in [-0.5, 0.5].
        """
        place = places(position, (codes.shape[1], codes.shape[2]))
        one_hot = F.one_hot(codes, self.num_codes).to(place.dtype)
        features = self.entry(one_hot) + self.from_place(place)
        for block in self.blocks:
            features = segment(block, features, place)
        logits: Tensor = self.exit(F.elu(features))
        return logits.float()

    def surprise(self, codes: Tensor, position: Tensor) -> Tensor:
        """Return -log p of each code given those before it, in nats: (B, h, w)."""
        return F.cross_entropy(self(codes, position).movedim(-1, 1), codes, reduction="none")


def places(position: Tensor, plane: tuple[int, int]) -> Tensor:
    """Return (B, h, w, 3): row and column of each place and the slice's axial position, each in [-0.5, 0.5]."""
    row, column = (((torch.arange(num, device=position.device) + 0.5) / num - 0.5) for num in plane)
    everywhere = position.to(row.dtype)[:, None, None].expand(-1, *plane)
    return torch.stack([row[:, None].expand_as(everywhere), column[None, :].expand_as(everywhere), everywhere], dim=-1)
