"""A paper's table with ours beside it, for a terminal and for a document."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.text import Text

from vesalius.infra.tables.frames import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult
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

_WIDE = 1000
SECONDS = "seconds a volume, its map's median and other windows included; a paper's seconds a slice are marked /slice"
"""What the column of seconds counts."""


class PaperTable:
    """Two lines a row: what the paper prints, and ours with its 95 % interval.

    Where the columns do not fit beside each other they go on in further tables below: a cut figure is a wrong one.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        title: str,
        voxel_set: str,
        columns: Sequence[Column] | None = None,
        *,
        timed: bool = True,
    ) -> None:
        """Make one.

        Args:
            rows: of a reproduction's document.
            title: says the paper, the table and the split.
            voxel_set: whose figures are shown, of a table of voxels.
            columns: of another level than voxels, whose figures are each row's ``judged``; None shows those of voxels.
            timed: whether the times stand in it; of a document's tables they do in the first.
        """
        self._rows, self._title, self._voxel_set, self._columns, self._timed = rows, title, voxel_set, columns, timed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the tables that fit the console."""
        rest = list(COLUMNS if self._columns is None else self._columns)
        title, timed = self._title, self._timed
        while rest:
            num = len(rest)
            # Rich gives up what a column asks for once the sum is too wide; only what it draws tells.
            while num > 1 and _is_cut(part := self._part(title, rest[:num], timed=timed), console, options):
                num -= 1
            if num == 1:
                part = self._part(title, rest[:1], timed=timed)
            yield part
            rest, title, timed = rest[num:], f"{self._title}, continued", False

    def _part(self, title: str, columns: Sequence[Column], *, timed: bool) -> Table:
        judged = self._columns is not None
        table = plain(title=title, title_style="bold")
        table.add_column("row", style="cyan", min_width=10)
        table.add_column("", no_wrap=True)
        for head in [*(head for _, head, _ in columns), *(("s", "min") if timed else ())]:
            table.add_column(head, justify="right", no_wrap=True)
        for row in self._rows:
            published = row["published"]
            name, theirs, ours = Text(str(row["label"])), row["latent"]["paper"] or "", row["latent"]["ours"] or ""
            if published and (not judged or prints(published, columns, timed=timed)):
                printed = published_cells(published, columns, judged=judged, timed=timed)
                if theirs:
                    name.append(f"\n{theirs}", style="dim")
                table.add_row(name, Text("paper", style="dim"), *(Text(cell, style="dim") for cell in printed))
                name = Text(ours, style="dim")
            elif ours:
                name.append(f"\n{ours}", style="dim")
            if row["error"] is not None:
                table.add_row(name, "ours", Text("failed", style="bold yellow"))
            elif row["figures"]:
                figures = row["judged"] if judged else row["figures"][self._voxel_set]
                table.add_row(name, "ours", *our_cells(row, figures, columns, separator="\n", timed=timed))
            else:
                table.add_row(name, "ours", "not reached")
        return table


def _is_cut(table: Table, console: Console, options: ConsoleOptions) -> bool:
    """Return whether anything is lost in the room there is: letters fold into other lines, but none may go."""
    wide = options.update_width(_WIDE)
    text, uncut = ("".join(part.text for part in console.render(table, room)) for room in (options, wide))
    drawn, whole = Counter(text), Counter(uncut)
    lost = any(drawn[letter] != whole[letter] for letter in drawn.keys() | whole.keys() if letter not in " \n─")
    # What its columns insist on can be wider than the room; the console then cuts the lines off.
    return lost or max(len(line) for line in text.splitlines()) > options.max_width


def row_notes(row: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of a row: why it failed, whose run it is, how it was scaled, what differs."""
    said = [f"failed: {row['error']}"] if row["error"] is not None else []
    if row["same_run_as"] is not None:
        said.append(f"one run with {row['same_run_as']}, trained once: the settings are the same")
    return [*said, *([row["scale"]["said"]] if row["scale"] else []), *row["differs"]]


