"""Samples a second that every method trains on, and volumes a second that it scores, beside what the device multiplies.

One process, one phantom cohort, each method's preset (``demo``, or ``paper`` where there is time and memory). A stage
with optimisers is timed as the platform trains it (loading, autocast, checks, optimiser); its arithmetic is counted
once by ``torch.utils.flop_counter`` (products of matrices and convolutions, forward and backward). What a device can is
measured here and now: a product of two large square matrices in the precision that the stage uses. ``share`` is the
stage's arithmetic a second over that rate: what is missing from 1 is memory, small shapes, and everything but products.

A sample is what the stage's batch is made of: a volume's points, a patch, a slice, a volume.

    python tests/benchmarks/benchmark_methods.py [--preset demo] [--method NAME]... [--edge 64] [--device cuda]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vesalius.datasets.phantom import PhantomSettings, make_phantom
from vesalius.methods import METHODS
from vesalius.platform.contracts import bfloat16_pays, trains_in_bfloat16
from vesalius.platform.geometry import as_matrix
from vesalius.platform.loading import augmented
from vesalius.platform.scoring import score_volume, volume_of
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.tables import lookup
from vesalius.platform.training import Alone, TrainingSettings, Updater, choose_device, computing_as
from vesalius.platform.training.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vesalius.platform.contracts import Method, Stage

_SUBJECTS = {"train": 4, "validation": 2}
_COUNTED_STEPS = 5
_STEPS = 10
"""Both are whole rounds of five critic steps to one of the generator, so that neither is counted without the other."""

_ENOUGH_SECONDS = 8.0
_RECIPE = {"name": "phantom", "scale": "percentile", "output_range": [0.0, 1.0]}


def _store(folder: Path, edge: int) -> CohortStore:
    store = CohortStore.create(folder / "phantom.zarr", recipe=_RECIPE, channels=("T1w",))
    records = []
    with store.lock():
        for number, split in enumerate(split for split, num in _SUBJECTS.items() for _ in range(num)):
            subject = make_phantom(number, PhantomSettings(shape=(edge, edge, edge)))
            image = subject.image.clip(0, 1)  # as the recipes leave it: a last tanh reaches no further
            record = SubjectRecord(
                subject_id=f"{split}-{number}",
                split=split,
                channels=subject.channels,
                shape=subject.brain.shape,
                spacing_mm=subject.spacing_mm,
                affine=as_matrix(subject.affine),
            )
            records.append(store.write(record, SubjectArrays(image=image, brain=subject.brain, head=subject.head)))
        store.commit(records)
    return CohortStore.open(store.path)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


class _NoModules(contextlib.nullcontext[None]):
    """Stands in for the counter's list of modules, whose hooks know no ``autograd.grad`` with regard to an image."""

    parents: ClassVar[set[str]] = {"Global"}


