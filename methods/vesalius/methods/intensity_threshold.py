"""Baseline: how far an intensity lies from the healthy brain's mean, wherever the voxel is.

Baur et al. 2021 found that such a threshold holds its own on lesions that are simply bright. Whatever claims to have
learnt anatomy has to beat it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from vesalius.methods.blocks import (
    BrainMapSettings,
    Window,
    brain_moments,
    check_channels,
    finish_map,
    image_score,
    smooth,
)
from vesalius.platform.contracts import SCORING, Choice, Deviation, Method, MethodSettings, Score, Stage, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import CohortFacts, Effort, Volume


class IntensityThresholdSettings(MethodSettings):
    """Settings of the intensity threshold."""

    direction: Literal["both", "high", "low"] = setting(
        "both",
        "which side of the healthy mean counts as anomalous",
        space=Choice(values=("both", "high", "low")),
        source="this implementation",
        since=SCORING,
    )
    smoothing: Window = setting(
        3,
        "edge of the window that averages the signed deviation, in voxels",
        space=Choice(values=(1, 3, 5, 7)),
        source="this implementation",
        since=SCORING,
    )
    map: BrainMapSettings = BrainMapSettings()


class IntensityThreshold(Method):
    """Score = deviation of the voxel's intensity from the healthy brain's mean, in its standard deviations.

    With several channels the one that deviates most counts.

    Attributes:
        mean: (C,) mean over the training brains' voxels.
        deviation: (C,) standard deviation over them.
    """

    settings_type: ClassVar[type[MethodSettings]] = IntensityThresholdSettings
    deviations: ClassVar[Sequence[Deviation]] = (
        Deviation(
            paper="Baur et al. 2021 threshold hyperintense voxels of FLAIR volumes whose histogram was equalised",
            here="distance from the healthy brain's mean, either way (direction), of intensities as prepared",
            why="lesions are dark in some modalities; the recipe is the cohort's, the same for every method",
        ),
    )
    settings: IntensityThresholdSettings
    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: IntensityThresholdSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.register_buffer("mean", torch.zeros(len(cohort.channels)))
        self.register_buffer("deviation", torch.ones(len(cohort.channels)))

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """There is no paper; ``demo`` and ``tiny`` are the defaults."""
        settings = IntensityThresholdSettings()
        return {"paper": settings, "demo": settings, "tiny": settings}

    def stages(self) -> Sequence[Stage]:
        """One stage without optimisers: moments of the brain's intensities."""
        return [brain_moments("intensity_threshold", self)]

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """See :class:`vesalius.platform.contracts.Method`; ``effort`` makes no difference."""
        scores = []
        for volume in volumes:
            check_channels(volume, self.cohort)
            image, brain = volume.image.to(self.mean.device), volume.brain.to(self.mean.device)
            signed = (image - self.mean[:, None, None, None]) / self.deviation[:, None, None, None]
            signed = smooth(signed, self.settings.smoothing, brain, self.settings.map)
            if self.settings.direction == "both":
                signed = signed.abs()
            elif self.settings.direction == "low":
                signed = -signed
            map_DHW = finish_map(signed.amax(0).clamp(min=0), brain, self.settings.map)
            number = image_score(map_DHW, brain, self.settings.map)
            scores.append(Score(map=map_DHW.to(volume.image.device), image_score=number))
        return scores
