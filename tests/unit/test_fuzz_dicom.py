"""DICOM files with any tags and any damage: every series is read, or refused in one sentence by name."""

from __future__ import annotations

import resource
import struct
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vesalius.datasets.dicom import find_series, read_series
from vesalius.datasets.dicom.writing import SeriesPlan, write_series
from vesalius.datasets.ingest import ingest
from vesalius.datasets.recipes import centered
from vesalius.platform.errors import CohortError, VesaliusError
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

NUM_SLICES = 5
MOST_SECONDS = 10.0
MOST_GROWTH_BYTES = 400 << 20

odd_numbers = st.sampled_from(
    ["", "0", "-0", "1", "-1", "NaN", "inf", "-INF", "1e400", "-1e-400", "1e9", "9999", "0.0001", "abc", "1,5", "0x10"]
) | st.floats(-200, 200).map(lambda number: f"{number:.5g}")
texts = st.sampled_from(["", "CT", "MR", "PT", "LOCALIZER", "\\\\\\", "\x00\x00", "\xff\xfe", "ORIGINAL\\PRIMARY"])
shorts = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 32, 64, 255, 256, 32767, 65535])


def decimals(count: int) -> Any:
    return st.lists(odd_numbers, min_size=max(1, count - 1), max_size=count + 1).map("\\".join)


