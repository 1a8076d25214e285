"""AnoVAEGAN: a spatial variational autoencoder whose decoder must also fool a discriminator (Baur et al. 2018).

This is the paper's method. A comparative study of 2021 by the same group gives the name to another one (dense code,
Wasserstein loss with gradient penalty).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from vesalius.methods.blocks.adversarial import BESIDE_RECONSTRUCTION, Adversary, AdversarySettings
from vesalius.methods.blocks.autoencoders import (
    DEMO,
    TINY,
    AutoEncoder,
    PosteriorSettings,
    draw_code,
    reconstruction_loss,
    score_by_posterior,
)
from vesalius.methods.blocks.deviations import ALTERNATION, CODE, DISCRIMINATOR, POSTERIOR, SCORING, TRUNK
from vesalius.methods.blocks.variational import gaussian_divergence
from vesalius.platform.config import override
from vesalius.platform.contracts import Deviation, Method, MethodSettings, Range, Score, Stage, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Volume


class AnoVAEGANSettings(PosteriorSettings):
    """Settings of the AnoVAEGAN; the paper gives no weights."""

    lambda_1: float = setting(
        1.0,
        "weight of the l1 distance, a mean over a slice's values",
        source="this implementation",
        ge=0,
        mutable=True,
    )
    lambda_2: float = setting(
        1.0,
        "weight of the divergence of a slice's code, summed and divided by the slice's number of values; as great as "
        "lambda_1 it makes the evidence lower bound",
        source="this implementation",
        ge=0,
        space=Range(low=1e-4, high=10, log=True),
        mutable=True,
    )
    lambda_3: float = setting(
        1e-3,
        "weight of the adversarial loss, one number a slice",
        source="Pathak et al. 2016, section 4.1: 0.001 beside 0.999",
        ge=0,
        space=Range(low=1e-5, high=1e-1, log=True),
        mutable=True,
    )
    adversarial_reaches: Literal["decoder", "all"] = setting(
        "decoder",
        "what learns from the adversarial loss: the decoder, or the encoder as well",
        source="Baur et al. 2018, section 2: the decoder is trained with the help of an adversarial network",
    )
    adversary: AdversarySettings = BESIDE_RECONSTRUCTION


_DEVIATIONS = (
    *TRUNK,
    *CODE,
    *POSTERIOR,
    *DISCRIMINATOR,
    *ALTERNATION,
    *SCORING,
    Deviation(
        paper="lambda_1, lambda_2 and lambda_3 are not given (Eq. 1)",
        here="1 and 1, the evidence lower bound over a slice's number of values, and 0.001",
        why="a model's choice and Pathak's; not tuned",
    ),
    Deviation(
        paper="the adversarial loss trains the decoder (section 2); Eq. 1 has one sum",
        here="its gradient ends at the code (adversarial_reaches)",
        why="section 2, and so Larsen et al.",
    ),
    Deviation(
        paper="Larsen's discriminator also sees draws from the prior",
        here="slices and reconstructions",
        why="Eq. 2",
    ),
)


class AnoVAEGAN(Method):
    """The variational autoencoder of Eq. 1 against the discriminator of Eq. 2 (Baur et al. 2018).

    In each step the discriminator is updated first, then the autoencoder. The divergence has a gradient to the encoder
    alone; what the adversarial loss reaches is a setting. Batch statistics are taken over groups of ``group_size``
    slices: over what a worker happens to have, two workers could not equal one.

    Attributes:
        network: trunk and bottleneck.
        adversary: discriminator and watch.
    """

    settings_type: ClassVar[type[MethodSettings]] = AnoVAEGANSettings
    deviations: ClassVar[Sequence[Deviation]] = _DEVIATIONS
    settings: AnoVAEGANSettings

    def __init__(self, settings: AnoVAEGANSettings, cohort: CohortFacts) -> None:
        """Build the networks.

        Raises:
            SettingError: trunk or discriminator do not fit the cohort's slices or intensities.
        """
        super().__init__(settings, cohort)
        axis = settings.slices.axis
        self.network = AutoEncoder(settings.trunk, settings.bottleneck, cohort, axis, variational=True)
        self.adversary = Adversary(settings.adversary, cohort, axis)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        paper = AnoVAEGANSettings()
        small = {"epochs": 6, "lambda_2": 0.01, "adversary.width": 8, "adversary.stages": 3}
        return {
            "paper": paper,
            "demo": override(paper, {**DEMO, **small}),
            "tiny": override(paper, {**small, **TINY, "adversary.width": 2, "adversary.stages": 2}),
        }

    def stages(self) -> Sequence[Stage]:
        """One stage, ``anovaegan``, that updates ``discriminator`` and ``autoencoder`` in turn."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)
        return [
            self.adversary.stage(
                "anovaegan",
                self.settings,
                ("autoencoder", self.network, optimizer),
                discriminator_loss=self.discriminator_loss,
                opponent_loss=self.loss,
                reported="loss",
                observes=("reconstruction", "divergence", "adversarial"),
            )
        ]

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return Eq. 2 of slices against their reconstructions, summed; the number of slices; what is watched."""
        with torch.no_grad():
            fake = self.network.decode(self._code(batch)[0])
        return self.adversary.loss(batch.image, fake)

    def loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return Eq. 1 summed over the batch's slices; their number; and its three terms."""
        settings = self.settings
        code, apart = self._code(batch)
        reconstruction = self.network.decode(code)
        distance = reconstruction_loss(batch.image, reconstruction)
        apart = apart / batch.image.shape[1:].numel()
        # The same slices once more, from a code through which nothing gets back to the encoder.
        fake = reconstruction if settings.adversarial_reaches == "all" else self.network.decode(code.detach())
        lacking = self.adversary.fooled(fake)
        total = settings.lambda_1 * distance + settings.lambda_2 * apart + settings.lambda_3 * lacking
        observed = {"reconstruction": distance.sum(), "divergence": apart.sum(), "adversarial": lacking.sum()}
        return total.sum(), len(batch), observed

    def code_shape(self) -> tuple[int, ...]:
        """Return (Z,) of a dense code, (Z, r, s) of a spatial one."""
        return self.network.code_shape

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore every slice from its posterior; ``quick`` takes the mean, whatever ``samples`` says."""
        return score_by_posterior(volumes, self.network, self.settings, self.cohort, effort)

    def _code(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the slices' codes, drawn alike for both updates of a step, and their divergences (B,)."""
        mean, log_sigma = self.network.posterior(batch.image)
        code = draw_code(mean, log_sigma, batch.normal("posterior", self.network.code_shape))
        return code, gaussian_divergence(mean, 2 * log_sigma)
