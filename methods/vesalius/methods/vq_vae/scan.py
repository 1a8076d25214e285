"""The prior a place at a time: what an earlier place gave is kept, so that each is computed once a raster scan.

Going through a slice of P places by whole passes computes every place P times. Here a place costs a product of the
window in each convolution (the rows that the window reaches into are kept) and one attention row (keys and values are
kept). The numbers are those of the whole pass to float rounding.

Shapes: N sequences (slices times restorations), F channels, K codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from vesalius.methods.vq_vae.prior import Block, CausalConv, Prior, Unit, places

if TYPE_CHECKING:
    from torch import Tensor


class Scan:
    """A raster scan of N sequences: ask for each place's logits, then say which codes stand there."""

    def __init__(self, prior: Prior, position: Tensor, plane: tuple[int, int]) -> None:
        """Begin at the first place.

        Args:
            prior: in eval mode; its weights are read once.
            position: (N,) axial positions.
            plane: h, w.
        """
        self._prior = prior
        self._plane = plane
        self._place = places(position, plane).flatten(1, 2)
        self._entry = _Entry(prior.entry, prior.num_codes, len(position), plane[1])
        self._from_place = prior.from_place(self._place) + prior.entry.bias
        self._blocks = [_BlockState(block, len(position), plane) for block in prior.blocks if isinstance(block, Block)]
        self._next = 0

    def logits(self) -> Tensor:
        """Return the next place's logits (N, K)."""
        column = self._next % self._plane[1]
        place = self._place[:, self._next]
        features = self._entry.at(column) + self._from_place[:, self._next]
        for block in self._blocks:
            features = block.at(self._next, features, place)
        logits: Tensor = self._prior.exit(F.elu(features))
        return logits

    def put(self, codes: Tensor) -> None:
        """Set the next place's codes (N,) and go on to the one after it."""
        self._entry.put(self._next % self._plane[1], codes)
        self._next += 1
        if self._next % self._plane[1] == 0:
            self._entry.end_row()
            for block in self._blocks:
                block.end_row()


class _Entry:
    """The first convolution as sums of table rows: a one-hot input chooses a row a tap."""

    def __init__(self, layer: CausalConv, num_codes: int, num: int, width: int) -> None:
        # A last row of zeros a tap stands for what lies outside the plane.
        table = F.pad(layer.weight.permute(2, 1, 0), (0, 0, 0, 1))
        self._table = table.flatten(0, 1)
        self._first_row = torch.arange(layer.taps, device=table.device) * (num_codes + 1)
        self._window = _window(layer, width).to(table.device)
        self._reach, self._row = layer.reach, width + 2 * layer.reach
        self._codes = torch.full((num, layer.rows * self._row), num_codes, device=table.device)
        self._outside = num_codes

    def at(self, column: int) -> Tensor:
        rows = self._codes[:, self._window + column] + self._first_row
        return F.embedding_bag(rows, self._table, mode="sum")

    def put(self, column: int, codes: Tensor) -> None:
        self._codes[:, -self._row + self._reach + column] = codes

    def end_row(self) -> None:
        self._codes = F.pad(self._codes[:, self._row :], (0, self._row), value=self._outside)


class _ConvState:
    """The rows of its input that a convolution still looks at."""

    def __init__(self, layer: CausalConv, num: int, width: int) -> None:
        # (taps F, outputs): one product a place.
        self._matrix = layer.weight.permute(2, 1, 0).flatten(0, 1).contiguous()
        self._bias = layer.bias
        self._reach, self._row = layer.reach, width + 2 * layer.reach
        self._window = _window(layer, width).to(layer.weight.device)
        self._kept = layer.weight.new_zeros(num, layer.rows * self._row, layer.weight.shape[1])

    def at(self, column: int, features: Tensor) -> Tensor:
        self._kept[:, -self._row + self._reach + column] = features
        window = self._kept.index_select(1, self._window + column)
        return torch.addmm(self._bias, window.flatten(1), self._matrix)

    def end_row(self) -> None:
        # What the new row holds to the right is never looked at before it is written.
        self._kept[:, : -self._row] = self._kept[:, self._row :].clone()


class _UnitState:
    def __init__(self, unit: Unit, num: int, width: int) -> None:
        self._first = _ConvState(unit.first, num, width)
        self._second = _ConvState(unit.second, num, width)

    def at(self, column: int, features: Tensor) -> Tensor:
        hidden = F.elu(self._first.at(column, F.elu(features)))
        return features + F.glu(self._second.at(column, hidden), dim=-1)

    def end_row(self) -> None:
        self._first.end_row()
        self._second.end_row()


class _BlockState:
    def __init__(self, block: Block, num: int, plane: tuple[int, int]) -> None:
        self._block = block
        self._width = plane[1]
        self._units = [_UnitState(unit, num, plane[1]) for unit in block.units if isinstance(unit, Unit)]
        weight = block.query.weight
        self._keys = weight.new_zeros(num, plane[0] * plane[1], block.key_size)
        self._values = weight.new_zeros(num, plane[0] * plane[1], block.channels)

    def at(self, number: int, start: Tensor, place: Tensor) -> Tensor:
        features = start
        for unit in self._units:
            features = unit.at(number % self._width, features)
        self._keys[:, number], self._values[:, number] = self._block.keys_values(start, features, place)
        query = self._block.queries(features, place)
        seen = slice(0, number + 1)
        alike = (self._keys[:, seen] @ query[:, :, None])[:, :, 0] / self._block.key_size**0.5
        attended = (alike.softmax(-1)[:, None] @ self._values[:, seen])[:, 0]
        return self._block.merge(features, attended)

    def end_row(self) -> None:
        for unit in self._units:
            unit.end_row()


def _window(layer: CausalConv, width: int) -> Tensor:
    """Return where the taps of column 0 lie in kept rows of ``width`` columns, padded on both sides: (taps,)."""
    tap = torch.arange(layer.taps)
    return tap // layer.size * (width + 2 * layer.reach) + tap % layer.size