# By tag: what its value becomes, as the bytes of an explicit little-endian file.
TEXTS: dict[tuple[int, int], Any] = {
    (0x0008, 0x0008): texts,
    (0x0008, 0x0016): st.sampled_from(["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "", "1.2.3"]),
    (0x0008, 0x0060): texts,
    (0x0010, 0x0020): texts,
    (0x0018, 0x0050): odd_numbers,
    (0x0020, 0x000E): texts,
    (0x0020, 0x0011): odd_numbers,
    (0x0020, 0x0032): decimals(3),
    (0x0020, 0x0037): decimals(6)
    | st.sampled_from(["0\\1\\0\\1\\0\\0", "1\\0\\0\\1\\0\\0", "2\\0\\0\\0\\2\\0", "0.9\\0.1\\0\\-0.1\\0.9\\0"]),
    (0x0028, 0x0004): texts,
    (0x0028, 0x0030): decimals(2),
    (0x0028, 0x1052): odd_numbers,
    (0x0028, 0x1053): odd_numbers,
}
SHORTS = [(0x0028, element) for element in (0x0002, 0x0010, 0x0011, 0x0100, 0x0101, 0x0102, 0x0103)]
META_SYNTAX = (0x0002, 0x0010)

tag_changes = st.fixed_dictionaries(
    {},
    optional={
        **TEXTS,
        **dict.fromkeys(SHORTS, shorts),
        META_SYNTAX: st.sampled_from(
            [
                "1.2.840.10008.1.2",
                "1.2.840.10008.1.2.2",
                "1.2.840.10008.1.2.1.99",
                "1.2.840.10008.1.2.4.50",
                "1.2.840.10008.1.2.4.70",
                "1.2.840.10008.1.2.4.90",
                "1.2.840.10008.1.2.5",
                "9.9",
                "",
            ]
        ),
    },
)
# A few at a time: with every tag changed at once nothing but the first one would ever be looked at.
few_changes = tag_changes.flatmap(
    lambda changes: (
        st.just(changes)
        if len(changes) < 3
        else st.lists(st.sampled_from(sorted(changes)), min_size=1, max_size=2, unique=True).map(
            lambda tags: {tag: changes[tag] for tag in tags}
        )
    )
)
damage = st.fixed_dictionaries(
    {},
    optional={
        "keep": st.floats(0, 1),
        "flips": st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=6),
        "head_flips": st.lists(st.tuples(st.integers(128, 1000), st.integers(0, 7)), min_size=1, max_size=4),
        "append": st.binary(max_size=40),
    },
)


def values(points: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = (points**2).sum(axis=-1) < 26**2
    return np.where(inside, 40 + points[..., 0] / 2, -1000.0)


class Files(tuple[bytes, ...]):
    """A series' files; does not spread their bytes over a failing test's message."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} files>"


@cache
def sound_files(folder: Any) -> tuple[bytes, ...]:
    plan = SeriesPlan(places_mm=tuple(range(-20, 21, 10)), size=(9, 8), pixel_mm=(8.0, 8.0), thickness_mm=10.0)
    return Files(path.read_bytes() for path in write_series(folder, plan, values))


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ...]:
    return sound_files(tmp_path_factory.mktemp("sound"))


def with_tags(content: bytes, changes: Mapping[tuple[int, int], Any]) -> bytes:
    """Return an explicit little-endian file with the values of some top-level elements exchanged, byte by byte."""
    parts: list[bytes] = [content[:132]]
    place = 132
    while place + 8 <= len(content):
        tag = struct.unpack_from("<HH", content, place)
        kind = content[place + 4 : place + 6]
        if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
            head, (length,) = 12, struct.unpack_from("<I", content, place + 8)
        else:
            head, (length,) = 8, struct.unpack_from("<H", content, place + 6)
        value = content[place + head : place + head + length]
        if tag in changes:
            new = changes[tag]
            value = struct.pack("<H", new) if isinstance(new, int) else str(new).encode("latin-1")
            value += b" " * (len(value) % 2)
            parts.append(content[place : place + 6] + struct.pack("<H", len(value)) + value)
        else:
            parts.append(content[place : place + head + length])
        place += head + length
    return b"".join(parts)


def with_damage(content: bytes, harm: Mapping[str, Any]) -> bytes:
    damaged = bytearray(content)
    for place, bit in harm.get("flips", ()):
        damaged[int(place * len(damaged))] ^= 1 << bit
    for place, bit in harm.get("head_flips", ()):
        damaged[min(place, len(damaged) - 1)] ^= 1 << bit
    return bytes(damaged[: int(harm.get("keep", 1.0) * len(damaged))]) + bytes(harm.get("append", b""))


def write_fuzzed(
    folder: Path, sound: tuple[bytes, ...], changes: Mapping[Any, Any], harm: Mapping[str, Any], which: set[int]
) -> None:
    folder.mkdir(exist_ok=True)
    for index, content in enumerate(sound):
        fuzzed = with_damage(with_tags(content, changes), harm) if index in which else content
        (folder / f"{index}.dcm").write_bytes(fuzzed)


def check_sentence(sentence: str) -> None:
    assert sentence
    assert "\n" not in sentence
    assert sentence.isprintable()
    assert len(sentence) < 800


def check_reading(folder: Path) -> int:
    """Find and read all that is in a folder; return how many volumes there were."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    num_volumes = 0
    for series in find_series(folder):
        if series.problem is not None:
            check_sentence(series.problem)
            assert str(folder) in series.problem
            continue
        refusal = ""
        try:
            volume = read_series(series.files)
        except VesaliusError as error:
            refusal = str(error)
        if refusal:
            check_sentence(refusal)
            continue
        num_volumes += 1
        assert volume.array.dtype == np.float32
        assert min(volume.shape) >= 2
        assert np.isfinite(volume.array).all()
        assert abs(np.linalg.det(volume.affine)) > 0
        for sentence in volume.warnings:
            check_sentence(sentence)
    assert time.monotonic() - started < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH_BYTES
    return num_volumes


def check_fuzzed(folder: Path, sound: tuple[bytes, ...], changes: Any, harm: Any, which: set[int]) -> None:
    """Read one fuzzed series."""
    write_fuzzed(folder, sound, changes, harm, which)
    check_reading(folder)


def check_ingest(folder: Path, sound: tuple[bytes, ...], changes: Any, harm: Any, which: set[int]) -> None:
    """Take two patients in, one of them sound: a clean store that holds it, the other in it too or refused by name."""
    root, store_path = folder / "in", folder / "store"
    root.mkdir()
    write_fuzzed(root / "sound", sound, {(0x0010, 0x0020): "another"}, {}, set(range(NUM_SLICES)))
    write_fuzzed(root / "fuzzed", sound, changes, harm, which)
    # A fuzzed modality makes a folder of two, which asks for a choice.
    report = ingest("dicom", root, store_path, modalities=("CT",), recipe=centered(8.0))
    assert "unexpectedly" not in str(report.failed), report.failed
    for sentence in (*report.failed.values(), *(text for texts in report.warnings.values() for text in texts)):
        check_sentence(sentence)
    store = CohortStore.open(store_path)
    assert store.check() == []
    assert "sound" in report.added
    # Nothing disappears without a word; tags may say that it holds several studies.
    assert any(name.startswith("fuzzed") for name in (*report.added, *report.failed))


EVERY: Any = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
some = st.sets(st.integers(0, NUM_SLICES - 1), min_size=1) | st.just(set(range(NUM_SLICES)))


def test_the_unchanged_series_is_read(tmp_path: Path, sound: tuple[bytes, ...]) -> None:
    """Without this, fuzzing could pass on files that are refused whatever is done to them."""
    assert with_tags(sound[0], {}) == sound[0]
    write_fuzzed(tmp_path / "a", sound, {(0x0018, 0x0050): "10.00"}, {}, set(range(NUM_SLICES)))
    assert check_reading(tmp_path / "a") == 1


@given(changes=few_changes, which=some)
@hypothesis_settings(max_examples=120, **EVERY)
def test_any_tags_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, sound: tuple[bytes, ...], changes: Any, which: set[int]
) -> None:
    check_fuzzed(tmp_path_factory.mktemp("fuzz"), sound, changes, {}, which)


@given(harm=damage, which=some)
@hypothesis_settings(max_examples=120, **EVERY)
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, sound: tuple[bytes, ...], harm: Any, which: set[int]
) -> None:
    check_fuzzed(tmp_path_factory.mktemp("fuzz"), sound, {}, harm, which)


