"""The error map of a whole volume, tile by tile: memory is bounded by a setting, and the map does not depend on it."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.methods.position_regression.network import REDUCTION, is_slow, layers, phases_each, phases_together
from vesalius.platform.contracts import whole_float32

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vesalius.methods.position_regression.network import PositionNetwork

Box = tuple[slice, slice, slice]

_LIBRARY_BYTES = 2**25


def error_map(
    network: PositionNetwork,
    image_CDHW: Tensor,
    axes: Sequence[Tensor],
    wanted_DHW: Tensor,
    *,
    background: float,
    stride: int,
    tile_bytes: int,
) -> Tensor:
    """Return the distance (D, H, W) between where each voxel's patch lies and where the network says (section 2).

    Args:
        network: in eval mode.
        image_CDHW: the volume, which is continued by ``background`` beyond its faces.
        axes: three (n,), the places of voxel centres along D, H, W as fractions of the box.
        wanted_DHW: bool, voxels whose error is asked for; the others are zero.
        background: what stands beyond the volume.
        stride: voxels between evaluated centres along each axis, from the first voxel on; between them the error is
            interpolated linearly, beyond the last it stays.
        tile_bytes: what may be held beside the volume, its mask and the map.
    """
    shape = wanted_DHW.shape
    spacing = math.gcd(stride, REDUCTION)
    errors = image_CDHW.new_zeros([-(-n // spacing) for n in shape])
    for tile in _tiles(wanted_DHW, tile_edge(network, tile_bytes, spacing), stride):
        # Ten bits move places by a thousandth: the map would depend on its tiles, and a volume's number is a maximum.
        with whole_float32():
            places = network.dense(_cut(image_CDHW, tile, network.patch_size, background), spacing)
        # A last tile may reach beyond the volume: no voxel lies there.
        inside = [slice(side.start, min(side.stop, n), spacing) for side, n in zip(tile, shape, strict=True)]
        true = [along[side] for along, side in zip(axes, inside, strict=True)]
        d, h, w = map(len, true)
        squares = [
            (found[:d, :h, :w] - place.view([-1 if axis == other else 1 for other in range(3)])).square_()
            for axis, (found, place) in enumerate(zip(places, true, strict=True))
        ]
        i, j, k = (slice(side.start // spacing, -(-side.stop // spacing)) for side in inside)
        errors[i, j, k] = squares[0].add_(squares[1]).add_(squares[2]).sqrt_()
    every = stride // spacing
    return between(errors[::every, ::every, ::every], stride, shape).masked_fill_(~wanted_DHW, 0)


def between(values: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """Return ``shape`` voxels from values at every ``stride``-th: linearly between them, the last one beyond it."""
    if stride == 1:
        return values.clone()
    spanned = [(n - 1) * stride + 1 for n in values.shape]
    filled = F.interpolate(values[None, None], size=spanned, mode="trilinear", align_corners=True)
    (d, h, w), (a, b, c) = shape, spanned
    return F.pad(filled, (0, w - c, 0, h - b, 0, d - a), mode="replicate")[0, 0]


def reached(mask_DHW: Tensor, size: int) -> Tensor:
    """Return a mask (D, H, W) of the voxels whose cube of ``size`` voxels (odd) holds a voxel of ``mask_DHW``."""
    found = mask_DHW.to(torch.float32)[None, None]
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = size, size // 2
        found = F.max_pool3d(found, kernel, 1, padding)
    return found[0, 0] > 0


def tile_edge(network: PositionNetwork, tile_bytes: int, spacing: int = 1) -> int:
    """Return the largest edge in voxels, a multiple of 4, of a tile that takes ``tile_bytes`` at most; 4 at least."""
    edge = REDUCTION
    while working_bytes(network, edge + REDUCTION, spacing) <= tile_bytes:
        edge += REDUCTION
    return edge


def working_bytes(network: PositionNetwork, edge: int, spacing: int = 1) -> int:
    """Return what a tile of ``edge`` voxels takes at most while it is evaluated, its input and output included.

    A convolution counts with its input and output in the order that the CPU's library has, in blocks of 16 channels, or
    with the columns that PyTorch makes of small images; that library's own buffers count 32 MiB. What a CUDA library
    takes as workspace is not counted.
    """
    num, channels, batch, level = edge + network.patch_size - 1, network.in_channels, 1, 0
    current = channels * num**3
    held = current  # the tile itself; then what each level leaves until all phases below it are done
    most = entry = 0
    block = ""
    for layer in layers(network.patch_size, network.width, network.in_channels):
        if layer.block != block:
            block = layer.block
            entry = current if block == "Residual" else 0  # waits for the block's second convolution
        ordered = batch * _in_blocks(channels) * num**3
        slow = batch == 1 and layer.kernel == 3 and is_slow(channels, (num, num))
        if layer.block == "Downsample" and layer.kind == "pooling":
            held += current
            num //= 2
            batch *= phases_together(batch * channels, (num,) * 3, phases_each(level, spacing) ** 3)
            level += 1
        else:
            num -= layer.kernel - 1
        out = batch * layer.channels * num**3
        ordered += batch * -(-layer.channels // 16) * 16 * num**3
        beside = channels * (layer.kernel * num) ** 3 if slow else ordered
        most = max(most, held + entry + current + out + beside)
        current, channels = out, layer.channels
    return _LIBRARY_BYTES + 4 * (most + 8 * edge**3)


def _in_blocks(channels: int) -> int:
    """Return the channels that an input has in the order of the CPU's library: few are left as they are."""
    return channels if channels <= 3 else -(-channels // 16) * 16


def _tiles(wanted_DHW: Tensor, largest: int, stride: int) -> Iterator[Box]:
    """Yield tiles of one size that cover the wanted voxels, without those that hold nothing which these need."""
    sides = []
    for axis, num in enumerate(wanted_DHW.shape):
        others = [other for other in range(3) if other != axis]
        along = torch.nonzero(wanted_DHW.any(others[1]).any(others[0])).flatten().tolist()
        if not along:
            return
        # A voxel between two evaluated centres needs both.
        start = max(0, along[0] - stride) // REDUCTION * REDUCTION
        stop = min(num, along[-1] + 1 + stride)
        count = -(-(stop - start) // largest)
        edge = -(-(stop - start) // (count * REDUCTION)) * REDUCTION
        sides.append([slice(begin, begin + edge) for begin in range(start, stop, edge)])
    for i, j, k in itertools.product(*sides):
        around = [slice(max(0, side.start - stride), side.stop + stride) for side in (i, j, k)]
        if wanted_DHW[around[0], around[1], around[2]].any():
            yield i, j, k


def _cut(image_CDHW: Tensor, tile: Box, patch_size: int, background: float) -> Tensor:
    """Return (C, d + s_p - 1, ...) voxels: the patches of a tile's voxels."""
    reach = patch_size // 2
    edges = [side.stop - side.start + 2 * reach for side in tile]
    cut = image_CDHW.new_full((image_CDHW.shape[0], *edges), background)
    source, target = [], []
    for side, num in zip(tile, image_CDHW.shape[-3:], strict=True):
        start, stop = max(0, side.start - reach), min(num, side.stop + reach)
        source.append(slice(start, stop))
        target.append(slice(start - side.start + reach, stop - side.start + reach))
    cut[:, target[0], target[1], target[2]] = image_CDHW[:, source[0], source[1], source[2]]
    return cut
