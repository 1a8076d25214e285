"""Baseline: distance from the voxel-wise healthy mean, in voxel-wise standard deviations.

What can be found without learning anything about how one place goes with another. Published tables that leave it out
cannot tell whether a network has learnt more than an average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.methods.blocks import (
    BrainMapSettings,
    Window,
    average_pool,
    check_channels,
    finish_map,
    image_score,
    one_pass,
    smooth,
)
from vesalius.platform.contracts import (
    SCORING,
    Choice,
    Deviation,
    Method,
    MethodSettings,
    Range,
    Score,
    Stage,
    grid_positions,
    setting,
)
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Batch, CohortFacts, Collective, Effort, Metrics, Update, Volume


class HealthyAtlasSettings(MethodSettings):
    """Settings of the healthy atlas."""

    deviation_smoothing: Window = setting(
        3,
        "edge of the window that averages the variance, in voxels",
        space=Choice(values=(1, 3, 5, 7)),
        source="this implementation",
    )
    deviation_floor: float = setting(
        0.5,
        "least deviation, as a fraction of its root mean square over the brain",
        gt=0,
        space=Range(low=0.05, high=2.0, log=True),
        source="this implementation",
    )
    smoothing: Window = setting(
        1,
        "edge of the window that averages the signed deviation, in voxels",
        space=Choice(values=(1, 3, 5, 7)),
        source="this implementation",
        since=SCORING,
    )
    map: BrainMapSettings = BrainMapSettings()


class HealthyAtlas(Method):
    """Score = ``|x - mean| / deviation`` at the voxel's place; the restoration is the mean.

    With several channels the one that deviates most counts. A volume of another grid is compared with the atlas
    sampled at its voxels' physical places.

    Attributes:
        mean: (C, D, H, W) voxel-wise mean on the cohort's grid.
        deviation: (C, D, H, W) voxel-wise standard deviation (over N - 1), smoothed and floored.
    """

    settings_type: ClassVar[type[MethodSettings]] = HealthyAtlasSettings
    deviations: ClassVar[Sequence[Deviation]] = (
        Deviation(
            paper="none: no paper describes this baseline",
            here="voxel-wise mean and deviation of the training subjects, smoothed and floored as the settings say",
            why="published tables without it cannot tell whether a network has learnt more than an average",
        ),
    )
    settings: HealthyAtlasSettings
    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: HealthyAtlasSettings, cohort: CohortFacts) -> None:
        """Make room for the atlas.

        Raises:
            CohortError: the cohort has one training subject, which has no deviation.
        """
        super().__init__(settings, cohort)
        if len(cohort.subjects) < 2:
            raise CohortError(
                "healthy_atlas needs two healthy training subjects at least: a single one has no deviation"
            )
        shape = (len(cohort.channels), *cohort.grid)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))
        self._moments = torch.zeros(0)
        self._brain = torch.zeros(0)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """There is no paper; ``demo`` and ``tiny`` are the defaults."""
        settings = HealthyAtlasSettings()
        return {"paper": settings, "demo": settings, "tiny": settings}

    def stages(self) -> Sequence[Stage]:
        """One stage without optimisers: moments of each voxel."""
        return [one_pass("atlas", self._begin, self._accumulate, self._solve)]

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """See :class:`vesalius.platform.contracts.Method`; ``effort`` makes no difference."""
        scores = []
        for volume in volumes:
            check_channels(volume, self.cohort)
            image, brain = volume.image.to(self.mean.device), volume.brain.to(self.mean.device)
            mean, deviation = self._on_grid_of(volume)
            signed = (image - mean) / deviation
            signed = smooth(signed, self.settings.smoothing, brain, self.settings.map)
            map_DHW = finish_map(signed.abs().amax(0), brain, self.settings.map)
            number = image_score(map_DHW, brain, self.settings.map)
            device = volume.image.device
            scores.append(Score(map=map_DHW.to(device), image_score=number, restoration=mean.to(device)))
        return scores

    def _on_grid_of(self, volume: Volume) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (C, D, H, W) at the volume's voxels; outside the box the nearest voxel's."""
        if volume.shape == self.cohort.grid and volume.spacing_mm == self.cohort.spacing_mm:
            return self.mean.clone(), self.deviation
        # Normalised positions are what grid_sample calls align_corners=False, but it wants W, H, D.
        positions = grid_positions(volume.shape, volume.spacing_mm, self.cohort.box_mm).flip(-1).to(self.mean.device)
        both = torch.cat([self.mean, self.deviation])[None]
        sampled = F.grid_sample(both, positions[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
        mean, deviation = sampled.chunk(2)
        return mean, deviation

    def _begin(self) -> None:
        # Sum and sum of squares in float64: the order of summing, and so the number of workers, does not show.
        self._moments = torch.zeros(2, *self.mean.shape, dtype=torch.float64, device=self.mean.device)
        self._brain = torch.zeros(self.mean.shape[1:], dtype=torch.float64, device=self.mean.device)

    def _accumulate(self, batch: Batch, update: Update) -> Metrics:
        for image, brain in zip(batch.image, batch.brain, strict=True):
            image = image.to(self._moments.device, torch.float64)
            self._moments[0] += image
            self._moments[1] += image.square()
            self._brain += brain.to(self._brain.device)
        return {}

    def _solve(self, collective: Collective) -> None:
        num = len(self.cohort.subjects)
        first, second = collective.sum(self._moments)
        brain = collective.sum(self._brain) >= num / 2
        mean = first / num
        variance = ((second - first * mean) / (num - 1)).clamp(min=0)
        variance = average_pool(variance, self.settings.deviation_smoothing)
        if not bool(brain.any()):
            brain = torch.ones_like(brain)
        floor = self.settings.deviation_floor * variance[:, brain].mean(1).sqrt()
        # Subjects that agree in every voxel give no scale of their own: a thousandth of the intensity, and where
        # there is no intensity either, one unit, keep the map finite.
        floor = torch.maximum(floor, 1e-3 * mean[:, brain].square().mean(1).sqrt())
        floor = torch.where(floor > 0, floor, 1.0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.maximum(variance.sqrt(), floor[:, None, None, None]))
        self._moments, self._brain = torch.zeros(0), torch.zeros(0)
