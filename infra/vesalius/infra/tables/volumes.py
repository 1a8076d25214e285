"""Volumes: what was exported, and what stands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vesalius.infra.tables.frames import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table


def exported(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return the files of an export, with their voxels."""
    table = plain(title=title, title_style="dim")
    table.add_column("subject", style="cyan", overflow="fold")
    table.add_column("volume")
    table.add_column("voxels", no_wrap=True)
    table.add_column("mm", no_wrap=True)
    table.add_column("type", style="dim")
    table.add_column("file", overflow="fold")
    for row in rows:
        channel = f" {row['channel']}" if row["channel"] else ""
        voxels = " x ".join(str(size) for size in row["shape"])
        spacing = " x ".join(f"{step:.3g}" for step in row["spacing_mm"])
        table.add_row(row["subject_id"], f"{row['what']}{channel}", voxels, spacing, row["dtype"], row["path"])
    return table


def findings(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what stands out, a line a finding."""
    table = plain(title="what stands out", title_style="bold")
    table.add_column("subject", style="cyan", overflow="fold")
    table.add_column("")
    table.add_column("why", overflow="fold")
    for row in rows:
        style = "bold red" if row["severity"] == "alarm" else "yellow"
        table.add_row(row["subject_id"], Text(row["severity"], style=style), Text(row["sentence"]))
    return table


def scored_volumes(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return the volumes of a scored folder, the most anomalous first."""
    table = plain(title=title, title_style="dim")
    table.add_column("volume", style="cyan", overflow="fold")
    table.add_column("image score", justify="right")
    table.add_column("above threshold", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("", style="dim")
    for row in sorted(rows, key=lambda row: -float(row["image_score"])):
        above = "-" if row["anomalous_ml"] is None else f"{row['anomalous_ml']:.1f} ml"
        table.add_row(row["name"], f"{row['image_score']:.5g}", above, f"{row['seconds']:.2f}", row["state"])
    return table
