"""The f-AnoGAN of whole volumes: how it looks at the cohort, and its score."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from vesalius.methods.blocks import finish_map, image_score, score_in_portions
from vesalius.methods.f_anogan.deviations import DEVIATIONS
from vesalius.methods.f_anogan.inversion import Inversion
from vesalius.methods.f_anogan.settings import FAnoGANSettings, demo, tiny
from vesalius.platform.contracts import MethodSettings, Score, WholeVolumes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Deviation, Effort, View, Volume


class FAnoGAN(Inversion):
    """The 3D f-AnoGAN of Simarro Viana et al. 2020: a whole volume has one code.

    A new volume is encoded and generated in one pass. The map is the absolute difference from what comes out, of
    several channels the largest; the volume's number is Eq. 6: the mean squared difference, and that of the critic's
    features.
    """

    settings_type: ClassVar[type[MethodSettings]] = FAnoGANSettings
    deviations: ClassVar[Sequence[Deviation]] = DEVIATIONS
    settings: FAnoGANSettings

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": FAnoGANSettings(), "demo": demo(), "tiny": tiny()}

    def image_shape(self) -> tuple[int, ...]:
        """Return (D, H, W)."""
        return self.cohort.grid

    def view(self) -> View:
        """Whole volumes."""
        return WholeVolumes()

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore all volumes, ``together`` at a time; ``quick`` is no different, one pass being all there is.

        Raises:
            VolumeError: a volume has other channels, or another grid, than the cohort.
        """
        return score_in_portions(volumes, self.cohort, self.settings.together, self._scored)

    def _scored(self, volumes: Sequence[Volume]) -> list[Score]:
        device, maps = next(self.parameters()).device, self.settings.map
        image = torch.stack([volume.image for volume in volumes]).to(device)
        found = self.inverted(image)
        evidence = (image - found.image).abs().amax(1)
        scores = []
        for volume, raw, restored, loss in zip(volumes, evidence, found.image, found.loss.tolist(), strict=True):
            brain = volume.brain.to(device)
            map_DHW = finish_map(raw, brain, maps)
            by_map = self.settings.image_score == "map"
            scores.append(
                Score(
                    map=map_DHW.to(volume.image.device),
                    image_score=image_score(map_DHW, brain, maps) if by_map else loss,
                    restoration=restored.to(volume.image.device),
                )
            )
        return scores
