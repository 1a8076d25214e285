"""What a table is about, where it is not voxels: how a row is judged, which columns that gives, what is drawn of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import Settings
from vesalius.platform.tables import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.infra.reproduce.cohort import Cohorts
    from vesalius.infra.reproduce.protocol import Protocol, Row
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore

SPLIT = "test"
"""That every table is about."""


class Section(Settings):
    """One table of a document.

    Attributes:
        title: says what its figures are.
        columns: key, head and format of each; keys are those of :meth:`Level.numbers`.
    """

    title: str
    columns: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A row that came to its end, for a figure.

    Attributes:
        label: of the row.
        found: what :meth:`Level.judge` returned.
    """

    label: str
    found: Any


class Level(ABC):
    """One level that a table can be about.

    Attributes:
        protocol: the paper's.
        instead: where it stands in for the paper's own level, why, in a sentence; None where it does not.
    """

    instead: str | None = None

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def on(self, store: CohortStore) -> Level:
        """Return the level that a cohort is judged at: this one, unless the cohort has nothing of what it is about."""
        return self

    def rows(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Return the rows as they are trained here: the paper's."""
        return tuple(rows)

    @abstractmethod
    def said(self) -> str:
        """Return in a sentence or two what is judged, and how."""

    @abstractmethod
    def lacks(self, store: CohortStore) -> str | None:
        """Return in a sentence what a cohort would need to be judged so; None where it has it."""

    @abstractmethod
    def judge(self, run: RunFolder, cohorts: Cohorts, device: str, progress: Progress) -> Settings:
        """Return all figures of a finished run, whose voxels have been judged already."""

    @abstractmethod
    def numbers(self, found: Any) -> dict[str, Any]:
        """Return what the columns show by key, ``intervals`` by the same keys, and ``seconds_per_volume``.

        Args:
            found: of :meth:`judge`.
        """

    @abstractmethod
    def sections(self) -> Sequence[Section]:
        """Return the tables, the first one with the times."""

    @abstractmethod
    def remark(self, found: Any) -> str:
        """Return what stands beside a row in the picture of its maps."""

    @abstractmethod
    def draw(self, rows: Sequence[Drawn], out: Path) -> Mapping[str, Path]:
        """Draw what the paper draws below ``out``, and return the files by what they show."""


LEVELS = {
    "images": "vesalius.infra.reproduce.images:ImageLevel",
    "structures": "vesalius.infra.reproduce.structures:StructureLevel",
}
"""Levels beside voxels, by the word that a protocol has for them."""


def level_of(protocol: Protocol) -> Level | None:
    """Return the level that a paper's table is about; None for voxels. What a cohort is judged at says its ``on``."""
    if protocol.judged == "voxels":
        return None
    level: Level = resolve(LEVELS[protocol.judged])(protocol)
    return level
