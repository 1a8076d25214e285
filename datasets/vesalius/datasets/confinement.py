"""Whether a subject's files lie where they may: no table and no unpacked archive makes ingest read anything else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.datasets.analyze import is_analyze, pair_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.layouts.raw import RawSubject


_START = "where a table's paths are relative, they start at the table and not at"


def confine(subjects: Sequence[RawSubject], within: Path, table: Path | None = None) -> list[RawSubject]:
    """Return the subjects, those with a problem that reach for a file outside a folder.

    Links are followed first, in the folder's own path as in the files': a link is what it leads to. So neither ``..``
    in a table, nor an absolute path, nor a link in an unpacked archive makes ingest read what it was not given.

    Args:
        subjects: as a layout found them.
        within: the folder that every file must lie in.
        table: the folder of the table that names them, where one does. Where it is another, a file that is not there
            is a problem, too: its path may have been written from ``within``.
    """
    inside = within.resolve()
    elsewhere = table is not None and table.resolve() != inside
    folders: dict[Path, Path | None] = {}  # a DICOM series has hundreds of files in one folder
    answer = []
    for raw in subjects:
        # Of an Analyze pair either may be named, in capitals too: both are read.
        named = [pair_of(path) if is_analyze(path) else (path,) for path in map(Path, raw.files().values())]
        paths = [part for parts in named for part in parts]
        paths += [Path(file) for files in raw.series.values() for file in files]
        outside = next(((path, found) for path in paths if (found := _outside(path, inside, folders))), None)
        problem = None
        if outside is not None:
            path, named_so = outside
            advice = f"lies outside {within}: copy it there, or name a folder that holds both with --within"
            if not os.path.lexists(path):
                advice += f"; {_START} that folder"
            problem = f"{raw.origin or raw.subject_id}: {named_so} {advice}"
        elif elsewhere:
            lost = next((parts[0] for parts in named if not any(os.path.lexists(part) for part in parts)), None)
            if lost is not None:
                problem = f"{raw.origin or raw.subject_id}: {lost}: there is no such file; {_START} {within}"
        answer.append(raw if problem is None else raw.model_copy(update={"problem": problem}))
    return answer


def _outside(path: Path, inside: Path, folders: dict[Path, Path | None]) -> str | None:
    """Return how to name a file that lies outside, None for one that does not."""
    if path.parent not in folders:
        folders[path.parent] = _resolved(path.parent)
    folder = folders[path.parent]
    # What is no link lies in its folder; a path that ends with '..' does not.
    place = folder and (_resolved(path) if path.name == ".." or _is_link(path) else folder / path.name)
    if place is None:
        return f"{path}, which cannot be followed,"
    if place.is_relative_to(inside):
        return None
    return str(path) if place == path else f"{path} (it leads to {place})"


def _resolved(path: Path) -> Path | None:
    """Return where a path leads; None for what no path may be: too long, with a null byte, a circle of links."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError):
        return None
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _is_link(path: Path) -> bool:
    """Return whether a path is a link, or nothing that can be looked at."""
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
