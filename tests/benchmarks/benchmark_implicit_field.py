"""Restoration by the implicit field, 2D and 3D, in seconds a volume beside the paper's 55.4 and 51.1.

With the paper's network on a cube of 160 voxels, its 700 steps EXTRAPOLATED from a few: the time of a step, of a volume
or of some of its 40 slices, and of dense scoring, of some planes, is taken as often as the whole work has them. (On
CUDA all 40 slices are timed by default: two of them do not fill the device, and would stand for much less than a
twentieth.) Mode pooling and post-processing are timed whole. Nothing is learnt: what the network says does not matter
for the time.

16,200 points a step are the paper's of a volume. In 2D it does not say whether they are each slice's or shared by a
volume's 40 slices (405 each); its 55.4 s allow the second only, so both are timed.

    python tests/benchmarks/benchmark_implicit_field.py --steps 3 --slices 4 --out implicit_field.json

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
from vesalius.methods.implicit_field import ImplicitField, ImplicitFieldSettings
from vesalius.methods.implicit_field.restoration import Field, cross_entropy
from vesalius.methods.implicit_field_2d import ImplicitField2D, ImplicitField2DSettings
from vesalius.platform.contracts import CohortFacts, Volume, bfloat16_pays, grid_positions

if TYPE_CHECKING:
    from collections.abc import Callable

PAPER_STEPS, PAPER_EDGE = 700, 160
EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
PAPER_HARDWARE = "Nvidia GTX 1070"
WORK: dict[str, tuple[type[ImplicitField], ImplicitFieldSettings, int, float]] = {
    "2D, 405 points a slice": (ImplicitField2D, ImplicitField2DSettings(), 405, 55.4),
    "2D, 16,200 points a slice": (ImplicitField2D, ImplicitField2DSettings(), 16_200, 55.4),
    "3D, 16,200 points a volume": (ImplicitField, ImplicitFieldSettings(), 16_200, 51.1),
}
"""Method, settings, points a step of what has a code, and the paper's seconds a volume."""


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


def built(kind: type[ImplicitField], settings: ImplicitFieldSettings, edge: int, device: torch.device) -> ImplicitField:
    cohort = CohortFacts(
        subjects=("a", "b"),
        grid=(edge, edge, edge),
        spacing_mm=(1.0, 1.0, 1.0),
        affine=EYE,
        channels=("T2w",),
        digest="0",
    )
    torch.manual_seed(0)
    return kind(settings, cohort).to(device).eval()


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@torch.no_grad()
def seconds_of(name: str, edge: int, steps: int, slices: int, device: torch.device) -> dict[str, float]:
    kind, settings, points, paper_seconds = WORK[name]
    method, volume = built(kind, settings, edge, device), smooth_volume(edge, device)
    field = Field.of(method.decoder, torch.bfloat16 if bfloat16_pays(device) else torch.float32)
    targets, start = method.targets(volume), method.starts(volume)
    # Of a volume one code is fitted, of its slices some; of dense scoring some planes, or those slices.
    part = targets[:slices]
    planes = part
    if len(targets) == 1:
        whole = targets[0]
        axes = (whole.axes[0][:slices], whole.axes[1], whole.axes[2])
        planes = [replace(whole, labels=whole.labels[:slices].contiguous(), axes=axes)]
    of_all = len(targets) / len(planes) if len(targets) > 1 else edge / len(planes[0].labels)
    method.optimise(field, part, start[: len(part)], [(1, 64)])  # warms up

    def dense() -> None:
        for code, target in zip(start, planes, strict=False):
            cross_entropy(field, code, target, method.centres, expectation=False)

    def finish() -> None:
        image_score(finish_map(volume.image[0], volume.brain, settings.map), volume.brain, settings.map)

    phases = [(steps, points)]
    step = timed(lambda: method.optimise(field, part, start[: len(part)], phases), device) / steps
    step *= len(targets) / len(part)
    beside = timed(lambda: method.targets(volume), device) + of_all * timed(dense, device) + timed(finish, device)
    return {
        "seconds_a_step": round(step, 4),
        "seconds_beside_the_steps": round(beside, 3),
        "seconds_a_volume_extrapolated": round(PAPER_STEPS * step + beside, 2),
        "seconds_a_volume_in_the_paper": paper_seconds,
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
        "figures": {name: seconds_of(name, edge, steps, slices, device) for name in WORK},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=PAPER_EDGE, help="voxels along each side; the paper's is 160")
    parser.add_argument("--steps", type=int, default=None, help="steps that are timed: 20 on CUDA, 1 on the CPU")
    parser.add_argument(
        "--slices",
        type=int,
        default=None,
        help="slices of 2D and planes of 3D that are timed: 40 on CUDA, 2 on the CPU",
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    steps, slices = (20, 40) if device.type == "cuda" else (1, 2)
    steps = steps if arguments.steps is None else arguments.steps
    slices = slices if arguments.slices is None else arguments.slices
    result = measure(arguments.edge, steps, slices, device)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
