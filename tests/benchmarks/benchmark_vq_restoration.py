"""Resampling of unlikely codes with a kept state against a whole pass of the prior for every place.

Both go through the same code maps with the same prior of the paper's size, the same threshold and the same random
numbers. The published way passes the whole map through the prior at each of its places, and looks at one of them; the
package's computes each place once. A whole pass costs the same whichever place is looked at, so that by default a few
passes are timed and multiplied by the number of places; ``--whole`` makes them all and compares every code. (The codes
of a smaller map are compared in any case.)

    python tests/benchmarks/benchmark_vq_restoration.py --pairs 3 --out vq_restoration.json
    python tests/benchmarks/benchmark_vq_restoration.py --device cuda --sequences 320 --whole

The two run in turn within each pair, and the ratio is the median over pairs, so that a busy machine slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from vesalius.methods.vq_vae import VqVaeSettings
from vesalius.methods.vq_vae.prior import Prior
from vesalius.methods.vq_vae.restoration import choose, resample

REQUIRED = 20.0
SMALL_EDGE = 6


def made(prior: Prior, sequences: int, edge: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, axial positions and random numbers."""
    draw = torch.Generator().manual_seed(edge)
    codes = torch.randint(prior.num_codes, (sequences, edge, edge), generator=draw)
    uniform = torch.rand(sequences, edge, edge, generator=draw)
    position = torch.linspace(-0.5, 0.5, sequences)
    return codes.to(device), position.to(device), uniform.to(device)


def whole_passes(
    prior: Prior, given: tuple[Tensor, Tensor, Tensor], threshold: float, places: list[tuple[int, int]]
) -> Tensor:
    """Resample ``places`` in turn as published: a whole pass for each."""
    codes, position, uniform = given
    restored = codes.clone()
    for row, column in places:
        logits = prior(restored, position)[:, row, column]
        restored[:, row, column] = choose(logits, restored[:, row, column], uniform[:, row, column], threshold)
    return restored


def timed(device: torch.device, began: float) -> float:
    """Return the seconds since ``began``, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def measure(pairs: int, sequences: int, edge: int, passes: int | None, device: torch.device) -> dict[str, object]:
    """Return the figures; ``passes`` whole passes are timed, or all where it is None."""
    settings = VqVaeSettings()
    torch.manual_seed(0)
    prior = Prior(settings.num_codes, settings.prior).eval().to(device)
    threshold = settings.resampling.threshold
    every = [(row, column) for row in range(edge) for column in range(edge)]
    chosen = every if passes is None else every[:: max(1, len(every) // passes)][:passes]
    given = made(prior, sequences, edge, device)

    small = made(prior, min(sequences, 4), SMALL_EDGE, device)
    # Untrained, the prior finds nothing unlikely: a threshold near the mean has about half of the codes drawn again.
    level = float(prior.surprise(small[0], small[1]).median())
    small_places = [(row, column) for row in range(SMALL_EDGE) for column in range(SMALL_EDGE)]
    expected = whole_passes(prior, small, level, small_places)
    same = torch.equal(resample(prior, *small, level), expected) and not torch.equal(expected, small[0])

    kept: list[float] = []
    whole: list[float] = []
    for turn in range(pairs + 1):  # the first warms up
        began = time.perf_counter()
        restored = resample(prior, *given, threshold)
        kept.append(timed(device, began))
        began = time.perf_counter()
        published = whole_passes(prior, given, threshold, chosen)
        whole.append(timed(device, began) * len(every) / len(chosen))
        if passes is None:
            same = same and torch.equal(restored, published)
        if not turn:
            kept, whole = [], []
    ratio = statistics.median(slow / fast for slow, fast in zip(whole, kept, strict=True))
    return {
        "benchmark": "vq_restoration",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "sequences": sequences,
        "places": len(every),
        "whole_passes_timed": len(chosen),
        "pairs": pairs,
        "median_seconds_kept_state": round(statistics.median(kept), 4),
        "median_seconds_whole_passes": round(statistics.median(whole), 3),
        "speedup": round(ratio, 1),
        "same_codes": same,
        "required": {"speedup": REQUIRED, "same_codes": True},
    }


def main() -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--sequences", type=int, default=8, help="slices times restorations; 320 for a volume")
    parser.add_argument("--edge", type=int, default=20, help="edge of the code map")
    parser.add_argument("--passes", type=int, default=10, help="whole passes that are timed")
    parser.add_argument("--whole", action="store_true", help="make every whole pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    passes = None if arguments.whole else arguments.passes
    device = torch.device(arguments.device)
    result = measure(arguments.pairs, arguments.sequences, arguments.edge, passes, device)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    speedup = result["speedup"]
    return 0 if isinstance(speedup, float) and speedup >= REQUIRED and result["same_codes"] else 1


if __name__ == "__main__":
    sys.exit(main())
