"""The line of champions, as the entries of a log make it: who counts, who was overtaken, who is champion no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.platform.registry.records import CROWNING

if TYPE_CHECKING:
    from vesalius.platform.registry.records import Entry


def fold(entries: list[Entry]) -> tuple[list[Entry], int, list[str], dict[str, Entry]]:
    """Say of each entry whether it counts.

    Args:
        entries: of one life, by number.

    Returns:
        The entries, repeated requests left out; the number of the one that made the present champion; the line of
        champions; and by version that is champion no more the entry that ended it.
    """
    told: list[Entry] = []
    seen: set[str] = set()
    head, line = 0, list[str]()
    archived: dict[str, Entry] = {}
    for entry in entries:
        record = entry.record
        if record.token in seen:
            continue
        seen.add(record.token)
        overtaken = record.follows != head
        told.append(entry.model_copy(update={"overtaken": overtaken}))
        if overtaken or record.kind not in CROWNING:
            continue
        before = line[-1] if line else ""
        if record.kind == "adopted":
            line = list(record.line)
            archived.update(dict.fromkeys(line, entry))
        elif record.kind == "promoted":
            line = [*line, record.version]
        else:  # one goes back along the line, or wherever somebody moved the alias
            line = list(moved_line(tuple(line), record.version))
        head = entry.number
        if before and (not line or line[-1] != before):
            archived[before] = entry
        if line:
            archived.pop(line[-1], None)
    return told, head, line, archived


def moved_line(line: tuple[str, ...], version: str) -> tuple[str, ...]:
    """Return a line of champions after the alias has gone to ``version``: cut behind it, or made longer by it."""
    if not version:
        return ()
    if line and version in line[:-1]:
        last = max(index for index, one in enumerate(line[:-1]) if one == version)
        return line[: last + 1]
    return line if line and line[-1] == version else (*line, version)
