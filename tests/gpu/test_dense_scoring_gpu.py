"""The dense error map on a CUDA device: what the CPU says, whatever the tiles."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vesalius.methods.position_regression.dense import error_map, tile_edge
from vesalius.methods.position_regression.network import PositionNetwork

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


LIBRARY_BYTES = 2**31
"""What cuDNN may take as workspace for a tile, from torch's allocator: the setting does not count it.

A guess, and a large one; that what is held does not grow with the volume is held to more closely."""


def grown(network: PositionNetwork, edge: int, tile_bytes: int, device: torch.device) -> int:
    """Return the bytes that scoring a cube of ``edge`` voxels holds at most, beside network, cube and mask."""
    image = torch.rand(1, edge, edge, edge, device=device)
    wanted = torch.ones(edge, edge, edge, dtype=torch.bool, device=device)
    axes = [(torch.arange(edge, device=device) + 0.5) / edge] * 3
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    error_map(network, image, axes, wanted, background=0.0, stride=1, tile_bytes=tile_bytes)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@pytest.mark.parametrize(("patch_size", "width"), [(31, 16), (19, 64)])
def test_scoring_holds_a_tile_whatever_the_volume(patch_size: int, width: int) -> None:
    device, tile_bytes = torch.device("cuda"), 128 * 2**20
    torch.manual_seed(0)
    network = PositionNetwork(patch_size, width, 1).to(device).eval().requires_grad_(False)
    edge = tile_edge(network, tile_bytes)
    grown(network, edge, tile_bytes, device)  # what libraries keep from their first use on is there
    one, many = (grown(network, num * edge, tile_bytes, device) for num in (1, 4))
    # The map, the copy of it that is returned, and the mask of what is not wanted.
    beside = [(4 + 4 + 1) * (num * edge) ** 3 for num in (1, 4)]
    assert one <= tile_bytes + beside[0] + LIBRARY_BYTES
    assert many <= tile_bytes + beside[1] + LIBRARY_BYTES
    # Tiles of one size ask for the same workspaces: of 64 of them no more is held than of one.
    assert many - beside[1] <= one + 2**20


def test_the_map_is_the_cpus_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's default: with TensorFloat-32 places would differ by about a thousandth.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.manual_seed(0)
    network = PositionNetwork(31, 16, 1).eval().requires_grad_(False)
    edge, tile_bytes = 64, 128 * 2**20
    assert tile_edge(network, tile_bytes) < edge
    image = torch.rand(1, edge, edge, edge)
    part = torch.zeros(edge, edge, edge, dtype=torch.bool)
    part[20:32, 24:40, 10:24] = True
    axes = [(torch.arange(edge) + 0.5) / edge] * 3
    scored = partial(error_map, background=0.0, stride=1, tile_bytes=tile_bytes)
    expected = scored(network, image, axes, part)
    device = torch.device("cuda")
    network, image, part = network.to(device), image.to(device), part.to(device)
    axes = [along.to(device) for along in axes]
    found = scored(network, image, axes, part)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)
    whole = scored(network, image, axes, torch.ones_like(part))
    torch.testing.assert_close(whole[part], found[part], rtol=0, atol=1e-5)
    assert torch.backends.cudnn.allow_tf32  # as it was


def test_a_step_is_deterministic_where_it_is_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        network = PositionNetwork(23, 4, 1).to("cuda")  # with all kinds of layers
        patches = torch.rand(8, 1, 23, 23, 23, device="cuda")
        gradients = []
        for _ in range(2):
            network.zero_grad()
            network(patches).square().sum().backward()
            gradients.append(
                [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
            )
        assert len(gradients[0]) == len(list(network.parameters()))
        assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
