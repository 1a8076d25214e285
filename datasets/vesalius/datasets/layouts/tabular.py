"""Rows of participants.tsv and manifest.csv, and what their cells mean."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Cell = str | int | float | bool

_UNKNOWN = frozenset({"", "n/a", "na", "nan", "none", "null"})
# No leading zeros: '007' is a code, not a number.
_WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_REAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        line: in the file, from 1, the header's included.
        cells: text by column, stripped; '' where the row is too short.
    """

    line: int
    cells: Mapping[str, str]


def read_rows(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the line on which each row ends and its stripped cells, of a UTF-8 table; blank rows are left out.

    A byte-order mark, Windows line ends and line breaks within quoted cells are understood.

    Raises:
        CohortError: it cannot be read, or is not text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CohortError(f"{path} is not UTF-8 text: save it as a UTF-8 table") from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        raise CohortError(f"{path} line {reader.line_num} cannot be read as a table: {error}") from None
    if not rows:
        raise CohortError(f"{path} is empty: expected a header line")
    return rows


def read_table(path: Path, delimiter: str) -> tuple[tuple[str, ...], list[Row]]:
    """Return the columns and the rows of a UTF-8 table with a header; blank lines are left out.

    Raises:
        CohortError: it cannot be read, is not text, has no header, names a column twice, or has a row with more
            cells than columns.
    """
    (_, header), *body = read_rows(path, delimiter)
    return as_table(path, header, body)


def as_table(
    path: Path, header: Sequence[str], body: Sequence[tuple[int, list[str]]]
) -> tuple[tuple[str, ...], list[Row]]:
    """Return the columns and the rows of a table whose header is known.

    Raises:
        CohortError: a column is named twice, or a row has more cells than there are columns.
    """
    columns = tuple(header)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise CohortError(f"{path} names the column '{twice[0]}' twice: rename one")
    rows = []
    for line, cells in body:
        if len(cells) > len(columns):
            raise CohortError(
                f"{path} line {line} has {len(cells)} cells and the header {len(columns)}: "
                "quote cells that hold the delimiter"
            )
        padded = cells + [""] * (len(columns) - len(cells))
        rows.append(Row(line=line, cells=dict(zip(columns, padded, strict=True))))
    return columns, rows


def require_columns(path: Path, columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that a table has the columns that a data set's own table has.

    Raises:
        CohortError: some are missing; the message names them and what is there.
    """
    missing = [name for name in wanted if name not in columns]
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        there = ", ".join(name or "''" for name in columns[:12]) + (", ..." if len(columns) > 12 else "")
        raise CohortError(
            f"{path} has no column {shown}: take the table of the archive as it is (this one has {there})"
        )


def zero_or_one(path: Path, row: Row, column: str) -> bool:
    """Return a cell that is 0 or 1.

    Raises:
        CohortError: it is something else; the message names the line and the column.
    """
    text = row.cells[column]
    if text not in ("0", "1"):
        raise CohortError(f"{path} line {row.line}: {column} is '{text}': expected 0 or 1")
    return text == "1"


def known(text: str) -> str | None:
    """Return the text, or None where the cell says that nothing is known ('', 'n/a', 'NaN', ...)."""
    return None if text.strip().lower() in _UNKNOWN else text.strip()


def value_of(text: str) -> Cell | None:
    """Return a cell as a truth value, a whole number, a real number or text; None where nothing is known."""
    cell = known(text)
    if cell is None:
        return None
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if _REAL.fullmatch(cell):
        number = float(cell)
        return number if number - number == 0 else cell
    return cell


def labels_of(cells: Mapping[str, str]) -> dict[str, Cell]:
    """Return the labels of a row: its known cells in columns named ``label:<name>``.

    Raises:
        CohortError: ``label:anomalous`` is neither true (or 1) nor false (or 0): what is anomalous is not trained on.
    """
    found = {name.removeprefix("label:"): value_of(text) for name, text in cells.items() if name.startswith("label:")}
    labels = {name: value for name, value in found.items() if name and value is not None}
    if "anomalous" in labels:
        if labels["anomalous"] not in (0, 1):
            raise CohortError(f"label:anomalous is '{labels['anomalous']}': expected true or false")
        labels["anomalous"] = bool(labels["anomalous"])
    return labels
