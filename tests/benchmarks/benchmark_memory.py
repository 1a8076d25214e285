"""Peak memory of training over the width m: position regression beside the 3D autoencoder (Bieder et al. 2022).

One volume size, each method at its paper's batch: 256 patches of one volume; four volumes, and the same four one after
the other (``network.norm = instance``, gradients accumulated). Every point is a process of its own that takes some
steps on made-up volumes, so that no point sees another's memory: on a CPU the growth of its resident memory over that
before the network was built, on CUDA what the allocator gave out at most. What is kept between forward and backward is
counted beside. Freed memory goes back to the system at once there (``MALLOC_MMAP_THRESHOLD_``), which costs time:
seconds a step are for comparing points, not a speed.

With ``--auroc`` every point is also trained, on phantoms with and without a lesion, for ``--epochs`` visits to each
training volume, and its image scores are judged on the test split: the other axis of the paper's comparison.

    python tests/benchmarks/benchmark_memory.py [--edge 64] [--widths 1 2 4 8 16] [--precision fp32] [--checkpoint]
        [--micro-batch N] [--auroc] [--modality CT] [--epochs 20] [--device cuda] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vesalius.infra.footprint import batch_of_noise, footprint_on, made_up_cohort
from vesalius.methods.autoencoder_3d import Autoencoder3D, Autoencoder3DSettings
from vesalius.methods.position_regression import PositionRegression, PositionRegressionSettings
from vesalius.platform.config import override
from vesalius.platform.training import Alone, TrainingSettings, Updater, choose_device, computing_as
from vesalius.platform.training.memory import PeakMemory, lay_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.store import CohortStore

PATCHES, VOLUMES, ONE_BY_ONE = "position_regression", "autoencoder_3d", "autoencoder_3d, one by one"
CONTENDERS = (PATCHES, VOLUMES, ONE_BY_ONE)
_STEPS = 3
_SPLITS = {"train": 16, "validation": 3, "test": 24}
_CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**18)}


def contender(name: str, width: int, point: dict[str, Any]) -> tuple[type[Method], MethodSettings, TrainingSettings]:
    """Return a method, its paper's settings at a width, and the loop's."""
    training = TrainingSettings(
        device=point["device"],
        precision=point["precision"],
        threads=torch.get_num_threads(),
        micro_batch_size=1 if name == ONE_BY_ONE else point["micro_batch"],
        checkpoint_activations=point["checkpoint"],
        channels_last=point["channels_last"],
        cache_mib=512,
    )
    if name == PATCHES:
        settings: MethodSettings = override(
            PositionRegressionSettings(), {"network.width": width, "network.patch_size": point["patch_size"]}
        )
        return PositionRegression, settings, training
    norm = "instance" if name == ONE_BY_ONE else "batch"
    changes = {"network.width": width, "network.norm": norm, "network.stages": point["stages"]}
    return Autoencoder3D, override(Autoencoder3DSettings(), changes), training


def measure_point(point: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one method at one width, measured in this process: see the module."""
    torch.set_num_threads(point["threads"])
    device = choose_device(point["device"])
    kind, settings, training = contender(point["method"], point["width"], point)
    cohort = made_up_cohort((point["edge"],) * 3, 8)
    # What libraries load at their first use is no part of it.
    torch.nn.Conv3d(1, 1, 3).to(device)(torch.rand(1, 1, 4, 4, 4, device=device)).sum().backward()
    peak = PeakMemory(device)
    peak.begin()
    torch.manual_seed(0)
    method = kind(settings, cohort)
    lay_out(method, training, device)
    (stage,) = method.stages()
    method.train().requires_grad_(True)
    update = Updater(stage, Alone(), training, device)
    batch = batch_of_noise(method, stage, stage.batch_size).to(device)
    spent = []
    with computing_as(training, device):
        for _ in range(_STEPS):  # the first makes the optimiser's state
            begin = time.perf_counter()
            stage.step(batch, update)
            stage.after_update()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent.append(time.perf_counter() - begin)
    found = {
        "method": point["method"],
        "width": point["width"],
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "peak_mib": round(peak.read() / 2**20, 1),
        "seconds_per_step": round(min(spent[1:]), 4),
    }
    del method, update, batch, stage
    counted = footprint_on(kind, settings, cohort, training, device)
    found["counted_mib"] = round(counted.peak_bytes / 2**20, 1)
    if point["auroc"]:
        found |= _detection(kind, settings, training, point, device)
    return found


