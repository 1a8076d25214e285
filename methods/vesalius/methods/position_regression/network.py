"""The network: from a patch to the place of its centre, and from a volume to all of its patches' places at once.

Figure 2 of the paper is lost in the text at hand: its blocks are known, their order and sizes are not. This is a
reconstruction, and ``layers`` is its table (decision 18). No layer pads, no pooling drops a voxel: a place depends on
its s_p^3 voxels and on nothing else, whether they come as a patch or as part of a volume.

m is the width, s_p the edge of a patch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.methods.position_regression.spectral import SpectralConvolution
from vesalius.platform.contracts import segment

if TYPE_CHECKING:
    from collections.abc import Sequence

PATCH_SIZES = (19, 23, 27, 31, 35, 39)
"""Edges of patches in voxels, those of the paper's appendix A."""

REDUCTION = 4
"""Voxels between neighbouring places where every pooling leaves phases out: two poolings of 2."""

_TOGETHER_VALUES = 2**19
"""Values of phases that pass as a batch: 2 MiB of float32."""

_SLOW_VALUES = 20_480
"""Values of a slice of all channels up to which PyTorch makes columns of a single image, 27 times its size."""

_STEM = 4
"""Edge of the first kernel: an even one, since poolings of 2 leave no voxel of an odd patch out only after it."""


Place = tuple[int, int, int]
"""Along D, H, W in the map."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A row of the table.

    Attributes:
        block: which block of the paper it belongs to.
        kind: what it does.
        kernel: its edge in voxels of its input.
        channels: that it puts out.
        edge: of what a patch becomes.
        parameters: trainable numbers.
    """

    block: str
    kind: Literal["convolution", "pooling", "linear"]
    kernel: int
    channels: int
    edge: int
    parameters: int


def last_kernels(patch_size: int) -> tuple[int, int, int]:
    """Return the kernels of the three convolutions after the second pooling: 3 while that leaves a voxel, then 1.

    One voxel or a cube of two is left, for which the last pooling is.
    """
    edge = (patch_size - 15) // REDUCTION
    kernels = []
    for _ in range(3):
        kernels.append(3 if edge >= 3 else 1)
        edge -= kernels[-1] - 1
    return kernels[0], kernels[1], kernels[2]


def layers(patch_size: int, width: int, in_channels: int = 1) -> list[Layer]:
    """Return the table of the network for patches of ``patch_size`` voxels and the width m."""
    table: list[Layer] = []
    m, edge, channels = width, patch_size, in_channels

    def add(block: str, kind: Literal["convolution", "pooling", "linear"], kernel: int, out: int) -> None:
        nonlocal edge, channels
        edge = edge // 2 if kind == "pooling" else edge - kernel + 1
        parameters = 0 if kind == "pooling" else out * (channels * kernel**3 + 1)
        channels = out
        table.append(Layer(block=block, kind=kind, kernel=kernel, channels=out, edge=edge, parameters=parameters))

    down, first, second = last_kernels(patch_size)
    add("Stem", "convolution", _STEM, m)
    add("Downsample", "pooling", 2, m)
    add("Downsample", "convolution", 3, 2 * m)
    add("Residual", "convolution", 3, 2 * m)
    add("Residual", "convolution", 3, 2 * m)
    add("Downsample", "pooling", 2, 2 * m)
    add("Downsample", "convolution", down, 4 * m)
    add("Residual", "convolution", first, 4 * m)
    add("Residual", "convolution", second, 4 * m)
    if edge == 2:
        add("Last", "pooling", 2, 4 * m)
    add("Affine", "linear", 1, 8 * m)
    add("Affine", "linear", 1, 3)
    return table


