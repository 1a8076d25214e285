"""Methods for the registry's tests: importable by name, in this process and in others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from vesalius.platform.contracts import Method, MethodSettings, Score, TableEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.contracts import CohortFacts, Effort, Stage, Volume


class BrightnessSettings(MethodSettings):
    offset: float = 0.0


class Brightness(Method):
    """Calls bright voxels anomalous, as far as its one weight lets it; the rest is noise keyed by the volume."""

    settings_type: ClassVar[type[MethodSettings]] = BrightnessSettings
    settings: BrightnessSettings

    def __init__(self, settings: BrightnessSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.share = torch.nn.Parameter(torch.tensor(0.0))

    def stages(self) -> Sequence[Stage]:
        return ()

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        return [self._score(volume, effort) for volume in volumes]

    def _score(self, volume: Volume, effort: Effort) -> Score:
        noise = torch.rand(volume.shape, generator=volume.generator("noise"))
        score_map = self.share * volume.image.mean(0) + (1 - self.share) * noise + self.settings.offset
        # Mask and grid take part, so that a loader that loses either is found out.
        score_map = score_map * volume.brain + volume.spacing_mm[0] * 1e-3 + volume.affine[0][3] * 1e-4
        return Score(map=score_map if effort == "full" else score_map / 2, image_score=float(score_map.max()))


METHODS = {"brightness": TableEntry(path="toy_methods:Brightness", summary="bright is anomalous")}
