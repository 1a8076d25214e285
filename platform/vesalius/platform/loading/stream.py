"""Which items a step has: pure functions of (seed, stage, step), of which every rank takes its share.

The items of a stage form one endless stream: each epoch is a permutation of the split's items, keyed by
(seed, stage, epoch), and step ``s`` takes items ``s * batch_size`` to ``(s + 1) * batch_size`` of it. Every item
draws its own randomness, keyed by its place in the stream. So a restart needs no loader state, and the number of
workers changes who loads what, not what is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vesalius.platform.contracts import Patches, Slices, slice_indices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Stage, View

Grid = tuple[int, int, int]


def items_per_epoch(view: View, num_subjects: int, grid: Grid) -> int:
    """Return how many items of ``view`` one pass over ``num_subjects`` volumes of ``grid`` has."""
    if isinstance(view, Patches):
        return num_subjects * view.per_volume
    if isinstance(view, Slices):
        return num_subjects * len(slice_indices(view, grid))
    return num_subjects


def num_items(stage: Stage, num_subjects: int, grid: Grid) -> int:
    """Return the length of a stage's stream: its epochs times the items of one."""
    return max(1, round(stage.epochs * items_per_epoch(stage.view, num_subjects, grid)))


def num_steps(stage: Stage, num_subjects: int, grid: Grid) -> int:
    """Return a stage's steps; only the last one may be smaller than ``batch_size``."""
    return math.ceil(num_items(stage, num_subjects, grid) / stage.batch_size)


def share(num: int, group_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the items ``[start, stop)`` of a global batch that belong to ``rank``; groups are never split."""
    groups = math.ceil(num / group_size)
    start = rank * groups // world_size * group_size
    stop = (rank + 1) * groups // world_size * group_size
    return min(start, num), min(stop, num)


def random_of(*key: object) -> np.random.Generator:
    """Return a generator that is a pure function of ``key`` (any values with a stable ``repr``)."""
    text = "\x1f".join(map(repr, key))
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


@functools.lru_cache(maxsize=8)
def _order(seed: int, stage: str, epoch: int, num: int) -> NDArray[np.int64]:
    order = random_of("order", seed, stage, epoch).permutation(num)
    order.setflags(write=False)
    return order


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's items of one step.

    Attributes:
        global_size: items of the global batch.
        items: ``[start, stop)`` of the global batch.
        subjects: (B,) the subject of each.
        places: (B,) the slice's index for slices, else the item's place in the stream: the key of what it draws.
    """

    global_size: int
    items: tuple[int, int]
    subjects: NDArray[np.int64]
    places: NDArray[np.int64]

    def uses(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield every subject once, in order of appearance, with the rows that are cut from it."""
        for subject in dict.fromkeys(self.subjects.tolist()):
            yield subject, np.flatnonzero(self.subjects == subject)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A stage's items for one rank.

    Attributes:
        stage: name, view, batch and group size, epochs.
        seed: the run's.
        num_subjects: of the stage's split.
        grid: voxels of every volume.
        rank: this worker.
        world_size: of so many.
    """

    stage: Stage
    seed: int
    num_subjects: int
    grid: Grid
    rank: int = 0
    world_size: int = 1

    @functools.cached_property
    def num_items(self) -> int:
        """Length of the stream."""
        return num_items(self.stage, self.num_subjects, self.grid)

    @functools.cached_property
    def num_steps(self) -> int:
        """Steps of the stage."""
        return num_steps(self.stage, self.num_subjects, self.grid)

    @functools.cached_property
    def _slices(self) -> NDArray[np.int64]:
        view = self.stage.view
        return np.array(slice_indices(view, self.grid) if isinstance(view, Slices) else [0], dtype=np.int64)

    def share(self, step: int) -> Share:
        """Return this rank's items of a step."""
        first = step * self.stage.batch_size
        global_size = min(self.stage.batch_size, self.num_items - first)
        start, stop = share(global_size, self.stage.group_size, self.rank, self.world_size)
        subjects, places = self._items(first + start, first + stop)
        return Share(global_size=global_size, items=(start, stop), subjects=subjects, places=places)

    def _items(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        view, name = self.stage.view, self.stage.name
        index = np.arange(first, last)
        each = items_per_epoch(view, self.num_subjects, self.grid)
        epochs, within = np.divmod(index, each)
        repeats = view.per_volume if isinstance(view, Patches) else 1
        chosen = np.empty(len(index), dtype=np.int64)
        for epoch in dict.fromkeys(epochs.tolist()):
            rows = epochs == epoch
            chosen[rows] = _order(self.seed, name, epoch, each // repeats)[within[rows] // repeats]
        if isinstance(view, Slices):
            subjects, which = np.divmod(chosen, len(self._slices))
            return subjects, self._slices[which]
        return chosen, index
