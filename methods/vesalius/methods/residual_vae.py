"""Residual VAE of slices: the difference from its reconstruction (Naval Marimont and Tarroni 2021, Table 1, "VAE").

The network, its losses and its training are :mod:`vesalius.methods.blocks.variational`, shared with the restoration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from vesalius.methods.blocks import (
    EveryFourthSlice,
    PooledMapSettings,
    SliceVae,
    VaeSettings,
    crop_plane,
    score_slices,
    take_all,
)
from vesalius.methods.blocks.variational import (
    TINY,
    VAE_DEVIATIONS,
)
from vesalius.platform.contracts import Method, MethodSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import CohortFacts, Deviation, Effort, Score, Stage, Volume


class ResidualVaeSettings(VaeSettings):
    """Settings of the residual VAE; defaults are the paper's where it gives any."""


class ResidualVae(Method):
    """Score = |x - xhat| in the cohort's standard deviations, xhat decoded from the latent's mean.

    Several modalities are encoded together; the map is the mean of their differences.

    Attributes:
        vae: the network and the cohort's moments.
    """

    settings_type: ClassVar[type[MethodSettings]] = ResidualVaeSettings
    deviations: ClassVar[Sequence[Deviation]] = VAE_DEVIATIONS
    settings: ResidualVaeSettings

    def __init__(self, settings: ResidualVaeSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.vae = SliceVae(settings, cohort)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": ResidualVaeSettings(), "demo": demo(), "tiny": tiny()}

    def stages(self) -> Sequence[Stage]:
        """``moments`` (no optimiser), then ``vae``."""
        return self.vae.stages("residual_vae")

    def code_shape(self) -> tuple[int]:
        """Return (Z,)."""
        return (self.settings.latent_dim,)

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """See :class:`vesalius.platform.contracts.Method`; ``effort`` makes no difference: one pass is all there is."""
        settings = self.settings
        stack, each = take_all(volumes, self.cohort, settings.slices, self.vae.mean.device)
        image = self.vae.standardised(stack.image)
        parts = torch.split(image, settings.slices.together)
        restored = torch.cat([self.vae.network.reconstruct(part) for part in parts])
        _, _, h, w = stack.image.shape
        return score_slices(
            volumes,
            each,
            settings.slices,
            settings.map,
            evidence=crop_plane((image - restored).abs().mean(1), (h, w)),
            restored=self.vae.original(restored, (h, w)),
        )


def tiny() -> ResidualVaeSettings:
    """A network of some thousand parameters for tests: seconds, and no claim to detect anything."""
    return ResidualVaeSettings(**TINY)


def demo() -> ResidualVaeSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels."""
    return ResidualVaeSettings(
        widths=(16, 32, 64, 64),
        blocks=1,
        batch_slices=32,
        group_slices=16,
        epochs=20,
        learning_rate=1e-3,
        slices=EveryFourthSlice(every=2),
        map=PooledMapSettings(min_pool=1, average_pool=7),
    )
