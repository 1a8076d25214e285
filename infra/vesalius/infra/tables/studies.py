"""A study, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.infra.tables.frames import as_time, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table


def trials(document: Mapping[str, Any]) -> Table:
    """Return a study's trials with what they set and came to: a document of ``vesalius.tuning.Analysis``."""
    counts = ", ".join(f"{count} {state}" for state, count in document["counts"].items())
    table = plain(title=f"{document['study']}: {document['method']}, {counts or 'no trial yet'}", title_style="dim")
    keys = list(dict.fromkeys(key for row in document["trials"] for key in row["values"]))
    table.add_column("trial", justify="right", style="cyan", no_wrap=True)
    lineage = any(row["generation"] is not None for row in document["trials"])
    if lineage:
        table.add_column("parent", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in document["objectives"]:
        table.add_column(name, justify="right", no_wrap=True)
    if lineage:
        table.add_column("at the pause", justify="right", no_wrap=True)
    for key in keys:
        table.add_column(key.removeprefix("method."), justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    for row in document["trials"]:
        marks = "*" if row["number"] in document["front"] else ""
        state = f"{row['state']} at {row['percent']:.0f} %" if row["state"] in ("pruned", "paused") else row["state"]
        state = f"{state} (start)" if row["is_start"] else state
        state = f"{state} (from {row['source']})" if row["source"] else state
        figures = [_number(row["figures"].get(name)) for name in document["objectives"]]
        if lineage:
            figures.append(_number(row["figures"].get(document["criterion"])))
        family = [_number(row["parent"])] if lineage else []
        values = [_number(row["values"].get(key)) for key in keys]
        seconds = "" if row["seconds"] is None else as_time(row["seconds"])
        style = "bold" if marks else ("dim" if row["state"] in ("pruned", "failed") else "")
        table.add_row(f"{marks}{row['number']}", *family, state, *figures, *values, seconds, style=style)
    failed = [f"{row['number']}: {row['reason']}" for row in document["trials"] if row["state"] == "failed"]
    star = "* the best" if len(document["objectives"]) == 1 else "* no other is better in every objective"
    learnt = [f"learnt from {num} trial{'s' * (num > 1)} of {name}" for name, num in document["learnt"].items()]
    table.caption = "\n".join([star, *learnt, *failed])
    table.caption_justify = "left"
    return table


def importance(document: Mapping[str, Any]) -> Table:
    """Return what share each setting has in each objective's variance: the same document."""
    names = [name for name, shares in document["importance"].items() if shares]
    table = plain(title="importance of the settings (fANOVA)", title_style="dim")
    table.add_column("setting", style="cyan", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    keys = dict.fromkeys(key for name in names for key in document["importance"][name])
    for key in keys:
        shares = [document["importance"][name].get(key) for name in names]
        table.add_row(key, *("" if share is None else f"{share:.0%}" for share in shares))
    return table


def seeds(found: Mapping[str, Any]) -> Table:
    """Return the best and the start over other seeds: a comparison as the document has it."""
    table = plain(title=f"trained again: {found['objective']} on {found['split']}", title_style="dim")
    for head in ("seed", "best", "start", "difference"):
        table.add_column(head, justify="right", style="cyan" if head == "seed" else "")
    table.add_column("runs", overflow="fold")
    for row in found["rows"]:
        records = [row["best"], row["start"]]
        values = [None if one is None else one["figures"].get(found["objective"]) for one in records]
        shown = [
            "not yet" if one is None else one["ending"] if value is None else _number(value)
            for one, value in zip(records, values, strict=True)
        ]
        best, start = values
        both = "" if best is None or start is None else f"{best - start:+.4g}"
        runs = ", ".join(one["run_id"] for one in records if one is not None)
        table.add_row(str(row["seed"]), *shown, both, runs)
    failed = [one for row in found["rows"] for one in (row["best"], row["start"]) if one and one["ending"] == "failed"]
    if failed:
        table.caption = "\n".join(f"{one['run_id']}: {one['reason']}" for one in failed)
        table.caption_justify = "left"
    return table


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
