"""Splits: exact counts, no dependence on order, nothing moves afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.datasets.splits import SPLITS, Candidate, SplitSettings, apportion, draw_splits
from vesalius.platform.config import override
from vesalius.platform.errors import SettingError


def people(num: int, *, anomalous: int = 0) -> list[Candidate]:
    return [Candidate(person=f"sub-{index:03d}", anomalous=index < anomalous) for index in range(num)]


def test_forty_subjects_give_the_stated_counts() -> None:
    counts = Counter(draw_splits(people(40), SplitSettings()).values())
    assert counts == {"train": 24, "validation": 5, "gate": 5, "test": 6}


@given(st.integers(0, 300), st.integers(0, 60), st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_the_anomalous_never_train(
    num: int, anomalous: int, seed: int, random: object
) -> None:
    import random as standard

    assert isinstance(random, standard.Random)
    members = people(num, anomalous=anomalous)
    drawn = draw_splits(members, SplitSettings(seed=seed))
    assert set(drawn) == {member.person for member in members}
    assert all(drawn[member.person] != "train" for member in members if member.anomalous)
    random.shuffle(members)
    assert draw_splits(members, SplitSettings(seed=seed)) == drawn


@given(st.integers(1, 80), st.integers(0, 20), st.sets(st.integers(0, 79)))
def test_a_broken_off_ingest_draws_the_same(num: int, anomalous: int, committed: set[int]) -> None:
    members = people(num, anomalous=anomalous)
    whole = draw_splits(members, SplitSettings())
    again = [
        replace(member, committed=whole[member.person]) if index in committed else member
        for index, member in enumerate(members)
    ]
    assert draw_splits(again, SplitSettings()) == whole


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 3))
def test_later_additions_move_nobody_and_keep_the_counts(before: int, more: int, seed: int) -> None:
    settings = SplitSettings(seed=seed)
    first = draw_splits(people(before), settings)
    grown = [replace(member, committed=first.get(member.person)) for member in reversed(people(before + more))]
    second = draw_splits(grown, settings)
    assert first.items() <= second.items()
    wanted = apportion(before + more, settings.fractions())
    counts = Counter(second.values())
    # Where a share was over-full by rounding before, another gives way by as much, and no more.
    assert all(abs(counts[split] - wanted[split]) <= 1 for split in SPLITS)


def test_another_seed_draws_another_division() -> None:
    assert draw_splits(people(40), SplitSettings(seed=1)) != draw_splits(people(40), SplitSettings())


@given(
    st.integers(0, 10_000),
    st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda shares: sum(shares) > 1e-3),
)
def test_apportioned_numbers_sum_up_and_are_within_one(total: int, shares: list[float]) -> None:
    named = dict(zip(SPLITS, shares, strict=True))
    counts = apportion(total, named)
    assert sum(counts.values()) == total
    for name, share in named.items():
        assert abs(counts[name] - total * share / sum(shares)) < 1 + 1e-6


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(SettingError, match="at least one share"):
        override(SplitSettings(), {"train": 0, "validation": 0, "gate": 0, "test": 0})
    with pytest.raises(SettingError, match="did you mean 'train'"):
        override(SplitSettings(), {"trian": 0.5})


def test_anomalous_subjects_have_somewhere_to_go_when_all_are_to_train() -> None:
    settings = SplitSettings(train=1, validation=0, gate=0, test=0)
    drawn = draw_splits(people(5, anomalous=2), settings)
    assert Counter(drawn.values()) == {"train": 3, "test": 2}
