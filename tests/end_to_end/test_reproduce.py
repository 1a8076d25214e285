"""Two rows of a paper's table, from nothing: phantoms, a budget, both baselines; and again, without work."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import typer
from matplotlib.image import imread
from scipy import ndimage

from vesalius.datasets.phantom import CohortSettings, PhantomSettings
from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import DataRequest, load_protocol, reproduce
from vesalius.methods.anogan import AnoGAN
from vesalius.methods.anogan.settings import demo
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADS = CohortSettings(
    num_train=4,
    num_validation=3,
    num_gate=0,
    num_test=4,
    phantom=PhantomSettings(shape=(20, 20, 20), modalities=("FLAIR",)),
)
SMALL = CohortSettings(
    num_train=6,
    num_validation=3,
    num_gate=0,
    num_test=4,
    phantom=PhantomSettings(shape=(16, 16, 16), modalities=("T2w",)),
)
ROWS = ("IF 3D", "IF 3D*")
TRIVIAL = ("intensity threshold", "healthy atlas", "healthy atlas min 3 mean 15", "healthy atlas mean 7")


def test_a_row_of_2018_is_judged_by_its_papers_rule(
    tmp_path: Path, reproduced: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    baur = load_protocol("anovaegan_2018")
    settings = {"epochs": 4, "slices.every": 1, "learning_rate": 1e-2, "map.erosion": 0}
    rows = [row.model_copy(update={"preset": "tiny", "settings": settings}) for row in baur.choose(["sAE16"])]
    chosen = baur.model_copy(update={"rows": tuple(rows)})
    document, _ = reproduced(chosen, tmp_path, phantom=HEADS)
    assert document["evaluation"]["voxel_set"] == "brain"
    assert document["data"]["reference_grid"]["ours"] == "20 x 20 x 20 voxels of 9.6 x 9.6 x 9.6 mm"
    found = {row["label"]: row for row in document["rows"]}
    # Slices of 20 pixels halved twice, four channels.
    assert found["sAE16"]["latent"] == {"paper": "16 x 16 x 64", "ours": "5 x 5 x 4"}
    assert found["sAE16"]["differs"][0] == "the code of a slice is 5 x 5 x 4, the paper's 16 x 16 x 64"
    assert found["healthy atlas"]["latent"] == {"paper": "", "ours": None}
    for row in found.values():
        assert row["error"] is None
        for name, figures in row["figures"].items():
            threshold = figures["threshold"]
            rule = {"policy": "quantile", "quantile": 0.98, "split": "train", "min_component": 6, "voxel_set": name}
            assert {key: threshold[key] for key in rule} == rule
    # The rule by hand: maps as scored, the brain's voxels of healthy training subjects, components of six voxels.
    store = CohortStore.open(document["data"]["store"])
    with torch.device("meta"):  # what its tanh can reach is what the phantoms hold
        AnoGAN(demo(), store.facts())
    run = tmp_path / "home" / "runs" / found["sAE16"]["run"]
    figures = found["sAE16"]["figures"]["brain"]
    maps = {split: ScoreStore.open(run / "scores" / split) for split in ("train", "test")}
    inside = [
        maps["train"].map(record.subject_id)[store.brain(record.subject_id)] for record in store.subjects("train")
    ]
    value = figures["threshold"]["value"]
    values = np.concatenate(inside)
    assert (values >= value).mean() <= 0.02 < (values >= np.nextafter(np.float16(value), np.float16(0))).mean()
    dices, num_kept, num_dropped = [], 0, 0
    for record in store.subjects("test"):
        brain = store.brain(record.subject_id)
        over, truth = (maps["test"].map(record.subject_id) >= value) & brain, store.mask(record.subject_id, "lesion")
        labels, num = ndimage.label(over, np.ones((3, 3, 3)))
        kept = np.isin(labels, [n for n in range(1, num + 1) if (labels == n).sum() >= 6])
        num_kept, num_dropped = num_kept + int(kept.sum()), num_dropped + int((over & ~kept).sum())
        if truth is not None and (truth & brain).any():
            dices.append(2 * (kept & truth & brain).sum() / (kept.sum() + (truth & brain).sum()))
    assert len(dices) == figures["num_lesions"] == 3
    assert figures["dice_mean"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert figures["dice_std"] == pytest.approx(np.std(dices), abs=1e-6)
    # However little four epochs find: there is something that the rule keeps, and something that it drops.
    assert num_kept > 0
    assert num_dropped > 0


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_two_rows_beside_what_the_paper_printed(
    tmp_path: Path, reproduced: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    paper = load_protocol("implicit_field_2021")
    document, _ = reproduced(paper, tmp_path, labels=ROWS, budget="40s", phantom=SMALL)
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == [*ROWS, *TRIVIAL]
    for row in rows.values():
        assert row["error"] is None
        figures = row["figures"]["all"]
        assert (figures["split"], figures["num_subjects"], figures["num_lesions"]) == ("test", 4, 3)
        assert figures["threshold"]["split"] == "validation"
        assert "average_precision" in figures["intervals"]
        assert row["training_minutes"] > 0
    for label in ROWS:
        scale = rows[label]["scale"]
        assert (scale["scaled"], scale["preset"]) == (True, "tiny")
        assert 0 < scale["steps"] <= scale["paper_steps"] == 2001
        assert rows[label]["published"]["dice_mean"] in (0.640, 0.672)
        assert rows[label]["settings"]["epochs"] <= 2000
    assert rows["IF 3D"]["run"] != rows["IF 3D*"]["run"]
    assert document["data"]["finer_store"] is not None
    assert imread(document["picture"]).shape[0] > 900
    assert "| IF 3D | 256 | paper | 0.681 |" in (tmp_path / "implicit_field_2021.md").read_text()
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("weights.safetensors")}
    again, said = reproduced(paper, tmp_path, labels=ROWS, budget="40s", phantom=SMALL)
    assert again["rows"] == document["rows"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("weights.safetensors")} == weights
    assert "decoder" not in said


@pytest.mark.long
def test_rows_at_once_are_the_rows_one_by_one_and_one_that_fails_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = load_protocol("implicit_field_2021")
    base = paper.rows[-2].model_copy(update={"preset": "tiny"})
    # A network of a petabyte: the allocator refuses it, and the others go on.
    huge = base.model_copy(update={"label": "huge", "settings": {"width": 8_000_000}})
    twin = base.model_copy(update={"label": "twin", "published": None})
    chosen = paper.model_copy(update={"rows": (base, twin, huge)})

    def told(out: Path, at_once: int) -> dict[str, Any]:
        with pytest.raises(typer.Exit), Terminal(True) as terminal:
            reproduce(terminal, chosen, out, DataRequest(), at_once=at_once, threads=1, phantom=SMALL, small="tiny")
        rows = json.loads(capsys.readouterr().out)["rows"]
        return {row["label"]: row for row in rows}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    alone = told(tmp_path / "alone", 1)
    # Tracked in one SQLite file, which the first of the processes makes.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    beside = told(tmp_path / "beside", 3)
    assert list(alone) == list(beside) == [base.label, "twin", "huge", *TRIVIAL]
    no_memory = "this machine has not memory enough for it: give a budget, which scales it down or"
    assert alone["huge"]["error"] == f"{no_memory} coarser data"
    assert beside["huge"]["error"] == f"{no_memory} fewer than 3 rows at once or coarser data"
    for rows in (alone, beside):
        assert (rows["twin"]["run"], rows["twin"]["same_run_as"]) == (rows[base.label]["run"], base.label)
        assert rows["twin"]["figures"] == rows[base.label]["figures"]
    for label in (base.label, "healthy atlas"):
        for voxels, figures in alone[label]["figures"].items():
            same = {key: value for key, value in figures.items() if key != "seconds_per_volume"}
            assert same == {
                key: value for key, value in beside[label]["figures"][voxels].items() if key != "seconds_per_volume"
            }
    assert "score healthy atlas" in (tmp_path / "beside" / "logs" / "healthy-atlas.log").read_text()
    assert not (tmp_path / "alone" / "home" / "mlflow.db").exists()
    with contextlib.closing(sqlite3.connect(tmp_path / "beside" / "home" / "mlflow.db")) as tracked:
        runs = dict(tracked.execute("SELECT name, status FROM runs"))
    assert runs == {row["run"]: "FINISHED" for row in beside.values() if row["error"] is None}
    assert len(runs) == len(TRIVIAL) + 1