def phantoms(folder: Path, edge: int, modality: str, counts: dict[str, int]) -> CohortStore:
    """Return a cohort of phantoms with their heads; two in three of those that are judged have a lesion."""
    # Needed for --auroc alone: the memory is measured on machines that have torch and little else.
    from vesalius.datasets.phantom import PhantomSettings, phantom_cohort
    from vesalius.platform.geometry import as_matrix
    from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord

    look = PhantomSettings(shape=(edge,) * 3, modalities=(modality,), skull_stripped=False)
    store = CohortStore.create(folder / "phantoms.zarr", recipe={"name": "phantom"}, channels=(modality,))
    cases = phantom_cohort(counts["train"], counts["validation"], 0, counts["test"], settings=look, seed=1)
    records = []
    with store.lock():
        for case in cases:
            subject = case.make()
            low, high = (-20.0, 100.0) if modality == "CT" else (0.0, 1.0)
            record = SubjectRecord(
                subject_id=case.subject_id,
                split=case.split,
                channels=subject.channels,
                shape=subject.brain.shape,
                spacing_mm=subject.spacing_mm,
                affine=as_matrix(subject.affine),
            )
            arrays = SubjectArrays(
                image=((subject.image - low) / (high - low)).clip(0, 1),
                brain=subject.brain,
                head=subject.head,
                lesion=subject.lesion if subject.lesion.any() else None,
            )
            records.append(store.write(record, arrays))
        store.commit(records)
    return CohortStore.open(store.path)


