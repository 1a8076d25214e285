"""The dense error map of position regression against one forward a patch, and against closed forms."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vesalius.methods.position_regression.dense import between, error_map, reached, tile_edge, working_bytes
from vesalius.methods.position_regression.network import PATCH_SIZES, PositionNetwork, layers
from vesalius.methods.position_regression.spectral import SpectralConvolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BACKGROUND = -0.3
ATOL = 2e-6
SMALLEST = 1
"""Bytes of a tile: less than any takes, so that tiles have 4 voxels."""


def network_of(patch_size: int, width: int = 2, channels: int = 1, seed: int = 0) -> PositionNetwork:
    torch.manual_seed(seed)
    return PositionNetwork(patch_size, width, channels).eval().requires_grad_(False)


def axes_of(shape: Sequence[int]) -> list[Tensor]:
    return [(torch.arange(n) + 0.5) / n for n in shape]


def by_patch(network: PositionNetwork, image: Tensor, centres: Sequence[tuple[int, ...]]) -> Tensor:
    """Return the errors at voxels (i, j, k), one forward a patch."""
    size = network.patch_size
    padded = F.pad(image, (size // 2,) * 6, value=BACKGROUND)
    axes = axes_of(image.shape[1:])
    errors = []
    for i, j, k in centres:
        place = network(padded[None, :, i : i + size, j : j + size, k : k + size])[0]
        errors.append(torch.linalg.vector_norm(place - torch.stack([axes[0][i], axes[1][j], axes[2][k]])))
    return torch.stack(errors)


def densely(
    network: PositionNetwork, image: Tensor, *, stride: int = 1, tile_bytes: int = 2**28, wanted: Tensor | None = None
) -> Tensor:
    shape = image.shape[1:]
    everywhere = torch.ones(shape, dtype=torch.bool)
    return error_map(
        network,
        image,
        axes_of(shape),
        everywhere if wanted is None else wanted,
        background=BACKGROUND,
        stride=stride,
        tile_bytes=tile_bytes,
    )


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_dense_equals_every_patch_of_a_small_volume(patch_size: int) -> None:
    network = network_of(patch_size)
    image = torch.randn(1, 6, 5, 7)
    expected = by_patch(network, image, list(itertools.product(range(6), range(5), range(7)))).view(6, 5, 7)
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(densely(network, image), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_dense_equals_patches_at_random_places_of_a_larger_volume(patch_size: int) -> None:
    network = network_of(patch_size, width=3, channels=2)
    shape = (33, 42, 27)
    image = torch.randn(2, *shape)
    errors = densely(network, image)
    drawn = torch.Generator().manual_seed(patch_size)
    centres = [tuple(int(torch.randint(n, (), generator=drawn)) for n in shape) for _ in range(40)]
    found = torch.stack([errors[centre] for centre in centres])
    torch.testing.assert_close(found, by_patch(network, image, centres), rtol=0, atol=ATOL)


@pytest.mark.parametrize("width", [1, 16, 64])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_dense_equals_patches_for_every_size_and_width(
    monkeypatch: pytest.MonkeyPatch, patch_size: int, width: int
) -> None:
    """With phases going one after the other as far as they may, as they do in large tiles."""
    monkeypatch.setattr("vesalius.methods.position_regression.network._TOGETHER_VALUES", 1)
    network = network_of(patch_size, width=width)
    image = torch.randn(1, 4, 5, 3)
    centres = [(0, 0, 0), (3, 4, 2), (1, 2, 1), (2, 3, 0)]
    errors = densely(network, image)
    found = torch.stack([errors[centre] for centre in centres])
    torch.testing.assert_close(found, by_patch(network, image, centres), rtol=0, atol=ATOL)


def widths_and_shapes() -> st.SearchStrategy[tuple[int, tuple[int, int, int]]]:
    """Return any width of the paper's and a volume of odd and even edges, a smaller one where a tile takes seconds."""

    def of_width(width: int) -> st.SearchStrategy[tuple[int, tuple[int, int, int]]]:
        edges = st.integers(1, 11 if width <= 4 else 5)
        return st.tuples(st.just(width), st.tuples(edges, edges, edges))

    return st.sampled_from([1, 2, 4, 8, 16, 32, 64]).flatmap(of_width)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
