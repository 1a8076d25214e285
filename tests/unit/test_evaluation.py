"""Figures from counts against scikit-learn from the voxels; thresholds, intervals, the two voxel sets."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score, roc_curve

from vesalius.platform.contracts import Score
from vesalius.platform.errors import CohortError, DivergenceError, SettingError, VolumeError
from vesalius.platform.evaluation import (
    FIGURE_KEYS,
    Histogram,
    Policy,
    PooledFigure,
    Threshold,
    auroc,
    average_precision,
    best_dice,
    bootstrap_intervals,
    dice_at,
    evaluate,
    fit_threshold,
    fpr_at_recall,
    image_auroc,
    paired_bootstrap,
    resampled_onto,
    subject_histogram,
)
from vesalius.platform.evaluation.histogram import NUM_BINS, VALUES
from vesalius.platform.evaluation.intervals import SubjectCounts, resamples
from vesalius.platform.evaluation.thresholds import healthy_quantile
from vesalius.platform.geometry import as_matrix, grid_affine
from vesalius.platform.scoring import ScoreInfo, ScoreRecord, ScoreStore
from vesalius.platform.store import CohortStore, SourceFacts, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

# Few values, so that ties, both zeros and the ends of float16 meet often.
SPECIAL = [-65504.0, -1.5, -6e-8, -0.0, 0.0, 6e-8, 0.25, 1.0, 65504.0]


@st.composite
def voxels(draw: st.DrawFn, min_size: int = 1) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    size = draw(st.integers(min_size, 60))
    any_finite = st.floats(width=16, allow_nan=False, allow_infinity=False)
    elements = draw(st.sampled_from([st.sampled_from(SPECIAL), any_finite]))
    scores = draw(hnp.arrays(np.float16, size, elements=elements))
    return scores, draw(hnp.arrays(np.bool_, size))


# ---- counts


@given(voxels())
def test_counts_are_those_of_numpy_unique(case: tuple[NDArray[np.float16], NDArray[np.bool_]]) -> None:
    scores, lesion = case
    histogram = Histogram.of(scores, lesion)
    for counts, chosen in ((histogram.negatives, ~lesion), (histogram.positives, lesion)):
        # + 0.0 makes -0.0 the 0.0 that it equals.
        values, expected = np.unique(scores[chosen].astype(np.float64) + 0.0, return_counts=True)
        occupied = np.flatnonzero(counts)
        np.testing.assert_array_equal(VALUES[occupied], values)
        np.testing.assert_array_equal(counts[occupied], expected)


def test_every_float16_has_its_own_bin_in_order() -> None:
    every = np.arange(NUM_BINS, dtype=np.uint32).astype(np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    histogram = Histogram.of(finite, None)
    np.testing.assert_array_equal(VALUES[histogram.bins], np.unique(finite.astype(np.float64)))
    assert histogram.negative_counts.sum() == finite.size
    # Both zeros share a bin, nothing else does.
    assert sorted(histogram.negative_counts)[-2:] == [1, 2]


@given(voxels(), voxels())
def test_adding_is_counting_together(
    a: tuple[NDArray[np.float16], NDArray[np.bool_]], b: tuple[NDArray[np.float16], NDArray[np.bool_]]
) -> None:
    together = Histogram.of(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]))
    assert Histogram.of(*a) + Histogram.of(*b) == together
    assert Histogram.pooled([Histogram.of(*a), Histogram.empty(), Histogram.of(*b)]) == together
    assert Histogram(negatives=together.negatives, positives=together.positives) == together


def test_only_voxels_inside_count_whatever_the_chunking_and_memory_order(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(9, 8, 7)).astype(np.float16)
    lesion, inside = random.random((2, 9, 8, 7)) < 0.4
    expected = Histogram.of(scores[inside], lesion[inside])
    monkeypatch.setattr("vesalius.platform.evaluation.histogram._CHUNK", 13)
    assert Histogram.of(scores, lesion, inside) == expected
    assert Histogram.of(*(np.asfortranarray(array) for array in (scores, lesion, inside))) == expected
    assert Histogram.of(scores[::-1].swapaxes(0, 2), *(a[::-1].swapaxes(0, 2) for a in (lesion, inside))) == expected


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused_where_it_counts(value: float) -> None:
    scores = np.array([0, value, 1], dtype=np.float16)
    with pytest.raises(DivergenceError, match="holds 1 voxels that are NaN or infinite"):
        Histogram.of(scores, None)
    assert Histogram.of(scores, None, np.array([True, False, True])).num_negatives == 2


def test_counting_wants_float16_and_one_shape() -> None:
    with pytest.raises(TypeError, match="float32"):
        Histogram.of(np.zeros(3, dtype=np.float32), None)
    with pytest.raises(ValueError, match="lesion"):
        Histogram.of(np.zeros(3, dtype=np.float16), np.zeros(4, dtype=bool))
    with pytest.raises(ValueError, match="65536"):
        Histogram(negatives=np.zeros(3), positives=np.zeros(3))


def test_memory_does_not_grow_with_voxels() -> None:
    random = np.random.default_rng(0)

    def peak(size: int) -> int:
        scores = random.integers(0, 30000, size).astype(np.uint16).view(np.float16)
        lesion, inside = random.random(size) < 0.1, random.random(size) < 0.8
        tracemalloc.start()
        histogram = Histogram.of(scores, lesion, inside)
        for figure in (best_dice, average_precision, auroc, fpr_at_recall):
            figure(histogram)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    small, large = peak(2_000_000), peak(20_000_000)
    assert large < 1.05 * small
    assert large < 20_000_000  # not even one byte a voxel


# ---- figures


@settings(max_examples=300)
@given(voxels(min_size=2))
def test_figures_equal_scikit_learn(case: tuple[NDArray[np.float16], NDArray[np.bool_]]) -> None:
    scores, lesion = case
    histogram, exact = Histogram.of(scores, lesion), scores.astype(np.float64)
    if not lesion.any():
        assert best_dice(histogram) is None
        assert average_precision(histogram) is None
        assert dice_at(histogram, 0.0) is None
    else:
        precision, recall, cuts = precision_recall_curve(lesion, exact)
        total = precision + recall
        dice = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        best = best_dice(histogram)
        assert best is not None
        assert best.dice == pytest.approx(dice.max(), rel=1e-12)
        assert best.threshold in exact
        assert f1_score(lesion, exact >= best.threshold) == pytest.approx(best.dice, rel=1e-12)
        # Of equal thresholds the highest: any above it does worse.
        assert (dice[:-1][cuts > best.threshold] < best.dice * (1 + 1e-12)).all()
        assert average_precision(histogram) == pytest.approx(average_precision_score(lesion, exact), rel=1e-12)
    if lesion.any() and not lesion.all():
        assert auroc(histogram) == pytest.approx(roc_auc_score(lesion, exact), rel=1e-12)
        false, true, _ = roc_curve(lesion, exact, drop_intermediate=False)
        assert fpr_at_recall(histogram) == pytest.approx(false[true >= 0.95].min(), abs=1e-12)
        assert fpr_at_recall(histogram, 0.5) == pytest.approx(false[true >= 0.5].min(), abs=1e-12)
    else:
        assert auroc(histogram) is None
        assert fpr_at_recall(histogram) is None


@given(voxels(), st.sampled_from([*SPECIAL, 1e6, -1e6, 0.1]))
def test_dice_at_a_threshold_counts_scores_equal_to_it(
    case: tuple[NDArray[np.float16], NDArray[np.bool_]], threshold: float
) -> None:
    scores, lesion = case
    found = dice_at(Histogram.of(scores, lesion), threshold)
    if lesion.any():
        assert found == pytest.approx(f1_score(lesion, scores.astype(np.float64) >= threshold), rel=1e-12)
    else:
        assert found is None


def test_nothing_counted_leaves_every_figure_undefined() -> None:
    empty = Histogram.empty()
    assert [f(empty) for f in (best_dice, average_precision, auroc, fpr_at_recall)] == [None] * 4


@given(
    st.lists(st.tuples(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1e300]), st.booleans()), min_size=1, max_size=30),
)
def test_image_auroc_equals_scikit_learn(images: list[tuple[float, bool]]) -> None:
    scores, labels = zip(*images, strict=True)
    if len(set(labels)) < 2:
        assert image_auroc(scores, labels) is None
    else:
        assert image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)


def test_image_auroc_of_no_image_is_undefined() -> None:
    assert image_auroc([], []) is None


def test_figures_of_the_voxels_survive_large_counts() -> None:
    """Forty billion voxels, by arithmetic: what scikit-learn says of a small case holds for each voxel repeated."""
    random = np.random.default_rng(1)
    scores, lesion = random.integers(-4, 5, 400).astype(np.float16), random.random(400) < 0.3
    small = Histogram.of(scores, lesion)
    large = Histogram(negatives=small.negatives * 10**8, positives=small.positives * 10**8)
    figures: list[Callable[[Histogram], float | None]] = [average_precision, auroc, fpr_at_recall]
    for figure in figures:
        assert figure(large) == pytest.approx(figure(small), rel=1e-12)
    assert best_dice(large) == pytest.approx(best_dice(small), rel=1e-12)


# ---- thresholds


@given(voxels(), st.floats(0.01, 0.99))
def test_the_healthy_quantile_is_the_least_that_keeps_its_promise(
    case: tuple[NDArray[np.float16], NDArray[np.bool_]], quantile: float
) -> None:
    scores, _ = case
    threshold = healthy_quantile(Histogram.of(scores, None), quantile)
    exact = scores.astype(np.float64)
    assert (exact >= threshold).mean() <= 1 - quantile + 1e-6
    below = VALUES[(threshold > VALUES) & np.isfinite(VALUES)]
    if below.size:
        assert (exact >= below[-1]).mean() > 1 - quantile - 1e-6


def test_where_all_share_the_highest_score_the_quantile_lies_above_it() -> None:
    top = np.full(10, 65504, dtype=np.float16)
    assert dice_at(Histogram.of(top, np.ones(10, dtype=bool)), healthy_quantile(Histogram.of(top, None), 0.98)) == 0.0


def test_a_threshold_from_the_test_split_cannot_even_be_written_down() -> None:
    for split in ("test", "gate"):
        with pytest.raises(ValidationError, match="thresholds come from train or validation"):
            Threshold(value=1.0, policy="best_dice", split=split, voxel_set="all")


def score_like_the_image(folder: Path, store: CohortStore, split: str, noise: float = 0.1) -> ScoreStore:
    """Write a score store whose maps are the image with noise: no method needed."""
    random = np.random.default_rng(5)
    info = ScoreInfo(method="toy", model_digest="0", cohort_digest=store.digest, store=str(store.path), split=split)
    with ScoreStore.writing(folder, info) as scores:
        for number, record in enumerate(store.subjects(split)):
            image = store.image(record.subject_id)[0]
            values = image + random.normal(0, noise, image.shape).astype(np.float32)
            scores.write(
                score_record(record, image_score=float(values.max()), seconds=1.0 + number),
                Score(map=torch.from_numpy(values.astype(np.float32)), image_score=0.0),
            )
        scores.finish()
    return ScoreStore.open(folder)


def score_record(record: SubjectRecord, *, image_score: float = 0.0, seconds: float = 1.0) -> ScoreRecord:
    return ScoreRecord(
        subject_id=record.subject_id,
        image_score=image_score,
        seconds=seconds,
        has_lesion=record.has_lesion,
        channels=record.channels,
        shape=record.shape,
        spacing_mm=record.spacing_mm,
        affine=record.affine,
        source=record.source,
    )


def flat(scores: ScoreStore, store: CohortStore, *, brain: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return all voxels of a split one after the other: the plain way."""
    values, labels = [], []
    for record in scores.records:
        inside = store.brain(record.subject_id) if brain else np.ones(record.shape, dtype=bool)
        lesion = store.mask(record.subject_id, "lesion")
        values.append(scores.map(record.subject_id)[inside].astype(np.float64))
        labels.append((np.zeros(record.shape, dtype=bool) if lesion is None else lesion)[inside])
    return np.concatenate(values), np.concatenate(labels)


