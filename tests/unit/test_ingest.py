"""Ingest: what is refused and how, what is left alone, and the way back to the source's own voxels."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import time
from collections import namedtuple
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest

from vesalius.datasets import ingest as ingest_module
from vesalius.datasets.ingest import IngestReport, ingest
from vesalius.datasets.layouts.example import example_affine, example_head, write_bids_example, write_manifest_example
from vesalius.datasets.layouts.manifest import write_manifest
from vesalius.datasets.prepare import prepare_file
from vesalius.datasets.reading import inspect
from vesalius.datasets.recipes import Recipe, as_is, centered, mni_space
from vesalius.datasets.splits import SplitSettings
from vesalius.platform.config import override
from vesalius.platform.errors import (
    CohortError,
    DiskSpaceError,
    PartialIngestError,
    SettingError,
    StoreError,
    VesaliusError,
    VolumeError,
)
from vesalius.platform.geometry import to_native
from vesalius.platform.store import CohortStore, RemotePath

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = centered(10.0)


def save(path: Path, array: Any, affine: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, example_affine() if affine is None else affine), path)
    return path


def cohort(tmp_path: Path, num: int = 3, **columns: Any) -> tuple[Path, list[dict[str, str]]]:
    """Write ``num`` good subjects and their manifest; return its path and rows."""
    rows = []
    for index in range(num):
        save(tmp_path / f"good{index}.nii.gz", example_head(index))
        rows.append({"subject_id": f"good{index}", "image": f"good{index}.nii.gz", **dict.fromkeys(columns, "")})
    path = tmp_path / "cohort.csv"
    write_manifest(path, rows)
    return path, rows


def take_in(path: Path, store: Path, **options: Any) -> IngestReport:
    return ingest("manifest", path, store, **{"recipe": RECIPE, **options})


def one_sentence(text: str) -> None:
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 600


# ---- bad input


def truncate(path: Path) -> None:
    save(path, example_head(7))
    path.write_bytes(path.read_bytes()[:-2000])


def with_voxels(value: float) -> Any:
    def write(path: Path) -> None:
        array = example_head(7)
        array[3, 4, 5] = value
        save(path, array)

    return write


def singular(path: Path) -> None:
    save(path.with_name("x.nii"), example_head(7))
    content = bytearray(path.with_name("x.nii").read_bytes())
    content[280:328] = np.ones((3, 4), "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


BAD = {
    "truncated": (truncate, "is truncated"),
    "text": (lambda path: path.write_text("age,sex\n" * 200), "not a NIfTI file"),
    "4D": (lambda path: save(path, np.stack([example_head(1)] * 3, axis=-1)), "4D"),
    "NaN": (with_voxels(np.nan), "1 NaN"),
    "infinite": (with_voxels(np.inf), "1 infinite"),
    "zeros": (lambda path: save(path, np.zeros((9, 9, 9), np.float32)), "every voxel is 0"),
    "singular": (singular, "singular"),
    "missing": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_bad_file_is_named_and_stops_nobody_else(tmp_path: Path, case: str) -> None:
    write, words = BAD[case]
    path, rows = cohort(tmp_path)
    write(tmp_path / "bad.nii.gz")
    write_manifest(path, [*rows, {"subject_id": "broken", "image": "bad.nii.gz"}])
    report = take_in(path, tmp_path / "store")
    assert report.added == ("good0", "good1", "good2")
    assert list(report.failed) == ["broken"]
    assert words in report.failed["broken"]
    assert str(tmp_path / "bad.nii.gz") in report.failed["broken"]
    one_sentence(report.failed["broken"])
    store = CohortStore.open(tmp_path / "store")
    assert [record.subject_id for record in store.subjects()] == ["good0", "good1", "good2"]
    assert store.check() == []
    assert not (tmp_path / "store/subjects/broken").exists()
    with pytest.raises(
        PartialIngestError, match=r"1 of 4 subjects could not be taken in: broken: .*bad\.nii"
    ) as caught:
        report.raise_for_failures()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("case", BAD)
def test_a_single_bad_file_leaves_nothing_behind(tmp_path: Path, case: str) -> None:
    write, words = BAD[case]
    write(tmp_path / "bad.nii.gz")
    write_manifest(tmp_path / "cohort.csv", [{"subject_id": "broken", "image": "bad.nii.gz"}])
    before = sorted(tmp_path.iterdir())
    report = take_in(tmp_path / "cohort.csv", tmp_path / "store")
    assert words in report.failed["broken"]
    assert report.digest == ""
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(VolumeError, match=words) as caught:
        prepare_file(tmp_path / "bad.nii.gz", RECIPE)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("role", ["brain_mask", "lesion_mask"])
def test_a_mask_of_another_shape_is_named(tmp_path: Path, role: str) -> None:
    path, rows = cohort(tmp_path, **{role: True})
    save(tmp_path / "mask.nii.gz", np.ones((4, 5, 6), np.uint8))
    rows[1][role] = "mask.nii.gz"
    write_manifest(path, rows)
    report = take_in(path, tmp_path / "store")
    assert report.added == ("good0", "good2")
    assert "mask.nii.gz has shape (4, 5, 6)" in report.failed["good1"]


def test_an_empty_brain_mask_and_an_unreadable_lesion_mask(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path, brain_mask=True, lesion_mask=True)
    save(tmp_path / "empty.nii.gz", np.zeros(example_head(0).shape, np.uint8))
    (tmp_path / "text.nii").write_text("no mask\n" * 99)
    rows[0]["brain_mask"], rows[1]["lesion_mask"], rows[2]["lesion_mask"] = "empty.nii.gz", "text.nii", "gone.nii"
    write_manifest(path, rows)
    failed = take_in(path, tmp_path / "store").failed
    assert "is empty" in failed["good0"]
    assert "text.nii is not a NIfTI file" in failed["good1"]
    assert "gone.nii: there is no such file" in failed["good2"]
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", "good0.nii.gz"), ("a", "good1.nii.gz")], r"'a' is there twice \(.*line 2 and .*line 3\)"),
        ([("../../evil", "good0.nii.gz")], r"line 2: '\.\./\.\./evil' cannot be a subject id"),
        ([("", "good0.nii.gz")], "cannot be a subject id"),
    ],
)
def test_ids_are_checked_before_anything_is_written(tmp_path: Path, rows: Any, words: str) -> None:
    path, _ = cohort(tmp_path)
    write_manifest(path, [{"subject_id": name, "image": image} for name, image in rows])
    with pytest.raises(CohortError, match=words) as caught:
        take_in(path, tmp_path / "store")
    one_sentence(str(caught.value))
    assert not (tmp_path / "store").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path)
    with pytest.raises(SettingError, match="did you mean 'image'"):
        take_in(path, tmp_path / "store", modalities=["imag"])
    with pytest.raises(SettingError, match="unknown layout 'manifst': did you mean 'manifest'"):
        ingest("manifst", path, tmp_path / "store")
    with pytest.raises(SettingError, match="unknown recipe"):
        take_in(path, tmp_path / "store", recipe="mni_afine")
    with pytest.raises(CohortError, match="no such file or folder"):
        take_in(tmp_path / "absent.csv", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_that_is_no_store_and_one_of_another_recipe(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="not a cohort store"):
        take_in(path, tmp_path / "full")
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    take_in(path, tmp_path / "store")
    with pytest.raises(StoreError, match="another recipe"):
        take_in(path, tmp_path / "store", recipe=centered(12.0))


def test_a_full_disk_stops_the_ingest_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = cohort(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(DiskSpaceError, match="are free"):
        take_in(path, tmp_path / "store")
    assert not (tmp_path / "store/manifest.json").exists()
    monkeypatch.undo()
    assert len(take_in(path, tmp_path / "store").added) == 3


def test_a_disk_that_fills_in_the_middle_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = cohort(tmp_path, num=4)
    real = ingest_module._prepare_one

    def filling(task: Any) -> Any:
        if task.raw.subject_id == "good2":
            raise DiskSpaceError("the disk is full")
        return real(task)

    monkeypatch.setattr(ingest_module, "_prepare_one", filling)
    with pytest.raises(DiskSpaceError):
        take_in(path, tmp_path / "store")
    store = CohortStore.open(tmp_path / "store")
    assert [record.subject_id for record in store.subjects()] == ["good0", "good1"]
    monkeypatch.undo()
    report = take_in(path, tmp_path / "store")
    assert (report.added, report.unchanged) == (("good2", "good3"), ("good0", "good1"))
    assert report.digest == take_in(path, tmp_path / "unbroken").digest


def test_what_breaks_unexpectedly_is_reported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = cohort(tmp_path)

    def broken(raw: Any, *arguments: Any, **named: Any) -> Any:
        raise MemoryError if raw.subject_id == "good0" else ZeroDivisionError("division by zero")

    monkeypatch.setattr(ingest_module, "prepare", broken)
    failed = take_in(path, tmp_path / "store").failed
    assert failed["good0"].startswith("good0: there is not enough memory")
    assert failed["good1"].startswith("good1: it failed unexpectedly (ZeroDivisionError: division by zero)")


# ---- splits and health


def test_an_anomalous_subject_is_refused_from_training_unless_told(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path, lesion_mask=True, split=True)
    lesion = np.zeros(example_head(0).shape, np.uint8)
    save(tmp_path / "none.nii.gz", lesion)
    lesion[10:13, 12:15, 9:12] = 1
    save(tmp_path / "lesion.nii.gz", lesion)
    for row, mask in zip(rows, ["lesion.nii.gz", "none.nii.gz", ""], strict=True):
        row.update(lesion_mask=mask, split="train")
    write_manifest(path, rows)
    report = take_in(path, tmp_path / "store")
    assert report.added == ("good1", "good2")
    assert "good0 is anomalous and may not be in the training split" in report.failed["good0"]
    told = take_in(path, tmp_path / "told", allow_anomalous_training=True)
    assert told.added == ("good0", "good1", "good2")
    store = CohortStore.open(tmp_path / "told")
    assert [record.has_lesion for record in store.subjects()] == [True, False, False]


def test_a_label_makes_a_subject_anomalous_and_it_is_not_drawn_for_training(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path, num=6)
    for index, row in enumerate(rows):
        row["label:anomalous"] = "true" if index < 3 else "false"
    write_manifest(path, rows)
    take_in(path, tmp_path / "store", splits=SplitSettings(train=1, validation=0, gate=0, test=0.5))
    records = CohortStore.open(tmp_path / "store").subjects()
    assert [record.has_lesion for record in records] == [True] * 3 + [False] * 3
    assert all((record.split == "train") != record.has_lesion or record.split == "test" for record in records)
    assert {record.split for record in records if record.has_lesion} == {"test"}


def test_all_scans_of_a_person_share_a_split(tmp_path: Path) -> None:
    for seed in range(6):
        root = write_bids_example(tmp_path / f"{seed}")
        store = tmp_path / f"store{seed}"
        ingest(
            "bids", root, store, recipe=RECIPE, splits=SplitSettings(train=1, validation=1, gate=1, test=1, seed=seed)
        )
        first, second = (CohortStore.open(store).record(f"sub-03_ses-{name}").split for name in "ab")
        assert first == second


def test_a_person_cannot_be_given_two_splits_and_a_split_must_exist(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path, person=True, split=True)
    rows[0].update(person="p", split="train")
    rows[1].update(person="p", split="test")
    rows[2].update(split="tset")
    write_manifest(path, rows)
    report = take_in(path, tmp_path / "store")
    assert report.added == ("good0",)
    assert "all scans of a person belong in one split" in report.failed["good1"]
    assert "unknown split 'tset': did you mean 'test'" in report.failed["good2"]


def test_one_scan_under_two_names_is_refused(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path)
    shutil.copy(tmp_path / "good0.nii.gz", tmp_path / "copy.nii.gz")
    write_manifest(path, [*rows, {"subject_id": "zz", "image": "copy.nii.gz"}])
    report = take_in(path, tmp_path / "store")
    assert report.failed == {"zz": "zz has the very images of good0: one scan under two names would sit in two splits"}
    # Also when the other is there already.
    write_manifest(path, [{"subject_id": "aa", "image": "copy.nii.gz"}])
    assert "the very images of good0" in take_in(path, tmp_path / "store").failed["aa"]


# ---- again, and again


def test_a_second_ingest_adds_what_is_new_and_moves_nobody(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path, num=12)
    write_manifest(path, rows[:7])
    take_in(path, tmp_path / "store")
    before = {record.subject_id: record for record in CohortStore.open(tmp_path / "store").subjects()}
    write_manifest(path, list(reversed(rows)))
    report = take_in(path, tmp_path / "store")
    assert report.unchanged == tuple(sorted(before))
    assert len(report.added) == 5
    after = {record.subject_id: record for record in CohortStore.open(tmp_path / "store").subjects()}
    assert before.items() <= after.items()


def test_order_does_not_change_the_digest(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path, num=5)
    first = take_in(path, tmp_path / "first")
    write_manifest(path, rows[::-1])
    assert take_in(path, tmp_path / "second").digest == first.digest


def test_a_changed_source_is_a_failure_and_overwrites_nothing(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path)
    first = take_in(path, tmp_path / "store")
    save(tmp_path / "good1.nii.gz", example_head(99))
    report = take_in(path, tmp_path / "store")
    assert list(report.failed) == ["good1"]
    assert "the image of good1 changed since it was taken in" in report.failed["good1"]
    assert report.unchanged == ("good0", "good2")
    assert report.digest == first.digest


def test_changed_labels_fail_and_changed_demographics_warn(tmp_path: Path) -> None:
    path, rows = cohort(tmp_path)
    for row in rows:
        row.update({"age": "30", "label:bleed": "false", "split": "test"})
    write_manifest(path, rows)
    take_in(path, tmp_path / "store")
    rows[0]["age"], rows[1]["label:bleed"], rows[2]["split"] = "31", "true", "train"
    write_manifest(path, rows)
    report = take_in(path, tmp_path / "store")
    assert report.unchanged == ("good0",)
    assert "the demographics of good0 changed" in report.warnings["good0"][0]
    assert "the labels of good1 changed" in report.failed["good1"]
    assert "stands in the split test and not train" in report.failed["good2"]


def test_a_killed_ingest_goes_on_without_preparing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = cohort(tmp_path, num=4)
    unbroken = take_in(path, tmp_path / "unbroken").digest
    monkeypatch.setattr(CohortStore, "commit", lambda self, records: None)  # killed between write and commit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        take_in(path, tmp_path / "store")
    monkeypatch.undo()
    prepared: list[str] = []
    from vesalius.datasets.prepare import prepare as real

    def counting(raw: Any, *arguments: Any, **named: Any) -> Any:
        prepared.append(raw.subject_id)
        return real(raw, *arguments, **named)

    monkeypatch.setattr(ingest_module, "prepare", counting)
    report = take_in(path, tmp_path / "store")
    assert prepared == []
    assert len(report.added) == 4
    assert report.digest == unbroken


def test_a_second_ingest_into_a_store_in_use_is_refused_and_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no store there; one made it while the other was still looking at its files."""
    path, _ = cohort(tmp_path)
    store = tmp_path / "store"
    genuine = ingest_module._inspect_all
    first = contextlib.ExitStack()

    def slowly(*given: Any) -> Any:
        found = genuine(*given)
        other = CohortStore.create(store, recipe=RECIPE.model_dump(mode="json"), channels=("image",))
        first.enter_context(other.lock())
        return found

    with first:
        monkeypatch.setattr(ingest_module, "_inspect_all", slowly)
        with pytest.raises(StoreError, match=r"store is being written by process \d+"):
            take_in(path, store)
        assert (store / "manifest.json").is_file(), "it is the other's"
    monkeypatch.setattr(ingest_module, "_inspect_all", genuine)
    assert len(take_in(path, store).added) == 3


