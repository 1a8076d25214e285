"""Ingest against the bare cost of reading and decompressing the same files, as ratios of CPU time in one run.

Bare is ``gzip.decompress`` of each file's bytes and nothing else. An ingest is split into

- reading: bytes, SHA-256 (twice: once to see what is new), decompressing, header and voxel checks, float32;
- the recipe's own steps: orientation, brain, registration, resampling, scaling;
- storing: checksums, chunks, compression, syncing, the commit.

The ratio is of ingest without the recipe's own steps to bare: what it costs to be careful. The recipe's cost stands
beside it; it does not depend on how files are read. CPU time of this process and not wall-clock time, the least of
several turns, so that other work on the machine enters little.

Usage: ``python tests/benchmarks/benchmark_ingest.py [--subjects 4] [--data FOLDER]``; without real data, volumes of the
same size are generated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.manifest import write_manifest
from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.prepare import prepare_file
from vesalius.datasets.recipes import as_is, centered, mni_affine
from vesalius.platform.geometry import write_nifti

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vesalius.datasets.recipes import Recipe

TURNS = 3
RECIPES: dict[str, Callable[[], Recipe]] = {"as_is": as_is, "centered": centered, "mni_affine": mni_affine}


def main() -> None:
    """Print the figures as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    root = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VESALIUS_DATA", root)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files, origin = find_files(options.data.resolve(), options.subjects, Path(name))
        figures = measure(files, Path(name))
    bare = figures["bare_seconds"]
    print(f"{len(files)} volumes, {origin}; CPU seconds a volume")
    print(f"bare {bare:.3f}, reading {figures['reading_seconds']:.3f} ({figures['reading_seconds'] / bare:.1f} x)")
    print(f"{'recipe':12}{'ingest':>8}{'its own steps':>15}{'without them':>14}{'to bare':>9}")
    for name in RECIPES:
        whole, own, ratio = (figures[f"{name}_{key}"] for key in ("seconds", "recipe_seconds", "ratio"))
        print(f"{name:12}{whole:8.3f}{own:15.3f}{whole - own:14.3f}{ratio:7.1f} x")
    print(json.dumps(figures))


def find_files(data: Path, count: int, folder: Path) -> tuple[list[Path], str]:
    """Return real scans where there are any, else generated ones of the same size."""
    real = sorted(data.glob("ds002748/sub-*/anat/*_T1w.nii.gz"))[:count]
    if real:
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
    ingest("manifest", folder / "cohort.csv", folder / "warm", recipe=centered(8.0))
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


def prepare_all(files: Sequence[Path], recipe: Recipe) -> None:
    """Prepare every file and store nothing."""
    for file in files:
        prepare_file(file, recipe)


def take_in(folder: Path, name: str, recipe: Recipe) -> None:
    """Ingest into a new store in this process and insist that it worked."""
    store = folder / f"{name}-{uuid.uuid4().hex}"
    ingest("manifest", folder / "cohort.csv", store, recipe=recipe).raise_for_failures()


def timed(action: Callable[[], object], turns: int = TURNS) -> float:
    """Return the least CPU seconds of several calls."""
    taken = []
    for _ in range(turns):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return min(taken)


if __name__ == "__main__":
    main()
