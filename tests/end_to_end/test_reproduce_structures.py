"""A table of structures from nothing: CT phantoms with skulls, a budget, AUROC by structure, curves, surfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.image import imread
from sklearn.metrics import roc_auc_score

from vesalius.datasets.phantom import CohortSettings, PhantomSettings
from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import DataRequest, Protocol, load_protocol
from vesalius.infra.reproduce.cohort import make_cohorts
from vesalius.infra.reproduce.protocol import PreparedBy
from vesalius.methods import METHODS
from vesalius.platform.config import flatten, validate
from vesalius.platform.errors import CohortError
from vesalius.platform.evaluation import Structure, StructureTask
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADS = CohortSettings(
    num_train=6,
    num_validation=6,
    num_gate=0,
    num_test=15,
    phantom=PhantomSettings(
        shape=(24, 28, 27), box_mm=(192, 231, 219), center_mm=(0, -18, 0), modalities=("CT",), skull_stripped=False
    ),
    findings=("intraparenchymal", "fracture", "subdural", "metal", "fracture"),
)
BRAINS = CohortSettings(
    num_train=6, num_validation=6, num_gate=0, num_test=9, phantom=PhantomSettings(shape=(20, 22, 20))
)
LABELS = ("PPR m=2", "PPR s_p=19", "PPR s_p=23", "AE erosion m=2")
TASKS = {
    "ICH": [("left_hemisphere", "bleed_left"), ("right_hemisphere", "bleed_right")],
    "left": [("left_hemisphere", "bleed_left")],
    "right": [("right_hemisphere", "bleed_right")],
    "fracture": [("skull", "fracture")],
}


def quick() -> Protocol:
    """Return the paper's protocol with some of its rows, of other networks."""
    paper = load_protocol("position_regression_2022")
    # The paper's networks would be probed for minutes; these take as long as theirs would.
    rows = tuple(
        row.model_copy(update={"preset": "tiny", "settings": {**row.scaled, "epochs": 10_000_000}})
        for row in paper.rows
        if row.label in LABELS
    )
    return paper.model_copy(update={"rows": rows})


def by_hand(scores: ScoreStore, store: CohortStore, task: str) -> float:
    """AUROC of maxima, structure by structure and subject by subject."""
    values, labels = [], []
    for record in store.subjects("test"):
        if record.labels["artefact"]:
            continue
        structures = store.structures(record.subject_id)
        assert structures is not None
        for name, label in TASKS[task]:
            values.append(float(scores.map(record.subject_id)[structures == record.structures[name]].max()))
            labels.append(bool(record.labels[label]))
    return float(roc_auc_score(labels, values))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_figures_of_position_regression(
    tmp_path: Path, reproduced: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    # Side by side: each row measures its memory in a process of its own, from within one.
    document, _ = reproduced(quick(), tmp_path, budget="10s", phantom=HEADS, at_once=2)
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == [*LABELS, "intensity threshold", "healthy atlas"]
    store = CohortStore.open(document["data"]["store"])
    for row in rows.values():
        assert row["error"] is None
        scores = ScoreStore.open(tmp_path / "home" / "runs" / row["run"] / "scores" / "test")
        for task in TASKS:
            assert row["judged"][f"structure/{task}"] == pytest.approx(by_hand(scores, store, task)), (row, task)
        assert "structure/ICH" in row["judged"]["intervals"]
        settings = validate(lookup(METHODS, row["method"], "method").settings_type, row["settings"], "row")
        network = lookup(METHODS, row["method"], "method")(settings, store.facts())
        assert row["judged"]["parameters"] == sum(one.numel() for one in network.parameters())
        # Nothing is learnt by gradients without holding some.
        assert (row["judged"]["memory_mib"] is None) == (row["method"] in {"intensity_threshold", "healthy_atlas"})
        # The skull lies outside the brain: a map that is kept inside it would say nothing of fractures.
        assert flatten(settings)["map.voxels"] == "all"
    assert rows["PPR s_p=23"]["settings"]["network"]["patch_size"] == 23
    assert rows["PPR m=2"]["settings"]["patches"]["foreground"] == "head"
    expected = {f"roc of {task}" for task in TASKS} | {"parameters", "memory", "patch size", "surface of the skull"}
    assert expected | {"roc", "lesions", "quality"} == set(document["pictures"])
    for path in (*document["pictures"].values(), document["picture"]):
        assert imread(path).shape[0] > 300
    text = (tmp_path / "position_regression_2022.md").read_text()
    assert "AUROC of structures, by the highest value within each:" in text
    again, _ = reproduced(quick(), tmp_path, budget="10s", phantom=HEADS, at_once=2)
    assert again["rows"] == document["rows"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_figures_of_position_regression_on_brains_without_structures(
    tmp_path: Path, reproduced: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    paper = quick().model_copy(update={"phantom_recipe": PreparedBy(name="as_is")})
    document, said = reproduced(paper, tmp_path, budget="30s", phantom=BRAINS, at_once=2)
    words = "has none of the structures that the paper judges (left_hemisphere, right_hemisphere, skull)"
    assert words in " ".join(said.split())
    assert words in document["data"]["differs"][-1]
    store = CohortStore.open(document["data"]["store"])
    records = store.subjects("test")
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == [*LABELS, "intensity threshold", "healthy atlas"]
    for row in rows.values():
        assert row["error"] is None
        scores = ScoreStore.open(tmp_path / "home" / "runs" / row["run"] / "scores" / "test")
        values = [scores.record(record.subject_id).image_score for record in records]
        assert row["judged"]["auroc"] == pytest.approx(roc_auc_score([one.has_lesion for one in records], values))
        if row["method"] == "position_regression":
            assert row["settings"]["patches"]["foreground"] == "head"  # phantoms keep a head's mask
            assert row["judged"]["memory_mib"] > 0
    assert [section["title"] for section in document["sections"]] == ["Screening", "Screening at the Youden points"]
    assert set(document["pictures"]) == {"parameters", "memory", "patch size", "roc", "quality"}
    for path in (*document["pictures"].values(), document["picture"]):
        assert imread(path).shape[0] > 300
    again, _ = reproduced(paper, tmp_path, budget="30s", phantom=BRAINS, at_once=2)
    assert again["rows"] == document["rows"]


def test_a_table_of_structures_needs_them(tmp_path: Path) -> None:
    paper = load_protocol("position_regression_2022")
    cerebellum, hair = (
        StructureTask(name=name, structures=(Structure(name=name, label=label),))
        for name, label in (("cerebellum", "fracture"), ("skull", "dyed"))
    )
    few = HEADS.model_copy(update={"num_train": 2, "num_validation": 3, "num_test": 3})
    # The third of three is healthy, and of a healthy subject all is known.
    ill = few.model_copy(update={"num_test": 2})
    bare = few.model_copy(update={"findings": ("hydrocephalus",)})
    cases: list[tuple[dict[str, Any], CohortSettings, str]] = [
        ({}, bare, "holds no subject with one of the labels"),
        # One task of five without a case is enough for every row to fail.
        ({"tasks": (*paper.tasks, cerebellum)}, few, "holds no cerebellum in its test split: prepare it with"),
        ({"tasks": (*paper.tasks, hair)}, ill, "says of no subject of its test split whether it has dyed"),
    ]
    for number, (change, heads, words) in enumerate(cases):
        changed, out = paper.model_copy(update=change), tmp_path / str(number)
        with Terminal(True) as terminal, pytest.raises(CohortError, match=words):
            make_cohorts(terminal, changed, out, DataRequest(), finer=None, phantom=heads)
