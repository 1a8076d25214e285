"""A paper's table on narrow terminals: no figure is cut, no row loses its name, nothing is left out."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from vesalius.infra import tables
from vesalius.infra.console import WIDTH_WITHOUT_TERMINAL
from vesalius.infra.reproduce import load_protocol, protocol_names
from vesalius.infra.reproduce.levels import level_of
from vesalius.infra.tables.reproduction import COLUMNS, markdown

if TYPE_CHECKING:
    from vesalius.infra.reproduce.protocol import Row

FIGURE, INTERVAL = 0.555, (0.44, 0.66)
COUNTS = ("parameters", "memory_mib")


def document_row(row: Row, keys: list[str]) -> dict[str, Any]:
    """Return a row that came to its end, with a figure and an interval in every column."""
    found: dict[str, Any] = dict.fromkeys(keys, FIGURE) | dict.fromkeys(COUNTS, 12_345_678)
    found["seconds_per_volume"] = 123.45
    found["intervals"] = dict.fromkeys((key for key in keys if key not in COUNTS), INTERVAL)
    return {
        "label": row.label,
        "latent": {"paper": row.latent, "ours": "16 x 16 x 64"},
        "published": None if row.published is None else row.published.model_dump(mode="json"),
        "error": None,
        "scale": None,
        "differs": [],
        "same_run_as": None,
        "training_minutes": 1234.5,
        "judged": found,
        "figures": {"all": found | {"dice_std": 0.123}, "brain": found | {"dice_std": 0.123}},
    }


def shown(table: tables.PaperTable, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, WIDTH_WITHOUT_TERMINAL])
@pytest.mark.parametrize("paper", protocol_names())
def test_every_figure_and_every_name_is_readable(paper: str, width: int) -> None:
    protocol = load_protocol(paper)
    level = level_of(protocol)
    sections = [COLUMNS] if level is None else [section.columns for section in level.sections()]
    rows = (*protocol.rows, *protocol.trivial())
    documents = [document_row(row, [key for columns in sections for key, _, _ in columns]) for row in rows]
    for number, columns in enumerate(sections):
        timed = number == 0
        table = tables.PaperTable(documents, "Table", "all", None if level is None else columns, timed=timed)
        text = shown(table, width)
        assert "…" not in text
        assert max(len(line) for line in text.splitlines()) <= width
        # A name may be folded between its words.
        words = text.split()
        for row in rows:
            assert all(word in words for word in row.label.split()), row.label
        numbers = sum(key not in COUNTS for key, _, _ in columns)
        assert text.count("0.44..0.66") == numbers * len(rows)
        assert text.count("123.45") == text.count("1234.5") == (len(rows) if timed else 0)
        assert text.count("12,345,678") == (len(columns) - numbers) * len(rows)
        if width == WIDTH_WITHOUT_TERMINAL and level is not None:
            assert "continued" not in text, columns


def test_the_seconds_that_a_paper_prints_are_shown_without_any_figure() -> None:
    protocol = load_protocol("position_regression_2022")
    level = level_of(protocol)
    assert level is not None
    sections = level.sections()
    row = next(row for row in protocol.rows if row.label == "AE erosion m=16")
    assert row.published is not None
    assert row.published.figures == {}
    documents = [document_row(row, [key for section in sections for key, _, _ in section.columns])]
    first, second = (
        shown(tables.PaperTable(documents, "", "all", section.columns, timed=number == 0), 120)
        for number, section in enumerate(sections[:2])
    )
    line = next(line for line in first.splitlines() if "paper" in line)
    assert line.split() == ["AE", "erosion", "paper", "2.0"] or line.split() == [
        "AE",
        "erosion",
        "m=16",
        "paper",
        "2.0",
    ]
    assert "paper" not in second
    document = {
        "paper": {"title": "Paper", "table": "Table 1"},
        "data": {"paper": "", "ours": ""},
        "evaluation": {"said": "", "judged": ""},
        "rows": documents,
        "sections": [section.model_dump(mode="json") for section in sections],
    }
    printed = [line for line in markdown(document).splitlines() if "| paper |" in line]
    assert printed == ["| AE erosion m=16 |  | paper |  |  |  |  |  |  | 2.0 |  |"]
