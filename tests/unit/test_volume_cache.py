"""The cache by itself: what is reserved is given back, whatever comes first, fails or stops."""

from __future__ import annotations

import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vesalius.platform.errors import StoreError
from vesalius.platform.loading import VolumeCache
from vesalius.platform.loading.volumes import Use

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vesalius.platform.loading.cutting import Box

EDGE = 8
ONE = EDGE**3 * 5
SLICE: Box = ((0, EDGE), (0, EDGE), (0, 1))


class Reader:
    """Volumes of zeros in 2-chunks; what hangs on a gate waits for it."""

    chunk_edge = 2

    def __init__(self, edge: int = EDGE) -> None:
        self.edge = edge
        self.gates: dict[tuple[str, bool], threading.Event] = {}
        self.broken: set[str] = set()

    def stored(self, subject_id: str, role: str, box: Any = None) -> NDArray[Any]:
        gate = self.gates.get((subject_id, box is None))
        if gate is not None:
            assert gate.wait(20), "nobody opened the gate"
        if subject_id in self.broken:
            raise StoreError(f"{subject_id} cannot be read")
        shape = (self.edge,) * 3 if box is None else tuple(stop - start for start, stop in box)
        return np.zeros((1, *shape), np.float32) if role == "image" else np.ones(shape, np.bool_)


def _whole() -> None:
    return None


def _slices(*boxes: Box) -> Callable[[], Sequence[Box]]:
    return lambda: boxes


def _cache(reader: Reader, volumes: float, edge: int = EDGE) -> VolumeCache:
    return VolumeCache(reader, [f"s{number}" for number in range(9)], int(volumes * 5 * edge**3))


def _kept(cache: VolumeCache) -> int:
    return sum(voxels.num_bytes for voxels in cache._held.values())


@pytest.mark.timeout(60)
def test_a_whole_volume_that_comes_before_its_parts_waits_for_none_of_them() -> None:
    reader = Reader()
    reader.gates["s0", False] = threading.Event()
    # With two volumes kept and more wanted, a slice of s0 is read by itself; and then s0 whole, for the use after it.
    uses = [Use(1, _whole), Use(2, _whole), Use(0, _slices(SLICE)), Use(0, _whole), Use(3, _whole), Use(4, _whole)]
    cache = _cache(reader, 4)
    finished = threading.Event()

    def consume() -> None:
        with cache.following(uses, 2):
            for number, use in enumerate(uses):
                if number == 2:
                    while 0 not in cache._held:
                        assert not finished.wait(0.001)
                with cache.use(use.subject):
                    pass
                if number == 3:
                    reader.gates["s0", False].set()
        finished.set()

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    assert finished.wait(10), "the parts and whoever uses the volume wait for each other"
    assert cache.num_parts == 1
    assert cache.used_bytes == _kept(cache)


def test_a_slice_that_is_asked_for_twice_is_counted_once() -> None:
    uses = [Use(1, _whole), *(Use(2 + number % 3, _slices(SLICE, SLICE)) for number in range(40))]
    cache = _cache(Reader(), 4.5)
    with cache.following(uses, 2):
        for use in uses:
            with cache.use(use.subject):
                pass
        assert cache.num_parts > 0
        assert cache.used_bytes == _kept(cache)


@pytest.mark.parametrize("fails", [False, True], ids=["stopped", "failed"])
def test_who_follows_after_a_stop_or_a_failure_starts_afresh(fails: bool) -> None:
    reader = Reader()
    cache = _cache(reader, 4)
    uses = [Use(1, _whole), Use(2, _whole), *(Use(number % 9, _slices(SLICE)) for number in range(3, 30))]
    if fails:
        reader.broken = {"s4"}

    def follow(stop: int | None = None) -> None:
        with cache.following(uses, 2):
            for number, use in enumerate(uses):
                if number == stop:
                    raise KeyboardInterrupt
                with cache.use(use.subject):
                    pass

    if fails:
        reader.broken = {"s4"}
        with pytest.raises(StoreError, match="s4"):
            follow()
    else:
        with pytest.raises(KeyboardInterrupt):
            follow(5)
    assert cache.used_bytes == _kept(cache)
    reader.broken = set()
    follow()
    assert cache.used_bytes == _kept(cache)


def test_room_is_made_before_a_volume_is_read_and_not_after() -> None:
    edge = 48
    one = 5 * edge**3
    held: list[int] = []

    class Watched(Reader):
        def stored(self, subject_id: str, role: str, box: Any = None) -> NDArray[Any]:
            held.append(tracemalloc.get_traced_memory()[0])
            return super().stored(subject_id, role, box)

    cache = _cache(Watched(edge), 6, edge)
    tracemalloc.start()
    try:
        for number in range(36):
            cache[number % 9]
    finally:
        tracemalloc.stop()
    # Of the two volumes that are reserved for reading one, its image is there when its mask is asked for.
    assert max(held) < (6 - 2 + 0.9) * one, f"{max(held) / one:.2f} volumes beside the one being read"
    assert max(held) > (6 - 2 - 0.5) * one, "a budget that is not used would pass as well"