@pytest.mark.parametrize("split", ["test", "gate"])
@pytest.mark.parametrize("policy", ["best_dice", "quantile"])
def test_choosing_on_a_reported_split_is_refused(
    tmp_path: Path, toy_store: CohortStore, split: str, policy: Policy
) -> None:
    scores = score_like_the_image(tmp_path / "s", toy_store, split)
    with pytest.raises(SettingError, match=f"cannot be chosen on the split '{split}'"):
        fit_threshold(scores, toy_store, policy)


def test_thresholds_from_validation(tmp_path: Path, toy_store: CohortStore) -> None:
    scores = score_like_the_image(tmp_path / "s", toy_store, "validation")
    for voxel_set in ("all", "brain"):
        values, labels = flat(scores, toy_store, brain=voxel_set == "brain")
        fitted = fit_threshold(scores, toy_store, "best_dice", voxel_set)
        assert (fitted.policy, fitted.split, fitted.voxel_set) == ("best_dice", "validation", voxel_set)
        every = [f1_score(labels, values >= cut) for cut in np.unique(values)[-300:]]
        assert f1_score(labels, values >= fitted.value) == pytest.approx(max(every), rel=1e-12)
    healthy = [scores.map(record.subject_id) for record in toy_store.subjects("validation", healthy=True)]
    fitted = fit_threshold(scores, toy_store, "quantile", quantile=0.9)
    assert np.mean(np.stack(healthy).astype(np.float64) >= fitted.value) == pytest.approx(0.1, abs=2e-3)


