"""The store's parts: what is refused and how, what other Zarr readers see, what the digests know."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from zarr.core.metadata import ArrayV3Metadata

from vesalius.platform.config import canonical_json, digest
from vesalius.platform.errors import CohortError, DiskSpaceError, InputError, StoreError, VolumeError
from vesalius.platform.store import (
    ChunkSettings,
    CohortStore,
    Place,
    SourceFacts,
    SubjectArrays,
    SubjectRecord,
    check_store,
    check_subject_id,
    cohort,
    find_problems,
    manifest,
    require_space,
    space_errors,
    writing,
)
from vesalius.platform.store.arrays import array_facts, read_array, write_array
from vesalius.platform.store.creation import make_store, new_manifest
from vesalius.platform.store.files import remove, write_files
from vesalius.platform.testing.faults import faults, memory_folder
from vesalius.platform.testing.store import check_a_second_ingest_adds_and_changes_nothing_else, check_damage_is_named
from vesalius.platform.testing.store_cases import add, assert_holds, example_case
from vesalius.platform.testing.store_interruptions import (
    check_survives_a_kill_at_every_step,
    check_survives_a_power_cut_at_every_step,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHANNELS = ("T1w", "FLAIR")
RECIPE = {"name": "unit", "spacing_mm": [1, 1, 1]}


def make(path: Place, **changes: Any) -> CohortStore:
    return CohortStore.create(path, **{"recipe": RECIPE, "channels": CHANNELS, **changes})


@pytest.fixture
def store(tmp_path: Path) -> CohortStore:
    return make(tmp_path / "store")


def changed(number: int = 0, **changes: Any) -> tuple[SubjectRecord, SubjectArrays]:
    """Return an example with its record's or its arrays' fields replaced."""
    record, example = example_case(number, CHANNELS)
    of_arrays = {name: value for name, value in changes.items() if name in vars(example)}
    of_record = {name: value for name, value in changes.items() if name not in of_arrays}
    return record.model_copy(update=of_record), SubjectArrays(**{**vars(example), **of_arrays})


def one_sentence(error: InputError) -> str:
    text = str(error)
    assert "\n" not in text
    assert error.exit_code == 2
    return text


# ---- opening


def test_a_store_that_another_writer_has_just_made_is_left_as_it_is(tmp_path: Path) -> None:
    store = CohortStore.create(tmp_path / "store", recipe={"name": "a"}, channels=("T1w",))
    before = (store.path / "manifest.json").read_bytes()
    # What a second writer does that found no manifest a moment ago.
    make_store(store.path, new_manifest(store.path, {"name": "b"}, ("FLAIR",), "late", None))
    assert (store.path / "manifest.json").read_bytes() == before


def test_a_folder_that_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(StoreError, match="is not a cohort store") as caught:
            CohortStore.open(path)
        assert str(path) in one_sentence(caught.value)
        assert check_store(path) == [str(caught.value)]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(StoreError, match=r"is not empty and not a cohort store \(it holds thesis\.tex\)"):
        make(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="is a file"):
        make(tmp_path / "thesis.tex")


def test_a_manifest_that_cannot_be_read_is_one_sentence(store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read \(Permission denied\)") as caught:
        CohortStore.open(store.path)
    one_sentence(caught.value)


def test_making_a_store_twice_opens_it(store: CohortStore) -> None:
    add(store, [example_case(0, CHANNELS)])
    again = make(store.path, recipe={"spacing_mm": (1, 1, 1), "name": "unit"}, name="another name")
    assert again.digest == store.digest
    assert again.subjects() == store.subjects()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"recipe": {**RECIPE, "spacing_mm": [2, 2, 2]}},
            r"another recipe \(spacing_mm was \[1, 1, 1\] and is \[2, 2, 2\]",
        ),
        ({"recipe": {**RECIPE, "dtype": "float16"}}, "dtype was None and is 'float16'"),
        ({"channels": ("T1w",)}, "holds the channels T1w, FLAIR and not T1w"),
        ({"channels": ("FLAIR", "T1w")}, "not FLAIR, T1w"),
    ],
)
def test_another_recipe_or_other_channels_are_refused(store: CohortStore, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as caught:
        make(store.path, **changes)
    one_sentence(caught.value)


@pytest.mark.parametrize(
    "changes", [{"recipe": {"dtype": "int8"}}, {"channels": ()}, {"channels": ("T1w", "T1w")}], ids=str
)
def test_what_no_store_can_be_is_refused_before_anything_is_made(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="expected"):
        make(tmp_path / "store", **changes)
    assert not (tmp_path / "store").exists()


def damaged(body: Callable[[dict[str, Any]], None], *, resign: bool) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        tree = json.loads(content)
        body(tree["manifest"])
        if resign:
            tree["sha256"] = digest(tree["manifest"])
        return json.dumps(tree).encode()

    return change


def rename_subject(body: dict[str, Any]) -> None:
    entry = body["subjects"].pop("sub-00")
    entry["record"]["subject_id"] = "../../etc"
    body["subjects"]["../../etc"] = entry


def misfile_subject(body: dict[str, Any]) -> None:
    body["subjects"]["sub-99"] = body["subjects"].pop("sub-00")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:-5], "not the JSON that was written"),
        (lambda content: b"\x80\xff", "not the JSON that was written"),
        (lambda content: b"[1, 2]", "not the JSON that was written"),
        (damaged(lambda body: body.update(name="x"), resign=False), "does not match its checksum"),
        (damaged(lambda body: body.update(format=3), resign=True), "is of format 3 and this version reads format 2"),
        (damaged(lambda body: body.pop("channels"), resign=True), "channels: Field required"),
        (damaged(rename_subject, resign=True), "cannot be a subject id"),
        (damaged(misfile_subject, resign=True), "is filed under sub-99"),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_sentence(
    store: CohortStore, change: Callable[[bytes], bytes], reason: str
) -> None:
    add(store, [example_case(0, CHANNELS)])
    path = store.path / "manifest.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StoreError, match=reason) as caught:
        CohortStore.open(store.path)
    assert str(path) in one_sentence(caught.value)
    assert check_store(store.path) == [str(caught.value)]


# ---- records


@pytest.mark.parametrize("text", ["sub-01", "A", "a.b_c-D", "0" * 128])
def test_plain_ids_pass(text: str) -> None:
    assert check_subject_id(text) == text


@given(st.text(alphabet="aZ0._-/\\ \nü", max_size=6))
def test_whatever_passes_is_one_visible_folder_name(text: str) -> None:
    try:
        check_subject_id(text)
    except CohortError as error:
        one_sentence(error)
    else:
        assert os.path.basename(os.path.normpath(os.path.join("/store", text))) == text
        assert not text.startswith(".")
        assert text.isascii()


def test_a_record_cannot_be_made_with_an_id_that_leaves_the_store() -> None:
    record, _ = example_case(0, CHANNELS)
    with pytest.raises(CohortError, match=r"'\.\./x' cannot be a subject id"):
        SubjectRecord.model_validate({**record.model_dump(), "subject_id": "../x"})


def test_a_source_keeps_names_and_no_folders() -> None:
    facts = example_case(0, CHANNELS)[0].source
    assert facts is not None
    with pytest.raises(ValidationError, match="is a path: give the file's name alone"):
        SourceFacts.model_validate({**facts.model_dump(), "files": {"T1w": "/home/someone/patient 7/a.nii"}})


def test_a_record_survives_its_json() -> None:
    record, _ = example_case(1, CHANNELS)
    assert SubjectRecord.model_validate_json(canonical_json(record)) == record


# ---- writing


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        (
            {"image": np.zeros((1, 9, 7, 11), np.float32)},
            VolumeError,
            r"image has shape \(1, 9, 7, 11\), expected \(2, 9, 7",
        ),
        ({"image": np.full((2, 9, 7, 11), np.nan, np.float32)}, VolumeError, "NaN or infinite"),
        ({"image": np.full((2, 9, 7, 11), np.inf, np.float32)}, VolumeError, "NaN or infinite"),
        ({"image": np.full((2, 9, 7, 11), 1e39)}, VolumeError, "too large for float32"),
        ({"brain": np.ones((9, 7, 10), bool)}, VolumeError, r"brain array has shape \(9, 7, 10\)"),
        ({"lesion": np.ones((1, 9, 7, 11), bool)}, VolumeError, "lesion array has shape"),
        ({"structures": np.full((9, 7, 11), 0.5)}, VolumeError, "labels have type float64, expected whole numbers"),
        ({"structures": np.full((9, 7, 11), -1)}, VolumeError, "labels reach from -1 to 0, expected 0 to 65535"),
        ({"structures": np.full((9, 7, 11), 70000)}, VolumeError, "reach from 0 to 70000"),
        ({"shape": (9, 7, 12)}, VolumeError, r"expected \(2, 9, 7, 12\)"),
        ({"channels": ("T1w",)}, StoreError, "has the channels T1w and .* holds T1w, FLAIR"),
        ({"recipe_digest": "0" * 64}, StoreError, "prepared by another recipe"),
        ({"notes": {"metric": float("nan")}}, CohortError, "notes cannot be kept as JSON"),
        ({"notes": {"object": object()}}, CohortError, "notes cannot be kept as JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_it_is_written(
    store: CohortStore, changes: dict[str, Any], error: type[InputError], reason: str
) -> None:
    record, example = changed(**changes)
    if record.channels != CHANNELS:
        example = changed(image=example.image[:1])[1]
    with pytest.raises(error, match=reason) as caught:
        store.write(record, example)
    assert "sub-00" in one_sentence(caught.value)
    assert not list((store.path / ".partial").iterdir())
    assert [entry.name for entry in (store.path / "subjects").iterdir()] == ["zarr.json"]


def test_a_half_precision_recipe_stores_half_precision(tmp_path: Path) -> None:
    store = make(tmp_path / "half", recipe={"dtype": "float16"})
    image = np.random.default_rng(0).normal(size=(2, 9, 7, 11)).astype(np.float32)
    add(store, [changed(image=image)])
    assert store.record("sub-00").arrays["image"].dtype == "float16"
    assert store.image("sub-00").dtype == np.float32
    assert np.array_equal(store.image("sub-00"), image.astype(np.float16).astype(np.float32))
    assert store.check() == []
    with pytest.raises(VolumeError, match="too large for float16"):
        store.write(*changed(1, image=image + 1e6))


@pytest.mark.parametrize(("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16")])
@pytest.mark.parametrize("given_as", [np.int64, np.uint16, np.int32])
def test_the_type_of_labels_follows_from_their_values(
    store: CohortStore, highest: int, dtype: str, given_as: type
) -> None:
    labels = np.zeros((9, 7, 11), np.int64)
    labels[1, 2, 3] = highest
    if highest > np.iinfo(given_as).max:
        pytest.skip("the value does not fit that type")
    store.commit([store.write(*changed(structures=labels.astype(given_as)))])
    assert store.record("sub-00").arrays["structures"].dtype == dtype
    found = store.structures("sub-00")
    assert found is not None
    assert np.array_equal(found, labels)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lesion": None, "labels": {}}, False),
        ({"lesion": np.zeros((9, 7, 11), bool), "labels": {"anomalous": False}}, False),
        ({"lesion": np.ones((9, 7, 11), bool), "labels": {}}, True),
        ({"lesion": None, "labels": {"anomalous": True}}, True),
        ({"lesion": None, "labels": {}, "has_lesion": True}, True),
    ],
)
def test_a_lesion_is_a_voxel_or_a_label(store: CohortStore, changes: dict[str, Any], expected: bool) -> None:
    store.commit([store.write(*changed(**changes))])
    assert store.record("sub-00").has_lesion is expected
    assert len(store.subjects(healthy=True)) == (not expected)
    assert len(store.subjects(healthy=False)) == expected


def test_what_write_returns_is_what_a_later_reader_finds(store: CohortStore) -> None:
    written = store.write(*changed(notes={"corner": (1, 2.5, None)}))
    store.commit([written])
    assert CohortStore.open(store.path).record("sub-00") == written
    assert written.notes == {"corner": [1, 2.5, None]}


def test_a_subject_is_committed_as_it_was_written_or_not_at_all(store: CohortStore) -> None:
    written = store.write(*changed())
    with pytest.raises(StoreError, match="written with another record"):
        store.commit([written.model_copy(update={"split": "gate"})])
    shutil.rmtree(store.path / "subjects" / "sub-00")
    with pytest.raises(StoreError, match="was not written before its commit"):
        store.commit([written])
    assert CohortStore.open(store.path).subjects() == []


def test_a_stale_store_does_not_replace_what_another_writer_committed(store: CohortStore) -> None:
    stale = CohortStore.open(store.path)
    add(store, [changed()])
    before = (store.path / "subjects" / "sub-00" / "zarr.json").stat().st_ino
    with pytest.raises(StoreError, match="already in the store with another group and arrays"):
        stale.write(*changed(group="site B", head=None))
    assert stale.write(*changed()) == store.record("sub-00")
    assert (store.path / "subjects" / "sub-00" / "zarr.json").stat().st_ino == before


@pytest.mark.parametrize("split", ["train", "gate"])
def test_a_worker_that_outlives_its_writer_leaves_what_the_next_one_committed(
    store: CohortStore, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """While it writes a subject aside, the next writer commits the same subject, perhaps in another split."""
    record, arrays = example_case(0, store.channels)
    orphan = CohortStore.open(store.path)
    folder = store.path / "subjects" / record.subject_id
    places: list[int] = []

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(writing, "write_files", write_files)
        add(store, [(record.model_copy(update={"split": split}), arrays)])
        places.append(folder.stat().st_ino)
        write_files(*arguments)

    monkeypatch.setattr(writing, "write_files", overtaken)
    if split == record.split:
        assert orphan.write(record, arrays) == store.record(record.subject_id)
    else:
        with pytest.raises(StoreError, match="another split"):
            orphan.write(record, arrays)
    assert [folder.stat().st_ino] == places
    assert store.check() == []


def test_forgetting_frees_the_id_and_nothing_else(store: CohortStore) -> None:
    cases = [example_case(number, CHANNELS) for number in range(3)]
    add(store, cases[:2])
    before = store.digest
    add(store, cases)
    with pytest.raises(CohortError, match="holds no subject 'sub-07'"):
        store.forget(["sub-02", "sub-07"])
    assert len(CohortStore.open(store.path).subjects()) == 3
    store.forget(["sub-02", "sub-02"])
    assert store.digest == before
    assert CohortStore.open(store.path).check() == []
    assert not (store.path / "subjects" / "sub-02").exists()
    with pytest.raises(CohortError, match="holds no subject 'sub-02'"):
        store.image("sub-02")


def test_a_file_that_goes_between_being_listed_and_being_read_is_missing(store: CohortStore) -> None:
    add(store, [example_case(0, CHANNELS)])
    chunk = store.path / "subjects" / "sub-00" / "labels" / "brain" / "0" / "c.0.0.0"
    chunk.unlink()
    chunk.symlink_to(store.path / "nowhere")  # there for whoever lists, and not for whoever reads
    (sentence,) = store.check()
    assert "subject sub-00: " in sentence
    assert "is missing: 'vesalius check --repair' drops the subject" in sentence


def test_uncommitted_subjects_are_offered_only_when_whole_and_of_this_recipe(
    store: CohortStore, tmp_path: Path
) -> None:
    written = store.write(*changed(0))
    store.write(*changed(1))
    (store.path / "subjects" / "sub-01" / "labels" / "brain" / "0" / "c.0.0.0").write_bytes(b"damaged")
    other = make(tmp_path / "other", recipe={"name": "other"})
    other.write(*changed(2))
    shutil.copytree(other.path / "subjects" / "sub-02", store.path / "subjects" / "sub-02")
    shutil.copytree(store.path / "subjects" / "sub-00", store.path / "subjects" / "renamed")
    assert store.uncommitted() == [written]
    store.commit(store.uncommitted())
    assert store.uncommitted() == []
    assert_holds(store, changed(0))
    # What is of no use to anybody is for a person to move; what is whole and unwanted, repair drops.
    store.write(*changed(4))
    assert len(store.check()) == 4
    assert store.repair() == ["sub-02", "sub-04"]
    complaints = store.check()
    assert all(any(name in sentence for sentence in complaints) for name in ("sub-01", "renamed"))
    assert len(complaints) == 2


# ---- what lies on the disk


@settings(max_examples=60)
@given(
    data=st.data(),
    dtype=st.sampled_from([np.float32, np.float16, np.uint8, np.uint16]),
    chunk=st.sampled_from([8, 16]),
    shard=st.booleans(),
    codec=st.sampled_from(["zstd", "lz4"]),
    shuffle=st.sampled_from(["shuffle", "bitshuffle", "noshuffle"]),
)
def test_any_array_in_any_chunks_reads_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    dtype: type[np.generic],
    chunk: int,
    shard: bool,
    codec: str,
    shuffle: str,
) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 19)] * 3) | st.tuples(st.integers(1, 3), *[st.integers(1, 17)] * 3))
    # All bit patterns, NaN payloads and signed zeros among them; sparse ones, so that some chunks are all fill.
    bits = data.draw(arrays(f"u{np.dtype(dtype).itemsize}", shape, fill=st.just(0)))
    array = bits.view(dtype)
    path = tmp_path_factory.mktemp("array") / "array"
    chosen = ChunkSettings.model_validate({"chunk": chunk, "shard": shard, "codec": codec, "shuffle": shuffle})
    write_array(path, array, chosen)
    found = read_array(path)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_the_digest_of_an_array_is_that_of_its_little_endian_bytes() -> None:
    import hashlib

    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    expected = hashlib.sha256(b"".join(np.float32(i).astype("<f4").tobytes() for i in range(24))).hexdigest()
    assert array_facts(array).sha256 == expected
    assert array_facts(array.astype(">f4")).sha256 == expected
    assert array_facts(np.asfortranarray(array)).sha256 == expected
    assert array_facts(array.transpose(2, 0, 1).copy().transpose(1, 2, 0)).sha256 == expected


def test_the_digest_knows_nothing_of_chunks_and_codec(tmp_path: Path) -> None:
    digests = set()
    for number, chunks in enumerate(
        [ChunkSettings(), ChunkSettings(chunk=8), ChunkSettings(chunk=8, shard=False, codec="lz4", level=1)]
    ):
        store = make(tmp_path / str(number), chunks=chunks)
        add(store, [example_case(0, CHANNELS), example_case(1, CHANNELS)])
        assert CohortStore.open(store.path).check() == []
        digests.add(store.digest)
    assert len(digests) == 1


def test_a_volume_is_two_files_unless_asked_otherwise(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 70, 65, 10)).astype(np.float32)
    for name, chunks, num_files in (
        ("default", ChunkSettings(), 2),
        ("a file each", ChunkSettings(shard=False), 1 + 2 * 2 * 2),
        ("one chunk", ChunkSettings(chunk=128), 2),
    ):
        write_array(tmp_path / name, array, chunks)
        assert len([path for path in (tmp_path / name).rglob("*") if path.is_file()]) == num_files, name


def test_any_zarr_reader_sees_one_hierarchy_with_named_axes_and_all_attributes(store: CohortStore) -> None:
    cases = [example_case(number, CHANNELS) for number in range(2)]
    add(store, cases)
    root = zarr.open_group(store.path, mode="r")
    assert root.attrs["vesalius"] == {"format": 2}
    # Warnings are errors: a file that is no Zarr node would fail here.
    subjects, group = root["subjects"], root["subjects/sub-01"]
    assert isinstance(subjects, zarr.Group)
    assert isinstance(group, zarr.Group)
    assert sorted(name for name, _ in subjects.members()) == ["sub-00", "sub-01"]
    assert list(group.array_keys()) == ["image"]
    labels = group["labels"]
    assert isinstance(labels, zarr.Group)
    assert sorted(labels.group_keys()) == ["brain", "head", "lesion", "structures"]
    image, lesion = group["image"], group["labels/lesion/0"]
    assert isinstance(image, zarr.Array)
    assert isinstance(lesion, zarr.Array)
    assert isinstance(image.metadata, ArrayV3Metadata)
    assert image.metadata.dimension_names == ("c", "x", "y", "z")
    example = cases[1][1]
    assert example.lesion is not None
    assert np.array_equal(np.asarray(image[...]), example.image)
    assert np.array_equal(np.asarray(lesion[...]), example.lesion)
    attributes: Any = group.attrs["vesalius"]
    kept = attributes["record"]
    for name in ("affine", "spacing_mm", "channels", "split", "group", "demographics", "labels", "structures"):
        assert kept[name] == json.loads(canonical_json(cases[1][0]))[name]
    assert kept["source"]["shape"] == [20, 21, 22]
    assert kept["source"]["sha256"] == {"T1w": f"{1:064x}"}
    assert kept["recipe_digest"] == digest(RECIPE)


# ---- facts


def test_facts_need_a_healthy_subject(store: CohortStore) -> None:
    add(store, [example_case(1, CHANNELS)])
    with pytest.raises(CohortError, match="no subject to learn from in the split 'train'"):
        store.facts()


@pytest.mark.parametrize(
    ("changes", "agree"),
    [
        ({"affine": ((1.5, 0.0, 0.0, 7.0), (0.0, 1.5, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))}, True),
        ({"spacing_mm": (1.5, 1.5, 2.1)}, False),
    ],
)
def test_subjects_share_voxels_and_spacing_though_not_their_place(
    store: CohortStore, changes: dict[str, Any], agree: bool
) -> None:
    add(store, [changed(0), changed(2, **changes)])
    if agree:
        assert store.facts().subjects == ("sub-00", "sub-02")
        assert store.facts().affine == store.record("sub-00").affine
    else:
        with pytest.raises(CohortError, match=r"sub-00 .* and sub-02 .* lie on different grids"):
            store.facts()


# ---- room, locks, checking


def test_room_is_asked_for_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "a" / "b", free // 2)
    with pytest.raises(DiskSpaceError, match=r"b: [\d,]+\.\d MB are needed and [\d,]+\.\d MB are free") as caught:
        require_space(tmp_path / "a" / "b", 2 * free)
    one_sentence(caught.value)
    asked: list[int] = []
    monkeypatch.setattr(writing, "require_space", lambda path, num_bytes: asked.append(num_bytes))
    record, example = example_case(0, CHANNELS)
    make(tmp_path / "store").write(record, example)
    voxels = 9 * 7 * 11
    assert asked[0] >= example.image.nbytes + 3 * voxels + 2 * voxels


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskSpaceError, match="the disk or quota is full") as caught, space_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in one_sentence(caught.value)


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), space_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_a_folder_that_may_not_be_written_is_one_sentence(store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=r"may not be written \(Read-only file system\)") as caught, store.lock():
        pass
    one_sentence(caught.value)


def test_the_lock_is_held_once_and_let_go_of_on_error(store: CohortStore) -> None:
    def work() -> None:
        with store.lock(), store.lock():
            store.commit([store.write(*changed())])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    with CohortStore.open(store.path).lock():
        pass


def test_a_new_writer_clears_what_a_killed_one_left(store: CohortStore) -> None:
    leftover = store.path / ".partial" / "sub-09.dead"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    (store.path / ".partial" / "manifest.json.dead").write_text("{")
    assert len(store.check()) == 1
    with store.lock():
        assert [entry.name for entry in (store.path / ".partial").iterdir()] == [store.session]
    assert not list((store.path / ".partial").iterdir())
    assert store.check() == []


def test_looking_whether_the_lock_is_held_refuses_no_writer(store: CohortStore) -> None:
    """``check`` takes the lock, shared, for a moment."""
    descriptor = os.open(store.path / ".lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    letting_go = threading.Timer(0.03, os.close, [descriptor])
    letting_go.start()
    with store.lock():
        letting_go.join()


def test_a_store_that_was_removed_is_one_sentence_to_its_writer(store: CohortStore) -> None:
    shutil.rmtree(store.path)
    with pytest.raises(StoreError, match="was removed by another process") as caught, store.lock():
        pass
    one_sentence(caught.value)


def test_abandoning_takes_nothing_from_whoever_comes_next(store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock goes last: from then on another writer may make its own store there."""
    genuine = remove

    def removed(path: Path) -> None:
        genuine(path)
        if path.name == ".lock":
            add(make(path.parent), [changed()])

    monkeypatch.setattr(cohort, "remove", removed)
    with store.lock():
        store.abandon()
    monkeypatch.setattr(cohort, "remove", genuine)
    again = CohortStore.open(store.path)
    assert_holds(again, changed())
    assert again.check() == []
    again.forget(["sub-00"])
    with again.lock():
        again.abandon()
    assert not again.path.exists()


