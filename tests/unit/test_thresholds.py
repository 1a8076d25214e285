"""Thresholds as a stored rule: which voxels are anomalous, which components count, what a model's card keeps of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from pydantic import ValidationError
from scipy import ndimage
from typer.testing import CliRunner

from vesalius.infra import pipeline
from vesalius.infra.application import Answer, write_answer
from vesalius.infra.cli.app import app
from vesalius.infra.figures import HistogramPanel, draw_histogram
from vesalius.infra.figures.histogram import bars, share_above
from vesalius.platform.config import validate
from vesalius.platform.contracts import Score
from vesalius.platform.errors import SettingError
from vesalius.platform.evaluation import (
    Histogram,
    Threshold,
    VoxelSet,
    dice_at,
    drop_small_components,
    evaluate,
    mask_dice,
    subject_voxels,
)
from vesalius.platform.models import ModelCard, read_card
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import SubjectArrays

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore


def threshold(value: float = 0.5, **changes: Any) -> Threshold:
    plain = {"value": value, "policy": "best_dice", "split": "validation", "voxel_set": "all"}
    return Threshold.model_validate({**plain, **changes})


# ---- components


def staircase() -> np.ndarray:
    """Return six voxels that climb through three slices: neighbours across a face, an edge and a corner."""
    mask = np.zeros((6, 6, 5), dtype=bool)
    mask[0, 0, 0] = mask[1, 0, 0] = True  # across a face
    mask[2, 1, 0] = mask[2, 1, 1] = True  # across an edge, then the next slice
    mask[3, 2, 2] = mask[4, 3, 2] = True  # across a corner, then across an edge
    return mask


@pytest.mark.parametrize(("connectivity", "sizes"), [(6, [1, 1, 2, 2]), (18, [2, 4]), (26, [6])])
def test_who_touches_whom(connectivity: int, sizes: list[int]) -> None:
    mask = staircase()
    moved = {6: 1, 18: 2, 26: 3}[connectivity]
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(3, moved))
    assert sorted(np.bincount(labels.ravel())[1:].tolist()) == sizes
    for least in range(1, 8):
        kept = drop_small_components(mask, least, connectivity)  # type: ignore[arg-type]  # of the parameters
        assert kept.sum() == sum(size for size in sizes if size >= least)
        assert not (kept & ~mask).any()


def test_one_voxel_fewer_is_dropped_and_as_many_stay() -> None:
    mask = np.zeros((8, 8, 4), dtype=bool)
    mask[0, 0:5, 0] = True  # 5
    mask[4, 0:3, 1] = mask[5, 0:3, 1] = True  # 6, in a plane
    kept = drop_small_components(mask, 6)
    assert kept.sum() == 6
    assert not kept[0].any()
    assert np.array_equal(drop_small_components(mask, 5), mask)
    assert not drop_small_components(np.zeros((3, 3, 3), dtype=bool), 6).any()


def test_a_lesion_that_moves_from_slice_to_slice_is_one() -> None:
    mask = np.zeros((20, 20, 3), dtype=bool)
    for number in range(3):  # slices far apart: the outline moves by its own width
        mask[2 * number : 2 * number + 2, 2 * number : 2 * number + 2, number] = True
    assert mask.sum() == 12
    assert drop_small_components(mask, 6, 26).sum() == 12
    assert drop_small_components(mask, 6, 6).sum() == 0


def test_random_masks_against_a_flood_of_their_own() -> None:
    random = np.random.default_rng(3)
    for share in (0.05, 0.15, 0.3):
        mask = random.random((7, 9, 6)) < share
        expected = np.zeros_like(mask)
        left = {tuple(place) for place in np.argwhere(mask).tolist()}
        while left:
            waiting, component = [left.pop()], []
            while waiting:
                voxel = waiting.pop()
                component.append(voxel)
                near = {other for other in left if max(abs(a - b) for a, b in zip(voxel, other, strict=True)) <= 1}
                left -= near
                waiting.extend(near)
            for voxel in component if len(component) >= 4 else []:
                expected[voxel] = True
        assert np.array_equal(drop_small_components(mask, 4), expected)


def test_dice_of_masks() -> None:
    truth, found = np.zeros((4, 4, 4), dtype=bool), np.zeros((4, 4, 4), dtype=bool)
    truth[0, 0, :4], found[0, 0, 2:4], found[3, 3, 3] = True, True, True
    assert mask_dice(found, truth) == pytest.approx(2 * 2 / (4 + 3))
    assert mask_dice(found, np.zeros_like(truth)) is None


# ---- what a threshold keeps


def test_old_cards_load_and_new_ones_say_all(toy_store: CohortStore) -> None:
    old = {"value": 0.25, "policy": "quantile", "split": "validation", "voxel_set": "all"}
    card = {
        "method": "m",
        "settings": {},
        "cohort": toy_store.facts().model_dump(mode="json"),
        "recipe": {},
        "thresholds": {"all": old},
    }
    read = validate(ModelCard, card, "card").thresholds["all"]
    assert (read.quantile, read.min_component) == (None, 1)
    kept = threshold(policy="quantile", quantile=0.98, split="train", min_component=6)
    assert Threshold.model_validate_json(kept.model_dump_json()) == kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantile": 0.98}, "policy best_dice has no quantile"),
        ({"policy": "quantile", "quantile": 1.0}, "less than 1"),
        ({"min_component": 0}, "greater than or equal to 1"),
    ],
)
def test_what_a_threshold_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        threshold(**changes)


def test_a_rule_says_what_would_be_passed_over() -> None:
    with pytest.raises(SettingError, match="quantile goes with the policy quantile"):
        validate(pipeline.ThresholdRule, {"policy": "best_dice", "quantile": 0.9}, "threshold")


# ---- a run judged by it


@pytest.fixture(scope="module")
def run(toy_store: CohortStore, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    home = tmp_path_factory.mktemp("home")
    started = pipeline.start_run(
        "healthy_atlas",
        toy_store.path,
        home=home,
        assignments=["training.threads=1", "method.map.average_pool=1"],
        num_workers=0,
        name="atlas",
    )
    pipeline.train(started)
    return started


def test_the_quantile_of_the_training_residuals_is_kept_with_the_model(run: RunFolder, toy_store: CohortStore) -> None:
    rule = pipeline.ThresholdRule(policy="quantile", quantile=0.9, split="train", min_component=6)
    figures = pipeline.evaluate_run(run, "test", rule=rule)
    kept = read_card(run.model).thresholds
    train = ScoreStore.open(run.scores("train"))
    assert len(train.records) == 6
    for voxel_set, one in kept.items():
        assert (one.policy, one.split, one.quantile, one.min_component) == ("quantile", "train", 0.9, 6)
        assert figures["brain" if voxel_set == "brain" else "all"].threshold == one
        inside = [
            train.map(r.subject_id)[toy_store.brain(r.subject_id)] if voxel_set == "brain" else train.map(r.subject_id)
            for r in train.records
        ]
        values = np.concatenate([part.ravel() for part in inside]).astype(np.float64)
        assert (values >= one.value).mean() <= 0.1 + 1e-9
    # Back to the default rule: the model keeps the new threshold, and nothing of the old one.
    pipeline.evaluate_run(run, "test")
    again = read_card(run.model).thresholds["all"]
    assert (again.policy, again.split, again.quantile, again.min_component) == ("best_dice", "validation", None, 1)


def test_small_components_count_in_the_dice_of_a_subject_and_nowhere_else(
    run: RunFolder, toy_store: CohortStore
) -> None:
    scores = pipeline.score_run(run, "test")
    low = float(np.quantile(scores.map("test-00").astype(np.float64), 0.9))  # low enough for specks
    one: dict[VoxelSet, Threshold] = {"all": threshold(low), "brain": threshold(low, voxel_set="brain")}
    six = {name: cut.model_copy(update={"min_component": 6}) for name, cut in one.items()}
    without, dropped = evaluate(scores, toy_store, one), evaluate(scores, toy_store, six)
    changed = 0
    for name in ("all", "brain"):
        before, after = without[name], dropped[name]
        assert (before.best_dice, before.average_precision) == (after.best_dice, after.average_precision)
        for subject, dice in after.per_subject.items():
            voxels = subject_voxels(scores, toy_store, toy_store.record(subject))
            assert voxels is not None
            assert voxels.lesion is not None
            found, truth = voxels.score_map >= one[name].value, voxels.lesion
            inside = voxels.inside[name]
            if inside is not None:
                found, truth = found & inside, truth & inside
            labels, num = ndimage.label(found, np.ones((3, 3, 3)))
            large = [n for n in range(1, num + 1) if (labels == n).sum() >= 6]
            assert dice == pytest.approx(mask_dice(np.isin(labels, large), truth))
            assert before.per_subject[subject] == pytest.approx(mask_dice(found, truth))
            changed += dice != before.per_subject[subject]
    assert changed


def test_dice_from_the_map_and_from_the_counts_agree(run: RunFolder, toy_store: CohortStore) -> None:
    scores = pipeline.score_run(run, "test")
    voxels = subject_voxels(scores, toy_store, toy_store.record("test-00"))
    assert voxels is not None
    for cut in (0.5, 1.0, 2.0):
        assert voxels.dice("brain", cut, 1) == pytest.approx(dice_at(voxels.histogram("brain"), cut))


def test_the_millilitres_of_a_file_leave_small_components_out(toy_store: CohortStore) -> None:
    record = toy_store.subjects("test")[0]
    arrays = SubjectArrays(image=toy_store.image(record.subject_id), brain=toy_store.brain(record.subject_id))
    score_map = torch.zeros(record.shape)
    score_map[0, 0, 0:3] = 1.0
    score_map[4, 4, 0:7] = 1.0
    ml = []
    for least in (1, 6):
        card = ModelCard(
            method="toy",
            settings={},
            cohort=toy_store.facts(),
            recipe=toy_store.recipe,
            thresholds={"all": threshold(min_component=least)},
        )
        answer = Answer(record=record, arrays=arrays, score=Score(map=score_map, image_score=1.0), seconds=0, card=card)
        ml.append(answer.anomalous_ml)
    assert ml == pytest.approx([10 * 8 / 1000, 7 * 8 / 1000])


def test_further_maps_of_a_score_are_written(toy_store: CohortStore, tmp_path: Path) -> None:
    import nibabel

    record = toy_store.subjects("test")[0]
    arrays = SubjectArrays(image=toy_store.image(record.subject_id), brain=toy_store.brain(record.subject_id))
    spread = torch.arange(int(np.prod(record.shape)), dtype=torch.float32).reshape(record.shape)
    score = Score(map=torch.ones(record.shape), image_score=1.0, extras={"spread": spread})
    card = ModelCard(method="toy", settings={}, cohort=toy_store.facts(), recipe=toy_store.recipe)
    answer = Answer(record=record, arrays=arrays, score=score, seconds=0, card=card)
    written = write_answer(answer, tmp_path, "one")
    assert set(written) == {"map", "extras_spread", "picture"}
    assert np.array_equal(np.asarray(nibabel.load(written["extras_spread"]).dataobj), spread.numpy())


# ---- the verb, and the figure


def test_the_verb_takes_the_papers_rule_and_draws_the_histogram(run: RunFolder, tmp_path: Path) -> None:
    home = run.path.parent.parent
    options = ["--policy", "quantile", "--threshold-split", "train", "--min-component", "6", "--home", home]
    done = CliRunner().invoke(
        app, list(map(str, ["evaluate", "atlas", *options, "--histogram", tmp_path / "h.png", "--json"]))
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["figures"][0]["threshold"]["quantile"] == 0.98
    assert min(imread(document["histogram"]).shape[:2]) > 400
    for arguments, words in (
        (["--quantile", "0.9"], "quantile goes with the policy quantile"),
        (["--policy", "quantile", "--quantile", "98"], "less than 1"),
    ):
        refused = CliRunner().invoke(app, ["evaluate", "atlas", "--home", str(home), *arguments])
        assert refused.exit_code == 2
        assert words in " ".join(refused.stderr.split())


def test_bars_are_exact_shares() -> None:
    values, counts = np.array([0.0, 0.25, 0.5, 1.0]), np.array([6, 2, 1, 1])
    assert bars(counts, values, np.array([0.0, 0.5, 1.0])).tolist() == [0.8, 0.2]
    assert share_above(counts, values, 0.5) == pytest.approx(0.2)


def test_a_histogram_of_several_methods_is_one_sheet(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    score_map = random.gamma(1.0, 0.1, (20, 20, 20)).astype(np.float16)
    lesion = np.zeros((20, 20, 20), dtype=bool)
    lesion[:4, :4, :4] = True
    counts = Histogram.of(score_map, lesion)
    panels = [
        HistogramPanel(name=name, counts=counts, threshold=0.3, how="98 % of training voxels") for name in ("a", "b")
    ]
    panels.append(HistogramPanel(name="healthy only", counts=Histogram.of(score_map, None)))
    path = draw_histogram(panels, tmp_path / "h.png", title="t", caption="c")
    assert imread(path).shape[1] > imread(draw_histogram(panels[:1], path, title="t", caption="c")).shape[1] > 500
