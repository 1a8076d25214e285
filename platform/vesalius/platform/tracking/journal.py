"""What has not been sent yet, on disk: one JSON line a metric. Neither a kill nor a server that is away costs one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

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
            OSError: it cannot be read or written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.left: Sequence[Point] = read(path)
        aside = path.with_name(f".{path.name}.partial")
        # Written anew: behind half a line, which a killed process leaves, the next one could not be read either.
        aside.write_text("".join(map(_line, self.left)))
        aside.replace(path)
        self._file: IO[str] = path.open("a")

    def add(self, points: Iterable[Point]) -> None:
        """Append points; they are the system's to write once this returns, and a killed process loses none."""
        self._file.writelines(map(_line, points))
        self._file.flush()

    def clear(self) -> None:
        """Forget all: they have been sent."""
        self._file.truncate(0)

    def close(self) -> None:
        """Close the file."""
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