def test_a_subject_that_is_taken_up_is_made_to_last_before_it_is_committed(store: CohortStore) -> None:
    """Its writer may have been killed between moving it into place and syncing the folder that it was moved into."""
    written = store.write(*changed())
    with store.lock(), faults(store.path) as watch:
        store.commit([written])
    synced = watch.steps.index(f"os.fsync {store.path / 'subjects'}")
    renamed = next(number for number, step in enumerate(watch.steps) if step.startswith("os.rename"))
    assert synced < renamed


# ---- workers that outlive their driver


def killed_driver(store: CohortStore) -> str:
    """Return the session of a writer that took the lock and was killed: its folder is there, its lock is free."""
    session = "0123456789abcdef"
    (store.path / ".partial" / session).mkdir()
    return session


def test_a_worker_writes_for_the_lock_s_holder_and_replaces_nothing(store: CohortStore) -> None:
    with store.lock():
        worker = CohortStore.join(store.path, store.session)
        written = worker.write(*changed(0))
        record, arrays = changed(0)
        # The same subject again, as when a node was only thought to be lost: what is there first stays.
        twin = record.model_copy(update={"notes": {"metric": 0.1}})
        inode = (store.path / "subjects" / "sub-00").stat().st_ino
        assert CohortStore.join(store.path, store.session).write(twin, arrays) == written
        assert (store.path / "subjects" / "sub-00").stat().st_ino == inode
        other = record.model_copy(update={"split": "gate"})
        with pytest.raises(StoreError, match="by another worker, with other content"):
            CohortStore.join(store.path, store.session).write(other, arrays)
        assert [entry.name for entry in (store.path / ".partial").iterdir()] == [store.session]
        assert not list((store.path / ".partial" / store.session).iterdir())
        store.commit([written])
    assert store.check() == []


