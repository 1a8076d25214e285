"""Two rows of a paper's table, from nothing: phantoms, a budget, both baselines; and again, without work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.image import imread

from vesalius.datasets.phantom import CohortSettings, PhantomSettings
from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import DataRequest, load_protocol, reproduce

if TYPE_CHECKING:
    from pathlib import Path

SMALL = CohortSettings(
    num_train=6,
    num_validation=3,
    num_gate=0,
    num_test=4,
    phantom=PhantomSettings(shape=(16, 16, 16), modalities=("T2w",)),
)
ROWS = ("IF 3D", "IF 3D*")


def play(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    with Terminal(True) as terminal:
        reproduce(
            terminal,
            load_protocol("implicit_field_2021"),
            out,
            DataRequest(),
            labels=ROWS,
            budget="40s",
            threads=1,
            phantom=SMALL,
            small="tiny",
        )
    said = capsys.readouterr()
    return json.loads(said.out), said.err


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_two_rows_beside_what_the_paper_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, _ = play(tmp_path, capsys)
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == [*ROWS, "intensity threshold", "healthy atlas"]
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
    again, said = play(tmp_path, capsys)
    assert again["rows"] == document["rows"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("weights.safetensors")} == weights
    assert "decoder" not in said