@given(changes=few_changes, harm=damage | st.just({}), which=some)
@hypothesis_settings(max_examples=10, **EVERY)
def test_any_series_gives_a_clean_store_or_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, sound: tuple[bytes, ...], changes: Any, harm: Any, which: set[int]
) -> None:
    check_ingest(tmp_path_factory.mktemp("fuzz"), sound, changes, harm, which)


def test_a_series_of_another_modality_is_named(tmp_path: Path, sound: tuple[bytes, ...]) -> None:
    check_ingest(tmp_path, sound, {(0x0008, 0x0008): "", (0x0008, 0x0060): "MR"}, {}, set(range(NUM_SLICES)))


@pytest.mark.parametrize("thickness", ["4.9407e-324", "1e-300", "0", "-4", "1e300"])
def test_a_thickness_of_no_slice_says_nothing(tmp_path: Path, sound: tuple[bytes, ...], thickness: str) -> None:
    check_ingest(tmp_path, sound, {(0x0018, 0x0050): thickness}, {}, set(range(NUM_SLICES)))


@pytest.mark.long
@given(changes=few_changes, harm=damage | st.just({}), which=some)
@hypothesis_settings(max_examples=5_000, **EVERY)
def test_any_tags_and_damage_are_read_or_refused_long(
    tmp_path_factory: pytest.TempPathFactory, sound: tuple[bytes, ...], changes: Any, harm: Any, which: set[int]
) -> None:
    check_fuzzed(tmp_path_factory.mktemp("fuzz"), sound, changes, harm, which)


@pytest.mark.long
@given(changes=few_changes, harm=damage | st.just({}), which=some)
@hypothesis_settings(max_examples=500, **EVERY)
def test_any_series_gives_a_clean_store_or_a_named_refusal_long(
    tmp_path_factory: pytest.TempPathFactory, sound: tuple[bytes, ...], changes: Any, harm: Any, which: set[int]
) -> None:
    check_ingest(tmp_path_factory.mktemp("fuzz"), sound, changes, harm, which)


def test_a_root_of_nothing_but_damage_is_refused(tmp_path: Path, sound: tuple[bytes, ...]) -> None:
    write_fuzzed(tmp_path / "in", sound, {}, {"keep": 0.5}, set(range(NUM_SLICES)))
    with pytest.raises(CohortError, match="holds no series that makes a volume"):
        ingest("dicom", tmp_path / "in", tmp_path / "store", recipe=centered(8.0))
    assert not (tmp_path / "store").exists()
