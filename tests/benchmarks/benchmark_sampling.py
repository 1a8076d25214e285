"""Patches and point batches a second: ours against TorchIO's queue, MONAI's data sets and a bare NumPy memmap.

One run, the same float32 volumes with a brain mask, the same process and threads; contestants take turns, round by
round, each alone, and medians over rounds are compared: a slow minute of the machine hurts all of them.

``memory``: the cohort fits and every contestant but the memmap (whose pages the system keeps) holds all of it decoded.
How each was set up, after its own documentation:

- ours: a cohort store (64-chunks, one shard, zstd-3), ``batches`` with its defaults: two batches ahead in one thread,
  two readers. Image, brain and position come out.
- memmap: one .npy a volume, for image and mask each; a patch is ``np.array(memmap[box])`` of both at a centre drawn
  beforehand: no drawing, no padding, no batch, and so what the machine allows.
- torchio queue: ``Queue`` with ``UniformSampler``, ``samples_per_volume`` as many as our visit takes, ``max_length`` of
  two visits, in a ``SubjectsLoader`` whose batch is ours and whose own ``num_workers`` is 0, as TorchIO demands; the
  queue's workers are 0, 1 and 2. Subjects are loaded beforehand, so no file is read.
- monai cache: ``CacheDataset`` (``cache_rate`` 1) and ``RandSpatialCropSamplesd`` of as many samples, in MONAI's
  ``DataLoader`` with 0, 1 and 2 workers (1 and 2: ``persistent_workers``).
- monai persistent: the same with ``PersistentDataset``, whose files the page cache holds.

MONAI does not track metadata here (``set_track_meta(False)``, as its guide to fast training advises): nothing uses
them. Patches in both peers lie wholly inside the volume; ours are centred anywhere and padded, which costs us a little.

``points``: batches of volumes x points drawn uniformly, with their positions. Neither peer has such a view. So
each runs twice: with its own crops, of one voxel (1,024 of them, and the time scaled up in proportion), and with a
transform of our making after the peer's whole volumes (``picked``), as a careful user would write it. The memmap runs
twice as well: ``memmap`` draws, gathers and works out the positions in plain NumPy, as anyone must; ``memmap, gathers
alone`` has its points and positions beforehand.

``stream``: the cohort does not fit. Each step takes 256 patches of one volume, its reading included: ours with memory
for half of the volumes, MONAI with a ``CacheDataset`` of half of them (the same memory) and from the files of a
``PersistentDataset``, TorchIO from uncompressed NIfTI files, the peers with 0, 1 and 2 workers; beside it, what a small
network (three unpadded 3D convolutions of 16 channels) needs for a step on those patches. The page cache has all files.

``volumes``: image and mask of a whole volume out of our store, against Blosc alone on the same chunks, which lie in
memory already and are put nowhere; one thread each.

    python tests/benchmarks/benchmark_sampling.py [--edge 160] [--volumes 4] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel
import numcodecs.blosc  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
import torch

from vesalius.platform.contracts import Patches, Points, Stage
from vesalius.platform.loading import VolumeCache, batches
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATCH = 31
VISIT = 256
POINTS = 16_200
POINT_VOLUMES = 6
_FILL = 2
"""Visits that fill TorchIO's queue at once: whole fills are timed, or batches that stood there already would count."""
FEW_CROPS = 1024
"""Crops of one voxel that a peer makes in place of 16,200: many, or its cost a volume would be scaled up with them."""