def test_a_policy_says_what_the_split_lacks(tmp_path: Path, toy_store: CohortStore) -> None:
    train = score_like_the_image(tmp_path / "train", toy_store, "train")
    with pytest.raises(CohortError, match=r"no annotated lesion.*quantile"):
        fit_threshold(train, toy_store, "best_dice")
    assert fit_threshold(train, toy_store, "quantile").split == "train"
    with pytest.raises(SettingError, match="unknown threshold policy 'youden'"):
        fit_threshold(train, toy_store, "youden")  # type: ignore[arg-type]  # no such policy is the test
    with pytest.raises(SettingError, match=r"quantile is 98"):
        fit_threshold(train, toy_store, "quantile", quantile=98)


# ---- the protocol


def test_the_protocol_over_both_voxel_sets(tmp_path: Path, toy_store: CohortStore) -> None:
    scores = score_like_the_image(tmp_path / "s", toy_store, "test")
    thresholds = {
        name: Threshold(value=cut, policy="best_dice", split="validation", voxel_set=name)
        for name, cut in (("all", 0.75), ("brain", 0.8))
    }
    figures = evaluate(scores, toy_store, thresholds, bootstrap=200)  # type: ignore[arg-type]  # a stand-in
    labels = [record.has_lesion for record in scores.records]
    assert sum(labels) == 2
    for name, found in figures.items():
        values, lesion = flat(scores, toy_store, brain=name == "brain")
        assert found.average_precision == pytest.approx(average_precision_score(lesion, values), rel=1e-12)
        assert found.auroc == pytest.approx(roc_auc_score(lesion, values), rel=1e-12)
        false, true, _ = roc_curve(lesion, values, drop_intermediate=False)
        assert found.fpr_at_95_recall == pytest.approx(false[true >= 0.95].min())
        expected = {}
        for record in toy_store.subjects("test", healthy=False):
            mask = toy_store.mask(record.subject_id, "lesion")
            assert mask is not None
            inside = toy_store.brain(record.subject_id) if name == "brain" else np.ones_like(mask)
            flagged = scores.map(record.subject_id)[inside].astype(np.float64) >= thresholds[name].value
            expected[record.subject_id] = f1_score(mask[inside], flagged)
        assert found.per_subject == pytest.approx(expected)
        assert found.dice_mean == pytest.approx(np.mean(list(expected.values())))
        assert found.dice_std == pytest.approx(np.std(list(expected.values())))
        assert found.best_dice is not None
        assert found.dice_mean is not None
        assert found.image_auroc == roc_auc_score(labels, [record.image_score for record in scores.records])
        assert found.seconds_per_volume == 2.5
        assert (found.num_subjects, found.num_lesions, found.num_images) == (4, 2, 4)
        assert tuple(found.row()) == FIGURE_KEYS
        assert found.numbers("x/")["x/auroc"] == found.auroc
        for key, (low, high) in found.intervals.items():
            assert low <= getattr(found, key) <= high
    assert figures["all"].auroc != figures["brain"].auroc
    assert evaluate(scores, toy_store, thresholds, bootstrap=200) == figures  # type: ignore[arg-type]  # a stand-in


