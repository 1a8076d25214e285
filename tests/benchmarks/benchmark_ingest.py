"""Ingest against the bare cost of reading and decompressing the same files, as ratios of CPU time in one run.

Bare is ``gzip.decompress`` of each file's bytes and nothing else. An ingest is split into

- reading: bytes, SHA-256 (twice: once to see what is new), decompressing, header and voxel checks, float32;
- the recipe's own steps: orientation, brain, registration, resampling, scaling;
- storing: checksums, chunks, compression, syncing, the commit.

The ratio is of ingest without the recipe's own steps to bare: what it costs to be careful. The recipe's cost stands
beside it; it does not depend on how files are read. CPU time of this process and not wall-clock time, the least of
several turns, so that other work on the machine enters little.

**Workers.** The same cohort by 1 Ray worker and by 2, in turns, in one Ray runtime that is up already: the ratio of
wall-clock times, and the share of two cores that was free for it (a fixed computation alone and twice at once, just
before): where that is below 2, so is what two workers can be.

**Memory.** The proportional memory of driver, workers and Ray's raylet (PSS: shared pages, the object store's among
them, count once), its greatest sum
while an ingest of generated volumes runs on 2 workers, above what it is before the first subject; as a ratio to that
with a quarter of the subjects, which is 1 where memory follows from the workers, and 4 where it follows from the
subjects; and as decoded float32 volumes a worker.

Usage: ``python tests/benchmarks/benchmark_ingest.py [--subjects 4] [--volumes 24] [--edge 256] [--data FOLDER]``;
without real data, volumes of the same size are generated. 24 volumes against 6 say whether memory follows the subjects
at the size that the bound is stated for; ``--volumes 100`` is the bound itself, and takes four times as long.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.manifest import write_manifest
from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.prepare import prepare_file
from vesalius.datasets.recipes import as_is, centered, mni_affine
from vesalius.platform.cluster import session
from vesalius.platform.geometry import write_nifti

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vesalius.datasets.recipes import Recipe

TURNS = 3
ANYWHERE = Path("/")  # the tables of this benchmark name scans where they lie
RECIPES: dict[str, Callable[[], Recipe]] = {"as_is": as_is, "centered": centered, "mni_affine": mni_affine}


def main() -> None:
    """Print the figures as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--volumes", type=int, default=24, help="generated volumes for the memory's bound")
    parser.add_argument("--edge", type=int, default=256, help="their edge in voxels")
    root = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VESALIUS_DATA", root)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files, origin = find_files(options.data.resolve(), options.subjects, Path(name))
        figures = measure(files, Path(name))
        figures.update(measure_workers(files, Path(name)))
        figures.update(measure_memory(Path(name), options.volumes, options.edge))
    bare = figures["bare_seconds"]
    print(f"{len(files)} volumes, {origin}; CPU seconds a volume")
    print(f"bare {bare:.3f}, reading {figures['reading_seconds']:.3f} ({figures['reading_seconds'] / bare:.1f} x)")
    print(f"{'recipe':12}{'ingest':>8}{'its own steps':>15}{'without them':>14}{'to bare':>9}")
    for name in RECIPES:
        whole, own, ratio = (figures[f"{name}_{key}"] for key in ("seconds", "recipe_seconds", "ratio"))
        print(f"{name:12}{whole:8.3f}{own:15.3f}{whole - own:14.3f}{ratio:7.1f} x")
    print(
        f"2 workers against 1: {figures['workers_speedup']:.2f} x where two cores did {figures['cores_speedup']:.2f} x "
        f"({figures['one_worker_seconds']:.1f} s and {figures['two_workers_seconds']:.1f} s)"
    )
    print(
        f"memory of driver and 2 workers above rest: {figures['memory_mib']:.0f} MiB at {options.volumes} volumes of "
        f"{options.edge}-cube, {figures['memory_ratio']:.2f} x that at a quarter of them; "
        f"{figures['memory_volumes_per_worker']:.1f} decoded volumes a worker; cohort decoded "
        f"{figures['cohort_mib']:.0f} MiB"
    )
    print(json.dumps(figures))


