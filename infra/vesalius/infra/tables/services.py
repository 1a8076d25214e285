"""Tables of services and jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vesalius.infra.tables.frames import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

_STYLES = {
    "up": "green",
    "down": "dim",
    "dead": "bold red",
    "not answering": "bold yellow",
    "RUNNING": "cyan",
    "PENDING": "dim",
    "SUCCEEDED": "green",
    "FAILED": "bold red",
    "STOPPED": "yellow",
    "REFUSED": "bold red",
    "LOST": "bold red",
    "UNKNOWN": "yellow",
}


def services(document: Mapping[str, Any]) -> Table:
    """Return a table of what ``vesalius status`` found."""
    table = plain()
    table.add_column("service", style="cyan", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("since", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in document["services"]:
        table.add_row(
            row["service"],
            _styled(row["state"]),
            "" if row["pid"] is None else str(row["pid"]),
            row["url"] or "",
            row["since"] or "",
            row["problem"] or "",
        )
    return table


def services_notes(document: Mapping[str, Any]) -> list[str]:
    """Return lines about services below their table."""
    lines = []
    if document["running"]:
        lines.append(f"logs: {document['logs']}")
        lines.append(f"Ray asks browsers and clients for the token in {document['ray_token_file']}")
        if document["login"]:
            lines.append(
                f"MLflow asks for a login: user {document['mlflow_user']}, password in "
                f"{document['mlflow_password_file']}"
            )
    if not document["healthy"]:
        lines.append("Next: vesalius up starts again what has ended")
    elif not document["running"]:
        lines.append("Next: vesalius up")
    else:
        lines.append("Next: vesalius submit -- train METHOD STORE")
    return lines


def jobs(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of jobs, the last one first."""
    table = plain()
    table.add_column("job", style="cyan", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("exit", justify="right", no_wrap=True)
    table.add_column("attempt", justify="right", no_wrap=True)
    table.add_column("submitted (UTC)", no_wrap=True)
    table.add_column("command", overflow="ellipsis", no_wrap=True, max_width=28)
    for row in rows:
        table.add_row(
            row["job"],
            _styled(row["status"]),
            "" if row["exit_code"] is None else str(row["exit_code"]),
            str(row["attempt"]),
            row["submitted"].partition("+")[0],
            " ".join(row["command"]),
        )
    return table


def _styled(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))
