"""The line of champions from entries of a log alone: whatever their order, all who read them see one champion."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.platform.errors import DiskSpaceError
from vesalius.platform.registry.champions import alone
from vesalius.platform.registry.line import fold, moved_line
from vesalius.platform.registry.records import Entry, PromotionRecord, current_user, one_line

if TYPE_CHECKING:
    from pathlib import Path


def entry(number: int, kind: Any, version: str, follows: int, **more: Any) -> Entry:
    facts = {"token": f"t{number}", "by": "ada", "at": f"2026-01-01T00:00:{number:02d}+00:00", **more}
    return Entry(number=number, record=PromotionRecord(kind=kind, name="m", version=version, follows=follows, **facts))


def test_the_first_of_two_that_follow_the_same_counts() -> None:
    told, head, line, archived = fold(
        [
            entry(1, "promoted", "1", 0),
            entry(2, "promoted", "2", 1),
            entry(3, "promoted", "3", 1),  # decided against version 1, which is champion no more
            entry(4, "kept back", "4", 1),
            entry(5, "kept back", "4", 2),
            entry(6, "promoted", "3", 2),
        ]
    )
    assert [one.overtaken for one in told] == [False, False, True, True, False, False]
    assert (head, line) == (6, ["1", "2", "3"])
    assert {version: one.number for version, one in archived.items()} == {"1": 2, "2": 6}


def test_going_back_cuts_the_line_and_a_second_life_is_not_archived() -> None:
    told, head, line, archived = fold(
        [
            entry(1, "promoted", "1", 0),
            entry(2, "promoted", "2", 1),
            entry(3, "promoted", "1", 2),
            entry(4, "rolled back", "2", 3),
        ]
    )
    assert not any(one.overtaken for one in told)
    assert (head, line, sorted(archived)) == (4, ["1", "2"], ["1"])
    assert archived["1"].number == 4


def test_a_request_written_twice_counts_once() -> None:
    told, head, line, _ = fold(
        [
            entry(1, "promoted", "1", 0),
            entry(2, "promoted", "2", 1, token="same"),
            entry(3, "promoted", "2", 1, token="same"),
            entry(4, "rolled back", "1", 2),
        ]
    )
    assert [one.number for one in told] == [1, 2, 4]
    assert (head, line) == (4, ["1"])


def test_an_alias_that_went_away_leaves_nobody() -> None:
    _, head, line, archived = fold(
        [entry(1, "promoted", "1", 0), entry(2, "moved", "", 1), entry(3, "promoted", "2", 2)]
    )
    assert (head, line, sorted(archived)) == (3, ["2"], ["1"])


def test_a_line_is_cut_or_made_longer() -> None:
    assert moved_line(("1", "2", "1", "3"), "1") == ("1", "2", "1")
    assert moved_line(("1", "2"), "2") == ("1", "2")
    assert moved_line(("1",), "3") == ("1", "3")
    assert moved_line(("1", "2"), "") == ()


@given(st.lists(st.tuples(st.sampled_from(["promoted", "kept back", "rolled back"]), st.integers(0, 12)), max_size=12))
def test_whoever_reads_a_part_of_the_log_reads_the_same_of_it(plan: list[tuple[str, int]]) -> None:
    """What is written later changes nothing of what stood: an entry that counted once, counts."""
    entries: list[Entry] = []
    for number, (kind, follows) in enumerate(plan, 1):
        _, _, line, _ = fold(entries)
        version = line[-2] if kind == "rolled back" and len(line) > 1 else str(number)
        kind = "promoted" if kind == "rolled back" and len(line) < 2 else kind
        entries.append(entry(number, kind, version, follows))
    whole = fold(entries)[0]
    for length in range(len(entries) + 1):
        assert fold(entries[:length])[0] == whole[:length]
    heads = [0, *(one.number for one in whole if not one.overtaken and one.record.kind != "kept back")]
    for one in whole:
        if not one.overtaken:
            assert one.record.follows == max(head for head in heads if head < one.number)


def test_a_full_disk_keeps_a_promotion_from_beginning(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # a full disk says much the same
    try:
        said = pytest.raises(DiskSpaceError, match=r"promote-brain\.lock: the disk or quota is full")
        with said, alone(tmp_path, "brain"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with alone(tmp_path, "brain") as first:
        pass
    with alone(tmp_path, "brain") as second:
        assert first == second


def test_who_is_asking_is_one_line_of_text(monkeypatch: Any) -> None:
    monkeypatch.setenv("VESALIUS_USER", "  Ada\nLovelace\x1b[31m ")
    assert current_user() == "Ada Lovelace[31m"
    monkeypatch.setenv("VESALIUS_USER", "")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "grace")
    assert current_user() == "grace"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert current_user()
    assert one_line("a" * 300, 128) == "a" * 128
