"""Training points per second of ``implicit_field``: the platform, and Ray Train, against a plain PyTorch loop.

One run, three contestants, the same network, loss, optimiser, points per step and threads:

- plain: a bare loop over tensors that are already in memory;
- platform: ``vesalius.platform.training`` in this process (loading, micro-batching, checks, checkpoints, metrics);
- ray: the very same inside a Ray Train worker.

Rounds alternate; the figures are ratios of medians, so that a slow minute of the machine hurts all three. A step is
timed once running: each contestant trains a short run and a long one, and what the long one takes beyond the short is
divided by the steps it has beyond. What a run costs before its first step (Ray's start-up) is reported apart. All
compute in fp32.

    python tests/benchmarks/benchmark_training.py [--steps 40] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vesalius.datasets.phantom import PhantomSettings, make_phantom
from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.settings import ImplicitFieldSettings
from vesalius.platform import cluster
from vesalius.platform.config import digest, override
from vesalius.platform.geometry import as_matrix
from vesalius.platform.loading import VolumeCache, load_batch
from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.training import Checkpoints, TrainingSettings

_SUBJECTS = 6


def _store(folder: Path) -> CohortStore:
    store = CohortStore.create(folder / "phantom.zarr", recipe={"name": "phantom"}, channels=("T1w",))
    records = []
    with store.lock():
        for seed in range(_SUBJECTS):
            subject = make_phantom(seed, PhantomSettings(shape=(64, 64, 64)))
            record = SubjectRecord(
                subject_id=f"train-{seed}",
                split="train",
                channels=subject.channels,
                shape=subject.brain.shape,
                spacing_mm=subject.spacing_mm,
                affine=as_matrix(subject.affine),
            )
            records.append(store.write(record, SubjectArrays(image=subject.image, brain=subject.brain)))
        store.commit(records)
    return CohortStore.open(store.path)


def _plain(settings: Any, store: CohortStore, steps: int) -> float:
    """Return seconds of a bare loop, its batches made beforehand."""
    torch.manual_seed(0)
    method = ImplicitField(settings, store.facts())
    _, stage = method.stages()
    cache = VolumeCache(store, method.cohort.subjects, 2**30)
    batches = [load_batch(cache, stage, method.cohort, seed=0, step=step) for step in range(min(steps, 8))]
    (optimizer,) = stage.optimizers.values()
    method.train()
    begin = time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        total, count = method.loss(batches[step % len(batches)])
        (total / count).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        optimizer.step()
    return time.perf_counter() - begin


def _ours(settings: Any, store: CohortStore, home: Path, num_workers: int, name: str) -> tuple[float, float]:
    """Return seconds of the decoder's stage, and seconds of the whole call."""
    spec = RunSpec(
        run_id=name,
        method="implicit_field",
        settings=settings.model_dump(mode="json"),
        training=TrainingSettings(
            threads=torch.get_num_threads(), device="cpu", precision="fp32", checkpoint_every=10_000
        ),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=num_workers,
        created="2026-01-01T00:00:00Z",
    )
    run: RunFolder = create_run(home, spec)
    begin = time.perf_counter()
    cluster.train(run, ImplicitField)
    whole = time.perf_counter() - begin
    checkpoints = Checkpoints(run.checkpoints)
    state = checkpoints.state(checkpoints.end_of("decoder"))
    return state.seconds["decoder"], whole


def measure(steps: int, rounds: int, width: int, points: int) -> dict[str, Any]:
    """Run the contest; returns the figures."""
    lengths = {"short": max(1, steps // 4), "long": steps + max(1, steps // 4)}
    chosen = {
        length: override(
            ImplicitField.presets()["paper"],
            {"points": points, "width": width, "latent_dim": width // 2, "epochs": epochs, "class_voxels": 20_000},
        )
        for length, epochs in lengths.items()
    }
    settings = chosen["long"]
    seconds: dict[str, list[float]] = {"plain": [], "platform": [], "ray": []}
    outside: list[float] = []
    with tempfile.TemporaryDirectory() as folder, cluster.session():
        store = _store(Path(folder))
        _plain(settings, store, 2)
        for number in range(rounds):
            took: dict[str, dict[str, float]] = {name: {} for name in seconds}
            for length, epochs in lengths.items():
                took["plain"][length] = _plain(settings, store, epochs)
                name = f"{length}-{number}"
                took["platform"][length], _ = _ours(chosen[length], store, Path(folder), 0, f"platform-{name}")
                took["ray"][length], whole = _ours(chosen[length], store, Path(folder), 1, f"ray-{name}")
                outside.append(whole - took["ray"][length])
            for name, values in took.items():
                seconds[name].append((values["long"] - values["short"]) / steps)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    assert isinstance(settings, ImplicitFieldSettings)
    each = settings.points * settings.batch_volumes
    return {
        "settings_digest": digest(settings)[:12],
        "points_per_step": each,
        "steps": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "points_per_second": {name: round(each / value) for name, value in median.items()},
        "platform_over_plain": round(median["platform"] / median["plain"], 4),
        "ray_over_platform": round(median["ray"] / median["platform"], 4),
        "ray_over_plain": round(median["ray"] / median["plain"], 4),
        "ray_seconds_outside_steps": round(statistics.median(outside), 1),
        "seconds_per_step": {name: [round(v, 4) for v in values] for name, values in seconds.items()},
    }


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_contest_runs_and_all_three_do_the_same_work() -> None:
    figures = measure(steps=2, rounds=1, width=128, points=200)
    assert figures["points_per_step"] == 1200
    # The ratios are read, not asserted: a busy machine would make a timed test of them.
    assert {name: len(values) for name, values in figures["seconds_per_step"].items()} == dict.fromkeys(
        ("plain", "platform", "ray"), 1
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--points", type=int, default=900)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    figures = measure(chosen.steps, chosen.rounds, chosen.width, chosen.points)
    json.dump(figures, sys.stdout, indent=None if chosen.json else 1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
