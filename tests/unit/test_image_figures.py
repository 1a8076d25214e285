"""Figures of whole images against scikit-learn, the Youden point, and who counts in which of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from vesalius.platform.contracts import Score
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.evaluation import (
    detection,
    evaluate_images,
    marked,
    operate,
    precision_recall_curve,
    roc_curve,
    whole,
    youden_threshold,
)
from vesalius.platform.evaluation.intervals import resamples
from vesalius.platform.scoring import ScoreInfo, ScoreRecord, ScoreStore
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = st.lists(st.tuples(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 0.75, 1e9]), st.booleans()), min_size=1, max_size=40)


@given(IMAGES)
def test_figures_and_curves_are_scikit_learns(images: list[tuple[float, bool]]) -> None:
    scores, labels = zip(*images, strict=True)
    found, curve = detection(scores, labels, bootstrap=0), roc_curve(scores, labels)
    assert (found.num_positive, found.num_negative) == (sum(labels), len(labels) - sum(labels))
    if len(set(labels)) < 2:
        assert (found.auroc, found.average_precision, curve.x) == (None, None, ())
        assert youden_threshold(scores, labels) is None
        assert operate(0.0, scores, labels, chosen_on="validation", split="test") is None
        return
    assert found.auroc == pytest.approx(sk.roc_auc_score(labels, scores), rel=1e-12)
    assert found.average_precision == pytest.approx(sk.average_precision_score(labels, scores), rel=1e-12)
    fpr, tpr, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.x, fpr, rtol=1e-12)
    np.testing.assert_allclose(curve.y, tpr, rtol=1e-12)
    # The first of the greatest: the highest threshold.
    index = np.round(tpr - fpr, 9)
    chosen = youden_threshold(scores, labels)
    if index.max() > 0:
        assert chosen == thresholds[index.argmax()]
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    ours = precision_recall_curve(scores, labels)
    # Theirs begins with the most lenient threshold and ends with a point of its own.
    np.testing.assert_allclose(ours.y, precision[:-1][::-1], rtol=1e-12)
    np.testing.assert_allclose(ours.x, recall[:-1][::-1], rtol=1e-12)
    assert chosen is not None
    point = operate(chosen, scores, labels, chosen_on="test", split="test", bootstrap=0)
    assert point is not None
    said = np.asarray(scores) >= chosen
    assert point.sensitivity == pytest.approx(sk.recall_score(labels, said))
    assert point.specificity == pytest.approx(sk.recall_score(labels, said, pos_label=False))
    assert point.accuracy == pytest.approx(sk.accuracy_score(labels, said))
    if index.max() > 0:
        assert point.sensitivity + point.specificity - 1 == pytest.approx(index.max(), abs=1e-8)


def test_intervals_are_those_of_resampling_images_one_by_one() -> None:
    random = np.random.default_rng(3)
    labels = random.random(25) < 0.4
    scores = np.round(random.normal(labels * 1.0, 1.0), 1)
    found = detection(scores, labels, bootstrap=200, seed=7)
    point = operate(0.5, scores, labels, chosen_on="validation", split="test", bootstrap=200, seed=7)
    assert point is not None
    drawn: dict[str, list[float]] = {"auroc": [], "average_precision": [], "sensitivity": [], "specificity": []}
    for row in resamples(25, 200, 7):
        index = np.repeat(np.arange(25), row.astype(int))
        ours, theirs = scores[index], labels[index]
        if 0 < theirs.sum() < 25:
            drawn["auroc"].append(float(sk.roc_auc_score(theirs, ours)))
            drawn["average_precision"].append(float(sk.average_precision_score(theirs, ours)))
        drawn["sensitivity"].append(float((ours[theirs] >= 0.5).mean()))
        drawn["specificity"].append(float((ours[~theirs] < 0.5).mean()))
    for name, interval in {**found.intervals, **point.intervals}.items():
        if name != "accuracy":
            np.testing.assert_allclose(interval, np.quantile(drawn[name], (0.025, 0.975)), rtol=1e-9)
    assert set(found.intervals) == {"auroc", "average_precision"}
    assert detection([1.0, 2.0, 3.0], [True, False, False]).intervals == {}


# ---- of a cohort


def subject(name: str, split: str, *labels: str) -> SubjectRecord:
    return SubjectRecord(
        subject_id=name,
        split=split,
        channels=("CT",),
        shape=(2, 2, 2),
        spacing_mm=(1.0, 1.0, 1.0),
        affine=tuple(tuple(float(i == j) for j in range(4)) for i in range(4)),
        labels={
            "anomalous": bool(labels) and "harmless" not in labels,
            **{label: label in labels for label in ("sdh", "edh", "artefact")},
        },
    )


SUBJECTS: dict[str, list[tuple[Any, ...]]] = {
    "validation": [("v1", 1.0), ("v2", 5.0, "sdh"), ("v3", 2.0), ("v4", 9.0, "artefact"), ("v5", 4.0, "edh"),
                   ("v6", 70.0, "artefact", "harmless")],
    "test": [
        ("t1", 1.0), ("t2", 4.5), ("t3", 3.0), ("t4", 5.0, "sdh"), ("t5", 2.0, "edh", "sdh"), ("t6", 0.5, "artefact"),
        ("t7", 6.0, "edh"), ("t8", 4.0, "sdh", "artefact"), ("t9", 50.0, "artefact", "harmless"),
    ],
}  # fmt: skip


@pytest.fixture
def cohort(tmp_path: Path) -> CohortStore:
    store = CohortStore.create(tmp_path / "store", recipe={}, channels=("CT",))
    arrays = SubjectArrays(image=np.zeros((1, 2, 2, 2), np.float32), brain=np.ones((2, 2, 2), bool))
    with store.lock():
        store.commit(
            [
                store.write(subject(name, split, *labels), arrays)
                for split, rows in SUBJECTS.items()
                for name, _, *labels in rows
            ]
        )
    return store


def peak_of(height: float) -> torch.Tensor:
    """Return a map of a single voxel: a hundredth of eight voxels is that one."""
    peak = torch.zeros(2, 2, 2)
    peak[0, 1, 1] = height
    return peak


def scored(store: CohortStore, split: str, folder: Path) -> ScoreStore:
    info = ScoreInfo(method="toy", model_digest="0", cohort_digest=store.digest, store=str(store.path), split=split)
    numbers = {name: score for name, score, *_ in SUBJECTS[split]}
    with ScoreStore.writing(folder / split, info) as scores:
        for record in store.subjects(split):
            number = float(numbers[record.subject_id])
            facts = record.model_dump(include={"subject_id", "has_lesion", "channels", "shape", "spacing_mm", "affine"})
            scores.write(
                ScoreRecord(**facts, image_score=number, seconds=2.0),
                Score(map=peak_of(10 - number), image_score=number),
            )
        scores.finish()
    return ScoreStore.open(folder / split)


def test_who_counts_in_which_figure(cohort: CohortStore, tmp_path: Path) -> None:
    test, validation = (scored(cohort, split, tmp_path) for split in ("test", "validation"))
    found = evaluate_images(
        test, cohort, validation=validation, types=("sdh", "edh", "iph"), quality=("artefact",), bootstrap=50
    )
    assert (found.method, found.split, found.seconds_per_volume) == ("toy", "test", 2.0)
    assert sorted(found.healthy) == [1.0, 3.0, 4.5]
    # What an artefact spoilt is neither a case nor a healthy image, bleed or not.
    assert sorted(found.anomalous) == [2.0, 5.0, 6.0]
    assert found.screening.auroc == pytest.approx((1 + 3 + 3) / 9)
    # The maps of these say the opposite of the scores.
    assert found.by_map.auroc == pytest.approx(1 - (1 + 3 + 3) / 9)
    assert set(found.types) == {"sdh", "edh"}
    assert sorted(found.types["sdh"].scores) == [2.0, 4.0, 5.0]
    assert found.types["sdh"].detection.average_precision == pytest.approx(
        sk.average_precision_score([1, 1, 1, 0, 0, 0], [2.0, 4.0, 5.0, 1.0, 3.0, 4.5])
    )
    assert sorted(found.quality["artefact"].scores) == [0.5, 4.0, 50.0]
    assert found.quality["artefact"].detection.auroc == pytest.approx((0 + 2 + 3) / 9)
    # Validation: healthy 1 and 2, cases 4 and 5, the artefact left out. Both cases from 4 on.
    point = found.at_validation
    assert point is not None
    assert (point.threshold, point.chosen_on, point.split) == (4.0, "validation", "test")
    assert [point.sensitivity, point.specificity] == pytest.approx([2 / 3, 2 / 3])
    own = found.at_own
    assert own is not None
    assert (own.threshold, own.chosen_on) == (5.0, "test")
    assert [own.sensitivity, own.specificity] == pytest.approx([2 / 3, 1.0])
    assert "auroc" in found.screening.intervals


def test_a_threshold_is_not_chosen_where_results_are_reported(cohort: CohortStore, tmp_path: Path) -> None:
    test = scored(cohort, "test", tmp_path)
    with pytest.raises(SettingError, match="cannot be chosen on the split 'test'"):
        evaluate_images(test, cohort, validation=test)
    partial = ScoreStore(test.path, test.info, [record for record in test.records if record.subject_id != "t3"])
    with pytest.raises(CohortError, match=r"1 of 9 subjects of the split 'test' were not scored \(t3\)"):
        evaluate_images(partial, cohort)
    assert evaluate_images(test, cohort).at_validation is None


@pytest.mark.parametrize(("value", "answer"), [(True, True), (1, True), (1.0, True), (False, False), (0, False)])
def test_ones_and_zeros_of_a_table_say_yes_and_no(value: float, *, answer: bool) -> None:
    record = subject("s", "test").model_copy(update={"labels": {"artefact": value}})
    assert marked(record, "artefact") is answer
    assert whole([record], ["artefact"]) == ([] if answer else [record])
    assert marked(record, "edh") is None


def test_a_label_that_is_no_answer_is_refused() -> None:
    record = subject("s", "test").model_copy(update={"labels": {"artefact": "yes"}})
    with pytest.raises(CohortError, match=r"the label artefact of s is 'yes': expected true or false"):
        marked(record, "artefact")