def test_the_way_is_made_only_by_the_holder_and_for_nothing_committed(store: CohortStore) -> None:
    add(store, [changed(0)])
    store.write(*changed(1))
    with store.lock():
        store.make_way(["sub-00", "sub-01", "sub-02"])
        assert {entry.name for entry in (store.path / "subjects").iterdir()} == {"zarr.json", "sub-00"}
    assert store.check() == []
    with pytest.raises(StoreError, match="nobody holds its lock"):
        _ = store.session


def test_a_worker_whose_driver_has_ended_writes_nothing(store: CohortStore) -> None:
    with store.lock():
        worker = CohortStore.join(store.path, store.session)
    with pytest.raises(StoreError, match="the ingest that subject sub-00 was prepared for has ended"):
        worker.write(*changed(0))
    orphan = CohortStore.join(store.path, killed_driver(store))
    add(store, [changed(1)])
    with pytest.raises(StoreError, match="has ended"):
        orphan.write(*changed(0))
    assert CohortStore.open(store.path).check() == []


@pytest.mark.parametrize("moment", ["write_files", "_move"])
def test_a_worker_caught_in_mid_write_by_the_next_driver_moves_nothing_into_place(
    store: CohortStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The next writer comes before the files are written, or between the last file and the move."""
    orphan = CohortStore.join(store.path, killed_driver(store))
    genuine = getattr(writing, moment)
    others = iter([True])

    def interrupted(*given: Any) -> Any:
        if next(others, False):
            add(CohortStore.open(store.path), [changed(0), changed(1)])
        return genuine(*given)

    monkeypatch.setattr(writing, moment, interrupted)
    with pytest.raises(StoreError, match="has ended"):
        orphan.write(*changed(0))
    again = CohortStore.open(store.path)
    assert again.check() == []
    assert_holds(again, changed(0))


def test_check_tells_how_far_it_is_and_leaves_a_writer_at_work_alone(store: CohortStore) -> None:
    add(store, [changed(0), changed(1)])
    calls: list[tuple[int, int, str]] = []
    assert store.check(lambda *call: calls.append(call)) == []
    assert calls == [(0, 2, "sub-00"), (1, 2, "sub-01"), (2, 2, "")]
    other = CohortStore.open(store.path)
    with store.lock():
        store.write(*changed(2))
        assert other.check() == []
    assert [sentence for sentence in other.check() if "sub-02 was written and never committed" in sentence]


def test_a_problem_names_the_subject_it_damages(store: CohortStore) -> None:
    add(store, [changed(0), changed(1)])
    (store.path / "subjects" / "sub-01" / "image" / "zarr.json").unlink()
    (store.path / "stray").write_text("x")
    assert [problem.subject_id for problem in find_problems(store.path)] == [None, "sub-01"]
    with pytest.raises(StoreError, match=r"image cannot be read .*: run 'vesalius check"):
        store.image("sub-01")
    shutil.rmtree(store.path / "subjects" / "sub-00")
    with pytest.raises(StoreError, match="cannot be read"):
        store.brain("sub-00")


def test_files_that_are_whole_and_do_not_decode_are_found(store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums of files say nothing of a decoder that changed its mind."""
    add(store, [changed(0)])
    genuine = read_array
    monkeypatch.setattr("vesalius.platform.store.checking.read_array", lambda path: genuine(path) + np.uint8(1))
    problems = store.check()
    assert len(problems) == 5
    assert all("does not decode to what was committed" in sentence for sentence in problems)


# ---- the contract suite itself: a store that breaks the contract must fail it


def in_place(path: Path, content: bytes, aside: Path) -> None:
    path.write_bytes(content)


def unsynced(path: Path, content: bytes, aside: Path) -> None:
    unfinished = aside / path.name
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def unsynced_files(folder: Path, content: dict[str, bytes]) -> None:
    for name, written in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written)


