"""A paper's table with ours beside it, for a terminal and for a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vesalius.infra.tables.frames import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

Column = tuple[str, str, str]
"""Figure, head, format."""

COLUMNS: tuple[Column, ...] = (
    ("best_dice", "best Dice", ".3f"),
    ("dice_mean", "Dice", ".3f"),
    ("average_precision", "AP", ".3f"),
    ("auroc", "AUROC", ".3f"),
    ("fpr_at_95_recall", "FPR@95R", ".4f"),
)
"""Of a table of voxels."""

SECONDS = "seconds a volume, its map's median and other windows included; a paper's seconds a slice are marked /slice"
"""What the column of seconds counts."""


def paper_table(
    rows: Sequence[Mapping[str, Any]], title: str, voxel_set: str, columns: Sequence[Column] | None = None
) -> Table:
    """Return two lines a row: what the paper prints, and ours with its 95 % interval.

    Args:
        rows: of a reproduction's document.
        title: says the paper, the table and the split.
        voxel_set: whose figures are shown, of a table of voxels.
        columns: of another level than voxels, whose figures are each row's ``judged``; None shows those of voxels.
    """
    shown = COLUMNS if columns is None else columns
    table = plain(title=title, title_style="bold")
    # Names may be folded where the room is narrow, figures never: a cut figure is a wrong one.
    table.add_column("row", style="cyan", min_width=10)
    table.add_column("", no_wrap=True)
    for _, head, _ in shown:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("min", justify="right", no_wrap=True)
    for row in rows:
        published = row["published"]
        name, theirs, ours = Text(str(row["label"])), row["latent"]["paper"] or "", row["latent"]["ours"] or ""
        if published and prints(published, columns):
            printed = [Text(cell, style="dim") for cell in published_cells(published, columns)]
            if theirs:
                name.append(f"\n{theirs}", style="dim")
            table.add_row(name, Text("paper", style="dim"), *printed, "")
            name = Text(ours, style="dim")
        elif ours:
            name.append(f"\n{ours}", style="dim")
        if row["error"] is not None:
            table.add_row(name, "ours", Text("failed", style="bold yellow"), *[""] * (len(shown) + 1))
        elif row["figures"]:
            numbers = our_cells(row, voxel_set, intervals=True, separator="\n", columns=columns)
            table.add_row(name, "ours", *numbers, f"{row['training_minutes']:.1f}")
        else:
            table.add_row(name, "ours", "not reached", *[""] * (len(shown) + 1))
    return table


def row_notes(row: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of a row: why it failed, how it was scaled, what differs."""
    said = [f"failed: {row['error']}"] if row["error"] is not None else []
    return [*said, *([row["scale"]["said"]] if row["scale"] else []), *row["differs"]]


def published_cells(published: Mapping[str, Any], columns: Sequence[Column] | None = None) -> list[str]:
    """Return what the paper prints in each of the columns and for the time."""
    # A table of another level has keys of its own, which may be called as those of voxels are.
    known = published if columns is None else published["figures"]
    cells = [_with_spread(known, key, form) for key, _, form in columns or COLUMNS]
    if published.get("seconds_per_volume") is not None:
        return [*cells, f"{published['seconds_per_volume']:.1f}"]
    if published.get("seconds_per_slice") is not None:
        return [*cells, f"{published['seconds_per_slice']:.3g}/slice"]
    return [*cells, ""]


def prints(published: Mapping[str, Any], columns: Sequence[Column] | None = None) -> bool:
    """Return whether the paper prints anything in these columns; of voxels a row always has its line."""
    return columns is None or any(key in published["figures"] for key, _, _ in columns)


def our_cells(
    row: Mapping[str, Any], voxel_set: str, *, intervals: bool, separator: str, columns: Sequence[Column] | None = None
) -> list[str]:
    """Return our figures in each of the columns and for the time, each with its interval where there is one."""
    figures = row["figures"][voxel_set] if columns is None else row["judged"]
    cells = []
    for key, _, form in columns or COLUMNS:
        text = _with_spread(figures, key, form)
        interval = figures["intervals"].get(key)
        if intervals and text and interval is not None:
            text += f"{separator}{interval[0]:.2f}..{interval[1]:.2f}"
        cells.append(text)
    return [*cells, f"{figures['seconds_per_volume']:.2f}"]


def markdown(document: Mapping[str, Any], voxel_set: str = "all") -> str:
    """Return a reproduction as Markdown tables with what was scaled and what differs, ready for a document."""
    sections = document.get("sections")
    judged = f"Voxels: {voxel_set}. Threshold: {document['evaluation']['said']}."
    lines = [
        f"**{document['paper']['title']}**, {document['paper']['table']}. Paper: {document['data']['paper']}. "
        f"Ours: {document['data']['ours']}. {judged if sections is None else document['evaluation']['judged']} "
        f"Intervals: 95 %, bootstrap over subjects. z: the shape of a code; s: {SECONDS}.",
        "",
    ]
    if sections is None:
        lines += _markdown_table(document["rows"], voxel_set, None)
    for section in sections or ():
        lines += [f"{section['title']}:", "", *_markdown_table(document["rows"], voxel_set, section["columns"]), ""]
    lines.append("")
    lines += [f"- {row['label']}: {'; '.join(said)}" for row in document["rows"] if (said := row_notes(row))]
    return "\n".join(lines) + "\n"


def _markdown_table(rows: Sequence[Mapping[str, Any]], voxel_set: str, columns: Sequence[Column] | None) -> list[str]:
    heads = ["row", "z", "", *(head for _, head, _ in columns or COLUMNS), "s", "training min"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        label, latent = row["label"], row["latent"]["ours"] or ""
        if row["published"] and prints(row["published"], columns):
            cells = [label, row["latent"]["paper"] or "", "paper", *published_cells(row["published"], columns), ""]
            lines.append("| " + " | ".join(cells) + " |")
            label = ""
        if row["error"] is not None:
            cells = [label, latent, "ours", "failed", *[""] * (len(heads) - 4)]
        elif row["figures"]:
            numbers = our_cells(row, voxel_set, intervals=True, separator="<br>", columns=columns)
            cells = [label, latent, "ours", *numbers, f"{row['training_minutes']:.1f}"]
        else:
            continue
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _with_spread(figures: Mapping[str, Any], key: str, form: str) -> str:
    value = figures.get(key)
    if value is None:
        return ""
    spread = figures.get("dice_std") if key == "dice_mean" else None
    return f"{value:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")
