"""A paper's table with ours beside it, for a terminal and for a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vesalius.infra.tables.frames import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("best_dice", "best Dice", ".3f"),
    ("dice_mean", "Dice", ".3f"),
    ("average_precision", "AP", ".3f"),
    ("auroc", "AUROC", ".3f"),
    ("fpr_at_95_recall", "FPR@95R", ".4f"),
)
"""Figure, head, format."""

SECONDS = "seconds a volume, its map's median and other windows included; a paper's seconds a slice are marked /slice"
"""What the column of seconds counts."""


def paper_table(rows: Sequence[Mapping[str, Any]], title: str, voxel_set: str) -> Table:
    """Return two lines a row: what the paper prints, and ours with its 95 % interval.

    Args:
        rows: of a reproduction's document.
        title: says the paper, the table and the split.
        voxel_set: whose figures are shown.
    """
    table = plain(title=title, title_style="bold")
    # Names may be folded where the room is narrow, figures never: a cut figure is a wrong one.
    table.add_column("row", style="cyan", min_width=10)
    table.add_column("", no_wrap=True)
    for _, head, _ in COLUMNS:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("min", justify="right", no_wrap=True)
    for row in rows:
        published = row["published"]
        name, theirs, ours = Text(str(row["label"])), row["latent"]["paper"] or "", row["latent"]["ours"] or ""
        if published:
            printed = [Text(cell, style="dim") for cell in published_cells(published)]
            if theirs:
                name.append(f"\n{theirs}", style="dim")
            table.add_row(name, Text("paper", style="dim"), *printed, "")
            name = Text(ours, style="dim")
        elif ours:
            name.append(f"\n{ours}", style="dim")
        if row["error"] is not None:
            table.add_row(name, "ours", Text("failed", style="bold yellow"), *[""] * (len(COLUMNS) + 1))
        elif row["figures"]:
            numbers = our_cells(row, voxel_set, intervals=True, separator="\n")
            table.add_row(name, "ours", *numbers, f"{row['training_minutes']:.1f}")
        else:
            table.add_row(name, "ours", "not reached", *[""] * (len(COLUMNS) + 1))
    return table


def row_notes(row: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of a row: why it failed, how it was scaled, what differs."""
    said = [f"failed: {row['error']}"] if row["error"] is not None else []
    return [*said, *([row["scale"]["said"]] if row["scale"] else []), *row["differs"]]


def published_cells(published: Mapping[str, Any]) -> list[str]:
    """Return what the paper prints in each of the columns and for the time."""
    cells = [_with_spread(published, key, form) for key, _, form in COLUMNS]
    if published.get("seconds_per_volume") is not None:
        return [*cells, f"{published['seconds_per_volume']:.1f}"]
    if published.get("seconds_per_slice") is not None:
        return [*cells, f"{published['seconds_per_slice']:.3g}/slice"]
    return [*cells, ""]


def our_cells(row: Mapping[str, Any], voxel_set: str, *, intervals: bool, separator: str) -> list[str]:
    """Return our figures in each of the columns and for the time, each with its interval where there is one."""
    figures = row["figures"][voxel_set]
    cells = []
    for key, _, form in COLUMNS:
        text = _with_spread(figures, key, form)
        interval = figures["intervals"].get(key)
        if intervals and text and interval is not None:
            text += f"{separator}{interval[0]:.2f}..{interval[1]:.2f}"
        cells.append(text)
    return [*cells, f"{figures['seconds_per_volume']:.2f}"]


def markdown(document: Mapping[str, Any], voxel_set: str = "all") -> str:
    """Return a reproduction as a Markdown table with what was scaled and what differs, ready for a document."""
    heads = ["row", "z", "", *(head for _, head, _ in COLUMNS), "s", "training min"]
    lines = [
        f"**{document['paper']['title']}**, {document['paper']['table']}. Paper: {document['data']['paper']}. "
        f"Ours: {document['data']['ours']}. Voxels: {voxel_set}. Threshold: {document['evaluation']['said']}. "
        f"Intervals: 95 %, bootstrap over subjects. z: the shape of a code; s: {SECONDS}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in document["rows"]:
        label, latent = row["label"], row["latent"]["ours"] or ""
        if row["published"]:
            cells = [label, row["latent"]["paper"] or "", "paper", *published_cells(row["published"]), ""]
            lines.append("| " + " | ".join(cells) + " |")
            label = ""
        if row["error"] is not None:
            cells = [label, latent, "ours", "failed", *[""] * (len(heads) - 4)]
        elif row["figures"]:
            numbers = our_cells(row, voxel_set, intervals=True, separator="<br>")
            cells = [label, latent, "ours", *numbers, f"{row['training_minutes']:.1f}"]
        else:
            continue
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines.append("")
    lines += [f"- {row['label']}: {'; '.join(said)}" for row in document["rows"] if (said := row_notes(row))]
    return "\n".join(lines) + "\n"


def _with_spread(figures: Mapping[str, Any], key: str, form: str) -> str:
    value = figures.get(key)
    if value is None:
        return ""
    spread = figures.get("dice_std") if key == "dice_mean" else None
    return f"{value:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")
