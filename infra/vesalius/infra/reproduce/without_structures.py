"""A table of structures on a cohort that has none of them, such as T1w brains: whole images alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.infra.reproduce.images import ImageLevel
from vesalius.infra.reproduce.levels import SPLIT, Drawn, Level, Section
from vesalius.infra.reproduce.over_models import Model, draw_over_models
from vesalius.infra.reproduce.sizes import SIZES, Size, size_of
from vesalius.platform.config import Settings
from vesalius.platform.evaluation import ImageFigures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.infra.reproduce.cohort import Cohorts
    from vesalius.infra.reproduce.protocol import Protocol, Row
    from vesalius.platform.progress import Progress
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore

_BY_SCORE, _BY_MAP = "images, by their score", "images, by their map"


class SizedImages(Settings):
    """A row's figures.

    Attributes:
        size: of its model.
        images: figures of whole images.
    """

    size: Size
    images: ImageFigures


class WithoutStructures(Level):
    """Whether there is anything in an image, and how large a model that takes."""

    def __init__(self, protocol: Protocol, store: CohortStore) -> None:
        """Make one.

        Args:
            protocol: the paper's, which is about structures.
            store: has none of them in its test split.
        """
        super().__init__(protocol)
        self._images = ImageLevel(protocol)
        self._has_heads = all("head" in record.arrays for record in store.subjects("train"))
        names = ", ".join(dict.fromkeys(one.name for task in protocol.tasks for one in task.structures))
        self.instead = (
            f"the {SPLIT} split has none of the structures that the paper judges ({names}), so that whole images alone "
            "are judged: recipe.structures=ct finds them in a CT in Hounsfield units, any other data have to bring "
            "structure labels of these names"
        )

    def rows(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Return the rows; where no head's mask is kept, with what the protocol changes of them for that."""
        if self._has_heads:
            return tuple(rows)
        changed = []
        for row in rows:
            changes = self.protocol.headless.get(row.method, {})
            said = " and ".join(f"{key} is {value}" for key, value in changes.items())
            update = {
                "settings": {**row.settings, **changes},
                "scaled": {**row.scaled, **changes},
                "differs": (*row.differs, f"{said}, since the cohort keeps no head's mask"),
            }
            changed.append(row.model_copy(update=update) if changes else row)
        return tuple(changed)

    def said(self) -> str:
        """Return what is judged."""
        return self._images.said()

    def lacks(self, store: CohortStore) -> str | None:
        """Return what is missing for whole images."""
        return self._images.lacks(store)

    def judge(self, run: RunFolder, cohorts: Cohorts, device: str, progress: Progress) -> SizedImages:
        """Return the figures; the scores are there already."""
        return SizedImages(size=size_of(run), images=self._images.judge(run, cohorts, device, progress))

    def numbers(self, found: Any) -> dict[str, Any]:
        """Return the figures by column."""
        findings: SizedImages = found
        return {**self._images.numbers(findings.images), **findings.size.numbers()}

    def sections(self) -> list[Section]:
        """Return the tables of whole images, the first one with what a model costs."""
        first, *others = self._images.sections()
        return [first.model_copy(update={"columns": (*first.columns, *SIZES)}), *others]

    def remark(self, found: Any) -> str:
        """Return the AUROC."""
        return self._images.remark(found.images)

    def draw(self, rows: Sequence[Drawn], out: Path) -> dict[str, Path]:
        """Draw AUROC of whole images over models, and what is drawn of whole images."""
        models = [
            Model(
                size=row.found.size,
                aurocs={
                    question: (detection.auroc, detection.intervals.get("auroc"))
                    for question, detection in (
                        (_BY_SCORE, row.found.images.screening),
                        (_BY_MAP, row.found.images.by_map),
                    )
                },
            )
            for row in rows
        ]
        questions = (_BY_SCORE, _BY_MAP)
        drawn = draw_over_models(models, out, self.protocol, questions=questions, panels=questions)
        of_images = [Drawn(label=row.label, found=row.found.images) for row in rows]
        return {**drawn, **self._images.draw(of_images, out)}
