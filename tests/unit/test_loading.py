"""The loader against what a batch must be: a pure function, shared out without loss, cut exactly."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vesalius.platform.contracts import (
    Batch,
    CohortFacts,
    Patches,
    Points,
    Slices,
    Stage,
    View,
    WholeVolumes,
    grid_positions,
    slice_indices,
)
from vesalius.platform.errors import CohortError, DivergenceError
from vesalius.platform.loading import VolumeCache, items_per_epoch, load_batch, num_steps, prefetch, share

if TYPE_CHECKING:
    from vesalius.platform.store import CohortStore

VIEWS: list[View] = [
    Points(per_volume=50),
    Points(per_volume=20, neighbourhood=2),
    Points(per_volume=20, neighbourhood=3),
    Patches(size=5, per_volume=4, background=-1.0),
    Slices(axis=2, every=2),
    WholeVolumes(),
]


def _stage(view: View, **changes: Any) -> Stage:
    return Stage(**{"name": "s", "view": view, "batch_size": 4, "epochs": 2, "step": lambda b, u: {}, **changes})


def _cache(store: CohortStore, split: str = "train") -> VolumeCache:
    return VolumeCache(store, [r.subject_id for r in store.subjects(split, healthy=True)], 2**30)


def _load(store: CohortStore, view: View, step: int, rank: int = 0, world_size: int = 1, **changes: Any) -> Batch:
    return load_batch(
        _cache(store), _stage(view, **changes), store.facts(), seed=3, step=step, rank=rank, world_size=world_size
    )


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_batch_is_a_pure_function(toy_store: CohortStore, view: View) -> None:
    first, again = (_load(toy_store, view, 1) for _ in range(2))
    other = _load(toy_store, view, 2)
    for name in ("items", "subjects", "image", "brain", "position"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shares_join_to_the_global_batch(toy_store: CohortStore, view: View, world_size: int) -> None:
    whole = _load(toy_store, view, 1)
    parts = [_load(toy_store, view, 1, rank, world_size) for rank in range(world_size)]
    for name in ("items", "subjects", "image", "brain", "position"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    joined = torch.cat([part.normal("z", (3,)) for part in parts if len(part)])
    assert torch.equal(joined, whole.normal("z", (3,)))


def test_points_carry_the_voxels_at_their_positions(toy_store: CohortStore) -> None:
    facts = toy_store.facts()
    batch = _load(toy_store, Points(per_volume=200, neighbourhood=3), 0)
    positions = grid_positions(facts.grid, facts.spacing_mm, facts.box_mm).numpy()
    for item, subject in enumerate(batch.subjects.tolist()):
        image = toy_store.image(facts.subjects[subject])[0]
        padded = np.pad(image, 1, mode="edge")
        for point in range(0, 200, 20):
            place = batch.position[item, point].numpy()
            voxel = np.unravel_index(np.abs(positions - place).sum(axis=-1).argmin(), facts.grid)
            assert np.allclose(positions[voxel], place)
            i, j, k = voxel
            cube = padded[i : i + 3, j : j + 3, k : k + 3].reshape(-1)
            assert np.array_equal(batch.image[item, point, 0].numpy(), cube)


def test_an_even_neighbourhood_reaches_to_higher_indices(toy_store: CohortStore) -> None:
    single = _load(toy_store, Points(per_volume=300), 0)
    double = _load(toy_store, Points(per_volume=300, neighbourhood=2), 0)
    assert torch.equal(single.position, double.position)
    assert torch.equal(single.image[..., 0], double.image[..., 0])


def test_points_are_uniform_over_the_box(toy_store: CohortStore) -> None:
    batch = _load(toy_store, Points(per_volume=20_000), 0)
    facts = toy_store.facts()
    for axis, num in enumerate(facts.grid):
        place = ((batch.position[..., axis] + 1) * num / 2 - 0.5).round().long().reshape(-1)
        counts = torch.bincount(place, minlength=num).double()
        expected = counts.sum() / num
        # chi-squared with num - 1 degrees of freedom: mean num - 1, deviation sqrt(2 (num - 1))
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < (num - 1) + 5 * (2 * (num - 1)) ** 0.5


def test_patches_are_cut_where_they_say_and_padded(toy_store: CohortStore) -> None:
    facts = toy_store.facts()
    axes = [(np.arange(n) * 2 + 1) / n - 1 for n in facts.grid]
    for step in range(6):
        batch = _load(toy_store, Patches(size=5, per_volume=4, background=-7.0), step)
        assert len(set(batch.subjects.tolist())) == 1, "256 patches of ONE volume an iteration"
        for item, subject in enumerate(batch.subjects.tolist()):
            padded = np.pad(toy_store.image(facts.subjects[subject])[0], 2, constant_values=-7.0)
            i, j, k = (int(np.abs(a - float(p)).argmin()) for a, p in zip(axes, batch.position[item], strict=True))
            assert np.array_equal(batch.image[item, 0].numpy(), padded[i : i + 5, j : j + 5, k : k + 5])


def test_slices_carry_their_position(toy_store: CohortStore) -> None:
    facts = toy_store.facts()
    batch = _load(toy_store, Slices(axis=2, every=2), 1)
    for item, subject in enumerate(batch.subjects.tolist()):
        index = round((float(batch.position[item, 0]) + 1) * facts.grid[2] / 2 - 0.5)
        assert index % 2 == 0
        assert np.array_equal(batch.image[item].numpy(), toy_store.image(facts.subjects[subject])[..., index])


def test_slice_extent_holds_on_any_grid() -> None:
    view = Slices(axis=2, every=1, extent=(0.4, 0.6))
    assert slice_indices(view, (1, 1, 10)) == [4, 5]
    assert len(slice_indices(view, (1, 1, 100))) == 20


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_an_epoch_visits_everything_once(toy_store: CohortStore, view: View) -> None:
    facts, cache = toy_store.facts(), _cache(toy_store)
    stage = _stage(view, epochs=1)
    visits: Counter[int] = Counter()
    for step in range(num_steps(stage, len(cache), facts.grid)):
        visits.update(load_batch(cache, stage, facts, seed=0, step=step).subjects.tolist())
    each = items_per_epoch(view, 1, facts.grid)
    assert visits == dict.fromkeys(range(len(cache)), each)


@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 9))
def test_shares_never_split_a_group(num: int, group: int, world_size: int) -> None:
    shares = [share(num, group, rank, world_size) for rank in range(world_size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == num
    for (_, stop), (start, _) in itertools.pairwise(shares):
        assert stop == start
        assert stop % group == 0 or stop == num
    sizes = [(stop - start + group - 1) // group for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


def test_prefetch_keeps_order_and_stops_early() -> None:
    loaded: list[int] = []

    def load(step: int) -> int:
        loaded.append(step)
        return step

    order: list[object] = list(prefetch(load, 3, 9, ahead=2))  # type: ignore[arg-type]  # loads numbers, not batches
    assert order == [3, 4, 5, 6, 7, 8]
    loaded.clear()
    for step in prefetch(load, 0, 1000, ahead=2):  # type: ignore[arg-type]  # loads numbers, not batches
        if step == 3:  # type: ignore[comparison-overlap]  # numbers, see above
            break
    assert len(loaded) <= 7, "a consumer that stops must not have the rest loaded"


def test_the_cache_is_bounded(toy_store: CohortStore) -> None:
    one = toy_store.image("train-00").nbytes + toy_store.brain("train-00").nbytes
    cache = VolumeCache(toy_store, toy_store.facts().subjects, 3 * one)
    for index in range(len(cache)):
        image, _ = cache[index]
        assert np.array_equal(image, toy_store.image(cache.subjects[index]))
        assert cache.used_bytes <= 3 * one
    assert len(cache._held) == 2, "reading one takes the room of two"


def test_an_empty_split_is_refused_by_name(toy_store: CohortStore) -> None:
    cache = VolumeCache(toy_store, [], 1)
    with pytest.raises(CohortError, match="'train' split"):
        load_batch(cache, _stage(WholeVolumes()), toy_store.facts(), seed=0, step=0)


def test_a_value_that_is_not_finite_stops_with_stage_step_and_subject() -> None:
    class Reader:
        chunk_edge = None

        def stored(self, subject_id: str, role: str, box: Any = None) -> Any:
            return np.full((1, 4, 4, 4), np.inf, np.float32) if role == "image" else np.ones((4, 4, 4), bool)

    facts = CohortFacts(
        subjects=("a",),
        grid=(4, 4, 4),
        spacing_mm=(1.0, 1.0, 1.0),
        affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        channels=("T1w",),
        digest="",
    )
    with pytest.raises(DivergenceError, match=r"step 1 of stage 's' \(subjects a\)"):
        load_batch(
            VolumeCache(Reader(), ["a"], 2**20), _stage(Points(per_volume=5), batch_size=1), facts, seed=0, step=1
        )
