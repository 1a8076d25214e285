"""Restoration and dense scoring against the straightforward version, on a network of the paper's size.

Straightforward: every point's [z, gamma(p)] goes through the whole network, and again into the skip layer. Both have
the network frozen, its weight normalisation folded, the same points and the same arithmetic. The work is the paper's
in small: 700 steps of 16,200 points stand to 160^3 voxels as a few steps do to the grid scored here.

    python tests/benchmarks/benchmark_restoration.py --pairs 5 --out restoration.json

Variants run in turn within each pair, and a ratio is the median over pairs, so that a busy machine slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.methods.implicit_field import ImplicitFieldSettings
from vesalius.methods.implicit_field.decoder import Decoder, encode_positions
from vesalius.methods.implicit_field.restoration import Field, Target, cross_entropy, restore
from vesalius.platform.contracts import axis_positions, generator, grid_positions

if TYPE_CHECKING:
    from collections.abc import Callable

PAPER_STEPS, PAPER_POINTS, PAPER_VOXELS = 700, 16_200, 160**3
NUM_FREQUENCIES = 10
LEARNING_RATE = 1e-3
Outcome = tuple[Tensor, list[Tensor]]


class Straightforward:
    """The same method as one would first write it."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype, *, weight_gradients: bool, chunk: int | None) -> None:
        self.weights = [
            tuple(part.detach().to(dtype).requires_grad_(weight_gradients) for part in layer)
            for layer in decoder.weights()
        ]
        self.skip_layer, self.dtype, self.chunk = decoder.skip_layer, dtype, chunk

    def logits(self, code: Tensor, encoded: Tensor) -> Tensor:
        inputs = torch.cat([code.expand(encoded.shape[0], -1), encoded], dim=1).to(self.dtype)
        hidden = inputs
        for place, (weight, bias) in enumerate(self.weights):
            if place == self.skip_layer:
                hidden = torch.cat([hidden, inputs], dim=1)
            hidden = F.linear(hidden, weight, bias)
            if place < len(self.weights) - 1:
                hidden = torch.relu(hidden)
        return hidden.float()

    def restore(self, targets: list[Target], start: Tensor, steps: int, num_points: int) -> Tensor:
        codes = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([codes], lr=LEARNING_RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            for number, target in enumerate(targets):
                position, labels = draw(target, num_points)
                size = self.chunk or num_points
                for first in range(0, num_points, size):
                    encoded = encode_positions(position[first : first + size], NUM_FREQUENCIES)
                    logits = self.logits(codes[number], encoded)
                    loss = F.cross_entropy(logits, labels[first : first + size], reduction="sum") / num_points
                    loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            for pair in self.weights:
                for weight in pair:
                    weight.grad = None
            optimizer.step()
        return codes.detach()

    @torch.no_grad()
    def score(self, code: Tensor, target: Target) -> Tensor:
        labels = target.labels.flatten().long()
        d, h, w = target.axes
        position = torch.stack(torch.meshgrid(d, h, w, indexing="ij"), dim=-1).reshape(-1, 3)
        size = self.chunk or PAPER_POINTS
        parts = [
            F.cross_entropy(
                self.logits(code, encode_positions(position[first : first + size], NUM_FREQUENCIES)),
                labels[first : first + size],
                reduction="none",
            )
            for first in range(0, labels.numel(), size)
        ]
        return torch.cat(parts).view(target.labels.shape)


def draw(target: Target, num_points: int) -> tuple[Tensor, Tensor]:
    """Draw the voxels that the package's restoration draws, as positions."""
    place = torch.randint(target.labels.numel(), (num_points,), generator=target.generator)
    _, h, w = target.labels.shape
    d_axis, h_axis, w_axis = target.axes
    position = torch.stack([d_axis[place // (h * w)], h_axis[place // w % h], w_axis[place % w]], dim=1)
    return position, target.labels.flatten()[place].long()


def make_targets(count: int, edge: int) -> list[Target]:
    """Smooth class volumes: what they show does not matter for the time, only that classes repeat in space."""
    axis = axis_positions(edge, 1.0, float(edge))
    x, y, z = grid_positions((edge,) * 3, (1.0,) * 3, (float(edge),) * 3).unbind(-1)
    return [
        Target(
            labels=((torch.sin(3 * x + n) + torch.cos(4 * y) + torch.sin(5 * z)) * 1.6 + 5).clamp(0, 9).to(torch.uint8),
            axes=(axis, axis, axis),
            generator=generator("benchmark", n),
        )
        for n in range(count)
    ]


def run_package(decoder: Decoder, dtype: torch.dtype, count: int, edge: int, steps: int, points: int) -> Outcome:
    targets = make_targets(count, edge)
    field = Field.of(decoder, dtype)
    codes = restore(
        field,
        targets,
        torch.zeros(count, decoder.latent_dim),
        phases=[(steps, points)],
        learning_rate=lambda progress: LEARNING_RATE,
        prior=None,
        bound=None,
    )
    centres = torch.linspace(0, 1, 10)
    with torch.no_grad():
        pairs = zip(codes, targets, strict=True)
        return codes, [cross_entropy(field, code, target, centres, expectation=False)[0] for code, target in pairs]


def run_straightforward(plain: Straightforward, count: int, edge: int, steps: int, points: int) -> Outcome:
    targets = make_targets(count, edge)
    latent_dim = ImplicitFieldSettings().latent_dim
    codes = plain.restore(targets, torch.zeros(count, latent_dim), steps, points)
    return codes, [plain.score(code, target) for code, target in zip(codes, targets, strict=True)]


def measure(pairs: int, threads: int, count: int, steps: int, points: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    decoder = Decoder(ImplicitFieldSettings()).eval()
    edge = round((steps * points * PAPER_VOXELS / (PAPER_STEPS * PAPER_POINTS)) ** (1 / 3))
    work = (count, edge, steps, points)
    variants: dict[str, Callable[[], Outcome]] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        chunk = Field.of(decoder, dtype).chunk
        plain = Straightforward(decoder, dtype, weight_gradients=False, chunk=None)
        chunked = Straightforward(decoder, dtype, weight_gradients=False, chunk=chunk)
        variants[f"package_{name}"] = partial(run_package, decoder, dtype, *work)
        variants[f"straightforward_{name}"] = partial(run_straightforward, plain, *work)
        variants[f"straightforward_in_chunks_{name}"] = partial(run_straightforward, chunked, *work)
    learning = Straightforward(decoder, torch.float32, weight_gradients=True, chunk=None)
    variants["straightforward_with_weight_gradients_float32"] = partial(run_straightforward, learning, *work)

    seconds: dict[str, list[float]] = {name: [] for name in variants}
    outcomes: dict[str, Outcome] = {}
    for turn in range(pairs + 1):
        # Every other turn backwards: a slow drift of the machine then favours neither side. The first warms up.
        for name in variants if turn % 2 else reversed(variants):
            began = time.perf_counter()
            outcomes[name] = variants[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)

    def ratio(slow: str, fast: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 3)

    def worst(name: str) -> float:
        mine, theirs = outcomes["package_float32"][1], outcomes[name][1]
        return max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))

    return {
        "benchmark": "restoration",
        "threads": threads,
        "volumes": count,
        "steps": steps,
        "points": points,
        "voxels_a_volume": edge**3,
        "pairs": pairs,
        "median_seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "speedup_float32": ratio("straightforward_float32", "package_float32"),
        "speedup_float32_same_chunks": ratio("straightforward_in_chunks_float32", "package_float32"),
        "speedup_bfloat16": ratio("straightforward_bfloat16", "package_bfloat16"),
        "speedup_bfloat16_same_chunks": ratio("straightforward_in_chunks_bfloat16", "package_bfloat16"),
        "speedup_of_bfloat16_over_float32": ratio("package_float32", "package_bfloat16"),
        "speedup_of_dropping_weight_gradients": ratio(
            "straightforward_with_weight_gradients_float32", "straightforward_float32"
        ),
        "largest_map_difference_float32": worst("straightforward_float32"),
        "largest_map_difference_bfloat16": worst("package_bfloat16"),
        "required": {"speedup_float32": 1.1},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--volumes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--points", type=int, default=PAPER_POINTS)
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    arguments = parser.parse_args()
    result = measure(arguments.pairs, arguments.threads, arguments.volumes, arguments.steps, arguments.points)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    speedup = result["speedup_float32"]
    return 0 if isinstance(speedup, float) and speedup >= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
