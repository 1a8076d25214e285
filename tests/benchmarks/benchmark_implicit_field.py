"""Restoration by the implicit field, 2D and 3D, in seconds a volume beside the paper's 55.4 and 51.1.

At the paper's points (16,200 a step) and network on a cube of 160 voxels, its 700 steps EXTRAPOLATED from a few: the time
of a step, of a volume or of some of its 40 slices, and of dense scoring, of some planes, is taken as often as the whole
work has them. Mode pooling and post-processing are timed whole. Nothing is learnt: what the network says does not
matter for the time.

    python tests/benchmarks/benchmark_implicit_field.py --steps 3 --slices 40 --out implicit_field.json

The paper's 2D figure is of the 40 slices that it takes of a volume, on an Nvidia GTX 1070; so is ours, on what is
named beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vesalius.methods.blocks import finish_map, image_score
from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.restoration import Field, cross_entropy
from vesalius.methods.implicit_field_2d import ImplicitField2D
from vesalius.platform.contracts import CohortFacts, Volume, bfloat16_pays, grid_positions

if TYPE_CHECKING:
    from collections.abc import Callable

PAPER_STEPS, PAPER_EDGE = 700, 160
EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
PAPER_SECONDS = {"implicit_field_2d": 55.4, "implicit_field": 51.1}
PAPER_HARDWARE = "Nvidia GTX 1070"
METHODS: dict[str, type[ImplicitField]] = {"implicit_field_2d": ImplicitField2D, "implicit_field": ImplicitField}


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(': ', 1)[1] if names else platform.processor()}, {torch.get_num_threads()} threads"


def smooth_volume(edge: int, device: torch.device) -> Volume:
    x, y, z = grid_positions((edge,) * 3, (1.0,) * 3, (float(edge),) * 3).unbind(-1)
    image = ((torch.sin(3 * x) + torch.cos(4 * y) + torch.sin(5 * z)) / 6 + 0.5).unsqueeze(0)
    return Volume(
        subject_id="volume",
        image=image.to(device),
        brain=torch.ones((edge,) * 3, dtype=torch.bool, device=device),
        spacing_mm=(1.0, 1.0, 1.0),
        affine=EYE,
    )


def built(name: str, edge: int, device: torch.device) -> ImplicitField:
    kind = METHODS[name]
    cohort = CohortFacts(
        subjects=("a", "b"),
        grid=(edge, edge, edge),
        spacing_mm=(1.0, 1.0, 1.0),
        affine=EYE,
        channels=("T2w",),
        digest="0",
    )
    torch.manual_seed(0)
    return kind(kind.settings_type(), cohort).to(device).eval()


def timed(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@torch.no_grad()
def seconds_of(name: str, edge: int, steps: int, slices: int, device: torch.device) -> dict[str, float]:
    method, volume = built(name, edge, device), smooth_volume(edge, device)
    settings = method.settings
    field = Field.of(method.decoder, torch.bfloat16 if bfloat16_pays(device) else torch.float32)
    targets, start = method.targets(volume), method.starts(volume)
    # Of a volume one code is fitted, of its slices some; of dense scoring some planes, or those slices.
    part = targets[:slices]
    planes = (
        part
        if len(targets) > 1
        else [
            replace(
                targets[0],
                labels=targets[0].labels[:slices].contiguous(),
                axes=(targets[0].axes[0][:slices], *targets[0].axes[1:]),
            )
        ]
    )
    of_all = len(targets) / len(planes) if len(targets) > 1 else edge / slices
    method.optimise(field, part, start[: len(part)], [(1, 64)])  # warms up

    def dense() -> None:
        for code, target in zip(start, planes, strict=False):
            cross_entropy(field, code, target, method.centres, expectation=False)

    def finish() -> None:
        image_score(finish_map(volume.image[0], volume.brain, settings.map), volume.brain, settings.map)

    phases = [(steps, settings.points)]
    step = timed(lambda: method.optimise(field, part, start[: len(part)], phases), device) / steps
    step *= len(targets) / len(part)
    beside = timed(lambda: method.targets(volume), device) + of_all * timed(dense, device) + timed(finish, device)
    return {
        "seconds_a_step": round(step, 4),
        "seconds_beside_the_steps": round(beside, 3),
        "seconds_a_volume_extrapolated": round(PAPER_STEPS * step + beside, 2),
        "seconds_a_volume_in_the_paper": PAPER_SECONDS[name],
    }


def measure(edge: int, steps: int, slices: int, device: torch.device) -> dict[str, object]:
    return {
        "benchmark": "implicit_field",
        "hardware": hardware(device),
        "hardware_of_the_paper": PAPER_HARDWARE,
        "edge": edge,
        "slices_timed": slices,
        "steps_timed": steps,
        "steps_extrapolated_to": PAPER_STEPS,
        "points_a_step": 16_200,
        "figures": {name: seconds_of(name, edge, steps, slices, device) for name in METHODS},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=PAPER_EDGE, help="voxels along each side; the paper's is 160")
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed")
    parser.add_argument(
        "--slices", type=int, default=2, help="slices of 2D, and planes of dense scoring, that are timed"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.edge, arguments.steps, arguments.slices, torch.device(arguments.device))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