def test_what_another_ingest_commits_meanwhile_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While sources are hashed, another ingest takes in the other scan of a person: into another split."""
    _, rows = cohort(tmp_path, 3)
    mine, theirs = tmp_path / "mine.csv", tmp_path / "theirs.csv"
    write_manifest(mine, [{**row, "person": "p", "split": "test"} for row in rows[:1]] + [rows[2] | {"split": "test"}])
    write_manifest(theirs, [{**row, "person": "p", "split": "train"} for row in rows[1:2]])
    genuine = ingest_module._inspect_all

    def overtaken(*given: Any) -> Any:
        monkeypatch.setattr(ingest_module, "_inspect_all", genuine)
        assert take_in(theirs, tmp_path / "store").added == ("good1",)
        return genuine(*given)

    monkeypatch.setattr(ingest_module, "_inspect_all", overtaken)
    report = take_in(mine, tmp_path / "store")
    assert report.added == ("good2",)
    assert "all scans of a person belong in one split" in report.failed["good0"]
    assert CohortStore.open(tmp_path / "store").check() == []


def test_two_ingests_of_the_same_report_each_subject_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = cohort(tmp_path, 2)
    genuine = ingest_module._inspect_all
    reports: list[IngestReport] = []

    def overtaken(*given: Any) -> Any:
        monkeypatch.setattr(ingest_module, "_inspect_all", genuine)
        reports.append(take_in(path, tmp_path / "store"))
        return genuine(*given)

    monkeypatch.setattr(ingest_module, "_inspect_all", overtaken)
    second = take_in(path, tmp_path / "store")
    assert reports[0].added == second.unchanged == ("good0", "good1")
    assert (second.added, second.failed, second.digest) == ((), {}, reports[0].digest)


def test_a_store_in_memory_is_not_for_workers_and_nothing_stays_of_an_ingest_in_vain(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path, 1)
    place = RemotePath("memory", "ingest/in-vain")
    with pytest.raises(SettingError, match="lies in this process, which workers do not see"):
        ingest("manifest", path, place, recipe=RECIPE, num_workers=2)
    truncate(tmp_path / "good0.nii.gz")
    for _ in range(2):
        assert list(ingest("manifest", path, place, recipe=RECIPE).failed) == ["good0"]
        assert [name for name in place.files() if name != ".lock"] == []


def test_an_interrupted_ingest_keeps_what_was_prepared_and_goes_on(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path, 4)
    store = tmp_path / "store"

    def stop(done: int, total: int, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(path, store, progress=stop)
    assert CohortStore.open(store).check() == []
    report = take_in(path, store)
    assert len(report.unchanged) == 2
    assert len(report.added) == 2
    assert report.digest == take_in(path, tmp_path / "unbroken").digest


def test_an_interrupt_while_sources_are_hashed_does_not_read_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = cohort(tmp_path, 6)
    looked: list[str] = []
    genuine = inspect

    def noting(raw: Any, channels: Any) -> Any:
        looked.append(raw.subject_id)
        time.sleep(0.05)
        return genuine(raw, channels)

    def stop(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest_module, "inspect", noting)
    with pytest.raises(KeyboardInterrupt):
        take_in(path, tmp_path / "store", progress=stop)
    assert len(looked) <= 3
    assert not (tmp_path / "store").exists()


def test_progress_counts_every_subject(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path)
    seen: list[tuple[int, int, str]] = []
    take_in(path, tmp_path / "store", progress=lambda done, total, note: seen.append((done, total, note)))
    assert seen[:3] == [(0, 3, f"looked at good{index}") for index in range(3)]
    assert seen[3:] == [(1, 3, "good0"), (2, 3, "good1"), (3, 3, "good2")]


# ---- what is stored


@pytest.mark.parametrize("recipe", [centered(4.0), mni_space(4.0), as_is()], ids=["centered", "mni_space", "as_is"])
def test_a_planted_point_comes_back_at_its_voxel(tmp_path: Path, recipe: Recipe) -> None:
    """An oblique LAS volume far from the origin: its brightest voxel, found in the store, maps home."""
    affine = example_affine(flipped=True, degrees=17)
    affine[:3, 3] += [0, 0, 0] if recipe.center_mm else [31.0, -22.0, 47.0]
    image = example_head(3)
    image[7, 15, 12] = 5000
    recipe = override(recipe, {"percentile_high": 100, "antialias": False})
    record, arrays = prepare_file(save(tmp_path / "oblique.nii.gz", image, affine), recipe)
    assert record.source is not None
    assert record.source.shape == image.shape
    np.testing.assert_allclose(record.source.affine, affine, atol=1e-4)
    native = to_native(arrays.image[0], record.affine, record.source)
    assert native.shape == image.shape
    assert [int(index) for index in np.unravel_index(native.argmax(), native.shape)] == [7, 15, 12]
    world = np.array(record.source.to_source) @ np.array(record.affine)
    peak = np.unravel_index(arrays.image[0].argmax(), arrays.image[0].shape)
    found = np.linalg.inv(affine) @ world @ [*peak, 1.0]
    # Stored voxels are 4 mm (8 as they are) and the source's 8 mm: at most half a stored voxel away along each axis.
    assert np.abs(found[:3] - [7, 15, 12]).max() <= 0.51 if recipe.spacing_mm else np.allclose(found[:3], [7, 15, 12])


def test_as_is_keeps_every_voxel(tmp_path: Path) -> None:
    image = example_head(1)
    record, arrays = prepare_file(save(tmp_path / "a.nii", image, example_affine(flipped=True)), as_is())
    np.testing.assert_array_equal(arrays.image[0], image[::-1])
    assert nibabel.aff2axcodes(np.array(record.affine)) == ("R", "A", "S")


def test_intensities_are_clipped_and_scaled_over_the_brain(tmp_path: Path) -> None:
    image = example_head(1)
    _, arrays = prepare_file(
        save(tmp_path / "a.nii", image), override(as_is(), {"scale": "percentile", "background": "brain"})
    )
    tissue = image[image > 0].astype(np.float64)
    high = np.percentile(tissue, 98)
    expected = np.where(image > 0, (np.minimum(image, high) - tissue.min()) / (high - tissue.min()), 0)
    np.testing.assert_allclose(arrays.image[0], expected, atol=1e-6)


def test_a_negative_background_does_not_bleed_into_the_brain(tmp_path: Path) -> None:
    """The z-scored scans of a public tumour cohort: everything outside the mask is one negative constant."""
    tissue = example_head(1)
    mask = save(tmp_path / "mask.nii.gz", (tissue > 0).astype(np.float32) * 0.99999)
    normal = save(tmp_path / "normal.nii.gz", tissue)
    inside = tissue[tissue > 0]
    scored = np.where(tissue > 0, (tissue - inside.mean()) / inside.std(), -25.0).astype(np.float32)
    z_scored = save(tmp_path / "z.nii.gz", scored)
    _, first = prepare_file(normal, centered(6.0), mask)
    _, second = prepare_file(z_scored, centered(6.0), mask)
    np.testing.assert_array_equal(first.brain, second.brain)
    np.testing.assert_allclose(first.image, second.image, atol=1e-4)


def test_masks_keep_their_volume_and_stay_binary(tmp_path: Path) -> None:
    path = write_manifest_example(tmp_path / "raw")
    ingest("manifest", path, tmp_path / "store", recipe=centered(4.0), modalities=["T1w", "FLAIR"])
    store = CohortStore.open(tmp_path / "store")
    record = store.record("case-3")
    lesion = store.mask("case-3", "lesion")
    assert lesion is not None
    # Drawn as 4 x 4 x 4 voxels of 8 mm.
    assert lesion.sum() * 4.0**3 == pytest.approx(64 * 8.0**3, rel=0.05)
    assert record.channels == ("T1w", "FLAIR")
    assert record.notes["brain"] == "given"
    assert record.labels == {"bleed_left": True}
    assert record.source is not None
    assert record.source.files == {
        "T1w": "3_t1.nii.gz", "FLAIR": "3_flair.nii.gz", "brain_mask": "brain.nii.gz", "lesion_mask": "lesion.nii.gz",
    }  # fmt: skip
    assert not any("/" in name for name in record.source.files.values())


def test_a_file_is_prepared_for_scoring_as_it_was_at_ingest(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path)
    take_in(path, tmp_path / "store")
    store = CohortStore.open(tmp_path / "store")
    record, arrays = prepare_file(tmp_path / "good1.nii.gz", store.recipe)
    np.testing.assert_array_equal(arrays.image, store.image("good1"))
    np.testing.assert_array_equal(arrays.brain, store.brain("good1"))
    assert record.source == store.record("good1").source
    with pytest.raises(SettingError, match="recipe"):
        prepare_file(tmp_path / "good1.nii.gz", {**store.recipe, "colour": "blue"})


def test_modalities_on_their_own_grids_meet_in_the_world(tmp_path: Path) -> None:
    """A second modality of another resolution and orientation shows the same anatomy at the same stored voxels."""
    fine = save(tmp_path / "fine.nii.gz", example_head(2))
    image = nibabel.load(fine)
    other = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1, :, 1:-1], image.affine @ np.diag([-1.0, 1, 1, 1]))
    other.affine[:3, 3] = image.affine[:3, :3] @ [21, 0, 1] + image.affine[:3, 3]
    turned = save(tmp_path / "turned.nii.gz", np.asarray(other.dataobj), other.affine)
    _, arrays = prepare_file({"T1w": fine, "FLAIR": turned}, centered(4.0))
    np.testing.assert_allclose(arrays.image[1], arrays.image[0], atol=1e-5)


def test_a_brain_outside_the_grid_is_warned_of_and_one_far_away_refused(tmp_path: Path) -> None:
    far = example_affine()
    far[:3, 3] += 40
    record, _ = prepare_file(save(tmp_path / "a.nii", example_head(1), far), mni_space(8.0))
    assert "of its brain lies outside the grid" in record.notes["warnings"][0]
    far[:3, 3] += 4000
    with pytest.raises(VolumeError, match="its brain lies outside the grid"):
        prepare_file(save(tmp_path / "b.nii", example_head(1), far), mni_space(8.0))


def test_a_file_that_does_not_say_where_it_lies_is_warned_of(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(example_head(1), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    record, _ = prepare_file(tmp_path / "a.nii", as_is())
    assert "left and right may be swapped" in record.notes["warnings"][0]


def test_a_head_mask_and_a_smaller_type_are_kept_when_asked_for(tmp_path: Path) -> None:
    path, _ = cohort(tmp_path, num=1)
    recipe = override(RECIPE, {"head": "otsu", "dtype": "float16"})
    take_in(path, tmp_path / "store", recipe=recipe)
    store = CohortStore.open(tmp_path / "store")
    record = store.record("good0")
    assert record.arrays["image"].dtype == "float16"
    head = store.mask("good0", "head")
    assert head is not None
    assert head.any()


def test_a_recipe_without_a_grid_keeps_the_sources_own_extent(tmp_path: Path) -> None:
    affine = example_affine(flipped=True, degrees=9)
    path = save(tmp_path / "a.nii", example_head(1), affine)
    record, arrays = prepare_file(path, Recipe(spacing_mm=(4.0, 4.0, 4.0)))
    assert record.shape == (44, 52, 40)
    assert record.spacing_mm == pytest.approx((4, 4, 4))
    own = affine[:3, :3] @ ((np.array(example_head(1).shape) - 1) / 2) + affine[:3, 3]
    grid = np.array(record.affine)
    np.testing.assert_allclose(grid[:3, :3] @ ((np.array(record.shape) - 1) / 2) + grid[:3, 3], own, atol=1e-4)
    assert arrays.brain.sum() * 64 == pytest.approx((example_head(1) > 0).sum() * 512, rel=0.03)


def test_every_error_here_is_one_of_ours() -> None:
    for kind in (CohortError, DiskSpaceError, SettingError, StoreError, VolumeError):
        assert issubclass(kind, VesaliusError)
        assert kind.exit_code == 2
