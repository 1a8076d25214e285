"""What has not been sent yet, on disk: one JSON line a metric. Neither a kill nor a server that is away costs one."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vesalius.platform.store.files import write_file
from vesalius.platform.store.space import space_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Point:
    """One value of a metric.

    Attributes:
        key: as the server knows it.
        value: may be NaN or infinite.
        timestamp: when it was taken, milliseconds since 1970.
        step: of the run.
    """

    key: str
    value: float
    timestamp: int
    step: int


class Journal:
    """A file of points that wait. Not safe for several threads or processes: its owner holds a lock."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process left and open the file for more.

        Raises:
            DiskSpaceError: there is no room.
            OSError: it cannot be read or written.
        """
        self.path = path
        with space_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.left: Sequence[Point] = read(path)
            # Written anew: behind half a line, which a killed process leaves, the next one could not be read either.
            write_file(path, "".join(map(_line, self.left)).encode(), path.parent)
            # Without a buffer: what a full disk has refused would wait in it, and be refused once more at the end.
            self._file = path.open("ab", buffering=0)

    def add(self, points: Iterable[Point]) -> None:
        """Append points; they are the system's to write once this returns, and a killed process loses none.

        Raises:
            DiskSpaceError: there is no room; none of them is kept.
        """
        left = "".join(map(_line, points)).encode()
        end = os.fstat(self._file.fileno()).st_size
        with space_errors(self.path):
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with suppress(OSError):  # a part of a line, which the next one would be written behind
                    self._file.truncate(end)
                raise

    def clear(self) -> None:
        """Forget all: they have been sent.

        Raises:
            DiskSpaceError: some file systems need room for that too; what is kept is sent once more, to no harm.
        """
        with space_errors(self.path):
            self._file.truncate(0)

    def close(self) -> None:
        """Close the file; nothing is left to write."""
        self._file.close()


def read(path: Path) -> list[Point]:
    """Return the points that wait in a file, in the order in which they were taken; none where there is no file."""
    if not path.is_file():
        return []
    points = []
    for line in path.read_text().splitlines():
        try:
            points.append(Point(**json.loads(line)))
        except (ValueError, TypeError):  # the line being written when the process was killed
            continue
    return points


def _line(point: Point) -> str:
    return json.dumps(vars(point)) + "\n"
