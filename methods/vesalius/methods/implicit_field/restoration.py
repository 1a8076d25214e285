"""Codes of new volumes, many at a time, and the cross-entropy at every voxel.

The network is frozen here: weights are normalised once, split once into what meets the code, the position and the
layer before, and never get a gradient. Two things are taken out of the loop over points:

- ``W_z z``, in the first and in the skip layer, once a volume and step;
- ``W_p gamma(p)``: gamma treats the coordinates one by one, so for voxel (i, j, k) it is the sum of a row for i, one
  for j and one for k, each of which is computed once a grid.

Shapes: V volumes, P points of each, Z length of a code, U units of a layer, M classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.methods.implicit_field.decoder import axis_encoding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vesalius.methods.implicit_field.decoder import Decoder

_CPU_ACTIVATION_BYTES = 8 << 20
_CUDA_ACTIVATION_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class Field:
    """A frozen network, its weights folded and split.

    Attributes:
        code: per entry and skip layer, (U, Z) weight and (U,) bias, float32.
        position: per entry and skip layer, (U, 3, L, 2) weight of sines and cosines by axis, float32.
        before: weights and biases of the hidden layers between entry and skip layer.
        skip: (U, U') weight of the skip layer for the layer before it.
        after: weights and biases from the skip layer's outputs to the logits.
        dtype: arithmetic of the layers; codes, position rows and logits are computed in float32.
    """

    code: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    position: tuple[Tensor, Tensor]
    before: tuple[tuple[Tensor, Tensor], ...]
    skip: Tensor
    after: tuple[tuple[Tensor, Tensor], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, decoder: Decoder, dtype: torch.dtype) -> Field:
        """Fold a decoder's weights as they are now."""
        weights = [(weight.detach(), bias.detach()) for weight, bias in decoder.weights()]
        skip = decoder.skip_layer
        (entry_weight, entry_bias), (skip_weight, skip_bias) = weights[0], weights[skip]
        _, entry_code, entry_position = decoder.columns(entry_weight)
        skip_before, skip_code, skip_position = decoder.columns(skip_weight)
        layers = [(weight.to(dtype), bias.to(dtype)) for weight, bias in weights]
        return cls(
            code=((entry_code, entry_bias), (skip_code, skip_bias)),
            position=(_by_axis(entry_position), _by_axis(skip_position)),
            before=tuple(layers[1:skip]),
            skip=skip_before.to(dtype).contiguous(),
            after=tuple(layers[skip + 1 :]),
            dtype=dtype,
        )

    def code_parts(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return what codes (V, Z) give to the entry and to the skip layer, biases included: (V, U) float32 each."""
        (entry_weight, entry_bias), (skip_weight, skip_bias) = self.code
        return F.linear(code, entry_weight, entry_bias), F.linear(code, skip_weight, skip_bias)

    def position_rows(self, axes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return what each voxel index gives to the entry and to the skip layer: by axis (n, U) of ``dtype``."""
        rows = [self.axis_rows(number, axis) for number, axis in enumerate(axes)]
        return [entry for entry, _ in rows], [skip for _, skip in rows]

    def axis_rows(self, number: int, axis: Tensor) -> tuple[Tensor, Tensor]:
        """Return what indices along one of D, H, W give to the entry and to the skip layer: (n, U) of ``dtype``."""
        entry, skip = (
            torch.einsum("nlt,ult->nu", axis_encoding(axis, weight.shape[2]), weight[:, number]).to(self.dtype)
            for weight in self.position
        )
        return entry, skip

    def logits(self, entry: Tensor, skip: Tensor) -> Tensor:
        """Return float32 logits (P, M) from the entry and skip layers' sums of code and position parts (P, U).

        ``entry`` is overwritten.
        """
        hidden = entry.relu_()
        for weight, bias in self.before:
            hidden = F.linear(hidden, weight, bias).relu_()
        hidden = torch.addmm(skip, hidden, self.skip.t()).relu_()
        for weight, bias in self.after[:-1]:
            hidden = F.linear(hidden, weight, bias).relu_()
        weight, bias = self.after[-1]
        return F.linear(hidden, weight, bias).float()

    @property
    def chunk(self) -> int:
        """Points that pass the network at once: a layer's outputs should stay near the processor."""
        budget = _CUDA_ACTIVATION_BYTES if self.skip.is_cuda else _CPU_ACTIVATION_BYTES
        return max(256, budget // (4 * self.skip.shape[0]))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A volume to be restored.

    Attributes:
        labels: (D, H, W) uint8 classes after mode pooling.
        axes: normalised coordinates of voxel centres along D, H and W.
        generator: CPU generator of this volume's sampled points; keyed by its content, so that a volume restored
            alone sees the same points as among others.
    """

    labels: Tensor
    axes: tuple[Tensor, Tensor, Tensor]
    generator: torch.Generator


def restore(
    field: Field,
    targets: Sequence[Target],
    start: Tensor,
    *,
    phases: Sequence[tuple[int, int]],
    learning_rate: Callable[[float], float],
    prior: Callable[[Tensor, int], Tensor] | None,
    bound: float | None,
) -> Tensor:
    """Return the codes (V, Z) that minimise Eq. 4 for each of the volumes, all in one batch.

    Args:
        field: the frozen network.
        targets: V volumes, of any shapes.
        start: (V, Z) float32 codes to start from.
        phases: (steps, points a step), one after the other; Adam runs through all of them.
        learning_rate: Adam's rate as a function of progress in [0, 1].
        prior: (codes, points) -> (V,) penalty that stands beside the cross-entropy SUMMED over the points, or None.
        bound: radius of the ball that codes are projected onto after a step, or None.
    """
    tables, offsets = _tables(field, targets)
    code = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([code], lr=1.0)
    num_steps = sum(steps for steps, _ in phases)
    step = 0
    with torch.enable_grad():
        for steps, num_points in phases:
            for _ in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step / num_steps)
                rows, labels = _draw(targets, offsets, num_points)
                optimizer.zero_grad()
                # The mean over points, as in training: Adam's steps are the same, its epsilon stays small beside them.
                _backward(field, tables, code, rows, labels)
                if prior is not None:
                    (prior(code, num_points).sum() / num_points).backward()  # type: ignore[no-untyped-call]  # untyped in torch
                optimizer.step()
                if bound is not None:
                    with torch.no_grad():
                        code.renorm_(2, 0, bound)
                step += 1
    return code.detach()


def cross_entropy(
    field: Field, code: Tensor, target: Target, centres: Tensor, *, expectation: bool
) -> tuple[Tensor, Tensor]:
    """Return -log P(t | z, p) at every voxel and the restored intensities, (D, H, W) float32 each.

    Args:
        field: the frozen network.
        code: (Z,) the volume's code.
        target: the volume; its pooled classes are t.
        centres: (M,) intensity of each class.
        expectation: restore the classes' expected intensity rather than the most probable class's.
    """
    (entry_d, entry_h, entry_w), (skip_d, skip_h, skip_w) = field.position_rows(target.axes)
    entry_code, skip_code = (part[0].to(field.dtype) for part in field.code_parts(code[None]))
    d, h, w = target.labels.shape
    lines = target.labels.reshape(d * h, w)
    anomaly = torch.empty((d * h, w), device=lines.device)
    restored = torch.empty_like(anomaly)
    num_lines = max(1, field.chunk // w)
    for first in range(0, d * h, num_lines):
        index = torch.arange(first, min(first + num_lines, d * h), device=lines.device)
        i, j = index // h, index % h
        entry = (entry_d[i] + entry_h[j] + entry_code).unsqueeze(1) + entry_w
        skip = (skip_d[i] + skip_h[j] + skip_code).unsqueeze(1) + skip_w
        logits = field.logits(entry.flatten(0, 1), skip.flatten(0, 1))
        labels = lines[first : first + num_lines]
        anomaly[first : first + num_lines] = F.cross_entropy(logits, labels.flatten().long(), reduction="none").view_as(
            labels
        )
        image = logits.softmax(-1) @ centres if expectation else centres[logits.argmax(-1)]
        restored[first : first + num_lines] = image.view_as(labels)
    return anomaly.view(d, h, w), restored.view(d, h, w)


def averaged(restorations: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the mean evidence and intensities of several restorations of a volume, and the evidence's deviation.

    Of one restoration its own, and no deviation. The deviation (over N, as of a whole population) is taken of the
    evidence before post-processing.
    """
    if len(restorations) == 1:
        return *restorations[0], None
    evidence, restored = (torch.stack(maps) for maps in zip(*restorations, strict=True))
    return evidence.mean(0), restored.mean(0), evidence.std(0, correction=0)


def _by_axis(weight: Tensor) -> Tensor:
    """Arrange the position columns (U, 2 * 3 * L), sines before cosines, as (U, 3, L, 2)."""
    return weight.reshape(weight.shape[0], 2, 3, -1).permute(0, 2, 3, 1).contiguous()


def _tables(field: Field, targets: Sequence[Target]) -> tuple[tuple[Tensor, Tensor], list[tuple[int, int, int]]]:
    """Return the entry and skip layers' rows of all volumes' axes, one below the other, and each axis's first row."""
    entry: list[Tensor] = []
    skip: list[Tensor] = []
    offsets: list[tuple[int, int, int]] = []
    known: dict[tuple[int, tuple[float, ...]], int] = {}
    total = 0
    for target in targets:
        for number, axis in enumerate(target.axes):
            # Volumes of one grid share all axes, slices of one plane two of them.
            key = (number, tuple(axis.tolist()))
            if key not in known:
                known[key] = total
                total += axis.numel()
                rows = field.axis_rows(number, axis)
                entry.append(rows[0])
                skip.append(rows[1])
        d, h, w = (known[number, tuple(axis.tolist())] for number, axis in enumerate(target.axes))
        offsets.append((d, h, w))
    return (torch.cat(entry), torch.cat(skip)), offsets


def _draw(targets: Sequence[Target], offsets: Sequence[tuple[int, int, int]], num_points: int) -> tuple[Tensor, Tensor]:
    """Draw voxels uniformly: rows of the tables (V, P, 3) and classes (V, P)."""
    rows, labels = [], []
    for target, offset in zip(targets, offsets, strict=True):
        _, h, w = target.labels.shape
        drawn = torch.randint(target.labels.numel(), (num_points,), generator=target.generator)
        place = drawn.to(target.labels.device, non_blocking=True)
        labels.append(target.labels.flatten()[place].long())
        rows.append(
            torch.stack([place // (h * w) + offset[0], place // w % h + offset[1], place % w + offset[2]], dim=1)
        )
    return torch.stack(rows), torch.stack(labels)


def _backward(field: Field, tables: tuple[Tensor, Tensor], code: Tensor, rows: Tensor, labels: Tensor) -> None:
    """Add to ``code.grad`` the gradient of each volume's mean cross-entropy, a chunk of points at a time."""
    parts = field.code_parts(code)
    # Chunks accumulate at the code's parts; the way from there to the codes is walked once.
    leaves = [part.detach().requires_grad_() for part in parts]
    num_volumes, num_points = labels.shape
    num = max(1, field.chunk // num_volumes)
    for first in range(0, num_points, num):
        chunk_rows = rows[:, first : first + num].flatten(0, 1)
        chunk_labels = labels[:, first : first + num].flatten()
        entry, skip = (
            _spread(F.embedding_bag(chunk_rows, table, mode="sum"), leaf)
            for table, leaf in zip(tables, leaves, strict=True)
        )
        loss = F.cross_entropy(field.logits(entry, skip), chunk_labels, reduction="sum") / num_points
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    torch.autograd.backward(parts, [leaf.grad for leaf in leaves if leaf.grad is not None])


def _spread(points: Tensor, code_part: Tensor) -> Tensor:
    """Add each volume's code part (V, U) to all of its points (V * P, U)."""
    num_volumes, num_units = code_part.shape
    return (points.view(num_volumes, -1, num_units) + code_part.to(points.dtype).unsqueeze(1)).flatten(0, 1)
