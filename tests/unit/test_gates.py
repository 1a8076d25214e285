"""Gates by themselves: files, figures counted by hand, bounds against closed forms and plain bootstraps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from vesalius.platform.contracts import CohortFacts
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.evaluation import Histogram, Threshold, paired_bootstrap, paired_image_auroc
from vesalius.platform.models import ModelCard
from vesalius.platform.registry.gates import (
    BetterGate,
    Evidence,
    FalsePositivesGate,
    Gates,
    Judged,
    Lineage,
    LineageGate,
    SecondsGate,
    SubgroupsGate,
    Timing,
    Verdict,
    check_subgroups,
    default_gates_text,
    judge,
    read_gates,
    upper_bound_of_mean,
)
from vesalius.platform.scoring import ScoreRecord
from vesalius.platform.store import SubjectRecord

if TYPE_CHECKING:
    from pathlib import Path

AFFINE = ((2.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))
SHAPE = (4, 5, 6)
Arrays = dict[str, Any]


class Scores:
    """Maps in memory, in the place of a score store."""

    def __init__(self, maps: dict[str, np.ndarray], images: dict[str, float] | None = None) -> None:
        self.maps = maps
        self.images = images or {}

    def map(self, subject_id: str) -> np.ndarray:
        return self.maps[subject_id]

    def record(self, subject_id: str) -> ScoreRecord:
        return ScoreRecord(
            subject_id=subject_id,
            image_score=self.images.get(subject_id, float(self.maps[subject_id].max())),
            seconds=0.1,
            has_lesion=False,
            channels=("T1w",),
            shape=SHAPE,
            spacing_mm=(2.0, 2.0, 2.0),
            affine=AFFINE,
        )


class Store:
    """Masks in memory, in the place of a cohort store."""

    def __init__(self, lesions: dict[str, np.ndarray], brain: np.ndarray) -> None:
        self.lesions = lesions
        self.inside = brain

    def mask(self, subject_id: str, role: str) -> np.ndarray | None:
        return self.lesions.get(subject_id)

    def brain(self, subject_id: str) -> np.ndarray:
        return self.inside


def subject(subject_id: str, *, lesion: bool = False, **facts: Any) -> SubjectRecord:
    return SubjectRecord(
        subject_id=subject_id,
        split="gate",
        channels=("T1w",),
        shape=SHAPE,
        spacing_mm=(2.0, 2.0, 2.0),
        affine=AFFINE,
        has_lesion=lesion,
        **facts,
    )


def card(**changes: Any) -> ModelCard:
    facts = CohortFacts(
        subjects=("a",), grid=SHAPE, spacing_mm=(2.0, 2.0, 2.0), affine=AFFINE, channels=("T1w",), digest="d" * 64
    )
    values: dict[str, Any] = {
        "method": "toy",
        "settings": {"k": 1},
        "cohort": facts,
        "recipe": {"name": "toy"},
        "thresholds": {
            "all": Threshold(value=0.5, policy="best_dice", split="validation", voxel_set="all"),
            "brain": Threshold(value=0.5, policy="best_dice", split="validation", voxel_set="brain", min_component=2),
        },
        "run_id": "run",
        "vesalius_version": "1",
        "weights_sha256": "w" * 64,
    }
    return ModelCard(**{**values, **changes})


def evidence(
    records: list[SubjectRecord],
    candidate: dict[str, np.ndarray],
    champion: dict[str, np.ndarray] | None,
    lesions: dict[str, np.ndarray],
    *,
    brain: np.ndarray | None = None,
    voxel_set: Any = "all",
    model: ModelCard | None = None,
    **more: Any,
) -> Evidence:
    store: Any = Store(lesions, np.ones(SHAPE, dtype=bool) if brain is None else brain)
    model = model or card()

    def judged(maps: dict[str, np.ndarray]) -> Judged:
        scores: Any = Scores(maps, more.get("images"))
        return Judged.of(model, scores, store, records, voxel_set)

    return Evidence(
        store=store,
        subjects=records,
        candidate=judged(candidate),
        champion=None if champion is None else judged(champion),
        champion_version=None if champion is None else "3",
        lineage=more.get("lineage", Lineage()),
        timed=more.get("timed", lambda num: Timing(seconds=[1.0] * num, device="a clock", kind="cpu")),
    )


def empty_map(value: float = 0.0) -> np.ndarray:
    return np.full(SHAPE, value, dtype=np.float16)


# ---- the file


def test_the_shipped_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(default_gates_text())
    assert read_gates(path) == Gates()
    assert Gates().asked == ["better"]


def test_what_the_shipped_file_suggests_can_be_asked(tmp_path: Path) -> None:
    text = "\n".join(
        line.removeprefix("# ") if not line.startswith(("# The gates", "# Every key")) else ""
        for line in default_gates_text().splitlines()
    )
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    gates = read_gates(path)
    assert gates.asked == ["better", "false_positives", "subgroups", "seconds", "lineage"]
    assert gates.subgroups == SubgroupsGate()
    assert gates.lineage == LineageGate()
    assert gates.false_positives == FalsePositivesGate(limit=0.02)
    assert gates.seconds == SecondsGate(limit=60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bettr: {}", "did you mean 'better'?"),
        ("better: {margn: 0.1}", "did you mean 'better.margin'?"),
        ("false_positives: {limt: 0.1}", "did you mean 'false_positives.limit'?"),
        ("false_positives: {measure: share}", "false_positives.limit: field required"),
        ("better: {confidence: 2}", "better.confidence"),
        ("better: {figure: accuracy}", "better.figure"),
        ("better: {margin: .nan}", "better.margin"),
        ("subgroups: {by: [scanner]}", "expected group, labels.NAME or demographics.NAME"),
        ("subgroups: {by: [demographics.age], bins: {demographics.age: [60, 40]}}", "must rise"),
        ("lineage: {required: [digest]}", "lineage.required.0"),
        ("better: null", "asks nothing"),
        ("[1, 2]", "holds no gates"),
        ("a: &x [1]\nb: *x", "refers to other places by \\*"),
        ("better: {", "is no YAML"),
        ("better: " + 3000 * "[", "nested too deeply|is no YAML"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_a_gate_file_that_cannot_be_used_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=words) as caught:
        read_gates(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_is_a_gate_file_too(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    path.write_text(Gates(seconds=SecondsGate(limit=3)).model_dump_json(indent=1))
    assert read_gates(path) == Gates(seconds=SecondsGate(limit=3))
    with pytest.raises(SettingError, match="cannot be read"):
        read_gates(tmp_path / "none.yaml")


# ---- false positives


def healthy_maps() -> dict[str, np.ndarray]:
    first, second = empty_map(), empty_map()
    first[0, 0, 0:3] = 0.5  # three voxels, on the threshold
    first[3, 4, 5] = 0.9  # one by itself
    second[1, 1, 1] = 0.4995  # just below
    return {"h1": first, "h2": second, "h3": empty_map(), "ill": empty_map(1.0)}


RECORDS = [subject("h1"), subject("h2"), subject("h3"), subject("ill", lesion=True)]


def test_false_positives_are_those_counted_by_hand() -> None:
    asked = FalsePositivesGate(limit=0.03)
    found = judge(
        Gates(better=None, false_positives=asked),
        evidence(RECORDS, healthy_maps(), None, {"ill": np.ones(SHAPE, dtype=bool)}),
    )[0][0]
    # 4 of 120 voxels in the first, none in the others; the subject with a lesion does not count.
    shares = [4 / 120, 0.0, 0.0]
    assert [one["voxels"] for one in found.details] == [4, 0, 0]
    assert [one["ml"] for one in found.details] == pytest.approx([4 * 8 / 1000, 0, 0])
    assert found.figure == pytest.approx(np.mean(shares))
    bound = np.mean(shares) + stats.t.ppf(0.95, 2) * np.std(shares, ddof=1) / np.sqrt(3)
    assert found.bound == pytest.approx(bound)
    assert found.num_subjects == 3
    assert found.outcome == "failed"  # the mean would pass, its bound does not
    assert found.figure is not None
    assert found.bound is not None
    assert found.figure < asked.limit < found.bound
    enough = Gates(better=None, false_positives=asked.model_copy(update={"limit": float(bound) + 1e-9}))
    assert judge(enough, evidence(RECORDS, healthy_maps(), None, {}))[0][0].outcome == "passed"


def test_false_positives_know_the_voxel_set_and_the_components() -> None:
    brain = np.zeros(SHAPE, dtype=bool)
    brain[0:2] = True  # the lone voxel lies outside, and components of one are dropped inside
    maps = healthy_maps()
    maps["h2"][1, 3, 3] = 0.8
    found = judge(
        Gates(better=None, voxel_set="brain", false_positives=FalsePositivesGate(limit=1, measure="ml")),
        evidence(RECORDS, maps, None, {"ill": np.ones(SHAPE, dtype=bool)}, brain=brain, voxel_set="brain"),
    )[0][0]
    assert [one["voxels"] for one in found.details] == [3, 0, 0]
    assert [one["share"] for one in found.details] == pytest.approx([3 / 60, 0, 0])
    assert found.figure == pytest.approx(3 * 8 / 1000 / 3)
    assert found.unit == "ml"
    assert "0.008 ml" in found.sentence


@pytest.mark.parametrize(
    ("records", "model", "words"),
    [
        (RECORDS[:1] + RECORDS[3:], None, "holds 1 healthy subjects and 2 are asked for"),
        (RECORDS, card(thresholds={}), "has no threshold for the voxel set 'all'"),
    ],
)
def test_false_positives_that_cannot_be_told_fail(
    records: list[SubjectRecord], model: ModelCard | None, words: str
) -> None:
    gates = Gates(better=None, false_positives=FalsePositivesGate(limit=1))
    masks = {"ill": np.ones(SHAPE, dtype=bool)}
    (found,), _ = judge(gates, evidence(records, healthy_maps(), None, masks, model=model))
    assert found.outcome == "cannot be evaluated"
    assert not found.passes
    assert words in found.sentence


def test_the_bound_of_a_mean_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    draws = random.normal(1.0, 0.3, size=(4000, 4))
    covered = np.mean([upper_bound_of_mean(list(row), 0.9)[1] >= 1.0 for row in draws])
    assert covered == pytest.approx(0.9, abs=0.015)


# ---- candidate and champion


def cohort(
    num: int, seed: int, good: float
) -> tuple[list[SubjectRecord], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return subjects in two groups with lesions, maps of a candidate and a champion, and lesion masks."""
    random = np.random.default_rng(seed)
    records, first, second, lesions = [], {}, {}, {}
    for index in range(num):
        name = f"s{index:02d}"
        group = "left" if index % 2 else "right"
        records.append(
            subject(
                name,
                lesion=True,
                group=group,
                labels={"scanner": "abc"[index % 3]},
                demographics={"age": 20.0 + 5 * index},
            )
        )
        lesion = random.random(SHAPE) < 0.2
        lesion[0, 0, 0] = True
        noise = random.random((2, *SHAPE))
        lift = good if group == "right" else -good
        first[name] = (noise[0] + (0.5 + lift) * lesion).astype(np.float16)
        second[name] = (noise[1] + 0.5 * lesion).astype(np.float16)
        lesions[name] = lesion
    return records, first, second, lesions


