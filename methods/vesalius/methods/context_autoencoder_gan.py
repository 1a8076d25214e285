"""Context autoencoder with adversarial training (Baur et al. 2018, row sAE-GAN; Pathak et al. 2016).

A spatial autoencoder that gives back whole slices of which parts were blanked out, and must also fool a discriminator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import model_validator

from vesalius.methods.blocks.adversarial import BESIDE_RECONSTRUCTION, Adversary, AdversarySettings
from vesalius.methods.blocks.autoencoders import (
    DEMO,
    TINY,
    AutoEncoder,
    ReconstructionSettings,
    reconstruction_loss,
    score_by_reconstruction,
)
from vesalius.methods.blocks.deviations import ALTERNATION, CODE, DISCRIMINATOR, SCORING, TRUNK
from vesalius.platform.config import Settings, override
from vesalius.platform.contracts import Choice, Deviation, Method, MethodSettings, Range, Score, Stage, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Volume

_PATHAK = "Pathak et al. 2016"


class MaskingSettings(Settings):
    """What is blanked out of a training slice; Baur et al. 2018 do not say."""

    blocks: int = setting(
        4,
        "rectangles blanked out of each training slice, which may overlap; 0 is an autoencoder that sees all",
        source=f"{_PATHAK}, section 3.3: several, possibly overlapping; the number is this implementation's",
        ge=0,
        space=Choice(values=(0, 1, 4, 16)),
        mutable=True,
    )
    edge: float = setting(
        0.25,
        "edge of a rectangle as a fraction of the slice's: four of a quarter blank a quarter of the slice at most",
        source=f"{_PATHAK}, section 3.3: up to a quarter of the image",
        gt=0,
        le=1,
        space=Range(low=0.05, high=0.5),
        mutable=True,
    )
    counted: Literal["all", "blanked"] = setting(
        "all",
        "which values the reconstruction loss counts: the whole slice's, as a residual of whole slices needs, or those "
        "that were blanked out",
        source=f"this implementation; blanked in {_PATHAK}, Eq. 1",
    )

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.counted == "blanked" and not self.blocks:
            raise ValueError("counted: with 0 blocks nothing is blanked, so that no value counts: set counted to all")
        return self


class ContextAutoencoderGANSettings(ReconstructionSettings):
    """Settings of the context autoencoder; defaults are the paper's 16 x 16 x 64."""

    masking: MaskingSettings = MaskingSettings()
    adversarial_weight: float = setting(
        1e-3,
        "weight of the adversarial loss, one number a slice, beside the l1 distance, a mean over a slice's values",
        source=f"{_PATHAK}, section 4.1: 0.001 beside 0.999",
        ge=0,
        space=Range(low=1e-5, high=1e-1, log=True),
        mutable=True,
    )
    adversarial_reaches: Literal["decoder", "all"] = setting(
        "all",
        "what learns from the adversarial loss: the decoder, or the encoder as well",
        source=f"{_PATHAK}, Eq. 3",
    )
    adversary: AdversarySettings = BESIDE_RECONSTRUCTION


_DEVIATIONS = (
    *TRUNK,
    *CODE,
    *DISCRIMINATOR,
    *ALTERNATION,
    *SCORING,
    Deviation(
        paper="what is blanked is not said",
        here="four rectangles of a quarter's edge anywhere, filled with the background, and none in testing (masking)",
        why="Pathak's several overlapping blocks; number and filling are this implementation's",
    ),
    Deviation(
        paper="Pathak's loss is squared and counts what was blanked",
        here="l1 over the whole slice (masking.counted)",
        why="whole slices are compared in the end",
    ),
    Deviation(
        paper="the weight of the adversarial loss is not given",
        here="0.001 beside the mean l1, reaching encoder and decoder (adversarial_weight, adversarial_reaches)",
        why="Pathak et al. 2016, Eq. 3 and section 4.1",
    ),
    Deviation(
        paper="Pathak's discriminator sees what was filled in",
        here="whole slices",
        why="Eq. 2",
    ),
)