def test_without_lesions_or_thresholds_figures_are_none_and_not_zero(tmp_path: Path, toy_store: CohortStore) -> None:
    scores = score_like_the_image(tmp_path / "s", toy_store, "train")
    found = evaluate(scores, toy_store, {})["all"]
    undefined = {key for key, value in found.row().items() if value is None}
    assert undefined == set(FIGURE_KEYS) - {"method", "seconds_per_volume"}
    assert found.intervals == {}
    assert set(found.numbers()) == {"seconds_per_volume"}


def test_a_threshold_of_the_other_voxel_set_is_refused(tmp_path: Path, toy_store: CohortStore) -> None:
    scores = score_like_the_image(tmp_path / "s", toy_store, "test")
    brain = Threshold(value=1.0, policy="best_dice", split="validation", voxel_set="brain")
    with pytest.raises(SettingError, match="voxel set 'all' was chosen over 'brain'"):
        evaluate(scores, toy_store, {"all": brain})
    # model_construct skips the settings' own check: the evaluation has its own.
    leaked = Threshold.model_construct(value=1.0, policy="best_dice", split="test", voxel_set="all")
    with pytest.raises(SettingError, match="never used to choose"):
        evaluate(scores, toy_store, {"all": leaked})


def test_a_group_can_be_reported_apart_and_gaps_are_refused(tmp_path: Path, toy_store: CohortStore) -> None:
    scores = score_like_the_image(tmp_path / "s", toy_store, "test")
    part = evaluate(scores, toy_store, {}, subjects=["test-00"], bootstrap=50)["all"]
    mask = toy_store.mask("test-00", "lesion")
    assert mask is not None
    values = scores.map("test-00").astype(np.float64)
    assert part.average_precision == pytest.approx(average_precision_score(mask.ravel(), values.ravel()))
    assert part.num_subjects == 1
    assert part.intervals == {}  # one subject says nothing of the next
    with pytest.raises(CohortError, match="'train-00' is not in the split 'test'"):
        evaluate(scores, toy_store, {}, subjects=["train-00"])
    partial = ScoreStore(scores.path, scores.info, [r for r in scores.records if r.subject_id != "test-02"])
    with pytest.raises(CohortError, match=r"1 of 4 subjects .* were not scored \(test-02\)"):
        evaluate(partial, toy_store, {})


