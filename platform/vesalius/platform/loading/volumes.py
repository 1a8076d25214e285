"""Decoded volumes within a stated memory: read ahead of their use, and dropped in the best order there is.

What the coming steps need is known in advance, since the stream is a pure function. So volumes are read in the order
of their use by a few threads, and where memory is short the volume goes whose next use is farthest away (Belady's
rule, which no order of dropping betters), and only for one that is needed sooner. A volume of which single slices or
patches are wanted, and which would not stay, is read in parts, straight from its chunks.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict, defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.loading.voxels import read_parts, read_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vesalius.platform.loading.cutting import Box
    from vesalius.platform.loading.voxels import VolumeReader, Voxels

PART_OVERHEAD = 1.5
"""How much more a chunk costs when it is read by itself than as one of a whole volume (benchmark_store_chunks.py)."""

WHOLE_SHARE = 0.875
"""Part of the memory filled with whole volumes where the others are read in parts; the rest is for those parts."""

_HORIZON = 4
"""Uses known ahead, in cohorts: a subject is met about once a cohort's worth of uses, whatever the number of ranks."""

_DEPTH = 8
"""Uses read ahead, a reader: what is read long before its use takes the place of what is used meanwhile."""

_READING = 2
"""Memory of a volume being read, in volumes: the file's content and the array it is decoded into."""


@dataclass(frozen=True)
class Use:
    """A step's use of one subject.

    Attributes:
        subject: its place in the split.
        boxes: what is wanted of it, asked for when it matters; None for all of it.
    """

    subject: int
    boxes: Callable[[], Sequence[Box] | None]


class _Coming:
    """The uses to come, numbered from 0, known ``horizon`` uses ahead."""

    def __init__(self, uses: Iterable[Use], horizon: int) -> None:
        self._source = iter(uses)
        self._horizon = horizon
        self._window: deque[Use] = deque()
        self._numbers: defaultdict[int, deque[int]] = defaultdict(deque)
        self.first = 0
        self.next_to_read = 0
        self.parts: dict[int, tuple[Future[Voxels], int]] = {}
        self._fill()

    def _fill(self) -> None:
        while len(self._window) < self._horizon and (use := next(self._source, None)) is not None:
            self._numbers[use.subject].append(self.first + len(self._window))
            self._window.append(use)

    def use(self, number: int) -> Use | None:
        place = number - self.first
        return self._window[place] if 0 <= place < len(self._window) else None

    def next_use(self, subject: int) -> float:
        numbers = self._numbers.get(subject)
        return numbers[0] if numbers else math.inf

    def done(self) -> None:
        self._numbers[self._window.popleft().subject].popleft()
        self.first += 1
        self.next_to_read = max(self.next_to_read, self.first)
        self._fill()