class Data:
    """The same volumes as a store, as .npy and as .nii."""

    def __init__(self, folder: Path, edge: int, num: int) -> None:
        self.folder, self.edge, self.num = folder, edge, num
        store = CohortStore.create(folder / "cohort.zarr", recipe={"name": "benchmark"}, channels=("T1w",))
        random = np.random.default_rng(0)
        axis = np.linspace(-1, 1, edge)
        radius = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
        brain = radius < 0.8
        with store.lock():
            for number in range(num):
                image = np.where(brain, 0.5 + 0.1 * random.standard_normal((edge,) * 3), 0).astype(np.float32)
                record = SubjectRecord(
                    subject_id=f"train-{number:02d}",
                    split="train",
                    channels=("T1w",),
                    shape=(edge,) * 3,
                    spacing_mm=(1.0, 1.0, 1.0),
                    affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
                )
                store.commit([store.write(record, SubjectArrays(image=image[None], brain=brain))])
                for name, values in (("image", image), ("brain", brain.astype(np.uint8))):
                    np.save(folder / f"{name}-{number}.npy", values)
                    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{name}-{number}.nii")
        self.store = CohortStore.open(store.path)
        self.volume_bytes = edge**3 * 5

    def files(self, kind: str) -> list[dict[str, str]]:
        return [
            {name: str(self.folder / f"{name}-{number}.{kind}") for name in ("image", "brain")}
            for number in range(self.num)
        ]


# ---- contestants: each yields once a batch of ``VISIT`` patches, or of points, for ever


def ours(data: Data, view: Patches | Points, batch_size: int, budget: int) -> Iterator[int]:
    stage = Stage(name="s", view=view, batch_size=batch_size, epochs=10**6, step=lambda batch, update: {})
    facts = data.store.facts()
    cache = VolumeCache(data.store, facts.subjects, budget)
    for batch in batches(cache, stage, facts, seed=0, start=0, stop=10**6):
        yield len(batch)


def whole_volumes(data: Data) -> Iterator[int]:
    while True:
        for subject in data.store.facts().subjects:
            for role in ("image", "brain"):
                data.store.stored(subject, role)
            yield 1


def decompression(data: Data) -> Iterator[int]:
    volumes = [list(_chunks(data.store.folder(subject))) for subject in data.store.facts().subjects]
    while True:
        for chunks in volumes:
            for chunk in chunks:
                numcodecs.blosc.decompress(chunk)
            yield 1


def _chunks(subject: Any) -> Iterator[bytes]:
    """Yield the compressed chunks of a subject's arrays; the index of a shard stands before its last four bytes."""
    for file in subject.rglob("c.0.*"):
        shard = file.read_bytes()
        num = math.prod(math.ceil(n / 64) for n in json.loads((file.parent / "zarr.json").read_text())["shape"])
        index = np.frombuffer(shard[-16 * num - 4 : -4], "<u8").reshape(num, 2) if num > 1 else [[0, len(shard)]]
        yield from (shard[int(offset) : int(offset + length)] for offset, length in index if offset < len(shard))


def memmap_patches(data: Data) -> Iterator[int]:
    files = [[np.load(path, mmap_mode="r") for path in pair.values()] for pair in data.files("npy")]
    random = np.random.default_rng(0)
    while True:
        corners = random.integers(0, data.edge - PATCH, (VISIT, 3)).tolist()
        image, brain = files[int(random.integers(data.num))]
        for i, j, k in corners:
            np.array(image[i : i + PATCH, j : j + PATCH, k : k + PATCH])
            np.array(brain[i : i + PATCH, j : j + PATCH, k : k + PATCH])
        yield VISIT


def memmap_points(data: Data, *, drawn: bool) -> Iterator[int]:
    files = [[np.load(path, mmap_mode="r").reshape(-1) for path in pair.values()] for pair in data.files("npy")]
    random, num = np.random.default_rng(0), data.edge**3
    before = random.integers(0, num, (POINT_VOLUMES, POINTS))
    axis = ((2 * np.arange(data.edge) + 1) / data.edge - 1).astype(np.float32)
    while True:
        for number in range(POINT_VOLUMES):
            image, brain = files[number % data.num]
            if drawn:
                _ = image[before[number]], brain[before[number]]
            else:
                flat = random.integers(0, num, POINTS)
                _ = image[flat], brain[flat]
                np.stack([axis[one] for one in np.unravel_index(flat, (data.edge,) * 3)], axis=-1)
        yield POINT_VOLUMES


def _torchio_subjects(data: Data, *, loaded: bool) -> Any:
    import torchio

    subjects = [
        torchio.Subject(
            image=torchio.ScalarImage(pair["image"]),  # type: ignore[no-untyped-call]  # untyped in TorchIO
            brain=torchio.LabelMap(pair["brain"]),  # type: ignore[no-untyped-call]  # untyped in TorchIO
        )
        for pair in data.files("nii")
    ]
    if loaded:
        for subject in subjects:
            subject.load()
    return subjects


