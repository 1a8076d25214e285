"""What a run would take, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.infra.tables.choices import mib
from vesalius.infra.tables.frames import as_time, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table


def forecast(document: Mapping[str, Any]) -> Table:
    """Return stages with their steps, times and memory: a document of ``describe_forecast``."""
    grid = " x ".join(str(edge) for edge in document["grid"])
    title = f"{document['method']} on {grid} voxels, one worker on {document['device']}, {document['precision']}"
    table = plain(title=title, title_style="dim")
    table.add_column("stage", style="cyan", no_wrap=True)
    for head in ("steps", "a step", "together", "counted", "measured"):
        table.add_column(head, justify="right")
    for row in document["stages"]:
        table.add_row(
            row["stage"],
            f"{row['steps']:,}",
            seconds(row["seconds_per_step"]),
            seconds(row["seconds"]),
            mib(row["counted_bytes"]) if "counted_bytes" in row else "",
            mib(row["measured_peak_bytes"]),
        )
    for name, num, each, peak in (
        ("validation", document["validation_volumes"], document["quick_seconds_per_volume"], None),
        ("thresholds", document["threshold_volumes"], document["seconds_per_volume"], document["scoring_peak_bytes"]),
    ):
        measured = "" if peak is None else mib(peak)
        table.add_row(name, f"{num:,} volumes", seconds(each), seconds(num * each), "", measured)
    table.add_row("together", f"{document['steps']:,}", "", seconds(document["total_seconds"]))
    table.caption = (
        "counted: weights, gradients, optimiser and what is kept for backward, in float32; measured: the most that was "
        "held in some steps, with cached volumes, temporary tensors and libraries"
    )
    table.caption_justify = "left"
    return table


def seconds(value: float) -> str:
    """Return a time as a person says it, three figures of what is short."""
    return f"{value:.3g} s" if value < 90 else as_time(value)