def multiply_adds(table: Sequence[Layer], in_channels: int = 1) -> tuple[int, int]:
    """Return the multiply-adds of convolutions and affine layers: (of one patch, of one voxel of a dense map).

    In a dense map each layer is evaluated once a voxel, the margins of tiles left aside.
    """
    patch = voxel = 0
    channels = in_channels
    for layer in table:
        if layer.kind != "pooling":
            once = channels * layer.channels * layer.kernel**3
            voxel += once
            patch += once * layer.edge**3
        channels = layer.channels
    return patch, voxel


def phases_each(level: int, spacing: int) -> int:
    """Return how many phases along each axis the pooling after ``level`` keeps for places ``spacing`` voxels apart."""
    return 2 if spacing < 2 ** (level + 1) else 1


def is_slow(num_channels: int, edges: Sequence[int]) -> bool:
    """Return whether PyTorch's CPU convolution takes its slow path for a single image: kernels of 3, a small slice."""
    return num_channels * edges[0] * edges[1] <= _SLOW_VALUES


def phases_together(num_channels: int, edges: Sequence[int], phases: int) -> int:
    """Return how many of the phases of an image pass as a batch: small ones do, and two at least spare the slow path.

    Args:
        num_channels: of one phase, those of all images of its batch.
        edges: of one phase, along D, H, W.
        phases: that there are.
    """
    fewest = 2 if is_slow(num_channels, edges) else 1
    return min(phases, max(fewest, _TOGETHER_VALUES // (num_channels * math.prod(edges))))


class Residual(nn.Module):
    """Two unpadded convolutions beside the middle of their input: relu(conv(relu(conv(x))) + x)."""

    def __init__(self, channels: int, kernels: tuple[int, int]) -> None:
        super().__init__()
        first, second = kernels
        self.first = SpectralConvolution(channels, channels, first)
        self.second = SpectralConvolution(channels, channels, second)
        self._margin = (first + second - 2) // 2

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C, D - 2 margin, ...) of (B, C, D, H, W)."""
        change = self.second(F.relu(self.first(image), inplace=True))
        cut = self._margin
        d, h, w = (slice(cut, n - cut) for n in image.shape[-3:])
        return F.relu(change.add_(image[..., d, h, w]), inplace=True)


class Last(nn.Module):
    """The mean of every cube of two voxels: of a patch one voxel is left, so that its stride is no matter."""

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C, D - 1, ...) of (B, C, D, H, W)."""
        for axis in (2, 3, 4):
            num = image.shape[axis] - 1
            image = (image.narrow(axis, 0, num) + image.narrow(axis, 1, num)) / 2
        return image


def halved(image: Tensor) -> Tensor:
    """Return (B, C, D / 2, ...), the means of cubes of two voxels, of (B, C, D, H, W) with even edges.

    As ``avg_pool3d``, whose gradient on CUDA depends on the order of its additions and which PyTorch therefore refuses
    where it shall be deterministic.
    """
    for axis in (2, 3, 4):
        image = torch.unflatten(image, axis, (-1, 2)).mean(axis + 1)
    return image


class PositionNetwork(nn.Module):
    """Patch position regression (section 2.1): convolutions under spectral normalisation, then affine layers.

    Attributes:
        patch_size: s_p.
        width: m.
        levels: what stands before, between and after the two poolings that halve.
        head: the affine layers, as convolutions of one voxel, since they stand at every voxel of a map.
    """

    def __init__(self, patch_size: int, width: int, in_channels: int) -> None:
        """Build it.

        Raises:
            ValueError: a size of patch without a table.
        """
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise ValueError(f"patches of {patch_size} voxels: expected one of {', '.join(map(str, PATCH_SIZES))}")
        self.patch_size, self.width, self.in_channels = patch_size, width, in_channels
        m = width
        down, first, second = last_kernels(patch_size)
        last: list[nn.Module] = [
            SpectralConvolution(2 * m, 4 * m, down),
            nn.ReLU(inplace=True),
            Residual(4 * m, (first, second)),
        ]
        if (patch_size - 15) // REDUCTION - (down + first + second - 3) == 2:
            last.append(Last())
        self.levels = nn.ModuleList(
            [
                nn.Sequential(SpectralConvolution(in_channels, m, _STEM), nn.ReLU(inplace=True)),
                nn.Sequential(SpectralConvolution(m, 2 * m, 3), nn.ReLU(inplace=True), Residual(2 * m, (3, 3))),
                nn.Sequential(*last),
            ]
        )
        places = nn.Conv3d(8 * m, 3, 1)
        assert places.bias is not None
        nn.init.constant_(places.bias, 0.5)  # a new network answers near the middle of the box
        self.head = nn.Sequential(nn.Conv3d(4 * m, 8 * m, 1), nn.ReLU(inplace=True), places)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the places (B, 3) of patches (B, C, s_p, s_p, s_p), as fractions of the box along D, H, W."""
        stem, middle, last = self.levels
        # Each segment ends with the pooling, an eighth of what it is given.
        patches = segment(lambda image: halved(stem(image)), patches)
        patches = segment(lambda image: halved(middle(image)), patches)
        return segment(lambda image: self._places(last(image)), patches).flatten(1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.head.parameters()).dtype

    def _places(self, features: Tensor) -> Tensor:
        """Return places (B, 3, ...) of features (B, 4 m, ...) in the weights' own type, whatever the rest runs in.

        Between 1/2 and 1 bfloat16 has steps of 1/256 alone, more than what tells a new network's patches apart.
        """
        with torch.autocast(features.device.type, enabled=False):
            places: Tensor = self.head(features.to(self._dtype))
        return places

    def dense(self, image_CDHW: Tensor, spacing: int = 1) -> Tensor:
        """Return the places of the patches of an image, every ``spacing`` voxels along each axis.

        Equal to ``forward`` of each patch, to float tolerance, with every layer evaluated once a voxel: before each
        pooling the image is taken at both phases along each axis, and each of the eight goes its way alone: large ones
        one after the other, so that beyond the first level no more than an eighth of a volume is held.

        Args:
            image_CDHW: (C, D, H, W) whose edges are s_p - 1 more than multiples of 4.
            spacing: 1, 2 or 4; patch i along an axis begins at voxel i * spacing.

        Returns:
            (3, (D - s_p + 1) / spacing, ...) float32.

        Raises:
            ValueError: an edge or a spacing of another kind.
        """
        edges = [n - self.patch_size + 1 for n in image_CDHW.shape[-3:]]
        if min(edges) < REDUCTION or any(n % REDUCTION for n in edges) or spacing not in (1, 2, REDUCTION):
            raise ValueError(f"an image of {tuple(image_CDHW.shape)} has no dense map of spacing {spacing}")
        found = image_CDHW.new_empty(3, *(n // spacing for n in edges), dtype=self._dtype)
        self._descend(image_CDHW[None], 0, spacing, found, [(0, 0, 0)], 1)
        return found

    def _descend(
        self, image: Tensor, level: int, spacing: int, found: Tensor, firsts: Sequence[Place], every: int
    ) -> None:
        """Write the places of a batch of images: of each at its first place of the map, and ``every`` so many."""
        image = self.levels[level](image)
        if level + 1 == len(self.levels):
            for (i, j, k), places in zip(firsts, self._places(image), strict=True):
                found[:, i::every, j::every, k::every].copy_(places)
            return
        each = phases_each(level, spacing)
        phases = list(itertools.product(range(each), repeat=3))
        # Edges are such that both phases have as many voxels: of one, the last is left over.
        together = phases_together(image.shape[:2].numel(), [n // 2 for n in image.shape[2:]], len(phases))
        for start in range(0, len(phases), together):
            some = phases[start : start + together]
            self._descend(
                torch.cat([F.avg_pool3d(image[..., i:, j:, k:], 2) for i, j, k in some]),
                level + 1,
                spacing,
                found,
                [(a + every * i, b + every * j, c + every * k) for i, j, k in some for a, b, c in firsts],
                every * each,
            )
