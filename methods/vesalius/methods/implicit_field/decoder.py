"""Position encoding and the network of the implicit field.

The code reaches the network only through the linear map of the first and of the skip layer. So
``W [z, gamma(p)] = W_z z + W_p gamma(p)``, and the first term is taken once a volume, not once a point.

Shapes: B volumes, K points of each, Z length of a code, G length of an encoded position (6 L), M classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.platform.contracts import segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.methods.implicit_field.settings import ImplicitFieldSettings


def encode_positions(position: Tensor, num_frequencies: int) -> Tensor:
    """Return gamma(p) of Eq. 3, (..., 6 L) float32, for positions (..., 3) in [-1, 1].

    All sines, then all cosines; within each, x at 2^0 pi ... 2^(L-1) pi, then y, then z. The positions themselves are
    not appended.
    """
    return axis_encoding(position, num_frequencies).movedim(-1, -3).flatten(-3)


def axis_encoding(position: Tensor, num_frequencies: int) -> Tensor:
    """Return sines and cosines of each coordinate on its own: (...) -> (..., L, 2) float32."""
    turns = position.unsqueeze(-1) * 2.0 ** torch.arange(num_frequencies, device=position.device)
    # At 512 pi a float32 angle is off by 1e-4. Multiplying by a power of two and dropping whole turns are exact.
    angle = math.pi * (turns - 2 * torch.round(turns / 2))
    return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1)


class WeightNormLinear(nn.Module):
    """Linear layer with weight normalisation (Salimans and Kingma 2016): rows of length ``gain``.

    Attributes:
        direction: (out, in) unnormalised rows.
        gain: (out, 1) lengths of the rows.
        bias: (out,).
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        start = nn.Linear(num_inputs, num_outputs)
        self.direction = nn.Parameter(start.weight.detach())
        self.gain = nn.Parameter(start.weight.detach().norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(start.bias.detach())

    @property
    def weight(self) -> Tensor:
        """(out, in) normalised weight, with a graph."""
        scale: Tensor = self.gain / torch.linalg.vector_norm(self.direction, dim=1, keepdim=True)
        return self.direction * scale


class Decoder(nn.Module):
    """f(z, p): logits of the intensity classes (the paper's Fig. 1; layers as in the authors' code).

    ``hidden_layers`` linear layers with weight normalisation, ReLU and dropout, and a plain one of outputs. The layer
    before the skip layer gives only as many units as, with code and encoded position, make ``width`` again.
    """

    def __init__(self, settings: ImplicitFieldSettings) -> None:
        super().__init__()
        self.latent_dim = settings.latent_dim
        self.num_encoded = 6 * settings.num_frequencies
        self.skip_layer = settings.skip_layer
        self.dropout = settings.dropout
        num_inputs = self.latent_dim + self.num_encoded
        sizes = [num_inputs] + [settings.width] * settings.hidden_layers
        outputs = sizes[1:]
        outputs[settings.skip_layer - 1] -= num_inputs
        self.hidden = nn.ModuleList(
            WeightNormLinear(first, last) for first, last in zip(sizes[:-1], outputs, strict=True)
        )
        self.output = nn.Linear(settings.width, settings.num_classes)

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Return (weight, bias) of every layer, hidden ones normalised, the output last."""
        layers = [layer for layer in self.hidden if isinstance(layer, WeightNormLinear)]
        return [*((layer.weight, layer.bias) for layer in layers), (self.output.weight, self.output.bias)]

    def columns(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the entry or skip layer's weight into what meets the layer before (if any), the code, the position."""
        num_before = weight.shape[1] - self.latent_dim - self.num_encoded
        before, code, position = torch.split(weight, [num_before, self.latent_dim, self.num_encoded], dim=1)
        return before, code, position

    def forward(self, code: Tensor, encoded: Tensor) -> Tensor:
        """Return logits (B, K, M) for codes (B, Z) at encoded positions (B, K, G)."""
        (entry_weight, entry_bias), *inner, (output_weight, output_bias) = self.weights()
        before, skip, after = inner[: self.skip_layer - 1], inner[self.skip_layer - 1], inner[self.skip_layer :]

        def first_half(code: Tensor, encoded: Tensor) -> Tensor:
            _, from_code, from_position = self.columns(entry_weight)
            entered = F.linear(encoded, from_position) + F.linear(code, from_code, entry_bias).unsqueeze(1)
            return self._through(before, self._activate(entered))

        def second_half(hidden: Tensor, code: Tensor, encoded: Tensor) -> Tensor:
            from_hidden, from_code, from_position = self.columns(skip[0])
            joined = torch.cat([hidden, encoded.to(hidden.dtype)], dim=-1)
            weight = torch.cat([from_hidden, from_position], dim=1)
            skipped = F.linear(joined, weight) + F.linear(code, from_code, skip[1]).unsqueeze(1)
            return F.linear(self._through(after, self._activate(skipped)), output_weight, output_bias)

        return segment(second_half, segment(first_half, code, encoded), code, encoded)

    def _through(self, layers: Sequence[tuple[Tensor, Tensor]], hidden: Tensor) -> Tensor:
        for weight, bias in layers:
            hidden = self._activate(F.linear(hidden, weight, bias))
        return hidden

    def _activate(self, hidden: Tensor) -> Tensor:
        return F.dropout(torch.relu_(hidden), self.dropout, self.training)
