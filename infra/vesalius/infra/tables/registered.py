"""Registered models: names, versions, decisions, what the gates said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vesalius.infra.tables.frames import key_values, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

_COLOURS = {
    "passed": "green",
    "failed": "bold red",
    "cannot be evaluated": "bold red",
    "does not apply": "dim",
    "promoted": "bold green",
    "kept back": "yellow",
    "rolled back": "yellow",
}


def registered(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one line a registered model."""
    table = plain()
    table.add_column("model", style="cyan", no_wrap=True)
    for head in ("champion", "challenger", "decisions"):
        table.add_column(head, justify="right")
    table.add_column("last")
    for row in rows:
        last = row["last"]
        told = (
            "" if last is None else f"{last['at'][:10]} {last['kind']} (version {last['version'] or '-'}), {last['by']}"
        )
        table.add_row(row["name"], row["champion"] or "-", row["challenger"] or "-", str(row["decisions"]), told)
    return table


def versions(document: Mapping[str, Any]) -> Table:
    """Return one line a version, the newest last."""
    table = plain(title=f"versions of {document['name']}", title_style="bold")
    table.add_column("version", style="cyan", justify="right")
    for head in ("method", "run", "alias", "decision"):
        table.add_column(head, overflow="fold")
    table.add_column("AP on the gate", justify="right")
    for row in document["versions"]:
        ended = row["archived"]
        alias = ", ".join(row["aliases"]) or (f"archived {str(ended.get('at', ''))[:10]}" if ended else "")
        precision = row["gate"].get("average_precision")
        table.add_row(
            row["version"],
            row["method"],
            row["run_id"],
            Text(alias, style="bold green" if row["champion"] else "" if row["aliases"] else "dim"),
            Text(row["decision"], style=_COLOURS.get(row["decision"], "")),
            f"{precision:.4f}" if isinstance(precision, float) else "-",
        )
    return table


def decisions(document: Mapping[str, Any]) -> Table:
    """Return the log: one line a decision, the oldest first."""
    table = plain(title="decisions", title_style="bold")
    table.add_column("", justify="right", style="dim")
    for head in ("when (UTC)", "who", "what"):
        table.add_column(head, no_wrap=True)
    table.add_column("version", justify="right")
    table.add_column("champion before", justify="right")
    table.add_column("why", overflow="fold")
    for row in document["decisions"]:
        kind = "overtaken" if row["overtaken"] else row["kind"]
        table.add_row(
            str(row["number"]),
            row["at"][:19].replace("T", " "),
            row["by"],
            Text(kind, style="dim" if row["overtaken"] else _COLOURS.get(kind, "")),
            row["version"] or "-",
            row["champion_version"] or "-",
            row["why"] or Text(row["sentence"], style="dim"),
        )
    return table


def verdicts(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what each gate said."""
    table = plain(title="gates", title_style="bold")
    table.add_column("gate", style="cyan", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("bound", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        numbers = ["-" if row[key] is None else f"{row[key]:.4g}" for key in ("figure", "bound", "limit")]
        outcome = Text(row["outcome"], style=_COLOURS.get(row["outcome"], ""))
        table.add_row(row["gate"], outcome, *numbers, row["sentence"])
    return table


def version(row: Mapping[str, Any]) -> Table:
    """Return a version's facts."""
    ended = row["archived"]
    facts: list[tuple[str, object]] = [
        ("version", f"{row['version']} of {row['name']}"),
        ("aliases", ", ".join(row["aliases"]) or "none"),
        ("method", row["method"]),
        ("run", row["run_id"]),
        ("model digest", row["digest"]),
        ("cohort digest", row["cohort_digest"]),
    ]
    if ended:
        facts.append(("archived", f"{ended.get('at')}, by {ended.get('by')} (decision {ended.get('entry')})"))
    return key_values(facts)