def without_aside(
    path: Path, record: SubjectRecord, content: dict[str, bytes], session: str | None, joined: bool
) -> SubjectRecord:
    folder = path / "subjects" / record.subject_id
    shutil.rmtree(folder, ignore_errors=True)
    unsynced_files(folder, content)
    return record


@pytest.mark.parametrize(
    ("module", "name", "replacement", "check"),
    [
        (manifest, "write_file", in_place, check_survives_a_power_cut_at_every_step),
        (manifest, "write_file", unsynced, check_survives_a_power_cut_at_every_step),
        (writing, "write_files", unsynced_files, check_survives_a_power_cut_at_every_step),
        (writing, "remove", lambda path: None, check_survives_a_kill_at_every_step),
        (writing, "_write_aside", without_aside, check_survives_a_power_cut_at_every_step),
        (writing, "require_same", lambda *given: None, check_a_second_ingest_adds_and_changes_nothing_else),
    ],
    ids=["manifest in place", "manifest unsynced", "voxels unsynced", "leftovers kept", "nothing aside", "overwriting"],
)
def test_the_contract_suite_fails_a_store_that_breaks_it(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, replacement: Any, check: Any
) -> None:
    monkeypatch.setattr(module, name, replacement)
    with memory_folder() as folder, pytest.raises((AssertionError, InputError)):
        check(lambda path: make(path, channels=("T1w",)), folder)


def test_the_contract_suite_fails_a_check_that_trusts_the_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vesalius.platform.store.checking._file_problems", lambda folder, expected: iter(()))
    with pytest.raises(AssertionError, match="check says"):
        check_damage_is_named(lambda path: make(path, channels=("T1w",)), tmp_path)