class VolumeCache:
    """Volumes of some subjects, each decoded once and kept while they fit. Safe to share between threads.

    Volumes are kept in the store's own type, masks as bool. The limit holds for what is kept and what is being read.
    Where that is less than reading one volume takes, one is read all the same, and kept only if it fits.

    Args:
        reader: the store.
        subjects: ids, in the order of the split.
        limit_bytes: of memory.
        spacing_mm: each subject's voxel size, where their grids differ; None where all have the cohort's.
    """

    def __init__(
        self,
        reader: VolumeReader,
        subjects: Sequence[str],
        limit_bytes: int,
        *,
        spacing_mm: Sequence[tuple[float, float, float]] | None = None,
    ) -> None:
        self.subjects = tuple(subjects)
        self._spacing_mm = spacing_mm
        self.limit_bytes = limit_bytes
        self.num_reads = 0
        self.num_parts = 0
        self._reader = reader
        self._roles = ["brain"]
        self._size: int | None = None
        self._shape: tuple[int, ...] = ()
        self._used_bytes = 0
        self._held: OrderedDict[int, Voxels] = OrderedDict()
        self._reading: dict[int, Future[Voxels]] = {}
        self._coming: _Coming | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._num_readers = 0
        self._num_reading_whole = 0
        self._num_reading_parts = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return ``(image (C, D, H, W), brain (D, H, W))`` of the subject at ``index``, in the store's own type."""
        with self.use(index) as voxels:
            return voxels.image, voxels.mask("brain")

    @property
    def used_bytes(self) -> int:
        """Bytes of the volumes that are kept or being read."""
        return self._used_bytes

    def require(self, role: str) -> None:
        """Have a mask besides the brain's read with every volume."""
        with self._lock:
            if role and role not in self._roles:
                self._roles.append(role)
                self.clear()

    def clear(self) -> None:
        """Drop every volume; not while :meth:`following`."""
        with self._lock:
            self._held.clear()
            self._used_bytes, self._size = 0, None

    @contextlib.contextmanager
    def use(self, subject: int) -> Iterator[Voxels]:
        """Give a subject's voxels: in parts where the coming uses say that parts suffice, else whole."""
        yield self._get(subject)
        with self._lock:
            if self._coming is not None and self._is_next(subject):
                future, size = self._coming.parts.pop(self._coming.first, (None, 0))
                if future is not None:
                    # They may still be on their way, where the whole volume was there first: nobody waits for them.
                    future.add_done_callback(lambda _: self._release(size))
                self._coming.done()
                self._read_ahead()

    @contextlib.contextmanager
    def following(self, uses: Iterable[Use], num_readers: int) -> Iterator[None]:
        """Read ahead for ``uses``, which follow in this very order, with so many threads."""
        pool = ThreadPoolExecutor(max_workers=num_readers, thread_name_prefix="reading")
        try:
            with self._lock:
                self._coming = _Coming(uses, horizon=max(64, _HORIZON * len(self)))
                self._pool, self._num_readers = pool, num_readers
                self._read_ahead()
            yield
        finally:  # stopping early and failing too, or the next to follow would meet what was left
            with self._lock:
                self._coming = self._pool = None
            pool.shutdown(cancel_futures=True)
            with self._lock:  # every thread has ended
                self._reading.clear()
                self._num_reading_whole = self._num_reading_parts = 0  # those cancelled in the queue never began
                self._used_bytes = sum(voxels.num_bytes for voxels in self._held.values())

    # ---- inside; all but _read, _get and _release under the lock

    def _is_next(self, subject: int) -> bool:
        use = self._coming.use(self._coming.first) if self._coming is not None else None
        return use is not None and use.subject == subject

    def _get(self, subject: int) -> Voxels:
        with self._lock:
            expected = self._is_next(subject)
            if expected:
                self._read_ahead()
            if (held := self._held.get(subject)) is not None:
                self._held.move_to_end(subject)
                return held
            future = self._reading.get(subject)
            if future is None and expected and self._coming is not None:
                future, _ = self._coming.parts.get(self._coming.first, (None, 0))
            reserved = 0
            if future is None and self._make_room(_READING * (self._size or 0), needed_at=-1):
                reserved = _READING * (self._size or 0)
                self._used_bytes += reserved
        if future is not None:
            return future.result()
        try:
            voxels = self._read(subject)
        finally:
            self._release(reserved)
        with self._lock:
            if subject not in self._held and self._make_room(voxels.num_bytes, needed_at=-1):
                self._used_bytes += voxels.num_bytes
                self._held[subject] = voxels
        return voxels

    def _release(self, size: int) -> None:
        with self._lock:
            self._used_bytes -= size

    def _make_room(self, size: int, needed_at: int) -> bool:
        """Drop volumes until ``size`` bytes fit, each of them next used after ``needed_at``; say whether they do."""
        if size > self.limit_bytes:
            return False
        while self._used_bytes + size > self.limit_bytes:
            coming = self._coming
            # Of several that are never used again (or where nothing is known) the first is the least lately used.
            victim = max(self._held, key=lambda one: coming.next_use(one) if coming else math.inf, default=None)
            if victim is None or (coming is not None and coming.next_use(victim) <= needed_at):
                return False
            self._used_bytes -= self._held.pop(victim).num_bytes
        return True

    def _read_ahead(self) -> None:
        coming, pool = self._coming, self._pool
        if coming is None or pool is None:
            return
        while (use := coming.use(coming.next_to_read)) is not None:
            number, subject = coming.next_to_read, use.subject
            if number - coming.first >= _DEPTH * self._num_readers:
                return
            if subject not in self._held and subject not in self._reading:
                if self._num_reading_whole + self._num_reading_parts >= self._num_readers:
                    return
                if self._size is None and self._reading:
                    return  # one, to learn their size
                boxes = self._parts_of(use)
                if boxes is not None:
                    size = self._bytes_of(boxes)
                    if self._used_bytes + size > self.limit_bytes and number > coming.first:
                        return
                    self._used_bytes += size
                    self._num_reading_parts += 1
                    coming.parts[number] = pool.submit(self._read_parts, subject, boxes), size
                else:
                    size = _READING * (self._size or 0)
                    if self._used_bytes + size > self.limit_bytes and self._num_reading_whole:
                        return  # what reading takes is soon free again: nothing is dropped for that
                    if not self._make_room(size, needed_at=number):
                        return
                    self._used_bytes += size
                    self._num_reading_whole += 1
                    self._reading[subject] = pool.submit(self._read_and_hold, subject, size)
            coming.next_to_read += 1

    def _parts_of(self, use: Use) -> Sequence[Box] | None:
        """Return the boxes to read of a subject, or None where it is better read whole."""
        edge, size = self._reader.chunk_edge, self._size
        if edge is None or size is None or size * len(self) <= self.limit_bytes:
            return None
        after, meanwhile = self._used_bytes + size, self._used_bytes + _READING * size
        if after <= WHOLE_SHARE * self.limit_bytes and meanwhile <= self.limit_bytes:
            return None  # there is room: it may well be used again
        boxes = use.boxes()
        if boxes is None:
            return None
        boxes = tuple(dict.fromkeys(boxes))  # where a batch spans two epochs, the same slice may be asked for twice
        touched = sum(math.prod((stop - 1) // edge - start // edge + 1 for start, stop in box) for box in boxes)
        return boxes if touched * PART_OVERHEAD < self._num_chunks(edge) else None

    def _bytes_of(self, boxes: Sequence[Box]) -> int:
        voxels = sum(math.prod(stop - start for start, stop in box) for box in boxes)
        return voxels * (self._size or 0) // max(1, math.prod(self._shape[1:]))

    def _num_chunks(self, edge: int) -> int:
        return math.prod(-(-n // edge) for n in self._shape[1:])

    def _read_and_hold(self, subject: int, reserved: int) -> Voxels:
        try:
            voxels = self._read(subject)
        except BaseException:  # raised again; an interrupt too must give its memory back
            with self._lock:  # its future stays: whoever uses the subject hears what went wrong
                self._num_reading_whole -= 1
                self._used_bytes -= reserved
            raise
        with self._lock:
            self._num_reading_whole -= 1
            self._used_bytes += voxels.num_bytes - reserved
            self._reading.pop(subject, None)
            if self._used_bytes <= self.limit_bytes:
                self._held[subject] = voxels
            else:  # the very first, of a size that was not known, and too large
                self._used_bytes -= voxels.num_bytes
            self._read_ahead()
        return voxels

    def _read(self, subject: int) -> Voxels:
        name = self.subjects[subject]
        spacing_mm = self._spacing_mm[subject] if self._spacing_mm is not None else None
        voxels = read_whole(self._reader, name, self._roles, spacing_mm)
        with self._lock:
            self.num_reads += 1
            if voxels.num_bytes >= (self._size or 0):  # of several grids the largest: what is read must find room
                self._size, self._shape = voxels.num_bytes, voxels.image.shape
        return voxels

    def _read_parts(self, subject: int, boxes: Sequence[Box]) -> Voxels:
        try:
            return read_parts(self._reader, self.subjects[subject], self._roles, boxes)
        finally:
            with self._lock:
                self.num_parts += len(boxes)
                self._num_reading_parts -= 1
                self._read_ahead()