def find_files(data: Path, count: int, folder: Path) -> tuple[list[Path], str]:
    """Return real scans where there are any, else generated ones of the same size."""
    real = sorted(data.glob("ds002748/sub-*/anat/*_T1w.nii.gz"))[:count]
    if real:
        # Copied beside the table that names them: files elsewhere are not taken in.
        real = [Path(shutil.copy(path, folder / path.name)) for path in real]
        return real, "real: 288 x 288 x 181 float32, skull-stripped"
    from vesalius.datasets.template import mni152

    template = mni152()
    files = []
    for index in range(count):
        noise = np.random.default_rng(index).normal(1, 0.05, template.image.shape)
        files.append(folder / f"generated-{index}.nii.gz")
        write_nifti(files[-1], (template.image * noise).astype(np.float32), template.affine)
    return files, f"generated: {template.image.shape} float32"


def measure(files: Sequence[Path], folder: Path) -> dict[str, float]:
    """Return CPU seconds a volume: bare, reading, each recipe's ingest, and the recipe's own steps in it."""
    write_manifest(
        folder / "cohort.csv", [{"subject_id": f"s{index}", "image": str(file)} for index, file in enumerate(files)]
    )
    for warm in RECIPES.values():  # imports, the template, the page cache
        prepare_file(files[0], warm())
    ingest("manifest", folder / "cohort.csv", folder / "warm", recipe=centered(8.0), within=ANYWHERE)
    bare = timed(lambda: [gzip.decompress(file.read_bytes()) for file in files])
    reading = timed(lambda: [read_nifti(file) for file in files])
    figures = {"bare_seconds": bare / len(files), "reading_seconds": reading / len(files)}
    for name, recipe in RECIPES.items():
        turns = 1 if name == "mni_affine" else TURNS
        whole = timed(partial(take_in, folder, name, recipe()), turns)
        prepared = timed(partial(prepare_all, files, recipe()), turns)
        own = (prepared - reading) / len(files)
        figures[f"{name}_seconds"] = whole / len(files)
        figures[f"{name}_recipe_seconds"] = own
        figures[f"{name}_ratio"] = (figures[f"{name}_seconds"] - own) / figures["bare_seconds"]
    return {key: round(value, 4) for key, value in figures.items()}


def measure_workers(files: Sequence[Path], folder: Path, turns: int = 2) -> dict[str, float]:
    """Return wall-clock seconds by 1 and by 2 workers, least of several turns, and what two cores gave meanwhile."""
    rows = [
        {"subject_id": f"w{index}", "image": str(copied(file, folder, index))}
        for index, file in enumerate([*files, *files])
    ]
    write_manifest(folder / "workers.csv", rows)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    cores: list[float] = []
    with session(2):
        shared(folder, "workers.csv", 2)  # starts both workers and has them import
        for _ in range(turns):
            cores.append(two_cores())
            for num_workers in (1, 2):
                started = time.perf_counter()
                shared(folder, "workers.csv", num_workers)
                seconds[num_workers].append(time.perf_counter() - started)
    one, two = min(seconds[1]), min(seconds[2])
    figures = {
        "one_worker_seconds": one,
        "two_workers_seconds": two,
        "workers_speedup": one / two,
        "cores_speedup": max(cores),
    }
    return {key: round(value, 3) for key, value in figures.items()}


def copied(file: Path, folder: Path, index: int) -> Path:
    """Return the file again under another checksum, by the time in its gzip header: one scan is taken in once."""
    content = bytearray(file.read_bytes())
    content[4:8] = index.to_bytes(4, "little")
    path = folder / f"copy-{index}.nii.gz"
    path.write_bytes(content)
    return path


def shared(folder: Path, manifest: str, num_workers: int) -> None:
    """Ingest into a new store on Ray workers and insist that it worked."""
    store = folder / f"shared-{uuid.uuid4().hex}"
    ingest(
        "manifest", folder / manifest, store, recipe=centered(), num_workers=num_workers, within=ANYWHERE
    ).raise_for_failures()
    shutil.rmtree(store)


