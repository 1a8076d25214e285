"""From a prepared cohort to batches: ``(cohort, view, seed, stage, step, rank) -> Batch``, a pure function.

The items of a stage form one endless stream: each epoch is a permutation of the split's items, keyed by
(seed, stage, epoch), and step ``s`` takes items ``s * batch_size`` to ``(s + 1) * batch_size`` of it. Every item
draws its own randomness, keyed by its place in the stream. So a restart needs no loader state, and the number of
workers changes who loads what, not what is loaded.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from vesalius.platform.contracts import Batch, Patches, Points, Slices, WholeVolumes, axis_positions, slice_indices
from vesalius.platform.errors import CohortError, DivergenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vesalius.platform.contracts import CohortFacts, Stage, View

    Image = NDArray[np.float32]
    Mask = NDArray[np.bool_]


class VolumeReader(Protocol):
    """What the loader needs of a store: prepared volumes by subject id."""

    def image(self, subject_id: str) -> NDArray[Any]:
        """Return (C, D, H, W) intensities."""
        ...

    def brain(self, subject_id: str) -> NDArray[Any]:
        """Return the (D, H, W) brain mask."""
        ...


class VolumeCache:
    """Whole volumes of some subjects, decoded once and kept while they fit. Safe to share between threads.

    Cutting many patches or points out of a decoded volume in memory is thirty times faster than reading each
    from its chunk, so volumes are read whole.
    """

    def __init__(self, reader: VolumeReader, subjects: Sequence[str], limit_bytes: int) -> None:
        self.subjects = tuple(subjects)
        self._reader = reader
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._held: OrderedDict[int, tuple[Image, Mask]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> tuple[Image, Mask]:
        """Return ``(image (C, D, H, W) float32, brain (D, H, W) bool)`` of the subject at ``index``."""
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
                return self._held[index]
        subject = self.subjects[index]
        image = np.ascontiguousarray(self._reader.image(subject), dtype=np.float32)
        brain = np.ascontiguousarray(self._reader.brain(subject), dtype=np.bool_)
        size = image.nbytes + brain.nbytes
        with self._lock:
            if index not in self._held and size <= self._limit_bytes:
                self._held[index] = (image, brain)
                self._held_bytes += size
                while self._held_bytes > self._limit_bytes:
                    _, (old_image, old_brain) = self._held.popitem(last=False)
                    self._held_bytes -= old_image.nbytes + old_brain.nbytes
        return image, brain


def items_per_epoch(view: View, num_subjects: int, grid: tuple[int, int, int]) -> int:
    """Return how many items of ``view`` one pass over ``num_subjects`` volumes of ``grid`` has."""
    if isinstance(view, Patches):
        return num_subjects * view.per_volume
    if isinstance(view, Slices):
        return num_subjects * len(slice_indices(view, grid))
    return num_subjects


def num_items(stage: Stage, num_subjects: int, grid: tuple[int, int, int]) -> int:
    """Return the length of a stage's stream: its epochs times the items of one."""
    return max(1, round(stage.epochs * items_per_epoch(stage.view, num_subjects, grid)))


def num_steps(stage: Stage, num_subjects: int, grid: tuple[int, int, int]) -> int:
    """Return a stage's steps; only the last one may be smaller than ``batch_size``."""
    return math.ceil(num_items(stage, num_subjects, grid) / stage.batch_size)