def torchio_patches(data: Data, workers: int, *, loaded: bool, size: int = PATCH, visit: int = VISIT) -> Iterator[int]:
    import torchio

    queue = torchio.Queue(
        torchio.SubjectsDataset(_torchio_subjects(data, loaded=loaded)),
        max_length=_FILL * visit,
        samples_per_volume=visit,
        sampler=torchio.UniformSampler(size),
        num_workers=workers,
    )
    while True:
        for batch in torchio.SubjectsLoader(queue, batch_size=visit, num_workers=0):
            yield len(batch["image"]["data"])


def torchio_picked(data: Data) -> Iterator[int]:
    import torchio

    subjects = torchio.SubjectsDataset(_torchio_subjects(data, loaded=True))
    while True:
        for number in range(POINT_VOLUMES):
            subject: Any = subjects[number % data.num]
            _pick(subject["image"]["data"], subject["brain"]["data"], data.edge)
        yield POINT_VOLUMES


def _pick(image: Any, brain: Any, edge: int) -> tuple[Any, ...]:
    flat = torch.randint(0, edge**3, (POINTS,))
    axis = (2 * torch.arange(edge) + 1) / edge - 1
    index = (flat // edge**2, flat // edge % edge, flat % edge)
    position = torch.stack([axis[one] for one in index], dim=-1)
    return image.reshape(-1)[flat], brain.reshape(-1)[flat], position


class _Load:
    """Reads the .npy files of a volume as (1, D, H, W) tensors."""

    def __call__(self, pair: dict[str, str]) -> dict[str, Any]:
        return {name: torch.from_numpy(np.load(path))[None] for name, path in pair.items()}


class _Pick:
    """A careful user's own transform: points of a whole volume."""

    def __init__(self, edge: int) -> None:
        self.edge = edge

    def __call__(self, volume: dict[str, Any]) -> tuple[Any, ...]:
        return _pick(volume["image"], volume["brain"], self.edge)


def monai_batches(
    data: Data, workers: int, kind: str, *, size: int = PATCH, visit: int = VISIT, picked: bool = False, held: float = 1
) -> Iterator[int]:
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import CacheDataset, PersistentDataset
    from monai.data.meta_obj import set_track_meta
    from monai.data.utils import list_data_collate
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import RandSpatialCropSamplesd
    from monai.transforms.transform import RandomizableTransform

    class _RandomPick(_Pick, RandomizableTransform):
        """Random, so that MONAI does not cache what it picked."""

    set_track_meta(False)
    crop = RandSpatialCropSamplesd(["image", "brain"], roi_size=(size,) * 3, num_samples=visit, random_size=False)
    transform = Compose([_Load(), _RandomPick(data.edge) if picked else crop])
    files = data.files("npy")
    if kind == "cache":
        dataset: Any = CacheDataset(files, transform, cache_rate=held, num_workers=0, progress=False)
    else:
        dataset = PersistentDataset(files, transform, cache_dir=data.folder / f"monai-{size}-{visit}-{picked}")
    loader = DataLoader(
        dataset,
        batch_size=1,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_first if picked else list_data_collate,
    )
    while True:
        for batch in loader:
            yield 1 if picked else len(batch["image"])


def _first(items: list[Any]) -> Any:
    return items[0]


# ---- the run


class Contestant(NamedTuple):
    """Whoever takes part.

    Attributes:
        make: starts it; whatever it makes ahead it makes from then on, and stops when its turn is over.
        warm: batches of a turn before the clock starts, taken without a pause: start-up, first reading and whatever
            was made ahead are none of the measured ones.
        turns: batches that are timed.
        scale: turns what a batch yields into what is counted.
    """

    make: Callable[[], Iterator[int]]
    warm: int
    turns: int
    scale: float = 1.0

    def rate(self) -> float:
        source = self.make()
        try:
            for _ in range(self.warm):
                next(source)
            begin = time.perf_counter()
            count = sum(next(source) for _ in range(self.turns))
            return count * self.scale / (time.perf_counter() - begin)
        finally:
            source.close()  # type: ignore[attr-defined]  # a generator: its workers and threads end with it


def _contest(contestants: dict[str, Contestant], rounds: int) -> dict[str, float]:
    """Return medians over rounds; nobody is at work in another's turn."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            rates[name].append(contestant.rate())
            gc.collect()  # a loader's worker processes end with it
    return {name: float(f"{statistics.median(values):.4g}") for name, values in rates.items()}


def patches_in_memory(data: Data, rounds: int, turns: int, workers: tuple[int, ...]) -> dict[str, float]:
    view = Patches(size=PATCH, per_volume=VISIT)
    contestants = {
        "ours": Contestant(functools.partial(ours, data, view, VISIT, 2**33), data.num + 5, 8 * turns),
        "memmap": Contestant(functools.partial(memmap_patches, data), data.num, 8 * turns),
    }
    for number in workers:
        ahead = 5 if number else 1  # PyTorch's loaders make two batches ahead a worker
        torchio = functools.partial(torchio_patches, data, number, loaded=True)
        contestants[f"torchio queue, {number} workers"] = Contestant(torchio, ahead, _FILL * turns)
        for kind in ("cache", "persistent"):
            monai = functools.partial(monai_batches, data, number, kind)
            contestants[f"monai {kind}, {number} workers"] = Contestant(monai, ahead + data.num, 2 * turns)
    return _contest(contestants, rounds)


def points_in_memory(data: Data, rounds: int, turns: int) -> dict[str, float]:
    view = Points(per_volume=POINTS)
    batch, crop = 1 / POINT_VOLUMES, 1 / (POINTS * POINT_VOLUMES)
    few = functools.partial(torchio_patches, data, 0, loaded=True, size=1, visit=FEW_CROPS)
    monai_few = functools.partial(monai_batches, data, 0, "cache", size=1, visit=FEW_CROPS)
    monai_picked = functools.partial(monai_batches, data, 0, "cache", picked=True)
    contestants = {
        "ours": Contestant(functools.partial(ours, data, view, POINT_VOLUMES, 2**33), 8, 20 * turns, batch),
        "memmap": Contestant(functools.partial(memmap_points, data, drawn=False), 8, 20 * turns, batch),
        "memmap, gathers alone": Contestant(functools.partial(memmap_points, data, drawn=True), 8, 20 * turns, batch),
        "torchio queue, crops of a voxel": Contestant(few, 1, _FILL * turns, crop),
        "monai cache, crops of a voxel": Contestant(monai_few, 1, turns, crop),
        "torchio volumes, picked": Contestant(functools.partial(torchio_picked, data), 2, 2 * turns, batch),
        "monai cache, picked": Contestant(monai_picked, 2, 2 * POINT_VOLUMES * turns, batch),
    }
    return _contest(contestants, rounds)


def steps_from_disk(data: Data, rounds: int, turns: int, workers: tuple[int, ...]) -> dict[str, float]:
    view = Patches(size=PATCH, per_volume=VISIT)
    step = 1 / VISIT
    budget = data.num // 2 * data.volume_bytes
    contestants = {"ours": Contestant(functools.partial(ours, data, view, VISIT, budget), data.num, 12 * turns, step)}
    for number in workers:
        ahead = 5 if number else 1
        torchio = functools.partial(torchio_patches, data, number, loaded=False)
        contestants[f"torchio queue, {number} workers"] = Contestant(torchio, ahead, _FILL * turns, step)
        for name, kind, held in (("persistent", "persistent", 1), ("cache of half", "cache", 0.5)):
            monai = functools.partial(monai_batches, data, number, kind, held=held)
            # One round through the cohort first, in which a persistent data set writes its files.
            contestants[f"monai {name}, {number} workers"] = Contestant(monai, data.num, 4 * turns, step)
    rates = _contest(contestants, rounds)
    rates["network"] = float(f"{1 / _network_seconds():.4g}")
    return rates


def volumes_from_store(data: Data, rounds: int, turns: int) -> dict[str, float]:
    before, numcodecs.blosc.use_threads = numcodecs.blosc.use_threads, False
    try:
        readers = {"ours": whole_volumes, "decompression alone": decompression}
        return _contest(
            {name: Contestant(functools.partial(one, data), 1, data.num * turns) for name, one in readers.items()},
            rounds,
        )
    finally:
        numcodecs.blosc.use_threads = before


def _network_seconds(num: int = 16) -> float:
    """Return the seconds of a step on ``VISIT`` patches, from one on ``num`` of them."""
    torch.manual_seed(0)
    layers: list[Any] = []
    for before, after in ((1, 16), (16, 16), (16, 16)):
        layers += [torch.nn.Conv3d(before, after, 3), torch.nn.ReLU(), torch.nn.AvgPool3d(2)]
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.LazyLinear(3))
    patches = torch.randn(num, 1, PATCH, PATCH, PATCH)
    network(patches).norm(dim=1).mean().backward()
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        network(patches).norm(dim=1).mean().backward()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * VISIT / num


def measure(edge: int, volumes: int, rounds: int, turns: int, workers: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Run all contests; return rates (a second) and the ratios that are asked for."""
    warnings.filterwarnings("ignore")  # the peers' own
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder), edge, volumes)
        patches = patches_in_memory(data, rounds, turns, workers)
        points = points_in_memory(data, rounds, turns)
        whole = volumes_from_store(data, rounds, 2 * turns)
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_from_disk(Data(Path(folder), edge, 3 * volumes), rounds, turns, workers)
    return {
        "edge": edge,
        "volumes": volumes,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "patches_per_second": patches,
        "patches_over_best_peer": _over(patches, _peers(patches)),
        "patches_over_memmap": _over(patches, ["memmap"]),
        "point_batches_per_second": points,
        "points_over_best_peers_own_crops": _over(points, [name for name in _peers(points) if "crops" in name]),
        "points_over_best_peer_picked": _over(points, [name for name in _peers(points) if "picked" in name]),
        "points_over_memmap": _over(points, ["memmap"]),
        "points_over_memmaps_gathers": _over(points, ["memmap, gathers alone"]),
        "steps_per_second_from_disk": steps,
        "steps_over_network": _over(steps, ["network"]),
        "steps_over_best_peer": _over(steps, _peers(steps)),
        "volumes_per_second": whole,
        "volumes_over_decompression": _over(whole, ["decompression alone"]),
    }


