"""Memory, reading ahead, parts, foreground and shares: whatever the machine, the same items, and no byte too many."""

from __future__ import annotations

import hashlib
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.platform.contracts import Batch, CohortFacts, Patches, Points, Slices, Stage, View, WholeVolumes
from vesalius.platform.errors import CohortError, SettingError, StoreError
from vesalius.platform.loading import VolumeCache, available_bytes, batches, budget_bytes, load_batch
from vesalius.platform.loading.buffers import Buffers
from vesalius.platform.loading.stream import Stream
from vesalius.platform.store import ChunkSettings, CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.training import TrainingSettings, Updater

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

GRID = (9, 8, 7)
ONE = 4 * 9 * 8 * 7 + 9 * 8 * 7


class Cohort:
    """Volumes in memory, every voxel of the cohort with a value of its own; counts what is asked of it."""

    def __init__(self, num: int, grid: tuple[int, int, int] = GRID, chunk_edge: int | None = None) -> None:
        self.subjects = [f"sub-{number}" for number in range(num)]
        self.grid = grid
        self.chunk_edge = chunk_edge
        self.whole: list[str] = []
        self.parts: list[tuple[str, Any]] = []
        self.seconds = 0.0
        self.fail = ""

    def stored(self, subject_id: str, role: str, box: Any = None) -> NDArray[Any]:
        if subject_id == self.fail:
            raise StoreError(f"{subject_id} cannot be read")
        time.sleep(self.seconds)
        if role == "image":
            (self.whole.append(subject_id) if box is None else self.parts.append((subject_id, box)))
        values = self.image(subject_id)[None] if role == "image" else self.foreground(subject_id)
        lead = [slice(None)] * (values.ndim - 3)
        return np.array(values if box is None else values[(*lead, *(slice(*side) for side in box))])

    def image(self, subject_id: str) -> NDArray[np.float32]:
        size = int(np.prod(self.grid))
        number = self.subjects.index(subject_id)
        return (np.arange(size, dtype=np.float32) + number * size).reshape(self.grid)

    def foreground(self, subject_id: str) -> NDArray[np.bool_]:
        mask = np.zeros(self.grid, dtype=np.bool_)
        mask[2:5, 3:6, 1:4] = True
        return mask

    def facts(self) -> CohortFacts:
        return CohortFacts(
            subjects=tuple(self.subjects),
            grid=self.grid,
            spacing_mm=(1.0, 1.0, 1.0),
            affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
            channels=("T1w",),
            digest="",
        )

    def cache(self, limit_bytes: int = 2**30) -> VolumeCache:
        return VolumeCache(self, self.subjects, limit_bytes)


def _stage(view: View, **changes: Any) -> Stage:
    return Stage(**{"name": "s", "view": view, "batch_size": 4, "epochs": 2, "step": lambda b, u: {}, **changes})


def _same(left: Batch, right: Batch) -> bool:
    names = ("items", "subjects", "image", "brain", "position")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


VIEWS: list[View] = [
    Points(per_volume=6),
    Points(per_volume=6, neighbourhood=2, within="brain"),
    Patches(size=3, per_volume=5, background=-1.0),
    Patches(size=3, per_volume=5, sampling="discard"),
    Patches(size=3, per_volume=2, sampling="centre"),
    Patches(size=3, per_volume=2, sampling="touching"),
    Slices(axis=0, every=2),
    Slices(axis=1, discard_background=True),
    WholeVolumes(),
]


# ---- shares