@settings(max_examples=6)
@given(
    width_and_shape=widths_and_shapes(),
    tile_bytes=st.sampled_from((SMALLEST, 2**25 + 2_000_000, 2**28)),
    stride=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_dense_equals_patches_whatever_the_shape(
    patch_size: int, width_and_shape: tuple[int, tuple[int, int, int]], tile_bytes: int, stride: int, seed: int
) -> None:
    width, shape = width_and_shape
    network = network_of(patch_size, width=width, seed=seed)
    image = torch.randn(1, *shape)
    errors = densely(network, image, stride=stride, tile_bytes=tile_bytes)
    assert errors.shape == shape
    centres = list(itertools.product(*(range(0, n, stride) for n in shape)))
    centres = centres[:: -(-len(centres) // 12)]
    found = torch.stack([errors[centre] for centre in centres])
    torch.testing.assert_close(found, by_patch(network, image, centres), rtol=0, atol=ATOL)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_tiles_change_nothing(stride: int) -> None:
    network = network_of(23)
    image = torch.randn(1, 22, 13, 17)
    whole = densely(network, image, stride=stride)
    assert tile_edge(network, SMALLEST) == 4
    for tile_bytes in (SMALLEST, working_bytes(network, 8), working_bytes(network, 12)):
        tiled = densely(network, image, stride=stride, tile_bytes=tile_bytes)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=ATOL)


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
def test_a_stride_takes_a_part_of_the_map_and_interpolates(stride: int) -> None:
    network = network_of(19)
    image = torch.randn(1, 13, 18, 9)
    every = densely(network, image)
    some = densely(network, image, stride=stride)
    part = every[::stride, ::stride, ::stride]
    torch.testing.assert_close(some[::stride, ::stride, ::stride], part, rtol=0, atol=ATOL)
    torch.testing.assert_close(some, between(part, stride, every.shape), rtol=0, atol=ATOL)


def test_between_is_linear_and_stays_beyond_the_last() -> None:
    values = torch.tensor([0.0, 3.0, 9.0])[:, None, None].expand(3, 1, 2)
    filled = between(values, 3, (9, 2, 4))
    assert filled[:, 0, 0].tolist() == pytest.approx([0, 1, 2, 3, 5, 7, 9, 9, 9], abs=1e-5)
    assert torch.equal(filled, filled[:, :1, :1].expand(9, 2, 4))


def test_only_wanted_voxels_are_computed_and_they_stay_what_they_are() -> None:
    network = network_of(19)
    image = torch.randn(1, 30, 26, 22)
    wanted = torch.zeros(30, 26, 22, dtype=torch.bool)
    wanted[3, 20, 5] = wanted[25, 4:9, 18] = True
    for stride in (1, 3, 4):
        whole = densely(network, image, stride=stride)
        for tile_bytes in (SMALLEST, 2**28):
            part = densely(network, image, stride=stride, tile_bytes=tile_bytes, wanted=wanted)
            torch.testing.assert_close(part, whole.masked_fill(~wanted, 0), rtol=0, atol=ATOL)
    assert not densely(network, image, wanted=torch.zeros_like(wanted)).any()


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_a_place_depends_on_its_patch_and_on_all_of_it(patch_size: int) -> None:
    torch.manual_seed(0)
    network = PositionNetwork(patch_size, 2, 1).double()
    with torch.no_grad():  # positive throughout: no ReLU hides a path
        for parameter in network.parameters():
            parameter.abs_()
        for module in network.modules():
            if isinstance(module, SpectralConvolution):
                module.iterate(20)
    i, j, k = 5, 2, 6
    image = torch.rand(1, patch_size + 7, patch_size + 3, patch_size + 7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network.dense(image)[:, i, j, k].sum(), image)
    touched = torch.zeros(image.shape[1:], dtype=torch.bool)
    touched[i : i + patch_size, j : j + patch_size, k : k + patch_size] = True
    assert torch.equal(gradient[0] != 0, touched)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_kernels_that_only_pass_on_leave_the_poolings(patch_size: int) -> None:
    network = network_of(patch_size, width=1).double()
    first = 0  # of the window that a place is the mean of: the centres of the kernels before it
    spacing = 1
    for level, blocks in enumerate(network.levels):
        spacing = 2**level
        for module in blocks.modules():
            if isinstance(module, SpectralConvolution):
                kernel = module.weight.shape[-1]
                module.weight.zero_()
                module.bias.zero_()
                first += kernel // 2 * spacing
    for blocks in network.levels:
        convolution = blocks[0]  # type: ignore[index]  # a Sequential
        middle = convolution.weight.shape[-1] // 2
        convolution.weight[0, 0, middle, middle, middle] = 1
        convolution.iterate(2)
    for module in network.modules():  # residual blocks add nothing: their weights are zero, of norm one by decree
        if isinstance(module, SpectralConvolution) and not module.weight.any():
            module.norm = lambda: torch.ones(())  # type: ignore[method-assign]  # weights as they are
    head = network.head
    for layer in (head[0], head[2]):
        layer.weight.zero_()  # type: ignore[operator]  # a Module's attributes are untyped
        layer.bias.zero_()  # type: ignore[operator]  # as above
        layer.weight[:, 0] = 1  # type: ignore[operator]  # as above
    image = torch.rand(1, patch_size + 11, patch_size + 3, patch_size + 7, dtype=torch.float64)
    places = network.dense(image)
    window = 4 if patch_size in (19, 27, 35) else 8
    means = F.avg_pool3d(image[None], window, 1)[0, 0]
    d, h, w = places.shape[1:]
    expected = means[first : first + d, first : first + h, first : first + w]
    torch.testing.assert_close(places, expected.expand(3, -1, -1, -1))


def test_a_moved_volume_has_a_moved_map() -> None:
    network = network_of(19)
    image = torch.randn(1, 19 + 23, 19 + 19, 19 + 23)
    places = network.dense(image)
    moved = network.dense(image[:, 3:35, 1:33, 2:34].contiguous()[..., :30, :30, :30])
    torch.testing.assert_close(moved, places[:, 3:15, 1:13, 2:14], rtol=0, atol=ATOL)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_every_layer_is_evaluated_once_a_voxel(patch_size: int) -> None:
    network = network_of(patch_size, width=3)
    edge = 8
    # A layer's output seen at all phases together: as many voxels along an axis as its patches' places span.
    expected, channels, spacing = 0, 1, 1
    for layer in layers(patch_size, 3):
        if layer.kind == "pooling":
            spacing *= 2 if layer.block == "Downsample" else 1
        else:
            spanned = edge + (layer.edge - 1) * spacing
            expected += 2 * channels * layer.channels * (layer.kernel * spanned) ** 3
        channels = layer.channels
    with FlopCounterMode(display=False) as counter:
        network.dense(torch.zeros(1, *(edge + patch_size - 1,) * 3))
    assert counter.get_total_flops() == expected


def test_an_image_without_a_dense_map_is_refused() -> None:
    network = network_of(19)
    for edge, spacing in ((18, 1), (23, 1), (22, 3)):
        with pytest.raises(ValueError, match="has no dense map"):
            network.dense(torch.zeros(1, edge, edge, edge), spacing)


def test_reached_is_what_a_patch_holds() -> None:
    mask = torch.zeros(9, 3, 12, dtype=torch.bool)
    mask[6, 1, 2] = True
    found = torch.nonzero(reached(mask, 5))
    assert found.amin(0).tolist() == [4, 0, 0]
    assert found.amax(0).tolist() == [8, 2, 4]
    assert reached(mask, 31).all()


@pytest.mark.parametrize(
    ("patch_size", "width", "stride", "tile_mib", "edge"),
    [
        (31, 4, 1, 12, 36),
        (19, 8, 1, 12, 36),
        (39, 2, 2, 12, 36),
        (23, 4, 4, 12, 36),
        (31, 16, 1, 30, 24),  # the paper's
        (19, 64, 1, 26, 16),
    ],
)
def test_a_tile_takes_no_more_than_it_says(patch_size: int, width: int, stride: int, tile_mib: int, edge: int) -> None:
    """Of volumes of one tile, or of several of its edge, without the 32 MiB of the library's own buffers."""
    network = network_of(patch_size, width=width)
    budget = 2**25 + tile_mib * 2**20
    of_tile = tile_edge(network, budget, stride)
    assert working_bytes(network, of_tile, stride) <= budget < working_bytes(network, of_tile + 4, stride)
    image = torch.randn(1, edge, edge, edge)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, torch.no_grad():
        densely(network, image, tile_bytes=budget, stride=stride)
    # What the allocator gave and took, in order; the map and the volume's own are not the tile's.
    now = peak = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    beside = 4 * 4 * image.numel()
    assert 2**20 < peak <= budget - 2**25 + beside
