"""Maxima within structures against scikit-learn, and readers' agreement against worked examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from vesalius.datasets.layouts.cq500 import read_reads
from vesalius.platform.config import validate
from vesalius.platform.contracts import Score
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.evaluation import (
    Structure,
    StructureTask,
    agreement,
    auroc_interval,
    evaluate_structures,
    fleiss_kappa,
    structure_cases,
    structure_maxima,
)
from vesalius.platform.geometry import as_matrix
from vesalius.platform.scoring import ScoreInfo, ScoreRecord, ScoreStore
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (6, 5, 4)
NAMES = {"skull": 1, "left_hemisphere": 2, "right_hemisphere": 3}
LEFT = StructureTask(name="left", structures=(Structure(name="left_hemisphere", label="bleed_left"),))
RIGHT = StructureTask(name="right", structures=(Structure(name="right_hemisphere", label="bleed_right"),))
BOTH = StructureTask(name="ICH", structures=(*LEFT.structures, *RIGHT.structures))
FRACTURE = StructureTask(name="fracture", structures=(Structure(name="skull", label="fracture"),))
TASKS = (LEFT, RIGHT, BOTH, FRACTURE)

# The worked example that texts give for Fleiss' kappa: ten subjects, fourteen raters, five categories; kappa 0.210.
EXAMPLE = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


# ---- maxima


def test_maxima_are_of_the_structure_and_of_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, SHAPE).astype(np.uint8)
    score_map = rng.normal(size=SHAPE).astype(np.float16)
    found = structure_maxima(score_map, labels, {**NAMES, "cerebellum": 9})
    assert found == {name: float(score_map[labels == value].max()) for name, value in NAMES.items()}


# ---- figures of a split


@pytest.fixture
def judged(tmp_path: Path) -> tuple[ScoreStore, CohortStore, dict[str, dict[str, float]], dict[str, dict[str, bool]]]:
    """Ten test subjects with random maps and labels; the last has no skull, so that it is no case of fracture."""
    rng = np.random.default_rng(3)
    store = CohortStore.create(tmp_path / "cohort", recipe={}, channels=("CT",), name="heads")
    truth: dict[str, dict[str, bool]] = {}
    maxima: dict[str, dict[str, float]] = {}
    maps = {}
    eye = as_matrix(np.eye(4))
    with store.lock():
        for number in range(10):
            name = f"s{number}"
            structures = rng.integers(0, 4, SHAPE).astype(np.uint8)
            if number == 9:
                structures[structures == 1] = 0
            truth[name] = {label: bool(rng.random() < 0.5) for label in ("bleed_left", "bleed_right", "fracture")}
            maps[name] = torch.from_numpy(rng.normal(size=SHAPE).astype(np.float16).astype(np.float32))
            maxima[name] = {
                key: float(maps[name].numpy()[structures == value].max())
                for key, value in NAMES.items()
                if (structures == value).any()
            }
            record = SubjectRecord(
                subject_id=name,
                split="test",
                channels=("CT",),
                shape=SHAPE,
                spacing_mm=(1, 1, 1),
                affine=eye,
                labels=truth[name],
                structures=NAMES,
            )
            brain = structures > 1
            image = np.zeros((1, *SHAPE), np.float32)
            store.commit([store.write(record, SubjectArrays(image=image, brain=brain, structures=structures))])
    info = ScoreInfo(method="m", model_digest="d", cohort_digest=store.digest, store=str(store.path), split="test")
    with ScoreStore.writing(tmp_path / "scores", info) as scores:
        for name, score_map in maps.items():
            scored = ScoreRecord(
                subject_id=name,
                image_score=0.0,
                seconds=0.1,
                has_lesion=False,
                channels=("CT",),
                shape=SHAPE,
                spacing_mm=(1, 1, 1),
                affine=eye,
            )
            scores.write(scored, Score(map=score_map, image_score=0.0))
        scores.finish()
    return ScoreStore.open(tmp_path / "scores"), CohortStore.open(store.path), maxima, truth


def test_figures_are_scikit_learns(judged) -> None:  # type: ignore[no-untyped-def]  # the fixture says what it is
    scores, store, maxima, truth = judged
    found = evaluate_structures(scores, store, TASKS, bootstrap=200)
    for task in TASKS:
        pairs = [
            (maxima[name][one.name], truth[name][one.label])
            for name in maxima
            for one in task.structures
            if one.name in maxima[name]
        ]
        values, labels = zip(*pairs, strict=True)
        figures = found[task.name]
        assert figures.auroc == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
        assert (figures.num_cases, figures.num_anomalous) == (len(pairs), sum(labels))
        assert figures.interval is not None
        assert figures.auroc is not None
        assert 0 <= figures.interval[0] < figures.auroc < figures.interval[1] <= 1
    assert found["ICH"].num_cases == 20
    assert found["ICH"].num_subjects == 10
    assert found["fracture"].num_subjects == 9


def test_a_part_of_the_split_and_what_is_not_there(judged) -> None:  # type: ignore[no-untyped-def]  # as above
    scores, store, _, _ = judged
    assert evaluate_structures(scores, store, [LEFT], bootstrap=0, subjects=["s1", "s2"])["left"].num_cases == 2
    stranger = StructureTask(name="nose", structures=(Structure(name="nose", label="bleed_left"),))
    with pytest.raises(CohortError, match="has a nose"):
        evaluate_structures(scores, store, [stranger])


def test_what_nobody_judged_is_no_case() -> None:
    def subject(name: str, **labels: bool | int | str) -> SubjectRecord:
        return SubjectRecord(
            subject_id=name, split="test", channels=("CT",), shape=SHAPE, spacing_mm=(1, 1, 1),
            affine=as_matrix(np.eye(4)), labels=labels, structures={"left_hemisphere": 2, "right_hemisphere": 3},
        )  # fmt: skip

    records = [
        subject("both", bleed_left=1, bleed_right=False),
        subject("half", bleed_left=0),
        subject("unknown"),
        subject("healthy", anomalous=False),
        subject("ill", anomalous=True),
    ]
    found = [(record.subject_id, one.label, answer) for record, one, answer in structure_cases(records, BOTH)]
    assert found == [
        ("both", "bleed_left", True),
        ("both", "bleed_right", False),
        ("half", "bleed_left", False),
        ("healthy", "bleed_left", False),
        ("healthy", "bleed_right", False),
    ]
    assert structure_cases(records, FRACTURE) == []
    with pytest.raises(CohortError, match="the label bleed_left of odd is 'left': expected true or false"):
        structure_cases([subject("odd", bleed_left="left")], LEFT)


def test_a_structure_is_named_once() -> None:
    twice = [{"name": "skull", "label": "fracture"}] * 2
    with pytest.raises(SettingError, match="named twice"):
        validate(StructureTask, {"name": "t", "structures": twice}, "task")


def test_an_interval_draws_a_subjects_structures_together() -> None:
    """With a subject's cases drawn together the bootstrap is that of subjects: made here by hand, draw by draw."""
    rng = np.random.default_rng(1)
    owners = [f"s{number // 2}" for number in range(24)]
    labels = list(rng.random(24) < 0.5)
    values = list(rng.normal(size=24) + np.array(labels))
    interval = auroc_interval(values, labels, owners, num=4000, seed=5)
    assert interval is not None
    names = sorted(set(owners))
    drawn = []
    for _ in range(2000):
        chosen = [i for name in rng.choice(names, len(names)) for i in range(24) if owners[i] == name]
        kinds = [labels[i] for i in chosen]
        if 0 < sum(kinds) < len(kinds):
            drawn.append(roc_auc_score(kinds, [values[i] for i in chosen]))
    assert interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.03)


