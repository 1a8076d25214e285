"""Quality control finds what was planted, and nothing where nothing was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from vesalius.datasets.phantom import PhantomSettings, make_phantom
from vesalius.datasets.quality import CohortQuality, Limits, survey
from vesalius.datasets.quality.comparison import (
    correlation,
    histogram_distance,
    normalised_information,
    orientations,
)
from vesalius.datasets.quality.portrait import FRAME_MM, find_cut, portray
from vesalius.datasets.template import mni152
from vesalius.platform.geometry import as_matrix, grid_affine, resample
from vesalius.platform.store import CohortStore, SourceFacts, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Pair = tuple[SubjectRecord, SubjectArrays]
Fault = Callable[[SubjectRecord, SubjectArrays], Pair]
VICTIM = "phantom-train-002"


def copied(
    source: CohortStore,
    path: Path,
    faults: dict[str, Any] | None = None,
    *,
    more: list[tuple[SubjectRecord, SubjectArrays]] | None = None,
    leave_out: int = 0,
) -> CohortStore:
    """Return a copy of a cohort with a fault planted in some of its subjects."""
    store = CohortStore.create(path, recipe=source.recipe, channels=source.channels)
    pairs = []
    for record in source.subjects()[leave_out:]:
        pair = (record.model_copy(update={"arrays": {}}), arrays_of(source, record.subject_id))
        fault = (faults or {}).get(record.subject_id)
        pairs.append(pair if fault is None else fault(*pair))
    with store.lock():
        store.commit([store.write(*pair) for pair in [*pairs, *(more or [])]])
    return CohortStore.open(path)


def arrays_of(store: CohortStore, subject_id: str) -> SubjectArrays:
    return SubjectArrays(
        image=store.image(subject_id), brain=store.brain(subject_id), lesion=store.mask(subject_id, "lesion")
    )


def on_arrays(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Any:
    """Return a fault that changes image and masks alike."""

    def fault(record: SubjectRecord, arrays: SubjectArrays) -> Pair:
        lesion = None if arrays.lesion is None else change(arrays.lesion)
        return record, SubjectArrays(image=change(arrays.image), brain=change(arrays.brain), lesion=lesion)

    return fault


def shifted(voxels: int) -> Any:
    """Return a fault that moves everything towards the back; what leaves the box is lost."""
    return on_arrays(lambda a: np.concatenate([a[..., voxels:, :], np.zeros_like(a[..., :voxels, :])], axis=-2))


def cropped(record: SubjectRecord, arrays: SubjectArrays) -> Pair:
    """Lose the upper 35 mm of the brain, as a scan that ended too early does."""
    top = int(np.argwhere(arrays.brain)[:, 2].max()) + 1 - round(35 / record.spacing_mm[2])
    keep = np.arange(arrays.brain.shape[2]) < top
    lose: Fault = on_arrays(lambda a: a * keep)
    return lose(record, arrays)


def inverted(record: SubjectRecord, arrays: SubjectArrays) -> Pair:
    brightest = arrays.image[:, arrays.brain].max()
    image = np.where(arrays.brain, brightest - arrays.image, 0).astype(np.float32)
    return record, SubjectArrays(image=image, brain=arrays.brain, lesion=arrays.lesion)


def kinds(quality: CohortQuality) -> dict[str, set[str]]:
    return {one.subject_id: {finding.kind for finding in one.findings} for one in quality.outliers}


# ---- a clean cohort, and planted faults


def test_a_clean_cohort_raises_no_alarm(phantom_store: CohortStore) -> None:
    quality = survey(phantom_store)
    assert kinds(quality) == {}
    assert quality.findings == ()
    assert quality.frame == "template"
    assert quality.judged
    assert [one.subject_id for one in quality.subjects] == [r.subject_id for r in phantom_store.subjects()]
    json.dumps(quality.model_dump(mode="json"), allow_nan=False)


@pytest.mark.long
def test_false_alarms_over_seeds(tmp_path: Path) -> None:
    """Counted: none in 4 cohorts of 14 phantoms at 6 mm, two in three of the held-out ones with lesions to 49 mm."""
    from vesalius.datasets.phantom import phantom_cohort

    alarms = {}
    for seed in range(4):
        store = CohortStore.create(tmp_path / str(seed), recipe={"name": "phantom"}, channels=("T1w",))
        with store.lock():
            records = []
            for case in phantom_cohort(8, 3, 0, 3, settings=PhantomSettings(shape=(32, 32, 32)), seed=seed):
                subject = case.make()
                record = SubjectRecord(
                    subject_id=case.subject_id,
                    split=case.split,
                    channels=subject.channels,
                    shape=subject.brain.shape,
                    spacing_mm=subject.spacing_mm,
                    affine=as_matrix(subject.affine),
                )
                records.append(store.write(record, SubjectArrays(image=subject.image, brain=subject.brain)))
            store.commit(records)
        alarms[seed] = kinds(survey(CohortStore.open(store.path)))
    assert alarms == {seed: {} for seed in range(4)}


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (on_arrays(lambda a: a[..., ::-1]), "orientation", "upside down"),
        (on_arrays(lambda a: a[..., ::-1, :]), "orientation", "back to front"),
        (on_arrays(lambda a: a[..., ::-1, ::-1]), "orientation", "upside down and back to front"),
        (shifted(5), "placement", "its centre lies 3"),
        (cropped, "truncated", "ends flat at the top"),
        (inverted, "modality", "correlation of -0"),
    ],
    ids=["upside down", "back to front", "both", "moved by 40 mm", "cut off", "inverted"],
)
def test_a_planted_fault_is_found_and_stands_first(
    phantom_store: CohortStore, tmp_path: Path, fault: Any, kind: str, words: str
) -> None:
    quality = survey(copied(phantom_store, tmp_path / "store", {VICTIM: fault}))
    assert set(kinds(quality)) == {VICTIM}
    first = quality.subjects[0]
    assert first.subject_id == VICTIM
    assert first.alarm
    # A brain that is cut off may lie elsewhere for that reason, and one that was moved may be cut off.
    found: dict[str, str] = {finding.kind: finding.sentence for finding in first.findings}
    assert words in found[kind]
    if kind in ("orientation", "modality"):
        assert set(found) == {kind}


def test_a_mirrored_brain_is_not_found_and_the_report_says_so(phantom_store: CohortStore, tmp_path: Path) -> None:
    mirrored = on_arrays(lambda a: a[..., ::-1, :, :])
    quality = survey(copied(phantom_store, tmp_path / "store", {VICTIM: mirrored}))
    assert kinds(quality) == {}
    assert any(sentence.startswith("Left and right") for sentence in quality.cannot)


def test_several_faults_at_once_are_all_found(phantom_store: CohortStore, tmp_path: Path) -> None:
    """A third of the cohort is at fault, and the median is not moved."""
    faults = {
        "phantom-train-000": on_arrays(lambda a: a[..., ::-1]),
        "phantom-train-001": on_arrays(lambda a: a[..., ::-1, :]),
        "phantom-train-002": shifted(5),
        "phantom-train-003": inverted,
        "phantom-train-004": cropped,
    }
    quality = survey(copied(phantom_store, tmp_path / "store", faults))
    assert set(kinds(quality)) == set(faults)
    assert all(one.alarm for one in quality.subjects[: len(faults)])


def twin_of(store: CohortStore, change: Callable[[NDArray[np.float32]], NDArray[np.float32]], **record: Any) -> Any:
    arrays = arrays_of(store, VICTIM)
    changed = SubjectArrays(image=change(arrays.image), brain=arrays.brain)
    update = {"subject_id": "again", "arrays": {}, **record}
    return store.record(VICTIM).model_copy(update=update), changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image, "its stored voxels are equal to those of"),
        (lambda image: image * np.float32(1.7), "it looks like"),
        (
            lambda image: image + np.random.default_rng(0).normal(0, 0.01, image.shape).astype(np.float32),
            "it looks like",
        ),
    ],
    ids=["the same", "brighter", "noisier"],
)
def test_content_under_two_ids_is_found(phantom_store: CohortStore, tmp_path: Path, change: Any, words: str) -> None:
    pair = twin_of(phantom_store, change, split="test")
    quality = survey(copied(phantom_store, tmp_path / "store", more=[pair]))
    assert kinds(quality) == {VICTIM: {"duplicate"}, "again": {"duplicate"}}
    for one in quality.subjects[:2]:
        assert words in one.findings[0].sentence
        assert "they stand in two splits (test and train)" in one.findings[0].sentence


def test_a_mirrored_copy_is_found(phantom_store: CohortStore, tmp_path: Path) -> None:
    record, arrays = twin_of(phantom_store, lambda image: image)
    pair = on_arrays(lambda a: a[..., ::-1, :, :])(record, arrays)
    quality = survey(copied(phantom_store, tmp_path / "store", more=[pair]))
    assert kinds(quality) == {VICTIM: {"duplicate"}, "again": {"duplicate"}}
    assert "mirror image" in quality.subjects[0].findings[0].sentence


def test_equal_files_and_one_person_in_two_splits_are_found(phantom_store: CohortStore, tmp_path: Path) -> None:
    source = SourceFacts(
        files={"T1w": "a.nii"}, sha256={"T1w": "ab"}, shape=(20, 24, 20), affine=phantom_store.subjects()[0].affine
    )

    def noted(record: SubjectRecord, arrays: SubjectArrays) -> Pair:
        update = {"source": source, "notes": {"person": "p1", "warnings": ["/home/me/a-b.c/x_1.nii.gz: 1/2 look"]}}
        return record.model_copy(update=update), arrays

    faults = {"phantom-train-000": noted, "phantom-test-000": noted}
    quality = survey(copied(phantom_store, tmp_path / "store", faults))
    assert set(kinds(quality)) == set(faults)
    for one in quality.subjects[:2]:
        assert [finding.kind for finding in one.findings] == ["leak", "duplicate", "warning"]
        assert "byte for byte" in one.findings[1].sentence
        assert one.findings[2].sentence == "x_1.nii.gz: 1/2 look"


def test_two_scans_of_one_person_in_one_split_are_no_duplicate(phantom_store: CohortStore, tmp_path: Path) -> None:
    def same(record: SubjectRecord, arrays: SubjectArrays) -> Pair:
        return record.model_copy(update={"notes": {"person": "p1"}}), arrays

    pair = twin_of(phantom_store, lambda image: image * np.float32(1.7), notes={"person": "p1"})
    quality = survey(copied(phantom_store, tmp_path / "store", {VICTIM: same}, more=[pair]))
    assert kinds(quality) == {}


def test_few_subjects_are_not_judged_against_each_other(phantom_store: CohortStore, tmp_path: Path) -> None:
    faults = {"phantom-validation-002": cropped, "phantom-validation-001": inverted}
    quality = survey(copied(phantom_store, tmp_path / "store", faults, leave_out=12))
    assert quality.num_subjects == 3
    assert not quality.judged
    assert kinds(quality) == {"phantom-validation-002": {"truncated"}}
    assert any("Only 3 subjects" in sentence for sentence in quality.cannot)


@pytest.mark.parametrize("num_subjects", [3, 8])
def test_a_slab_cuts_every_brain_and_none_is_blamed_for_it(tmp_path: Path, num_subjects: int) -> None:
    """Twenty millimetres around the middle, as ``anovaegan_2018`` keeps; a cut across the slab is still told."""
    settings = PhantomSettings(shape=(48, 48, 10), box_mm=(192, 192, 20), center_mm=(0, -18, 5))
    pairs = []
    for seed in range(num_subjects):
        subject = make_phantom(seed, settings)
        record = SubjectRecord(
            subject_id=f"s{seed}",
            split="train",
            channels=("T1w",),
            shape=subject.brain.shape,
            spacing_mm=subject.spacing_mm,
            affine=as_matrix(subject.affine),
        )
        pairs.append((record, SubjectArrays(image=subject.image, brain=subject.brain)))
    record, arrays = pairs[-1]
    keep = (np.arange(48) < 30)[:, None]
    cut = SubjectArrays(image=arrays.image * keep, brain=arrays.brain & keep)
    for name, found in (("whole", {}), ("cut", {record.subject_id: "the front"})):
        store = CohortStore.create(tmp_path / name, recipe={"name": "slab"}, channels=("T1w",))
        with store.lock():
            some = [*pairs[:-1], (record, cut if name == "cut" else arrays)]
            store.commit([store.write(*pair) for pair in some])
        quality = survey(CohortStore.open(store.path))
        assert quality.findings == ()
        told = {one.subject_id: [finding.sentence for finding in one.findings] for one in quality.outliers}
        assert set(told) == set(found)
        assert all(f"flat at {face}" in " ".join(told[name]) for name, face in found.items())


def test_a_cohort_that_is_upside_down_as_a_whole_is_told(phantom_store: CohortStore, tmp_path: Path) -> None:
    faults = {record.subject_id: on_arrays(lambda a: a[..., ::-1]) for record in phantom_store.subjects()}
    quality = survey(copied(phantom_store, tmp_path / "store", faults))
    assert kinds(quality) == {}
    assert [finding.kind for finding in quality.findings] == ["orientation"]
    assert "upside down" in quality.findings[0].sentence


def test_damaged_and_empty_subjects_are_named_and_the_rest_is_looked_at(
    phantom_store: CohortStore, tmp_path: Path
) -> None:
    def emptied(record: SubjectRecord, arrays: SubjectArrays) -> Pair:
        return record, SubjectArrays(image=arrays.image, brain=np.zeros_like(arrays.brain))

    store = copied(phantom_store, tmp_path / "store", {"phantom-train-001": emptied})
    next((store.path / "subjects" / VICTIM / "image").glob("c*")).write_bytes(b"damaged")
    seen: list[str] = []
    quality = survey(store, see=lambda record, arrays: seen.append(record.subject_id))
    assert kinds(quality) == {VICTIM: {"damaged"}, "phantom-train-001": {"brain"}}
    assert len(seen) == 14


def test_an_empty_store_has_nothing_to_say(tmp_path: Path) -> None:
    quality = survey(CohortStore.create(tmp_path / "store", recipe={"name": "none"}, channels=("T1w",)))
    assert quality.num_subjects == 0
    assert quality.subjects == ()


def test_limits_decide(phantom_store: CohortStore, tmp_path: Path) -> None:
    """The findings come from the limits: without them there are none, with none there are many."""
    store = copied(phantom_store, tmp_path / "store", {VICTIM: inverted})
    assert kinds(survey(store, Limits(contrast_margin=5.0, histogram_margin=5.0))) == {}
    tight = Limits(contrast_margin=1e-6, histogram_margin=1e-6, robust_deviations=0.5)
    assert len(kinds(survey(store, tight))) > 3


# ---- the measures, against something else


def test_histogram_distance_is_scipys() -> None:
    random = np.random.default_rng(0)
    a, b = (random.dirichlet(np.ones(48)).astype(np.float32) for _ in range(2))
    places = np.arange(48) / 48
    assert histogram_distance(a, b) == pytest.approx(wasserstein_distance(places, places, a, b), rel=1e-5)


def test_information_has_its_known_limits() -> None:
    random = np.random.default_rng(0)
    values = random.random(200_000)
    assert normalised_information(values, values) == pytest.approx(2.0)
    assert normalised_information(values, 1 - values) == pytest.approx(2.0)
    assert normalised_information(values, random.random(200_000)) == pytest.approx(1.0, abs=1e-3)


def test_correlation_is_numpys() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 500))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation(a, np.ones(500)) == 0.0


def test_the_24_orientations_are_those_that_differ_by_more_than_a_mirror() -> None:
    """Every one of the 48 ways to lay out a cube is one of them, or its mirror image, or leaves it as it is."""
    cube = np.random.default_rng(0).random((5, 5, 5))
    ways = {turn.of(cube).tobytes() for turn in orientations()} | {cube.tobytes()}
    mirrored = {np.flip(np.frombuffer(way).reshape(5, 5, 5), 0).tobytes() for way in ways}
    assert len(ways) == 24
    assert len(ways | mirrored) == 48


def test_the_centre_and_volume_of_a_ball_are_the_balls() -> None:
    affine = grid_affine((60, 64, 70), (2.0, 2.0, 2.0), (3.0, -5.0, 7.0))
    points = np.stack(np.meshgrid(*(np.arange(n) for n in (60, 64, 70)), indexing="ij"), axis=-1) @ affine[:3, :3].T
    ball = np.linalg.norm(points + affine[:3, 3] - (11.0, -9.0, 4.0), axis=-1) < 40
    record = SubjectRecord(
        subject_id="ball",
        split="test",
        channels=("T1w",),
        shape=(60, 64, 70),
        spacing_mm=(2.0, 2.0, 2.0),
        affine=as_matrix(affine),
    )
    portrait = portray(record, SubjectArrays(image=ball[None].astype(np.float32), brain=ball))
    assert portrait is not None
    assert portrait.offset_mm == pytest.approx((8.0, -4.0, -3.0), abs=0.1)
    assert portrait.brain_ml == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.01)
    # In its own frame it lies in the middle, whole.
    share = portrait.brain.astype(np.float64)
    assert share.sum() * FRAME_MM**3 / 1000 == pytest.approx(portrait.brain_ml, rel=0.01)
    assert portrait.cut_share < 0.02


@pytest.mark.parametrize("spacing", [2.0, 4.0])
def test_a_cut_brain_ends_flat_and_a_whole_one_does_not(spacing: float) -> None:
    """The template's own brain, cut by a plane 30 mm below its top, along its axes and across those of its file."""
    template = mni152()
    shape = (round(160 / spacing), round(200 / spacing), round(180 / spacing))
    affine = grid_affine(shape, (spacing,) * 3, (0.0, -17.0, 5.0))
    brain = resample(template.brain.astype(np.float32), template.affine, shape, affine, order=0) > 0.5
    whole = SubjectRecord(
        subject_id="mni",
        split="test",
        channels=("T1w",),
        shape=shape,
        spacing_mm=(spacing,) * 3,
        affine=as_matrix(affine),
    )
    assert find_cut(whole, brain)[0] < 0.08
    height = np.arange(shape[2]) * spacing + affine[2, 3]
    share, face = find_cut(whole, brain & (height < 50))
    assert share > 0.35
    assert face == "the top"
    # The file was turned by 25 degrees about the left-right axis, and ended within the head.
    cosine, sine = np.cos(np.radians(25)), np.sin(np.radians(25))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    file_affine = turn @ grid_affine((160, 240, 130), (1.0, 1.0, 1.0), (0.0, -20.0, -30.0))
    points = np.argwhere(brain) @ affine[:3, :3].T + affine[:3, 3]
    index = (points - file_affine[:3, 3]) @ np.linalg.inv(file_affine[:3, :3]).T
    seen = np.zeros_like(brain)
    seen[brain] = (index[:, 2] > -0.5) & (index[:, 2] < 129.5)
    source = SourceFacts(files={}, sha256={}, shape=(160, 240, 130), affine=as_matrix(file_affine))
    share, face = find_cut(whole.model_copy(update={"source": source}), seen)
    assert share > 0.3
    assert face == "the top of the scan"