def _detection(
    kind: type[Method],
    settings: MethodSettings,
    training: TrainingSettings,
    point: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    from vesalius.platform.scoring import score_volume, volume_of
    from vesalius.platform.store import CohortStore
    from vesalius.platform.training import train

    store = CohortStore.open(Path(point["store"]))
    # Short runs take greater steps; the paper's 2,000 epochs take the paper's rates.
    changes = {"epochs": point["epochs"]} | ({"learning_rate": 1e-3} if point["method"] == PATCHES else {})
    torch.manual_seed(0)
    method = kind(override(settings, changes), store.facts())
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        steps = train(method, store, training, Path(folder), device=device).num_steps
    seconds = time.perf_counter() - begin
    records = store.subjects("test")
    scores = [score_volume(method, volume_of(store, record), device)[0].image_score for record in records]
    return {
        "auroc": round(float(roc_auc_score([record.has_lesion for record in records], scores)), 3),
        "steps": steps,
        "training_seconds": round(seconds, 1),
    }


def measure(widths: Sequence[int], contenders: Sequence[str] = CONTENDERS, **point: Any) -> dict[str, Any]:
    """Measure every point in a process of its own; return the figures."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if point["auroc"]:
            point["store"] = str(phantoms(Path(folder), point["edge"], point["modality"], point["subjects"]).path)
        for width in widths:
            for name in contenders:
                text = json.dumps({**point, "method": name, "width": width})
                done = subprocess.run(
                    [sys.executable, __file__, "--point", text],
                    capture_output=True,
                    text=True,
                    check=False,
                    env={**os.environ, **_CHILD_ENVIRONMENT},
                )
                if done.returncode:
                    said = (done.stderr.strip().splitlines() or ["killed"])[-1]
                    rows.append({"method": name, "width": width, "failed": f"exit {done.returncode}: {said}"})
                else:
                    rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], file=sys.stderr)
    peaks = {(row["method"], row["width"]): row["peak_mib"] for row in rows if "peak_mib" in row}
    ratios = [
        {
            "width": width,
            **{
                name: round(peaks[name, width] / peaks[PATCHES, width], 2)
                for name in contenders
                if {(name, width), (PATCHES, width)} <= peaks.keys()
            },
        }
        for width in widths
    ]
    return {"benchmark": "memory", **{k: v for k, v in point.items() if k != "store"}, "rows": rows, "ratios": ratios}


def default_point(**changes: Any) -> dict[str, Any]:
    """Return what all points of a measurement share."""
    return {
        "edge": 64,
        "patch_size": 31,
        "stages": 5,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "precision": "fp32",
        "threads": min(2, os.cpu_count() or 1),
        "micro_batch": None,
        "checkpoint": False,
        "channels_last": False,
        "auroc": False,
        "modality": "CT",
        "epochs": 20,
        "subjects": _SPLITS,
    } | changes


@pytest.mark.long
def test_every_point_is_measured_alone_and_judged() -> None:
    few = {"train": 4, "validation": 1, "test": 6}
    point = default_point(edge=24, patch_size=19, stages=2, device="cpu", threads=1, auroc=True, epochs=1, subjects=few)
    figures = measure([1, 16], **point)
    assert [row["method"] for row in figures["rows"]] == list(CONTENDERS) * 2
    rows = {(row["method"], row["width"]): row for row in figures["rows"]}
    for name in CONTENDERS:
        narrow, wide = rows[name, 1], rows[name, 16]
        assert wide["parameters"] > narrow["parameters"]
        assert 0 < narrow["counted_mib"] < wide["counted_mib"]
        # What libraries take is in both peaks; what the width adds is what was counted, and temporary tensors (1.3 to
        # 1.6 times as much where this was written).
        grown = wide["peak_mib"] - narrow["peak_mib"]
        assert 0.8 < grown / (wide["counted_mib"] - narrow["counted_mib"]) < 2.5
        assert 0 <= narrow["auroc"] <= 1
    # A batch of one volume at a time keeps a quarter of what four do, the weights aside.
    assert rows[ONE_BY_ONE, 16]["counted_mib"] < rows[VOLUMES, 16]["counted_mib"]
    assert rows[ONE_BY_ONE, 16]["peak_mib"] < rows[VOLUMES, 16]["peak_mib"]
    assert [row[PATCHES] for row in figures["ratios"]] == [1.0, 1.0]


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    where = f"{figures['device']}, {figures['precision']}, {figures['threads']} threads"
    options = [name for name in ("checkpoint", "channels_last") if figures[name]]
    lines = [
        f"{figures['edge']}-cubes, patches of {figures['patch_size']}; {', '.join([where, *options])}",
        "",
        "| m | method | parameters | peak MiB | counted MiB | times position regression | s / step | AUROC (steps) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios = {row["width"]: row for row in figures["ratios"]}
    for row in figures["rows"]:
        if "failed" in row:
            lines.append(f"| {row['width']} | {row['method']} | {row['failed']} | | | | | |")
            continue
        ratio = ratios[row["width"]].get(row["method"], "")
        auroc = f"{row['auroc']:.3f} ({row['steps']:,})" if "auroc" in row else ""
        cells = [row["width"], row["method"], f"{row['parameters']:,}", row["peak_mib"], row["counted_mib"], ratio]
        lines.append("| " + " | ".join(map(str, [*cells, row["seconds_per_step"], auroc])) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print, or measure the one point that a parent asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = default_point()
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--edge", type=int, default=shared["edge"])
    parser.add_argument("--patch-size", type=int, default=shared["patch_size"])
    parser.add_argument("--stages", type=int, default=shared["stages"], help="halvings of the autoencoder")
    parser.add_argument("--device", default=shared["device"], choices=("cpu", "cuda"))
    parser.add_argument("--precision", default=shared["precision"], choices=("fp32", "bf16", "auto"))
    parser.add_argument("--threads", type=int, default=shared["threads"])
    parser.add_argument("--micro-batch", type=int, default=None, help="patches of position regression at once")
    parser.add_argument("--checkpoint", action="store_true", help="training.checkpoint_activations")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--auroc", action="store_true", help="train and judge every point on phantoms as well")
    parser.add_argument("--modality", default=shared["modality"], choices=("CT", "T1w"))
    parser.add_argument("--epochs", type=float, default=shared["epochs"], help="visits to each training volume")
    parser.add_argument("--json", action="store_true", help="print JSON in the place of a table")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    parser.add_argument("--point", default=None, help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    point, widths = arguments.pop("point"), arguments.pop("widths")
    as_json, out = arguments.pop("json"), arguments.pop("out")
    if point is not None:
        print(json.dumps(measure_point(json.loads(point))))
        return 0
    figures = measure(widths, **default_point(**arguments))
    text = json.dumps(figures, indent=2)
    if out is not None:
        out.write_text(text + "\n")
    print(text if as_json else table(figures))
    return 1 if any("failed" in row for row in figures["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