@settings(max_examples=80)
@given(
    view=st.sampled_from(VIEWS),
    num=st.integers(1, 5),
    batch_size=st.integers(1, 13),
    group=st.integers(1, 4),
    world_size=st.integers(1, 6),
    step=st.integers(0, 5),
    seed=st.integers(0, 3),
)
def test_the_shares_of_all_ranks_are_the_global_batch(
    view: View, num: int, batch_size: int, group: int, world_size: int, step: int, seed: int
) -> None:
    cohort = Cohort(num)
    discards = getattr(view, "sampling", "") == "discard" or getattr(view, "discard_background", False)
    stage = _stage(view, batch_size=batch_size, group_size=1 if discards else group, epochs=9)
    facts, cache = cohort.facts(), cohort.cache()
    step %= Stream(stage=stage, seed=seed, num_subjects=num, grid=GRID).num_steps
    whole = load_batch(cache, stage, facts, seed=seed, step=step)
    parts = [
        load_batch(cache, stage, facts, seed=seed, step=step, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for name in ("items", "subjects", "image", "brain", "position"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert {part.global_size for part in parts} == {whole.global_size}
    noise = torch.cat([part.normal("z", (2,)) for part in parts])
    assert torch.equal(noise, whole.normal("z", (2,)))


# ---- memory changes nothing but what is read when


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("kept", [0, 1, 2.5, 4, 100])
def test_batches_do_not_depend_on_memory_or_readers(view: View, kept: float) -> None:
    cohort = Cohort(6, chunk_edge=2)
    stage, facts = _stage(view, epochs=3), cohort.facts()
    roomy = cohort.cache()
    num_steps = Stream(stage=stage, seed=1, num_subjects=6, grid=GRID).num_steps
    expected = [load_batch(roomy, stage, facts, seed=1, step=step) for step in range(num_steps)]
    for num_readers, ahead in ((0, 0), (1, 1), (3, 2)):
        cache = cohort.cache(int(kept * ONE))
        given = [
            (batch, batch.image.clone())
            for batch in batches(
                cache, stage, facts, seed=1, start=0, stop=num_steps, ahead=ahead, num_readers=num_readers
            )
        ]
        assert len(given) == num_steps
        for (batch, image_then), reference in zip(given, expected, strict=True):
            assert _same(batch, reference)
            assert torch.equal(batch.image, image_then), "a batch that is kept may not be written over"
        assert cache.used_bytes <= kept * ONE


def test_resuming_in_the_middle_gives_the_same_batches() -> None:
    cohort = Cohort(5, chunk_edge=2)
    stage, facts = _stage(Slices(axis=2), epochs=2), cohort.facts()
    whole = list(batches(cohort.cache(2 * ONE), stage, facts, seed=1, start=0, stop=15))
    rest = list(batches(cohort.cache(3 * ONE), stage, facts, seed=1, start=7, stop=15))
    assert all(_same(a, b) for a, b in zip(whole[7:], rest, strict=True))


def _fewest_reads(uses: Sequence[int], slots: int) -> int:
    """Belady's minimum, worked out with the whole sequence in view."""
    held: set[int] = set()
    reads = 0
    for now, subject in enumerate(uses):
        if subject in held:
            continue
        reads += 1
        if len(held) == slots:
            rest = list(uses[now:])
            held.remove(max(held, key=lambda one: rest.index(one) if one in rest else len(rest)))
        held.add(subject)
    return reads


def _reads_of_least_recently_used(uses: Sequence[int], slots: int) -> int:
    held: list[int] = []
    reads = 0
    for subject in uses:
        reads += subject not in held
        held = [one for one in held if one != subject] + [subject]
        held = held[-slots:]
    return reads


def test_the_volume_needed_last_goes_first() -> None:
    cohort = Cohort(80)
    stage, facts = _stage(Points(per_volume=3), batch_size=2, epochs=8), cohort.facts()
    stream = Stream(stage=stage, seed=2, num_subjects=80, grid=GRID)
    uses = [subject for step in range(stream.num_steps) for subject, _ in stream.share(step).uses()]
    slots = 40
    for _ in batches(cohort.cache(slots * ONE), stage, facts, seed=2, start=0, stop=stream.num_steps, num_readers=1):
        pass
    best, simple = _fewest_reads(uses, slots), _reads_of_least_recently_used(uses, slots)
    assert len(cohort.whole) < best + 0.35 * (simple - best), (len(cohort.whole), best, simple)
    assert len(cohort.whole) >= _fewest_reads(uses, slots)


def test_what_fits_is_read_once() -> None:
    cohort = Cohort(5, chunk_edge=2)
    for view in (Points(per_volume=3), Slices(axis=0), Patches(size=3, per_volume=1)):
        cohort.whole.clear()
        stage = _stage(view, epochs=4)
        list(batches(cohort.cache(8 * ONE), stage, cohort.facts(), seed=0, start=0, stop=5, num_readers=2))
        assert len(cohort.whole) == len(set(cohort.whole))
        assert not cohort.parts


def test_slices_and_single_patches_are_read_in_parts_where_volumes_do_not_fit() -> None:
    views: list[tuple[View, int]] = [(Slices(axis=0), 9), (Patches(size=3, per_volume=1), 3)]
    for view, widest in views:
        cohort = Cohort(40, chunk_edge=2)
        stage = _stage(view, epochs=4, batch_size=6)
        list(batches(cohort.cache(4 * ONE), stage, cohort.facts(), seed=0, start=0, stop=20, num_readers=2))
        assert len(set(cohort.whole)) <= 4, "three volumes fill what is not kept for parts"
        assert len(cohort.parts) > 60
        assert all(box[0][1] - box[0][0] <= widest for _, box in cohort.parts)
    # All patches of a visit are in the volume's every chunk: it is read once, whole.
    cohort = Cohort(40, chunk_edge=2)
    stage = _stage(Patches(size=3, per_volume=64), batch_size=64)
    list(batches(cohort.cache(4 * ONE), stage, cohort.facts(), seed=0, start=0, stop=20, num_readers=2))
    assert not cohort.parts
    assert len(cohort.whole) == 20


def test_volumes_are_read_while_the_caller_computes() -> None:
    cohort = Cohort(30)
    cohort.seconds = 0.01  # an array, so 20 ms a volume
    stage, facts = _stage(WholeVolumes(), batch_size=1, epochs=1), cohort.facts()
    begin = time.perf_counter()
    for _ in batches(cohort.cache(8 * ONE), stage, facts, seed=0, start=0, stop=30, num_readers=2):
        time.sleep(0.03)
    took = time.perf_counter() - begin
    assert took < 30 * 0.03 + 0.35, f"30 steps of 30 ms took {took:.2f} s: reading was not hidden"


def test_a_reader_that_fails_speaks_at_the_step_that_needs_it() -> None:
    cohort = Cohort(6)
    stage, facts = _stage(WholeVolumes(), batch_size=1, epochs=1), cohort.facts()
    stream = Stream(stage=stage, seed=0, num_subjects=6, grid=GRID)
    order = [int(stream.share(step).subjects[0]) for step in range(6)]
    cohort.fail = cohort.subjects[order[3]]
    given = batches(cohort.cache(), stage, facts, seed=0, start=0, stop=6, ahead=1, num_readers=2)
    for _ in range(3):
        next(given)
    with pytest.raises(StoreError, match=cohort.fail):
        next(given)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reading", "loading"))]


def test_stopping_early_leaves_no_thread_and_no_reserved_memory() -> None:
    cohort = Cohort(20)
    cohort.seconds = 0.002
    cache = cohort.cache(6 * ONE)
    given = batches(cache, _stage(WholeVolumes(), batch_size=1), cohort.facts(), seed=0, start=0, stop=40)
    next(given)
    given.close()  # type: ignore[attr-defined]  # a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reading", "loading"))]
    assert cache.used_bytes % ONE == 0
    assert cache.used_bytes <= 6 * ONE


def _wide_store(path: Path, num: int = 8, edge: int = 80, recipe: dict[str, Any] | None = None) -> CohortStore:
    chunks = ChunkSettings(chunk=40)
    store = CohortStore.create(path, recipe=recipe or {"name": "wide"}, channels=("T1w",), chunks=chunks)
    with store.lock():
        records = []
        for number in range(num):
            record = SubjectRecord(
                subject_id=f"train-{number:02d}",
                split="train",
                channels=("T1w",),
                shape=(edge,) * 3,
                spacing_mm=(1.0, 1.0, 1.0),
                affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
            )
            image = np.random.default_rng(number).random((1, edge, edge, edge), dtype=np.float32)
            records.append(store.write(record, SubjectArrays(image=image, brain=image[0] > 0.5)))
        store.commit(records)
    return CohortStore.open(path)


def test_a_store_gives_parts_and_its_own_type(tmp_path: Path) -> None:
    store = _wide_store(tmp_path / "wide.zarr", num=1)
    whole = store.stored("train-00", "image")
    box = ((3, 70), (64, 65), (0, 80))
    assert np.array_equal(store.stored("train-00", "image", box), whole[:, 3:70, 64:65, 0:80])
    assert np.array_equal(store.stored("train-00", "brain", box), store.brain("train-00")[3:70, 64:65, 0:80])
    assert store.chunk_edge == 40
    with pytest.raises(CohortError, match=r"train-00 .* has no head array"):
        store.stored("train-00", "head")


def test_measured_memory_stays_within_the_budget(tmp_path: Path) -> None:
    store = _wide_store(tmp_path / "wide.zarr")
    facts = store.facts()
    one = store.image("train-00").nbytes * 5 // 4
    stage = _stage(Points(per_volume=50), batch_size=2, epochs=2)

    def peak(volumes: int, num_readers: int) -> int:
        cache = VolumeCache(store, facts.subjects, volumes * one)
        tracemalloc.start()
        begin, _ = tracemalloc.get_traced_memory()
        for _ in batches(cache, stage, facts, seed=0, start=0, stop=8, num_readers=num_readers):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most - begin

    for volumes, num_readers in ((4, 1), (6, 2), (5, 0)):
        # The less of two: Python's table of interned strings may grow by more than a volume, but not twice.
        most = min(peak(volumes, num_readers) for _ in range(2))
        assert most < (volumes + 0.1) * one, f"{most / one:.2f} volumes of {volumes}"
        assert most > (volumes - 1.5) * one, "a budget that is not used would pass as well"


def test_volumes_stay_in_the_stores_own_type() -> None:
    class Half(Cohort):
        def stored(self, subject_id: str, role: str, box: Any = None) -> NDArray[Any]:
            values = super().stored(subject_id, role, box)
            return (values % 100).astype(np.float16) if role == "image" else values

    cohort = Half(2)
    cache = cohort.cache()
    batch = load_batch(cache, _stage(WholeVolumes()), cohort.facts(), seed=0, step=0)
    assert batch.image.dtype == torch.float32
    image, brain = cache[0]
    assert image.dtype == np.float16
    assert cache.used_bytes == 2 * (image.nbytes + brain.nbytes)


def test_a_volume_of_another_grid_is_named() -> None:
    cohort = Cohort(2)
    facts = cohort.facts().model_copy(update={"grid": (9, 8, 6)})
    with pytest.raises(CohortError, match=r"subject sub-\d has the shape .* one grid"):
        load_batch(cohort.cache(), _stage(WholeVolumes()), facts, seed=0, step=0)


# ---- the budget


def test_the_budget_is_what_is_stated_or_a_share_of_what_is_free(tmp_path: Path) -> None:
    assert budget_bytes(3, 4) == 3 * 2**20
    free = available_bytes(tmp_path)
    alone, shared = budget_bytes(None, 1), budget_bytes(None, 4)
    assert 0.3 * free < alone < 0.7 * free
    assert 0.7 * alone / 4 < shared < 1.4 * alone / 4


@pytest.mark.parametrize("names", [("memory.max", "memory.current"), None], ids=["version 2", "version 1"])
def test_a_containers_limit_counts(tmp_path: Path, names: tuple[str, str] | None) -> None:
    (tmp_path / "memory").mkdir()
    limit, used = names or ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    (tmp_path / limit).write_text("900000\n")
    (tmp_path / used).write_text("400000\n")
    assert available_bytes(tmp_path) == 500_000
    (tmp_path / limit).write_text("max\n")
    assert available_bytes(tmp_path) > 10 * 2**20


# ---- foreground


def test_centres_lie_where_the_rule_says() -> None:
    cohort = Cohort(3)
    brain = cohort.foreground("sub-0")
    reached = np.zeros(GRID, dtype=np.bool_)
    reached[1:6, 2:7, 0:5] = True  # one voxel more on each side: the patch's half edge
    for sampling, allowed in (("centre", brain), ("touching", reached)):
        stage = _stage(Patches(size=3, per_volume=400, sampling=sampling), batch_size=400)  # type: ignore[arg-type]  # literals
        seen = np.zeros(GRID)
        for step in range(6):
            batch = load_batch(cohort.cache(), stage, cohort.facts(), seed=0, step=step)
            assert len(batch) == 400
            centres = [((batch.position[:, a] + 1) * n / 2 - 0.5).round().long().numpy() for a, n in enumerate(GRID)]
            np.add.at(seen, tuple(centres), 1)
        assert seen[~allowed].sum() == 0
        expected = seen.sum() / allowed.sum()
        freedom = int(allowed.sum()) - 1
        assert ((seen[allowed] - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_discarding_leaves_exactly_the_uniform_patches_that_hold_foreground() -> None:
    cohort = Cohort(3)
    uniform = _stage(Patches(size=3, per_volume=64), batch_size=64)
    discard = _stage(Patches(size=3, per_volume=64, sampling="discard"), batch_size=64)
    every = load_batch(cohort.cache(), uniform, cohort.facts(), seed=0, step=1)
    kept = load_batch(cohort.cache(), discard, cohort.facts(), seed=0, step=1)
    rows = every.brain.flatten(1).any(dim=1)
    assert 0 < int(rows.sum()) < 64
    assert _same(kept, every.take(rows.nonzero()[:, 0]))
    assert kept.global_size == 64
    assert torch.equal(kept.normal("z", (2,)), every.normal("z", (2,))[rows])


def test_points_within_a_mask_are_uniform_over_it() -> None:
    cohort = Cohort(2)
    batch = load_batch(cohort.cache(), _stage(Points(per_volume=5000, within="brain")), cohort.facts(), seed=0, step=0)
    assert batch.brain.all()
    counts = torch.bincount(batch.image.long().flatten())
    counts = counts[counts > 0]
    assert len(counts) == 2 * 27
    expected = batch.image.numel() / 54
    assert ((counts - expected) ** 2 / expected).sum() < 53 + 5 * (2 * 53) ** 0.5


@pytest.mark.parametrize(
    "view",
    [
        Points(per_volume=4, within="brain"),
        *(Patches(size=3, per_volume=2, sampling=s) for s in ("centre", "touching")),
    ],
    ids=str,
)
def test_a_small_foreground_is_found_and_an_empty_one_named(view: View) -> None:
    class Dot(Cohort):
        num_voxels = 1

        def foreground(self, subject_id: str) -> NDArray[np.bool_]:
            mask = np.zeros(self.grid, dtype=np.bool_)
            mask[:1, :1, : self.num_voxels] = True
            return mask

    cohort = Dot(1, grid=(40, 40, 40))
    batch = load_batch(cohort.cache(), _stage(view), cohort.facts(), seed=0, step=0)
    assert batch.brain.flatten(1).any(dim=1).all()
    cohort.num_voxels = 0
    with pytest.raises(CohortError, match="sub-0 has no voxel in its brain mask"):
        load_batch(cohort.cache(), _stage(view), cohort.facts(), seed=0, step=0)


def test_patches_go_on_beyond_the_grid_with_the_recipes_background(tmp_path: Path) -> None:
    cohort = Cohort(1)
    facts = cohort.facts().model_copy(update={"background": -3.0})
    for view, value in ((Patches(size=5, per_volume=40), -3.0), (Patches(size=5, per_volume=40, background=7.5), 7.5)):
        batch = load_batch(cohort.cache(), _stage(view, batch_size=40), facts, seed=0, step=0)
        outside = batch.image[batch.image.frac() != 0] if value == 7.5 else batch.image[batch.image < 0]
        assert (outside == value).all()
        assert len(outside) > 100
    recipes: list[tuple[dict[str, Any], float, float | None]] = [
        ({"name": "toy"}, 0.0, None),
        ({"scale": "window", "output_range": [-1.0, 3.0]}, -1.0, 3.0),
        ({"scale": "none", "output_range": [-1.0, 1.0]}, 0.0, None),
    ]
    for number, (recipe, low, high) in enumerate(recipes):
        found = _wide_store(tmp_path / f"{number}.zarr", num=1, edge=8, recipe=recipe).facts()
        assert (found.background, found.ceiling) == (low, high)


def test_groups_cannot_be_discarded_from() -> None:
    with pytest.raises(SettingError, match=r"stage 's' discards items .*group_size"):
        _stage(Patches(size=3, per_volume=4, sampling="discard"), group_size=2)
    with pytest.raises(SettingError, match=r"stage 's' discards items .*group_size"):
        _stage(Slices(discard_background=True), group_size=2)


@pytest.mark.parametrize("size", [0, 4])
def test_a_patch_without_a_middle_is_refused(size: int) -> None:
    with pytest.raises(SettingError, match=rf"stage 's' asks for patches of {size} voxels: choose an odd size"):
        _stage(Patches(size=size, per_volume=4))


class _Together:
    """Ranks that are threads of this process; sums in rank order."""

    def __init__(self, rank: int, world_size: int, meeting: threading.Barrier, table: dict[int, torch.Tensor]) -> None:
        self.rank, self.world_size, self._meeting, self._table = rank, world_size, meeting, table

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self._table[self.rank] = value
        self._meeting.wait(20)
        total = torch.stack([self._table[rank] for rank in range(self.world_size)]).sum(dim=0)
        self._meeting.wait(20)
        return total

    def gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        self._table[self.rank] = value
        self._meeting.wait(20)
        gathered = [self._table[rank] for rank in range(self.world_size)]
        self._meeting.wait(20)
        return gathered


def test_unequal_counts_after_discarding_are_weighted_right() -> None:
    cohort = Cohort(3)
    view = Patches(size=3, per_volume=12, sampling="discard")

    def updated(
        rank: int, world_size: int, meeting: threading.Barrier, table: dict[int, Any], out: dict[int, Any]
    ) -> None:
        layer = torch.nn.Linear(3, 1, dtype=torch.float64)
        torch.nn.init.constant_(layer.weight, 0.1)
        torch.nn.init.constant_(layer.bias, 0.0)
        stage = _stage(view, batch_size=12, optimizers={"o": torch.optim.SGD(layer.parameters(), 0.1)}, trains=[layer])

        def loss(batch: Batch) -> tuple[torch.Tensor, int]:
            return (
                (layer(batch.position.double())[:, 0] - batch.image.double().mean(dim=(1, 2, 3, 4))) ** 2
            ).sum(), len(batch)

        collective = _Together(rank, world_size, meeting, table)
        update = Updater(stage, collective, TrainingSettings(precision="fp32", device="cpu"), torch.device("cpu"))
        batch = load_batch(cohort.cache(), stage, cohort.facts(), seed=0, step=0, rank=rank, world_size=world_size)
        mean = update("o", loss, batch)
        out[rank] = (len(batch), mean, torch.cat([p.detach().flatten() for p in layer.parameters()]))

    def run(world_size: int) -> dict[int, Any]:
        out: dict[int, Any] = {}
        meeting, table = threading.Barrier(world_size), dict[int, Any]()
        threads = [
            threading.Thread(target=updated, args=(rank, world_size, meeting, table, out)) for rank in range(world_size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return out

    alone, three = run(1), run(3)
    counts = [three[rank][0] for rank in range(3)]
    assert sum(counts) == alone[0][0]
    assert len(set(counts)) > 1, "a test of unequal counts needs them"
    for rank in range(3):
        assert three[rank][1] == pytest.approx(alone[0][1], rel=1e-12)
        torch.testing.assert_close(three[rank][2], alone[0][2], rtol=1e-12, atol=0)


# ---- buffers


def test_memory_is_used_again_only_when_nobody_looks_at_it() -> None:
    buffers = Buffers(3)
    first = buffers.empty((4, 5), torch.float32)
    place = first.data_ptr()
    view = first.flatten()[3:].view(-1)
    del first
    assert buffers.empty((4, 5), torch.float32).data_ptr() != place, "a view of it is alive"
    del view
    assert buffers.empty((4, 5), torch.float32).data_ptr() == place
    array = buffers.empty((4, 5), torch.float32).numpy()[1:]
    assert buffers.empty((4, 5), torch.float32).data_ptr() != array.ctypes.data - 20, "NumPy looks at it"
    many = [buffers.empty((4, 5), torch.float32) for _ in range(9)]
    assert len({one.data_ptr() for one in many}) == 9
    assert len(buffers._kept) == 3


def test_a_stage_with_other_sampling_draws_other_items() -> None:
    cohort = Cohort(3)
    stage = _stage(Patches(size=3, per_volume=4))
    one = load_batch(cohort.cache(), stage, cohort.facts(), seed=0, step=0)
    other = load_batch(cohort.cache(), replace(stage, name="t"), cohort.facts(), seed=0, step=0)
    assert not torch.equal(one.position, other.position)


# ---- the stream itself


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (Points(per_volume=9), "7f5e9329fbb5d612"),
        (Points(per_volume=9, neighbourhood=3), "71535ff2b3ce0282"),
        (Slices(axis=1), "23ea82279fd97f26"),
        (WholeVolumes(), "51985a95fba4b691"),
    ],
    ids=str,
)
def test_runs_begun_by_version_0_1_go_on_with_the_same_items(view: View, expected: str) -> None:
    class Numbered:
        chunk_edge = None

        def stored(self, subject_id: str, role: str, box: Any = None) -> NDArray[Any]:
            if role == "brain":
                return np.array(np.arange(7 * 6 * 5).reshape(7, 6, 5) % 3 == 0)
            return np.arange(2 * 7 * 6 * 5, dtype=np.float32).reshape(2, 7, 6, 5) + 1000 * int(subject_id)

    subjects = [str(number) for number in range(5)]
    facts = (
        Cohort(0).facts().model_copy(update={"subjects": tuple(subjects), "grid": (7, 6, 5), "channels": ("a", "b")})
    )
    cache, stage = VolumeCache(Numbered(), subjects, 2**20), _stage(view, epochs=3)
    content = hashlib.blake2b(digest_size=8)
    for step in range(3):
        batch = load_batch(cache, stage, facts, seed=5, step=step)
        for name in ("items", "subjects", "image", "brain", "position"):
            content.update(getattr(batch, name).contiguous().numpy().tobytes())
    # Digests of what the single-file loader of version 0.1 gave.
    assert content.hexdigest() == expected
