"""The dense error map of position regression against one forward a patch: the same network, volume and patches.

The patches are cut from the padded volume and pass in batches, of the size among a few that is fastest. Where they
are too many for the time at hand, a sample of them is timed and the rest follow by proportion (``patches_timed``);
every patch costs the same. The map is always computed whole, tiles and their margins included. Rounds of both ways take
turns. With one thread on the CPU it is the processor's time that counts, which other work on the machine leaves alone.

What one may expect is the ratio of multiply-adds. ``ideal`` counts each layer once a voxel; ``counted`` is what
``torch.utils.flop_counter`` saw, the margins of the tiles included. Half of the counted ratio is asked for.

    python tests/benchmarks/benchmark_dense_scoring.py [--edge 48] [--patch-size 31] [--width 16] [--patches N]
        [--tile-mib 512] [--rounds 3] [--threads 2] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vesalius.methods.position_regression.dense import error_map, tile_edge
from vesalius.methods.position_regression.network import PositionNetwork, layers, multiply_adds

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_BATCHES = (16, 64, 256)


class PatchByPatch:
    """The errors at given centres of a volume, one patch each."""

    def __init__(self, network: PositionNetwork, image: Tensor) -> None:
        self.network = network
        self.padded = F.pad(image, (network.patch_size // 2,) * 6)
        self.shape = torch.tensor(image.shape[1:], device=image.device)

    def __call__(self, centres: Tensor, batch: int) -> Tensor:
        """Return (K,) errors at centres (K, 3)."""
        size = self.network.patch_size
        errors = []
        for part in torch.split(centres, batch):
            patches = torch.stack(
                [self.padded[:, i : i + size, j : j + size, k : k + size] for i, j, k in part.tolist()]
            )
            true = (part + 0.5) / self.shape
            errors.append(torch.linalg.vector_norm(self.network(patches) - true, dim=1))
        return torch.cat(errors)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    begin = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def _flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def measure(
    edge: int,
    patch_size: int,
    width: int,
    num_patches: int,
    tile_mib: int,
    rounds: int,
    device: torch.device,
) -> dict[str, Any]:
    """Time both ways on a cube of ``edge`` voxels; return the figures."""
    torch.manual_seed(0)
    network = PositionNetwork(patch_size, width, 1).to(device).eval()
    image = torch.rand(1, edge, edge, edge, device=device)
    axes = [(torch.arange(edge, device=device) + 0.5) / edge] * 3
    wanted = torch.ones(edge, edge, edge, dtype=torch.bool, device=device)
    num_voxels = edge**3
    num_patches = min(num_patches, num_voxels)
    chosen = torch.randperm(num_voxels)[:num_patches].to(device)
    centres = torch.stack([chosen // edge**2, chosen // edge % edge, chosen % edge], dim=1)
    by_patch = PatchByPatch(network, image)

    def densely() -> Tensor:
        return error_map(network, image, axes, wanted, background=0.0, stride=1, tile_bytes=tile_mib * 2**20)

    with torch.no_grad():
        errors = densely()  # warms up, and is compared
        probe = centres[: 2 * max(_BATCHES)]
        by_patch(probe, 256)
        batch = min(_BATCHES, key=lambda size: _seconds(lambda: by_patch(probe, size), device))
        difference = float((errors.flatten()[chosen] - by_patch(centres, batch)).abs().max())
        counted = _flops(lambda: by_patch(centres[:1], 1)) * num_voxels / _flops(densely)
        dense, patchwise = [], []
        for _ in range(rounds):
            dense.append(_seconds(densely, device))
            patchwise.append(_seconds(lambda: by_patch(centres, batch), device) * num_voxels / num_patches)
    of_patch, of_voxel = multiply_adds(layers(patch_size, width))
    ratios = [slow / fast for slow, fast in zip(patchwise, dense, strict=True)]
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "benchmark": "dense_scoring",
        "edge": edge,
        "patch_size": patch_size,
        "width": width,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "tile_mib": tile_mib,
        "tile_edge": min(edge, tile_edge(network, tile_mib * 2**20)),
        "patches": num_voxels,
        "patches_timed": num_patches,
        "patches_in_a_batch": batch,
        "seconds_dense": [round(one, 4) for one in dense],
        "seconds_by_patch": [round(one, 2) for one in patchwise],
        "microseconds_per_voxel_dense": round(1e6 * statistics.median(dense) / num_voxels, 3),
        "speedup": round(statistics.median(ratios), 1),
        "multiply_adds_ratio": {"ideal": round(of_patch / of_voxel, 1), "counted": round(counted, 1)},
        "largest_difference": difference,
        "process_peak_mib": round(peak / 2**20),
        "required": {"speedup": round(counted / 2, 1)},
    }


@pytest.mark.long
def test_dense_scoring_keeps_half_of_the_arithmetic_it_saves() -> None:
    # A smaller volume and a quarter of the default's patches; the network, the tiles and the rounds are the default's.
    result = measure(32, 31, 16, 512, 512, 3, torch.device("cpu"))
    assert result["largest_difference"] < 1e-5
    assert result["multiply_adds_ratio"]["counted"] > 100
    assert result["speedup"] >= result["required"]["speedup"], result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=48)
    parser.add_argument("--patch-size", type=int, default=31)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--patches", type=int, default=2048, help="timed; as many as there are voxels for all of them")
    parser.add_argument("--tile-mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(
        arguments.edge,
        arguments.patch_size,
        arguments.width,
        arguments.patches,
        arguments.tile_mib,
        arguments.rounds,
        torch.device(arguments.device),
    )
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 0 if result["speedup"] >= result["required"]["speedup"] else 1


if __name__ == "__main__":
    sys.exit(main())