def share(num: int, group_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the items ``[start, stop)`` of a global batch that belong to ``rank``; groups are never split."""
    groups = math.ceil(num / group_size)
    start = rank * groups // world_size * group_size
    stop = (rank + 1) * groups // world_size * group_size
    return min(start, num), min(stop, num)


def load_batch(
    cache: VolumeCache, stage: Stage, facts: CohortFacts, *, seed: int, step: int, rank: int = 0, world_size: int = 1
) -> Batch:
    """Return ``rank``'s share of the global batch of one step, on the CPU. A pure function of its arguments.

    Raises:
        CohortError: the stage's split holds no subject that the stage may see.
        DivergenceError: an intensity is not finite.
    """
    if not len(cache):
        kind = "healthy " if stage.healthy_only else ""
        raise CohortError(
            f"stage '{stage.name}' needs {kind}subjects in the '{stage.split}' split and the store has none there: "
            "assign some when ingesting"
        )
    total = num_items(stage, len(cache), facts.grid)
    first = step * stage.batch_size
    global_size = min(stage.batch_size, total - first)
    start, stop = share(global_size, stage.group_size, rank, world_size)
    cut = _CUTTERS[type(stage.view)]
    parts = [cut(stage.view, cache, stage.name, facts, seed, first + item) for item in range(start, stop)]
    subjects = [subject for subject, *_ in parts]
    if parts:
        image, brain, position = (torch.from_numpy(np.stack(arrays)) for arrays in list(zip(*parts, strict=True))[1:])
    else:  # more workers than items: an empty share of the right shape, so that collectives still meet
        _, *arrays = cut(stage.view, cache, stage.name, facts, seed, first)
        image, brain, position = (torch.from_numpy(array[None])[:0] for array in arrays)
    if not torch.isfinite(image).all():
        names = ", ".join(sorted({cache.subjects[subject] for subject in subjects}))
        raise DivergenceError(
            f"an intensity is not finite at step {step} of stage '{stage.name}' (subjects {names}): "
            "run `vesalius check` on the store and ingest the subject again"
        )
    return Batch(
        stage=stage.name,
        step=step,
        num_steps=num_steps(stage, len(cache), facts.grid),
        seed=seed,
        items=torch.arange(start, stop),
        global_size=global_size,
        subjects=torch.tensor(subjects, dtype=torch.int64),
        image=image,
        brain=brain,
        position=position,
    )


def prefetch(load: Callable[[int], Batch], start: int, stop: int, *, ahead: int = 2) -> Iterator[Batch]:
    """Yield ``load(start)`` to ``load(stop - 1)``, loading up to ``ahead`` of them while the caller computes."""
    if ahead < 1:
        yield from (load(step) for step in range(start, stop))
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading") as pool:
        waiting = [pool.submit(load, step) for step in range(start, min(start + ahead, stop))]
        try:
            for step in range(start, stop):
                batch = waiting.pop(0).result()
                if step + ahead < stop:
                    waiting.append(pool.submit(load, step + ahead))
                yield batch
        finally:
            for future in waiting:
                future.cancel()


# ----------------------------------------------------------------------------------------------------
# One item each. The stream index is the key of all that is drawn.


def _random(*key: object) -> np.random.Generator:
    text = "\x1f".join(map(repr, key))
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


def _order(seed: int, stage: str, epoch: int, num: int) -> NDArray[np.int64]:
    return _random("order", seed, stage, epoch).permutation(num)


_Cut = tuple[int, "Image", "Mask", "Image"]


def _cut_points(view: Points, cache: VolumeCache, stage: str, facts: CohortFacts, seed: int, index: int) -> _Cut:
    epoch, place = divmod(index, len(cache))
    subject = int(_order(seed, stage, epoch, len(cache))[place])
    image_CDHW, brain = cache[subject]
    shape = brain.shape
    flat = _random("points", seed, stage, index).integers(0, brain.size, view.per_volume)
    voxels = np.unravel_index(flat, shape)
    positions = [axis[v] for axis, v in zip(_axes(facts), voxels, strict=True)]
    neighbours = flat[:, None]
    if view.neighbourhood > 1:
        n = view.neighbourhood
        reach = np.arange(-((n - 1) // 2), n // 2 + 1)
        i, j, k = (np.clip(v[:, None] + reach, 0, size - 1) for v, size in zip(voxels, shape, strict=True))
        _, height, width = shape
        cube = (i[:, :, None, None] * height + j[:, None, :, None]) * width + k[:, None, None, :]
        neighbours = cube.reshape(view.per_volume, n**3)
    values = np.stack([channel.reshape(-1)[neighbours] for channel in image_CDHW], axis=1)
    return subject, values, brain.reshape(-1)[flat], np.stack(positions, axis=-1)


def _cut_patch(view: Patches, cache: VolumeCache, stage: str, facts: CohortFacts, seed: int, index: int) -> _Cut:
    epoch, place = divmod(index, len(cache) * view.per_volume)
    subject = int(_order(seed, stage, epoch, len(cache))[place // view.per_volume])
    image_CDHW, brain = cache[subject]
    centre = _random("patch", seed, stage, index).integers(0, brain.shape)
    half = view.size // 2
    patch = np.full((image_CDHW.shape[0], *(view.size,) * 3), view.background, dtype=np.float32)
    inside = np.zeros((view.size,) * 3, dtype=np.bool_)
    source, target = [], []
    for c, n in zip(centre, brain.shape, strict=True):
        low, high = max(c - half, 0), min(c - half + view.size, n)
        source.append(slice(low, high))
        target.append(slice(low - (c - half), high - (c - half)))
    patch[(slice(None), *target)] = image_CDHW[(slice(None), *source)]
    inside[tuple(target)] = brain[tuple(source)]
    position = np.array([axis[c] for axis, c in zip(_axes(facts), centre, strict=True)], dtype=np.float32)
    return subject, patch, inside, position


def _cut_slice(view: Slices, cache: VolumeCache, stage: str, facts: CohortFacts, seed: int, index: int) -> _Cut:
    indices = slice_indices(view, facts.grid)
    epoch, place = divmod(index, len(cache) * len(indices))
    chosen = int(_order(seed, stage, epoch, len(cache) * len(indices))[place])
    subject, which = divmod(chosen, len(indices))
    image_CDHW, brain = cache[subject]
    cut = indices[which]
    where: list[slice | int] = [slice(None)] * 3
    where[view.axis] = cut
    position = _axes(facts)[view.axis][cut : cut + 1]
    return subject, image_CDHW[(slice(None), *where)], brain[tuple(where)], position


def _cut_volume(view: WholeVolumes, cache: VolumeCache, stage: str, facts: CohortFacts, seed: int, index: int) -> _Cut:
    epoch, place = divmod(index, len(cache))
    subject = int(_order(seed, stage, epoch, len(cache))[place])
    image_CDHW, brain = cache[subject]
    return subject, image_CDHW, brain, np.empty(0, dtype=np.float32)


def _axes(facts: CohortFacts) -> list[Image]:
    return [axis_positions(*a).numpy() for a in zip(facts.grid, facts.spacing_mm, facts.box_mm, strict=True)]


_CUTTERS: dict[type[Any], Callable[..., _Cut]] = {
    Points: _cut_points,
    Patches: _cut_patch,
    Slices: _cut_slice,
    WholeVolumes: _cut_volume,
}
