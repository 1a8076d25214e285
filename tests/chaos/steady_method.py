"""A method whose steps take their time and whose answer forgives rounding; importable by name in other processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from vesalius.platform.contracts import Method, MethodSettings, Score, Stage, TableEntry, WholeVolumes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Metrics, Update, Volume


class SteadySettings(MethodSettings):
    epochs: float = 100
    pause_seconds: float = 0.05


class Steady(Method):
    """Learns a mean head by gradient descent, which forgets a rounding error as it forgets where it began."""

    settings_type: ClassVar[type[MethodSettings]] = SteadySettings
    settings: SteadySettings

    def __init__(self, settings: SteadySettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.head = nn.Parameter(torch.zeros(len(cohort.channels), *cohort.grid))

    def stages(self) -> Sequence[Stage]:
        return [
            Stage(
                name="head",
                view=WholeVolumes(),
                batch_size=4,
                epochs=self.settings.epochs,
                trains=[self],
                optimizers={"head": torch.optim.SGD(self.parameters(), 0.02)},
                step=self._step,
                selectable=True,
            )
        ]

    def _step(self, batch: Batch, update: Update) -> Metrics:
        time.sleep(self.settings.pause_seconds)
        return {"loss": update("head", self._loss, batch)}

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        return ((batch.image - self.head) ** 2).flatten(1).sum(1).sum(), len(batch)

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        maps = [(volume.image - self.head).abs().mean(0) for volume in volumes]
        return [Score(map=one, image_score=float(one.max())) for one in maps]


METHODS = {"steady": TableEntry(path="steady_method:Steady", summary="a mean head, slowly")}