def spin(_: int) -> float:
    """Return the wall-clock seconds of a fixed computation of one core."""
    started = time.perf_counter()
    block = b"x" * 2**20
    for _ in range(600):
        hashlib.sha256(block).digest()
    return time.perf_counter() - started


def two_cores() -> float:
    """Return how much more two processes get done than one at this moment: 2 where two cores are free."""
    with get_context("spawn").Pool(2) as pool:
        pool.map(spin, range(2), chunksize=1)
        alone = pool.apply(spin, (0,))
        return 2 * alone / max(pool.map(spin, range(2), chunksize=1))


def measure_memory(folder: Path, num_volumes: int, edge: int) -> dict[str, float]:
    """Return the peak of memory above rest of driver and 2 workers, for all the volumes and for a quarter."""
    volume = np.random.default_rng(0).normal(1, 0.1, (edge, edge, edge)).astype(np.float32)
    inside = (np.indices(volume.shape) - edge / 2).__pow__(2).sum(axis=0) < (0.4 * edge) ** 2
    volume *= inside
    rows = []
    for index in range(num_volumes):
        volume[edge // 2, edge // 2, edge // 2] = 1 + index  # another scan
        path = folder / f"memory-{index}.nii"
        write_nifti(path, volume, np.diag([1.0, 1.0, 1.0, 1.0]))
        rows.append({"subject_id": f"m{index}", "image": str(path)})
    write_manifest(folder / "few.csv", rows[: max(4, num_volumes // 4)])
    write_manifest(folder / "many.csv", rows)
    with session(2):
        shared_as_is(folder, "few.csv")
        rest = held_bytes()
        peaks = {name: peak_above(rest, partial(shared_as_is, folder, name)) for name in ("few.csv", "many.csv")}
    decoded = volume.nbytes
    for index in range(num_volumes):
        (folder / f"memory-{index}.nii").unlink()
    figures = {
        "memory_mib": peaks["many.csv"] / 2**20,
        "memory_ratio": peaks["many.csv"] / peaks["few.csv"],
        "memory_volumes_per_worker": peaks["many.csv"] / decoded / 2,
        "cohort_mib": num_volumes * decoded / 2**20,
    }
    return {key: round(value, 3) for key, value in figures.items()}


def shared_as_is(folder: Path, manifest: str) -> None:
    """Ingest as the volumes are, on 2 workers."""
    store = folder / f"as-is-{uuid.uuid4().hex}"
    ingest("manifest", folder / manifest, store, recipe=as_is(), num_workers=2, within=ANYWHERE).raise_for_failures()
    shutil.rmtree(store)


def held_bytes() -> int:
    """Return the memory of this process, of the Ray workers below it and of the raylet, shared pages counted once."""
    total = 0
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            if process == here or process.name().startswith(("ray::", "raylet")):
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def peak_above(rest: int, action: Callable[[], object]) -> int:
    """Return how far memory rises above ``rest`` during an action, looked at twenty times a second."""
    done = threading.Event()
    peak = rest

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, held_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return max(1, peak - rest)


def prepare_all(files: Sequence[Path], recipe: Recipe) -> None:
    """Prepare every file and store nothing."""
    for file in files:
        prepare_file(file, recipe)


def take_in(folder: Path, name: str, recipe: Recipe) -> None:
    """Ingest into a new store in this process and insist that it worked."""
    store = folder / f"{name}-{uuid.uuid4().hex}"
    ingest("manifest", folder / "cohort.csv", store, recipe=recipe, within=ANYWHERE).raise_for_failures()


def timed(action: Callable[[], object], turns: int = TURNS) -> float:
    """Return the least CPU seconds of several calls."""
    taken = []
    for _ in range(turns):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_memory_follows_from_the_workers_and_not_from_the_subjects(tmp_path: Path) -> None:
    figures = measure_memory(tmp_path, 24, 112)
    assert figures["memory_ratio"] < 1.5, figures  # four times the subjects


if __name__ == "__main__":
    main()
