"""A training step of two Ray Train workers beside one of a plain torchrun of two processes, on the same network.

Contestants, alternating in one run, one thread a process, float32 on two CPU cores:

- torchrun: ``python -m torch.distributed.run --nproc-per-node 2``, a bare loop over batches that are already in memory,
  the gradients averaged by ``DistributedDataParallel`` over gloo;
- platform: ``vesalius.platform.cluster.train`` with two workers (loading, checks, checkpoints, metrics, Ray).

A step is timed once running: each trains a short run and a long one, and what the long one takes beyond the short is
divided by the steps it has beyond. The figure is the ratio of the medians.

    python tests/benchmarks/benchmark_workers.py [--steps 40] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.phantom import CohortSettings
from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.settings import ImplicitFieldSettings
from vesalius.platform import cluster
from vesalius.platform.config import override
from vesalius.platform.loading import VolumeCache, load_batch
from vesalius.platform.runs import RunSpec, create_run
from vesalius.platform.store import CohortStore
from vesalius.platform.training import Checkpoints, TrainingSettings

_PROCESSES = 2
_SUBJECTS = 6


class _Loss(nn.Module):
    """A method's loss as a forward pass, so that ``DistributedDataParallel`` sees it."""

    def __init__(self, method: ImplicitField) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any) -> Tensor:
        total, count = self.method.loss(batch)
        return total / count


def plain(store: CohortStore, settings: ImplicitFieldSettings, steps: int) -> float:
    """Train as one of the processes that torchrun started; returns seconds of its steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        torch.manual_seed(0)
        shared = override(settings, {"batch_volumes": settings.batch_volumes // _PROCESSES})
        method = ImplicitField(shared, store.facts())
        _, stage = method.stages()
        cache = VolumeCache(store, method.cohort.subjects, 2**30)
        batches = [
            load_batch(cache, stage, method.cohort, seed=dist.get_rank(), step=step) for step in range(min(steps, 8))
        ]
        (optimizer,) = stage.optimizers.values()
        method.train()
        loss = DistributedDataParallel(_Loss(method))
        dist.barrier()
        begin = time.perf_counter()
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss(batches[step % len(batches)]).backward()
            optimizer.step()
        dist.barrier()
        return time.perf_counter() - begin
    finally:
        dist.destroy_process_group()


def _torchrun(settings: ImplicitFieldSettings, store: CohortStore, folder: Path, steps: int) -> float:
    asked, answer = folder / "asked.json", folder / "seconds.json"
    asked.write_text(settings.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(_PROCESSES)]
    words = [__file__, "--as-process", str(store.path), str(asked), str(answer), str(steps)]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"torchrun failed: {done.stderr[-2000:]}")
    return float(json.loads(answer.read_text()))


def _platform(settings: ImplicitFieldSettings, store: CohortStore, home: Path, name: str) -> float:
    spec = RunSpec(
        run_id=name,
        method="implicit_field",
        settings=settings.model_dump(mode="json"),
        training=TrainingSettings(threads=1, device="cpu", precision="fp32", checkpoint_every=10_000),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=_PROCESSES,
        created="2026-01-01T00:00:00Z",
    )
    run = create_run(home, spec)
    cluster.train(run, ImplicitField)
    checkpoints = Checkpoints(run.checkpoints)
    return checkpoints.state(checkpoints.end_of("decoder")).seconds["decoder"]


def measure(steps: int, rounds: int, width: int, points: int) -> dict[str, Any]:
    """Run the contest; returns the figures."""
    short = max(1, steps // 4)
    lengths = {"short": short, "long": steps + short}
    changes = {"points": points, "width": width, "latent_dim": width // 2, "class_voxels": 20_000}
    chosen = {
        length: override(ImplicitField.presets()["paper"], {**changes, "epochs": epochs})
        for length, epochs in lengths.items()
    }
    seconds: dict[str, list[float]] = {"torchrun": [], "platform": []}
    with tempfile.TemporaryDirectory() as name, cluster.session():
        folder = Path(name)
        cohort = CohortSettings(num_train=_SUBJECTS, num_validation=0, num_gate=0, num_test=0)
        ingest("phantom", write_cohort(folder / "raw", cohort), folder / "cohort", name="phantom", num_workers=0)
        store = CohortStore.open(folder / "cohort")
        for number in range(rounds):
            took: dict[str, dict[str, float]] = {name: {} for name in seconds}
            for length, epochs in lengths.items():
                settings = chosen[length]
                assert isinstance(settings, ImplicitFieldSettings)
                took["torchrun"][length] = _torchrun(settings, store, folder, epochs)
                took["platform"][length] = _platform(settings, store, folder, f"{length}-{number}")
            for who, values in took.items():
                seconds[who].append((values["long"] - values["short"]) / steps)
    median = {who: statistics.median(values) for who, values in seconds.items()}
    return {
        "steps": steps,
        "rounds": rounds,
        "processes": _PROCESSES,
        "points_per_step": points * _SUBJECTS,
        "platform_over_torchrun": round(median["platform"] / median["torchrun"], 4),
        "seconds_per_step": {who: [round(value, 4) for value in values] for who, values in seconds.items()},
    }


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_contest_runs() -> None:
    figures = measure(steps=2, rounds=1, width=64, points=200)
    # The ratio is read, not asserted: a busy machine would make a timed test of it.
    assert {who: len(values) for who, values in figures["seconds_per_step"].items()} == {"torchrun": 1, "platform": 1}


def main(arguments: list[str] | None = None) -> int:
    """Print the figures, or be one of torchrun's processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--points", type=int, default=900)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--as-process", nargs=4, metavar=("STORE", "SETTINGS", "ANSWER", "STEPS"), help="by torchrun")
    chosen = parser.parse_args(arguments)
    if chosen.as_process:
        path, asked, answer, steps = chosen.as_process
        settings = ImplicitFieldSettings.model_validate_json(Path(asked).read_text())
        took = plain(CohortStore.open(Path(path)), settings, int(steps))
        Path(answer).write_text(json.dumps(took))
        return 0
    figures = measure(chosen.steps, chosen.rounds, chosen.width, chosen.points)
    json.dump(figures, sys.stdout, indent=None if chosen.json else 1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