def test_memory_of_an_evaluation_is_a_map_however_many_subjects(tmp_path: Path) -> None:
    """Ten times the subjects, so ten times the voxels: the peak grows by counts and not by maps."""
    shape = (64, 64, 32)

    def peak(num: int) -> int:
        store = CohortStore.create(tmp_path / f"c{num}", recipe={"name": "memory"}, channels=("T1w",))
        lesion = np.zeros(shape, dtype=bool)
        lesion[30:34, 30:34, 10:14] = True
        random = np.random.default_rng(num)
        records = []
        with store.lock():
            for index in range(num):
                image = np.round(random.random((1, *shape), dtype=np.float32), 1)
                arrays = SubjectArrays(image=image, brain=np.ones(shape, dtype=bool), lesion=lesion)
                records.append(store.write(plain_record(f"s{index}", shape), arrays))
            store.commit(records)
        scores = score_like_the_image(tmp_path / f"s{num}", store, "test", noise=0.0)
        tracemalloc.start()
        evaluate(scores, store, {}, bootstrap=0)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    small, large = peak(2), peak(20)
    one_map = 2 * math.prod(shape)
    assert large - small < one_map


# ---- one reference grid


def plain_record(
    subject_id: str,
    shape: tuple[int, int, int],
    spacing: float = 1.0,
    source: SourceFacts | None = None,
    center: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> SubjectRecord:
    return SubjectRecord(
        subject_id=subject_id,
        split="test",
        channels=("T1w",),
        shape=shape,
        spacing_mm=(spacing,) * 3,
        affine=as_matrix(grid_affine(shape, (spacing,) * 3, center)),
        source=source,
    )


def ramp(record: SubjectRecord) -> NDArray[np.float16]:
    """Return a map that is linear in millimetres: linear interpolation must give it back on any grid."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in record.shape), indexing="ij"), axis=-1)
    world = index @ np.asarray(record.affine)[:3, :3].T + np.asarray(record.affine)[:3, 3]
    return np.asarray(world @ [0.5, 0.25, -1.0], dtype=np.float16)


def test_a_map_on_its_own_grid_is_not_touched() -> None:
    record = plain_record("a", (6, 5, 4))
    values = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float16)
    np.testing.assert_array_equal(resampled_onto(values, record, record), values)


def test_a_map_of_a_coarser_grid_lands_on_the_same_millimetres() -> None:
    coarse, fine = plain_record("a", (8, 8, 8), 2.0), plain_record("a", (16, 16, 16), 1.0)
    moved = resampled_onto(ramp(coarse), coarse, fine)
    inner = (slice(1, -1),) * 3  # centres of the fine grid between those of the coarse one
    np.testing.assert_allclose(moved[inner].astype(float), ramp(fine)[inner].astype(float), atol=0.01)
    # A fine voxel at the rim lies outside the coarse centres and inside the coarse voxel: that voxel's value holds.
    difference = moved[1, 1:-1, 1:-1].astype(float) - moved[0, 1:-1, 1:-1].astype(float)
    np.testing.assert_allclose(difference, 0.5 * 0.5, atol=0.02)  # half a millimetre from the coarse centre


def test_outside_the_scored_grid_nothing_is_found() -> None:
    small, large = plain_record("a", (4, 4, 4)), plain_record("a", (12, 12, 12))
    values = np.full((4, 4, 4), -2.0, dtype=np.float16)
    values[1, 1, 1] = -1.0
    moved = resampled_onto(values, small, large)
    np.testing.assert_array_equal(moved[4:8, 4:8, 4:8], values)
    moved[4:8, 4:8, 4:8] = -2.0
    assert (moved == -2.0).all()


def test_two_registrations_of_one_file_meet_in_its_space() -> None:
    shift = np.eye(4)
    shift[0, 3] = 3.0
    facts = {"files": {}, "sha256": {}, "shape": (9, 9, 9), "affine": as_matrix(np.eye(4))}
    moved_away = SourceFacts(**facts, to_source=as_matrix(shift))
    unmoved = SourceFacts(**facts)
    scored, reference = plain_record("a", (9, 9, 9), 1.0, moved_away), plain_record("a", (9, 9, 9), 1.0, unmoved)
    values = np.zeros((9, 9, 9), dtype=np.float16)
    values[2, 4, 4] = 1.0
    # stored + 3 mm = source = reference: index 2 of the scored grid is index 5 of the reference.
    assert np.argwhere(resampled_onto(values, scored, reference)).tolist() == [[5, 4, 4]]


def test_a_map_of_another_shape_than_its_record_is_refused() -> None:
    record = plain_record("a", (4, 4, 4))
    with pytest.raises(VolumeError, match=r"\(3, 3, 3\).*\(4, 4, 4\)"):
        resampled_onto(np.zeros((3, 3, 3), dtype=np.float16), record, record)


def test_an_anomalous_subject_without_a_mask_counts_as_an_image_only(tmp_path: Path) -> None:
    shape = (4, 4, 4)
    store = CohortStore.create(tmp_path / "c", recipe={"name": "labels"}, channels=("T1w",))
    lesion = np.zeros(shape, dtype=bool)
    lesion[1, 1, 1] = True
    marked, labelled, healthy = (plain_record(name, shape) for name in ("marked", "labelled", "healthy"))
    labelled = labelled.model_copy(update={"labels": {"anomalous": True}})
    random = np.random.default_rng(0)
    arrays = [
        SubjectArrays(image=random.random((1, *shape), np.float32), brain=np.ones(shape, bool), lesion=mask)
        for mask in (lesion, None, None)
    ]
    with store.lock():
        store.commit([store.write(r, a) for r, a in zip((marked, labelled, healthy), arrays, strict=True)])
    scores = score_like_the_image(tmp_path / "s", store, "test")
    assert subject_histogram(scores, store, store.record("labelled")) is None
    found = evaluate(scores, store, {}, bootstrap=0)["all"]
    assert (found.num_subjects, found.num_lesions, found.num_images) == (2, 1, 3)
    expected = Histogram.pooled(
        Histogram.of(scores.map(name), store.mask(name, "lesion")) for name in ("marked", "healthy")
    )
    assert found.average_precision == average_precision(expected)


# ---- intervals


def subjects(seed: int, num: int = 6, num_healthy: int = 2) -> list[tuple[NDArray[np.float16], NDArray[np.bool_]]]:
    random = np.random.default_rng(seed)
    found = []
    for index in range(num):
        lesion = random.random(200) < (0 if index < num_healthy else 0.2)
        scores = np.round(random.normal(size=200) + lesion, random.integers(0, 3))
        found.append((scores.astype(np.float16), lesion))
    return found


POOLED: dict[PooledFigure, Callable[[Histogram], float | None]] = {
    "best_dice": lambda h: None if (best := best_dice(h)) is None else best.dice,
    "average_precision": average_precision,
    "auroc": auroc,
    "fpr_at_95_recall": fpr_at_recall,
}


def same(value: float | None) -> Any:
    """Return what a row of the bootstrap holds for a figure: NaN stands for None there."""
    return pytest.approx(math.nan if value is None else value, nan_ok=True, rel=1e-12)


@pytest.mark.parametrize("block", [1, 50, 1 << 21])
@pytest.mark.parametrize("seed", range(3))
def test_a_resample_equals_its_subjects_pooled_one_by_one(
    monkeypatch: pytest.MonkeyPatch, seed: int, block: int
) -> None:
    monkeypatch.setattr("vesalius.platform.evaluation.intervals._BLOCK", block)
    histograms = [Histogram.of(*case) for case in subjects(seed)]
    weights = resamples(len(histograms), 25, seed)
    weights[0] = [3, 3, 0, 0, 0, 0]  # healthy subjects only: undefined
    values = SubjectCounts(histograms).figures(weights, list(POOLED))
    assert (weights.sum(axis=1) == len(histograms)).all()
    for row, repeats in enumerate(weights.astype(int)):
        drawn = Histogram.pooled(h for h, times in zip(histograms, repeats, strict=True) for _ in range(times))
        for name, figure in POOLED.items():
            expected = figure(drawn)
            assert values[name][row] == pytest.approx(
                math.nan if expected is None else expected, nan_ok=True, rel=1e-12
            )


@settings(max_examples=60)
@given(st.lists(voxels(), min_size=1, max_size=4))
def test_merged_bins_keep_every_figure(cases: list[tuple[NDArray[np.float16], NDArray[np.bool_]]]) -> None:
    histograms = [Histogram.of(*case) for case in cases]
    values = SubjectCounts(histograms).figures(np.ones((1, len(cases))), list(POOLED))
    for name, figure in POOLED.items():
        assert values[name][0] == same(figure(Histogram.pooled(histograms)))


def test_intervals_are_the_percentiles_of_all_possible_resamples() -> None:
    """Three subjects have 27 equally likely resamples: their exact quantiles are what many draws must approach."""
    cases = subjects(4, num=3, num_healthy=0)
    histograms = [Histogram.of(*case) for case in cases]
    dice = [0.2, 0.5, 0.9]
    exact = [np.mean([dice[i] for i in drawn]) for drawn in itertools.product(range(3), repeat=3)]
    found = bootstrap_intervals(histograms, dice, [1.0, 2.0, 3.0], [True] * 3, num=20000, seed=1)
    assert found["dice_mean"] == pytest.approx(np.quantile(exact, [0.025, 0.975], method="inverted_cdf"), abs=1e-9)
    pooled = [
        average_precision(Histogram.pooled(histograms[i] for i in drawn))
        for drawn in itertools.product(range(3), repeat=3)
    ]
    bounds = np.quantile(np.array(pooled, float), [0.025, 0.975], method="inverted_cdf")
    assert found["average_precision"] == pytest.approx(bounds, abs=1e-9)
    assert "image_auroc" not in found  # all images are anomalous


def test_the_interval_of_the_image_auroc_leaves_out_resamples_of_one_kind() -> None:
    scores, labels = [0.1, 0.4, 0.35, 0.8], [False, False, True, True]
    exact = []
    for drawn in itertools.product(range(4), repeat=4):
        kinds = [labels[i] for i in drawn]
        if len(set(kinds)) == 2:
            exact.append(roc_auc_score(kinds, [scores[i] for i in drawn]))
    found = bootstrap_intervals([], [], scores, labels, num=20000, seed=0)
    assert found["image_auroc"] == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.02)


def test_no_resamples_no_intervals() -> None:
    assert bootstrap_intervals([], [], [], [], num=0) == {}
    assert bootstrap_intervals([], [], [], [], num=10) == {}


def test_pairs_share_their_resamples() -> None:
    cases = subjects(7, num=8, num_healthy=1)
    random = np.random.default_rng(0)
    worse = [((scores + random.normal(0, 1, scores.shape)).astype(np.float16), lesion) for scores, lesion in cases]
    a, b = [Histogram.of(*case) for case in cases], [Histogram.of(*case) for case in worse]
    same = paired_bootstrap(a, a)
    assert (same.difference, same.low, same.high, same.lower_bound, same.probability) == (0, 0, 0, 0, 0.5)
    result = paired_bootstrap(a, b, num=4000)
    weights = resamples(8, 4000, 0)
    first, second = (SubjectCounts(h).figures(weights, ["average_precision"])["average_precision"] for h in (a, b))
    difference = first - second
    assert (result.a, result.b) == (average_precision(Histogram.pooled(a)), average_precision(Histogram.pooled(b)))
    assert result.difference == pytest.approx(result.a - result.b)
    assert (result.low, result.lower_bound, result.high) == pytest.approx(np.quantile(difference, [0.025, 0.05, 0.975]))
    assert result.probability == pytest.approx((difference > 0).mean())
    reverse = paired_bootstrap(b, a, num=4000)
    assert (reverse.difference, reverse.high) == pytest.approx((-result.difference, -result.low))
    # Where less is better, a positive difference speaks for the first all the same.
    assert paired_bootstrap(a, b, "fpr_at_95_recall").difference == pytest.approx(
        fpr_at_recall(Histogram.pooled(b)) - fpr_at_recall(Histogram.pooled(a))  # type: ignore[operator]  # never None with both kinds of voxels
    )


def test_pairs_must_be_the_same_voxels_and_have_lesions() -> None:
    a = [Histogram.of(*case) for case in subjects(1)]
    with pytest.raises(CohortError, match="not scored on the same voxels"):
        paired_bootstrap(a, a[:-1])
    with pytest.raises(CohortError, match="not scored on the same voxels"):
        paired_bootstrap(a, [*a[:-1], a[0]])
    with pytest.raises(CohortError, match="undefined on these 2 subjects"):
        paired_bootstrap(a[:2], a[:2])
    with pytest.raises(CohortError, match="undefined on these 0 subjects"):
        paired_bootstrap([], [])
    with pytest.raises(CohortError, match="none of 0 resamples"):
        paired_bootstrap(a, a, num=0)


def test_a_percentile_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Mean Dice of subjects drawn from a known distribution: the true mean lies inside about 95 times in 100."""
    random = np.random.default_rng(3)
    healthy = Histogram.of(np.zeros(2, dtype=np.float16), np.array([True, False]))
    inside = 0
    for trial in range(200):
        dice = random.uniform(0.2, 0.8, 40)
        low, high = bootstrap_intervals([healthy] * 40, list(dice), [], [], num=300, seed=trial)["dice_mean"]
        inside += low <= 0.5 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_smooth_maps_of_a_known_lesion_rank_as_they_should() -> None:
    """The end of the line: a blurred truth has an AUROC of almost 1, its negation of almost 0."""
    lesion = np.zeros((20, 20, 20), dtype=bool)
    lesion[8:12, 8:12, 8:12] = True
    blurred = ndimage.gaussian_filter(lesion.astype(np.float32), 1.0).astype(np.float16)
    good, bad = Histogram.of(blurred, lesion), Histogram.of(-blurred, lesion)
    assert auroc(good) == pytest.approx(1 - auroc(bad))  # type: ignore[operator]  # never None with both kinds of voxels
    assert auroc(good) == pytest.approx(roc_auc_score(lesion.ravel(), blurred.ravel().astype(float)))
    assert auroc(good) > 0.98  # type: ignore[operator]  # never None with both kinds of voxels