def _peers(rates: dict[str, float]) -> list[str]:
    return [name for name in rates if name.startswith(("torchio", "monai"))]


def _over(rates: dict[str, float], others: list[str]) -> float:
    return round(rates["ours"] / max(max(rates[name] for name in others), 1e-9), 2)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_the_contest_runs_and_counts_what_everybody_makes() -> None:
    figures = measure(edge=40, volumes=2, rounds=1, turns=1, workers=(0,))
    for kind in ("patches_per_second", "point_batches_per_second", "steps_per_second_from_disk", "volumes_per_second"):
        assert all(rate > 0 for rate in figures[kind].values())
    # By a wide margin; exact ratios are read on a quiet machine, not asserted on a busy one.
    assert figures["patches_over_best_peer"] > 1


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edge", type=int, default=160)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2, help="batches of the slower contestants in a round")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    figures = measure(chosen.edge, chosen.volumes, chosen.rounds, chosen.turns)
    sys.stdout.write((json.dumps(figures) if chosen.json else _table(figures)) + "\n")
    return 0


def _table(figures: dict[str, Any]) -> str:
    lines = [f"{figures['volumes']} {figures['edge']}-cubes, {figures['rounds']} rounds, {figures['threads']} threads"]
    for kind, rates in figures.items():
        if isinstance(rates, dict):
            lines += ["", f"| {kind.replace('_', ' ')} | | ours to it |", "|---|---|---|"]
            lines += [f"| {name} | {rate:,.4g} | {rates['ours'] / rate:.2f} |" for name, rate in rates.items()]
    return "\n".join([*lines, "", *(f"{name}: {value}" for name, value in figures.items() if "_over_" in name)])


if __name__ == "__main__":
    sys.exit(main())