def test_no_interval_from_a_single_anomalous_subject() -> None:
    assert auroc_interval([1, 2, 3, 4], [True, True, False, False], ["a", "a", "b", "c"]) is None
    assert auroc_interval([1, 2, 3, 4], [True, True, False, False], ["a", "b", "b", "c"], num=0) is None


# ---- readers


def test_fleiss_kappa_of_the_worked_example() -> None:
    assert fleiss_kappa(EXAMPLE) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_by_hand() -> None:
    """Four cases, three readers: 3, 2, 1, 0 see it. P = (1 + 1/3 + 1/3 + 1) / 4 = 2/3, P_e = 1/2, kappa = 1/3."""
    assert fleiss_kappa(np.array([[0, 3], [1, 2], [2, 1], [3, 0]])) == pytest.approx(1 / 3, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_fleiss_kappa_of_two_readers_with_equal_rates_is_cohens(votes: list[tuple[bool, bool]]) -> None:
    """Each case once more with the readers exchanged: both then have the same rates, where the two kappas agree."""
    both = np.array([*votes, *((second, first) for first, second in votes)])
    counts = np.stack([2 - both.sum(axis=1), both.sum(axis=1)], axis=1)
    found = fleiss_kappa(counts)
    if found is None:
        assert both.all() or not both.any()
    else:
        assert found == pytest.approx(cohen_kappa_score(both[:, 0], both[:, 1]), abs=1e-9)


@pytest.mark.parametrize("counts", [np.zeros((0, 2)), np.array([[1, 0]]), np.array([[3, 0], [2, 0]])])
def test_votes_that_are_no_basis_are_refused(counts: np.ndarray) -> None:
    with pytest.raises(CohortError, match="same number of readers"):
        fleiss_kappa(counts)


def test_each_reader_against_the_majority() -> None:
    rng = np.random.default_rng(2)
    votes = rng.random((60, 3, 2)) < 0.4
    found = agreement(votes, ["a", "b"])
    for index, one in enumerate(found):
        majority = votes[:, :, index].sum(axis=1) >= 2
        expected = [balanced_accuracy_score(majority, votes[:, reader, index]) for reader in range(3)]
        assert one.auroc == pytest.approx(tuple(expected), abs=1e-12)
        assert one.mean_auroc == pytest.approx(np.mean(expected), abs=1e-12)
        assert one.num_anomalous == majority.sum()
    unseen = agreement(np.zeros((5, 3, 1), dtype=bool), ["c"])[0]
    assert (unseen.kappa, unseen.auroc, unseen.mean_auroc) == (None, (None, None, None), None)
    with pytest.raises(CohortError, match="no majority"):
        agreement(votes[:, :2], ["a", "b"])


def test_the_real_readers_agree_as_the_data_sets_paper_says(real_data: Path) -> None:
    """Fleiss' kappa of CQ500's own paper, table 2 (Chilamkurthy et al. 2018), for findings that reads.csv holds."""
    reads = read_reads(real_data / "layout_facts/CQ500_reads.csv")
    found = {one.finding: one for one in agreement(reads.votes, reads.findings)}
    published = {
        "ich": 0.7827,
        "iph": 0.7746,
        "sdh": 0.5418,
        "edh": 0.6145,
        "sah": 0.6382,
        "calvarial_fracture": 0.4507,
    }
    assert {name: round(found[name].kappa or 0.0, 4) for name in published} == published
    assert found["fracture"].num_anomalous == 39
