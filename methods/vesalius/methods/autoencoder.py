"""Convolutional autoencoder of slices, dense or spatial (Baur et al. 2018, rows dAE and sAE).

It learns to give healthy slices back through a bottleneck; what it does not give back of a new one is the anomaly. A
dense code of 512 loses the brain's folds as well as lesions; a spatial one of 16 x 16 x 64 keeps the folds, and is the
paper's choice and the default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vesalius.methods.blocks.autoencoders import (
    DEMO,
    TINY,
    AutoEncoder,
    ReconstructionSettings,
    reconstruction_loss,
    reconstruction_stage,
    score_by_reconstruction,
)
from vesalius.methods.blocks.deviations import CODE, DENSE, SCORING, TRUNK
from vesalius.platform.config import override
from vesalius.platform.contracts import Deviation, Method, MethodSettings, Score, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Volume


class AutoencoderSettings(ReconstructionSettings):
    """Settings of the autoencoder; defaults are the paper's best, 16 x 16 x 64."""


_DEVIATIONS = (
    *TRUNK,
    *CODE,
    *DENSE,
    *SCORING,
    Deviation(
        paper="the same complexity across architectures (section 3)",
        here="the 8 x 8 row has one stage more, 10,144,289 weights against 6,866,465 (trunk.stages)",
        why="another resolution needs another halving",
    ),
)


class Autoencoder(Method):
    """Encoder, bottleneck, decoder under an l1 loss (Baur et al. 2018).

    All channels of a slice are reconstructed together. Batch statistics are taken over groups of
    ``group_size`` slices: over what a worker happens to have, two workers could not equal one.

    Attributes:
        network: trunk and bottleneck.
    """

    settings_type: ClassVar[type[MethodSettings]] = AutoencoderSettings
    deviations: ClassVar[Sequence[Deviation]] = _DEVIATIONS
    settings: AutoencoderSettings

    def __init__(self, settings: AutoencoderSettings, cohort: CohortFacts) -> None:
        """Build the network.

        Raises:
            SettingError: the trunk does not fit the cohort's slices or intensities.
        """
        super().__init__(settings, cohort)
        self.network = AutoEncoder(settings.trunk, settings.bottleneck, cohort, settings.slices.axis)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper`` is ``spatial_16``; ``spatial_8`` and ``dense_512`` are the table's other rows."""
        paper = AutoencoderSettings()
        return {
            "paper": paper,
            "spatial_16": paper,
            "spatial_8": override(paper, {"trunk.stages": 5}),
            "dense_512": override(paper, {"bottleneck.kind": "dense", "bottleneck.size": 512}),
            "demo": override(paper, DEMO),
            "tiny": override(paper, TINY),
        }

    def stages(self) -> Sequence[Stage]:
        """One stage, ``autoencoder``."""
        return [reconstruction_stage(self.settings, self.network, self.loss)]

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the l1 losses of the batch's slices, summed, and their number."""
        return reconstruction_loss(batch.image, self.network(batch.image)).sum(), len(batch)

    def code_shape(self) -> tuple[int, ...]:
        """Return (Z,) of a dense code, (Z, r, s) of a spatial one."""
        return self.network.code_shape

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore every slice once; ``effort`` makes no difference, since one pass is all there is."""
        return score_by_reconstruction(volumes, self.network, self.settings, self.cohort)