def _counter() -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]  # all that the counter asks of it
    return counter


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a product of two large square matrices, the best of five."""
    edge = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * edge**3 / min(_seconds(lambda: a @ b, device) for _ in range(5))


def _stage(method: Method, plan: Plan, index: int, training: TrainingSettings, device: torch.device) -> dict[str, Any]:
    """Train a few steps of a stage; return samples a second and operations a sample."""
    stage: Stage = plan.stages[index]
    method.eval().requires_grad_(False)
    for module in stage.trains:
        module.train().requires_grad_(True)
    update = Updater(stage, Alone(), training, device)
    stage.begin()
    spent: list[float] = []
    samples = counted = steps_counted = operations = 0
    batches = iter(plan.batches(index, 0))
    waited = time.perf_counter()
    for batch in batches:
        loading = time.perf_counter() - waited
        moved = augmented(batch.to(device))
        if stage.optimizers and steps_counted < _COUNTED_STEPS:  # these warm up and are not timed
            with _counter() as counter:
                stage.step(moved, update)
            operations += counter.get_total_flops()
            counted += len(batch)
            steps_counted += 1
        else:
            spent.append(loading + _seconds(lambda moved=moved: stage.step(moved, update), device))  # type: ignore[misc]  # of a lambda's default mypy infers nothing
            samples += len(batch)
        stage.after_update()
        if len(spent) == _STEPS or (sum(spent) > _ENOUGH_SECONDS and len(spent) % _COUNTED_STEPS == 0):
            break
        waited = time.perf_counter()
    batches.close()  # type: ignore[attr-defined]  # a generator: its readers end with it
    stage.finish(Alone())
    if not stage.optimizers or not spent:
        return {}
    return {"samples_per_second": samples / sum(spent), "flops_per_sample": operations / counted}


def measure(names: Sequence[str], preset: str, edge: int, device: torch.device) -> dict[str, Any]:
    """Time every stage with optimisers of the methods, and one scoring each; return the figures."""
    precision = torch.bfloat16 if bfloat16_pays(device) else torch.float32
    rates = {str(dtype).removeprefix("torch."): matrix_rate(device, dtype) for dtype in {torch.float32, precision}}
    training = TrainingSettings(device=device.type, threads=torch.get_num_threads(), cache_mib=512)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder), edge)
        (held, *_) = store.subjects("validation")
        for name in names:
            method_type = lookup(METHODS, name, "method")
            torch.manual_seed(0)
            method = method_type(method_type.presets()[preset], store.facts()).to(device)
            plan = Plan(method, store, training, Alone(), device)
            for index, stage in enumerate(plan.stages):
                with computing_as(training, device):
                    found = _stage(method, plan, index, training, device)
                if found:
                    in_bf16 = trains_in_bfloat16(training.precision, device, stage.trains)
                    kind = "bfloat16" if in_bf16 else "float32"
                    share = found["samples_per_second"] * found["flops_per_sample"] / rates[kind]
                    row = {"method": name, "stage": stage.name, "precision": kind, **found}
                    rows.append({**row, "share_of_matrix_rate": share})
                    sys.stderr.write(json.dumps(rows[-1]) + "\n")
            method.eval().requires_grad_(False)
            volume = volume_of(store, held)
            score_volume(method, volume, device)  # a first call starts libraries and picks kernels
            seconds = statistics.median(score_volume(method, volume, device)[1] for _ in range(3))
            rows.append({"method": name, "stage": "scoring", "seconds_per_volume": seconds})
            sys.stderr.write(json.dumps(rows[-1]) + "\n")
    return {
        "benchmark": "methods",
        "preset": preset,
        "edge": edge,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "matrix_flops_per_second": rates,
        "rows": rows,
    }


@pytest.mark.long
def test_every_stage_is_timed_and_counted() -> None:
    figures = measure(["autoencoder", "implicit_field"], "tiny", 16, torch.device("cpu"))
    trained = {(row["method"], row["stage"]): row for row in figures["rows"] if "samples_per_second" in row}
    assert {name for name, _ in trained} == {"autoencoder", "implicit_field"}
    # No timed test: a busy machine only makes the share smaller. More than the device multiplies is a wrong count.
    assert all(0 < row["share_of_matrix_rate"] < 1.5 for row in trained.values())
    assert sum("seconds_per_volume" in row for row in figures["rows"]) == 2


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--method", action="append", choices=sorted(METHODS))
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    figures = measure(chosen.method or list(METHODS), chosen.preset, chosen.edge, choose_device(chosen.device))
    if chosen.json:
        json.dump(figures, sys.stdout)
        sys.stdout.write("\n")
        return 0
    measured = figures["matrix_flops_per_second"].items()
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in measured)
    where = f"{figures['device']}, {figures['threads']} threads"
    lines = [
        f"preset {figures['preset']}, {figures['edge']}-cubes, {where}: {rates}",
        "",
        "| method | stage | in | samples/s | MFLOP a sample | share of its matrix rate | s / volume |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        if "seconds_per_volume" in row:
            lines.append(f"| {row['method']} | scoring | | | | | {row['seconds_per_volume']:.3g} |")
        else:
            counted = f"{row['samples_per_second']:.4g} | {row['flops_per_sample'] / 1e6:.4g}"
            cells = f"{row['precision']} | {counted}"
            lines.append(f"| {row['method']} | {row['stage']} | {cells} | {row['share_of_matrix_rate']:.3f} | |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