def plain_bootstrap(ids: list[str], first: Any, second: Any, lesions: Any, num: int, seed: int) -> np.ndarray:
    """Resample subjects, pool their voxels, and ask scikit-learn: nothing of ours but the draws."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=num)
    differences = []
    for row in drawn:
        chosen = [name for name, times in zip(ids, row, strict=True) for _ in range(times)]
        truth = np.concatenate([lesions[name].ravel() for name in chosen])
        a, b = (np.concatenate([maps[name].astype(float).ravel() for name in chosen]) for maps in (first, second))
        differences.append(average_precision_score(truth, a) - average_precision_score(truth, b))
    return np.array(differences)


def test_a_subgroups_bound_is_that_of_a_plain_bootstrap_within_it() -> None:
    records, first, second, lesions = cohort(10, 3, 0.4)
    gates = Gates(num_resamples=200, seed=4, subgroups=SubgroupsGate(by=("group",), worse_by=0.05, confidence=0.9))
    verdicts, comparison = judge(gates, evidence(records, first, second, lesions))
    assert [verdict.gate for verdict in verdicts] == ["better", "subgroups"]
    found = {one["value"]: one for one in verdicts[1].details}
    for group in ("left", "right"):
        ids = [record.subject_id for record in records if record.group == group]
        reference = plain_bootstrap(ids, first, second, lesions, 200, 4)
        assert found[group]["lower_bound"] == pytest.approx(np.quantile(reference, 0.1), abs=1e-9)
        assert found[group]["low"] == pytest.approx(np.quantile(reference, 0.05), abs=1e-9)
        assert found[group]["num_subjects"] == found[group]["num_lesions"] == 5
        assert found[group]["passed"] == (found[group]["lower_bound"] > -0.05)
    assert found["right"]["passed"]
    assert not found["left"]["passed"]
    assert verdicts[1].outcome == "failed"
    assert "1 of 2 subgroups may be worse by more than 0.05: group left" in verdicts[1].sentence
    assert comparison is not None
    assert comparison.num_subjects == 10
    lenient = Gates(num_resamples=200, seed=4, subgroups=SubgroupsGate(worse_by=0.9, confidence=0.9))
    assert judge(lenient, evidence(records, first, second, lesions))[0][1].outcome == "passed"


def test_a_failing_gate_hides_no_other() -> None:
    records, first, second, lesions = cohort(10, 3, -0.4)
    gates = Gates(
        num_resamples=100,
        false_positives=FalsePositivesGate(limit=0),
        subgroups=SubgroupsGate(),
        seconds=SecondsGate(limit=0.5),
        lineage=LineageGate(),
    )
    verdicts, _ = judge(gates, evidence(records, first, second, lesions, model=card(run_id="", thresholds={})))
    assert [(one.gate, one.passes) for one in verdicts] == [
        ("better", False),
        ("false_positives", False),
        ("subgroups", False),
        ("seconds", False),
        ("lineage", False),
    ]
    assert all(one.sentence for one in verdicts)
    assert {one["item"] for one in verdicts[4].details if one["missing"]} == {"run_id", "thresholds", "parent"}


def test_without_a_champion_what_compares_does_not_apply() -> None:
    records, first, _, lesions = cohort(8, 3, 0.2)
    verdicts, comparison = judge(Gates(subgroups=SubgroupsGate()), evidence(records, first, None, lesions))
    assert [one.outcome for one in verdicts] == ["does not apply", "does not apply"]
    assert all(one.passes for one in verdicts)
    assert comparison is None


def test_small_subgroups_are_named_and_not_judged() -> None:
    records, first, second, lesions = cohort(9, 3, 0.2)
    gates = Gates(num_resamples=100, subgroups=SubgroupsGate(by=("labels.scanner",), min_lesions=4))
    (_, found), _ = judge(gates, evidence(records, first, second, lesions))
    assert found.outcome == "cannot be evaluated"
    assert [one["value"] for one in found.details] == ["a", "b", "c"]
    assert all("3 of its subjects have a lesion, 4 are asked for" in one["why_not"] for one in found.details)


def test_numbers_are_told_apart_by_bins() -> None:
    records, first, second, lesions = cohort(10, 3, 0.0)  # ages 20, 25, ... 65
    asked = SubgroupsGate(by=("demographics.age",), bins={"demographics.age": (25, 50)}, min_lesions=2, worse_by=1)
    (_, found), _ = judge(Gates(num_resamples=100, subgroups=asked), evidence(records, first, second, lesions))
    assert [(one["value"], one["num_subjects"]) for one in found.details] == [
        ("below 25", 1),
        ("25 to below 50", 5),
        ("from 50", 4),
    ]
    assert found.outcome == "passed"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (SubgroupsGate(by=("labels.scaner",)), "did you mean 'labels.scanner'?"),
        (SubgroupsGate(by=("demographics.site",)), "no gate subject has 'demographics.site'"),
        (SubgroupsGate(by=("group",), bins={"grup": (1,)}), "did you mean 'group'?"),
        (SubgroupsGate(by=("labels.scanner",), bins={"labels.scanner": (1,)}), "which is no number"),
    ],
)
def test_a_label_that_is_not_there_is_an_error_and_no_verdict(asked: SubgroupsGate, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        check_subgroups(Gates(subgroups=asked), cohort(4, 0, 0.0)[0])


def test_the_margin_is_exceeded_or_not() -> None:
    records, first, second, lesions = cohort(12, 3, 0.4)
    first = {name: (values + 1.0 * lesions[name]).astype(np.float16) for name, values in first.items()}
    (plain,), result = judge(Gates(num_resamples=200), evidence(records, first, second, lesions))
    assert result is not None
    assert plain.outcome == "passed"
    assert (plain.bound, plain.figure) == (result.lower_bound, result.difference)
    for margin, outcome in ((result.lower_bound - 1e-6, "passed"), (result.lower_bound, "failed")):
        gates = Gates(num_resamples=200, better=BetterGate(margin=margin))
        (found,), _ = judge(gates, evidence(records, first, second, lesions))
        assert found.outcome == outcome


@pytest.mark.parametrize("figure", ["best_dice", "auroc", "fpr_at_95_recall"])
def test_another_figure_decides_where_it_is_asked(figure: Any) -> None:
    records, first, second, lesions = cohort(8, 3, 0.3)
    first = {name: (values + lesions[name]).astype(np.float16) for name, values in first.items()}
    (found,), result = judge(
        Gates(num_resamples=100, better=BetterGate(figure=figure)), evidence(records, first, second, lesions)
    )
    mine, theirs = (
        [Histogram.of(maps[one.subject_id], lesions[one.subject_id]) for one in records] for maps in (first, second)
    )
    assert result == paired_bootstrap(mine, theirs, figure, num=100, seed=0)
    assert found.outcome == "passed"


def test_image_scores_are_compared_as_a_plain_bootstrap_does() -> None:
    random = np.random.default_rng(1)
    labels = [index % 2 == 0 for index in range(14)]
    a, b = (random.normal(size=14) + lift * np.array(labels) for lift in (2.0, 0.5))
    found = paired_image_auroc(list(a), list(b), labels, num=300, seed=2, confidence=0.9)
    drawn = np.random.default_rng(2).multinomial(14, np.full(14, 1 / 14), size=300)
    differences = []
    for row in drawn:
        chosen = np.repeat(np.arange(14), row)
        truth = np.array(labels)[chosen]
        if truth.any() and not truth.all():
            differences.append(roc_auc_score(truth, a[chosen]) - roc_auc_score(truth, b[chosen]))
    assert found.a == pytest.approx(roc_auc_score(labels, a))
    assert found.lower_bound == pytest.approx(np.quantile(differences, 0.1))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.05, 0.95])))
    with pytest.raises(CohortError, match="needs healthy and anomalous subjects"):
        paired_image_auroc([1.0], [2.0], [True])


def test_images_without_healthy_subjects_cannot_be_compared() -> None:
    records, first, second, lesions = cohort(8, 3, 0.3)
    (found,), _ = judge(Gates(better=BetterGate(figure="image_auroc")), evidence(records, first, second, lesions))
    assert found.outcome == "cannot be evaluated"
    assert not found.passes


# ---- speed and lineage


def test_the_median_decides_and_the_device_is_said() -> None:
    timing = Timing(seconds=[9.0, 1.0, 2.0], device="Some Processor (2 threads)", kind="cpu")
    looked = evidence(RECORDS, healthy_maps(), None, {"ill": np.ones(SHAPE, dtype=bool)}, timed=lambda num: timing)
    for limit, device, outcome in ((2.0, None, "passed"), (1.9, "cpu", "failed"), (5.0, "cuda", "cannot be evaluated")):
        (found,), _ = judge(Gates(better=None, seconds=SecondsGate(limit=limit, device=device)), looked)
        assert found.outcome == outcome
        assert found.figure == 2.0
        assert "Some Processor (2 threads)" in found.sentence


def test_lineage_names_what_is_missing() -> None:
    gates = Gates(better=None, lineage=LineageGate())
    masks = {"ill": np.ones(SHAPE, dtype=bool)}
    for lineage, passes in (
        (Lineage(parent=""), True),
        (Lineage(parent="other@gan", parent_digest="p" * 64), True),
        (Lineage(parent="other@gan"), False),
        (Lineage(), False),
    ):
        (found,), _ = judge(gates, evidence(RECORDS, healthy_maps(), None, masks, lineage=lineage))
        assert found.passes == passes, lineage
    full = evidence(RECORDS, healthy_maps(), None, masks, lineage=Lineage(parent=""))
    for change, item in (
        ({"recipe": {}}, "recipe_digest"),
        ({"vesalius_version": ""}, "code_version"),
        ({"run_id": ""}, "run_id"),
        ({"weights_sha256": ""}, "weights"),
        ({"thresholds": {}}, "thresholds"),
    ):
        poorer = replace(full, candidate=replace(full.candidate, card=card(**change)))
        (found,), _ = judge(gates, poorer)
        assert [one["item"] for one in found.details if one["missing"]] == [item]
        assert item in found.sentence


def test_a_verdict_says_whether_it_stands_in_the_way() -> None:
    outcomes: dict[Any, bool] = {"passed": True, "does not apply": True, "failed": False, "cannot be evaluated": False}
    for outcome, passes in outcomes.items():
        assert Verdict(gate="x", outcome=outcome, sentence="").passes is passes


def test_the_default_file_is_plain_yaml() -> None:
    assert set(yaml.safe_load(default_gates_text())) <= set(Gates.model_fields)