def published_cells(published: Mapping[str, Any], columns: Sequence[Column], *, judged: bool, timed: bool) -> list[str]:
    """Return what the paper prints in each of the columns and, where ``timed``, for the times."""
    # A table of another level has keys of its own, which may be called as those of voxels are.
    known = published["figures"] if judged else published
    cells = [_with_spread(known, key, form) for key, _, form in columns]
    if not timed:
        return cells
    if published.get("seconds_per_volume") is not None:
        return [*cells, f"{published['seconds_per_volume']:.1f}", ""]
    if published.get("seconds_per_slice") is not None:
        return [*cells, f"{published['seconds_per_slice']:.3g}/slice", ""]
    return [*cells, "", ""]


def prints(published: Mapping[str, Any], columns: Sequence[Column], *, timed: bool) -> bool:
    """Return whether the paper prints anything in these columns, which are of another level than voxels."""
    seconds = timed and any(published.get(key) is not None for key in ("seconds_per_volume", "seconds_per_slice"))
    return seconds or any(key in published["figures"] for key, _, _ in columns)


def our_cells(
    row: Mapping[str, Any], figures: Mapping[str, Any], columns: Sequence[Column], *, separator: str, timed: bool
) -> list[str]:
    """Return our figures in each of the columns, each with its interval where there is one, and the times."""
    cells = []
    for key, _, form in columns:
        text = _with_spread(figures, key, form)
        interval = figures["intervals"].get(key)
        if text and interval is not None:
            text += f"{separator}{interval[0]:.2f}..{interval[1]:.2f}"
        cells.append(text)
    if not timed:
        return cells
    return [*cells, f"{figures['seconds_per_volume']:.2f}", f"{row['training_minutes']:.1f}"]


def markdown(document: Mapping[str, Any], voxel_set: str = "all") -> str:
    """Return a reproduction as Markdown tables with what was scaled and what differs, ready for a document."""
    sections = document.get("sections")
    differs = "".join(f" {sentence[0].upper()}{sentence[1:]}." for sentence in document["data"].get("differs", ()))
    judged = document["evaluation"].get("judged", f"Voxels: {voxel_set}. Threshold: {document['evaluation']['said']}.")
    lines = [
        f"**{document['paper']['title']}**, {document['paper']['table']}. Paper: {document['data']['paper']}. "
        f"Ours: {document['data']['ours']}.{differs} {judged} "
        f"Intervals: 95 %, bootstrap over subjects. z: the shape of a code; s: {SECONDS}.",
        "",
    ]
    if sections is None:
        lines += _markdown_table(document["rows"], voxel_set, None, timed=True)
    for number, section in enumerate(sections or ()):
        table = _markdown_table(document["rows"], voxel_set, section["columns"], timed=number == 0)
        lines += [f"{section['title']}:", "", *table, ""]
    lines.append("")
    lines += [f"- {row['label']}: {'; '.join(said)}" for row in document["rows"] if (said := row_notes(row))]
    return "\n".join(lines) + "\n"


def _markdown_table(
    rows: Sequence[Mapping[str, Any]], voxel_set: str, of_level: Sequence[Column] | None, *, timed: bool
) -> list[str]:
    columns, judged = (COLUMNS, False) if of_level is None else (of_level, True)
    heads = ["row", "z", "", *(head for _, head, _ in columns), *(("s", "training min") if timed else ())]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        label, latent = row["label"], row["latent"]["ours"] or ""
        if row["published"] and (not judged or prints(row["published"], columns, timed=timed)):
            printed = published_cells(row["published"], columns, judged=judged, timed=timed)
            lines.append("| " + " | ".join([label, row["latent"]["paper"] or "", "paper", *printed]) + " |")
            label = ""
        if row["error"] is not None:
            cells = [label, latent, "ours", "failed", *[""] * (len(heads) - 4)]
        elif row["figures"]:
            figures = row["judged"] if judged else row["figures"][voxel_set]
            cells = [label, latent, "ours", *our_cells(row, figures, columns, separator="<br>", timed=timed)]
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
