"""A table of whole images from nothing: phantoms with findings, a budget, ROC, kinds of lesion, quality control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.image import imread
from sklearn.metrics import average_precision_score, roc_auc_score

from vesalius.datasets.phantom import CohortSettings, Finding, PhantomSettings
from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import DataRequest, Protocol, load_protocol
from vesalius.infra.reproduce.cohort import make_cohorts
from vesalius.platform.errors import CohortError
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS: tuple[Finding, ...] = ("epidural", "subdural", "noise", "wrong_orientation")
HEADS = CohortSettings(
    num_train=6,
    num_validation=6,
    num_gate=0,
    num_test=12,
    phantom=PhantomSettings(shape=(16, 16, 16), modalities=("CT",)),
    findings=KINDS,
)
LABELS = ("3D f-AnoGAN", "3D without fine-tuning", "2D f-AnoGAN")


def quick() -> Protocol:
    """Return the paper's protocol with other networks."""
    paper = load_protocol("f_anogan_3d_2020")
    # The paper's networks take gigabytes, which no test should; these take as long as theirs would.
    rows = tuple(
        row.model_copy(update={"preset": "tiny", "settings": {**row.settings, "game.epochs": 100_000}})
        for row in paper.rows
    )
    return paper.model_copy(update={"rows": rows})


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_table_of_the_3d_f_anogan(tmp_path: Path, reproduced: Callable[..., tuple[dict[str, Any], str]]) -> None:
    document, _ = reproduced(quick(), tmp_path, budget="25s", phantom=HEADS)
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == [*LABELS, "intensity threshold", "healthy atlas"]
    store = CohortStore.open(document["data"]["store"])
    records = store.subjects("test")
    spoilt = [any(record.labels[name] for name in ("artefact", "wrong_orientation")) for record in records]
    for row in rows.values():
        assert row["error"] is None
        # By hand, from the scores on disk.
        scores = ScoreStore.open(tmp_path / "home" / "runs" / row["run"] / "scores" / "test")
        values = [scores.record(record.subject_id).image_score for record in records]
        screened = [
            (value, record.has_lesion) for value, record, bad in zip(values, records, spoilt, strict=True) if not bad
        ]
        judged = row["judged"]
        assert judged["auroc"] == pytest.approx(roc_auc_score([y for _, y in screened], [x for x, _ in screened]))
        edh = [
            (v, r.labels["edh"]) for v, r in zip(values, records, strict=True) if r.labels["edh"] or not r.has_lesion
        ]
        expected = average_precision_score([y for _, y in edh], [x for x, _ in edh])
        assert judged["lesion/edh"] == pytest.approx(expected)
        assert set(row["level"]["quality"]) == {"artefact", "wrong_orientation"}
        assert row["level"]["at_validation"]["chosen_on"] == "validation"
        assert row["level"]["at_own"]["chosen_on"] == "test"
        assert judged["own_sensitivity"] + judged["own_specificity"] >= judged["sensitivity"] + judged["specificity"]
        assert "auroc" in judged["intervals"]
    assert rows["3D f-AnoGAN"]["published"]["figures"]["auroc"] == 0.75
    assert all(rows[label]["scale"]["scaled"] for label in LABELS)
    assert rows["3D f-AnoGAN"]["settings"]["fine_tuning"]["epochs"] > 0
    assert rows["3D without fine-tuning"]["settings"]["fine_tuning"]["epochs"] == 0
    assert set(document["pictures"]) == {"roc", "lesions", "quality"}
    for path in (*document["pictures"].values(), document["picture"]):
        assert imread(path).shape[0] > 300
    text = (tmp_path / "f_anogan_3d_2020.md").read_text()
    assert "| 3D f-AnoGAN | 2500 | paper | 0.750 |  |  |  |  |" in text
    assert "| 3D f-AnoGAN | 2500 | paper |  |  | 0.708 | 0.541 | 0.867 |" in text
    assert [line for line in text.splitlines() if line.endswith(":")] == [
        "Screening:",
        "Screening at the Youden points:",
        "Average precision by kind of lesion, against all healthy images:",
        "AUROC of quality control, against all healthy images:",
    ]
    again, _ = reproduced(quick(), tmp_path, budget="25s", phantom=HEADS)
    assert again["rows"] == document["rows"]


def test_a_table_of_images_needs_both_kinds(tmp_path: Path) -> None:
    # One test subject has a finding, and the second would; the third would be healthy.
    heads = HEADS.model_copy(update={"num_test": 2})
    with Terminal(True) as terminal, pytest.raises(CohortError, match="holds no healthy subject in its test split"):
        make_cohorts(terminal, load_protocol("f_anogan_3d_2020"), tmp_path, DataRequest(), finer=None, phantom=heads)
    # All that is wrong with the others is the image, which is no case.
    spoilt = HEADS.model_copy(update={"num_test": 3, "findings": ("noise",)})
    with Terminal(True) as terminal, pytest.raises(CohortError, match="holds no subject known to be anomalous"):
        make_cohorts(
            terminal, load_protocol("f_anogan_3d_2020"), tmp_path / "b", DataRequest(), finer=None, phantom=spoilt
        )