class ContextAutoencoderGAN(Method):
    """Autoencoder of blanked slices against a discriminator (Baur et al. 2018, sAE-GAN).

    In each step the discriminator is updated first, then the autoencoder, both on the same blanked slices. New volumes
    are restored from whole slices. Batch statistics are taken over groups of ``group_size`` slices: over what a
    worker happens to have, two workers could not equal one.

    Attributes:
        network: trunk and bottleneck.
        adversary: discriminator and watch.
    """

    settings_type: ClassVar[type[MethodSettings]] = ContextAutoencoderGANSettings
    deviations: ClassVar[Sequence[Deviation]] = _DEVIATIONS
    settings: ContextAutoencoderGANSettings

    def __init__(self, settings: ContextAutoencoderGANSettings, cohort: CohortFacts) -> None:
        """Build the networks.

        Raises:
            SettingError: trunk or discriminator do not fit the cohort's slices or intensities.
        """
        super().__init__(settings, cohort)
        axis = settings.slices.axis
        self.network = AutoEncoder(settings.trunk, settings.bottleneck, cohort, axis)
        self.adversary = Adversary(settings.adversary, cohort, axis)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        paper = ContextAutoencoderGANSettings()
        return {
            "paper": paper,
            "demo": override(paper, {**DEMO, "epochs": 6, "adversary.width": 8, "adversary.stages": 3}),
            "tiny": override(paper, {**TINY, "adversary.width": 2, "adversary.stages": 2}),
        }

    def stages(self) -> Sequence[Stage]:
        """One stage, ``context_autoencoder``, that updates ``discriminator`` and ``autoencoder`` in turn."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)
        return [
            self.adversary.stage(
                "context_autoencoder",
                self.settings,
                ("autoencoder", self.network, optimizer),
                discriminator_loss=self.discriminator_loss,
                opponent_loss=self.loss,
                reported="loss",
                observes=("reconstruction", "adversarial"),
            )
        ]

    def blanked(self, batch: Batch) -> Tensor:
        """Return (B, 1, h, w) bool, what is blanked out of the batch's slices: per item, whatever stands beside it."""
        masking = self.settings.masking
        h, w = batch.image.shape[-2:]
        tall, wide = (max(1, round(masking.edge * num)) for num in (h, w))
        corners = batch.uniform("blanked", (masking.blocks, 2))
        # Whole rectangles, anywhere in the slice.
        top = (corners[..., 0] * (h - tall + 1)).long().clamp(max=h - tall)[..., None]
        left = (corners[..., 1] * (w - wide + 1)).long().clamp(max=w - wide)[..., None]
        row, column = (torch.arange(num, device=batch.image.device) for num in (h, w))
        in_rows = (row >= top) & (row < top + tall)
        in_columns = (column >= left) & (column < left + wide)
        return (in_rows[..., :, None] & in_columns[..., None, :]).any(1, keepdim=True)

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return the discriminator's loss on slices and reconstructions, summed; their number; what is watched."""
        with torch.no_grad():
            fake = self.network(self._blank(batch, self.blanked(batch)))
        return self.adversary.loss(batch.image, fake)

    def loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return the slices' losses, summed; their number; and the two terms."""
        settings = self.settings
        blanked = self.blanked(batch)
        code = self.network.encode(self._blank(batch, blanked))
        reconstruction = self.network.decode(code)
        if settings.masking.counted == "all":
            distance = reconstruction_loss(batch.image, reconstruction)
        else:
            apart = (reconstruction - batch.image).abs().mean(1, keepdim=True) * blanked
            distance = apart.flatten(1).sum(1) / blanked.flatten(1).sum(1).clamp(min=1)
        fake = reconstruction if settings.adversarial_reaches == "all" else self.network.decode(code.detach())
        lacking = self.adversary.fooled(fake)
        observed = {"reconstruction": distance.sum(), "adversarial": lacking.sum()}
        return (distance + settings.adversarial_weight * lacking).sum(), len(batch), observed

    def code_shape(self) -> tuple[int, ...]:
        """Return (Z,) of a dense code, (Z, r, s) of a spatial one."""
        return self.network.code_shape

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore every slice once, nothing blanked; ``effort`` makes no difference, since one pass is all there is."""
        return score_by_reconstruction(volumes, self.network, self.settings, self.cohort)

    def _blank(self, batch: Batch, blanked: Tensor) -> Tensor:
        return batch.image.masked_fill(blanked, self.cohort.background)
