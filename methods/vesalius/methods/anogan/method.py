"""The AnoGAN as the platform sees it: one stage and a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vesalius.methods.anogan.search import search_codes
from vesalius.methods.anogan.settings import AnoGANSettings, demo, tiny
from vesalius.methods.blocks.adversarial import Adversary
from vesalius.methods.blocks.convolutional import Decoder
from vesalius.methods.blocks.deviations import DISCRIMINATOR, SCORING, TRUNK
from vesalius.methods.blocks.residuals import Restored, score_by_residual
from vesalius.platform.contracts import Deviation, Method, MethodSettings, Score, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.methods.blocks.convolutional import TrunkSettings
    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Volume


class Generator(nn.Module):
    """Codes (B, Z) to slices (B, C, h, w): a linear layer to the trunk's features, then the trunk's decoder.

    For one channel of 256 x 256, the paper's width, four stages and Z = 64: 8,395,361 parameters, 4,194,304 of them in
    the linear layer, which has no bias since the decoder normalises what it gives.
    """

    def __init__(self, settings: TrunkSettings, latent_dim: int, cohort: CohortFacts, axis: int) -> None:
        """Build the layers; errors as those of the decoder."""
        super().__init__()
        self.decoder = Decoder(settings, cohort, axis)
        shape = (self.decoder.num_features, *self.decoder.plane)
        self.entry = nn.Sequential(
            nn.Linear(latent_dim, shape[0] * shape[1] * shape[2], bias=False), nn.Unflatten(1, shape)
        )

    def forward(self, code: Tensor) -> Tensor:
        """Return slices, float32."""
        image: Tensor = self.decoder(self.entry(code))
        return image


_DEVIATIONS = (
    *TRUNK,
    *DISCRIMINATOR,
    *SCORING,
    Deviation(
        paper="the generator's layers are not given",
        here="one linear layer to 16 x 16, then the decoder of the other rows, with a tanh: intensities must lie in "
        "[-1, 1] (trunk.output)",
        why="the same decoder in all rows",
    ),
    Deviation(
        paper="trained for 150 epochs and judged at 82, chosen by eye (section 3.1)",
        here="82 epochs are trained (epochs)",
        why="nobody looks at the slices here",
    ),
    Deviation(
        paper="a search in 100 steps; optimiser and rate are not given (section 3.1)",
        here="Adam, 0.05 (search.learning_rate)",
        why="a hundred steps must span a few deviations",
    ),
    Deviation(
        paper="lambda and the features' layer are not given",
        here="Schlegl's 0.1; the discriminator's last convolution (search.feature_weight)",
        why="Schlegl et al. 2017, Eq. 5",
    ),
    Deviation(
        paper="the search starts at a random code",
        here="the code is drawn from the volume's content",
        why="a volume scored twice gets the same map",
    ),
)


class AnoGAN(Method):
    """A generative adversarial network of healthy slices, inverted by search (Schlegl et al. 2017; Baur et al. 2018).

    In each step the discriminator is updated first, then the generator, on the same codes. A new slice gets the code
    whose slice is nearest to it, in intensities and in the discriminator's features (those of its last convolution);
    what the generator could not give is the anomaly. Batch statistics are taken over groups of ``group_size`` slices:
    over what a worker happens to have, two workers could not equal one.

    Attributes:
        generator: codes to slices.
        adversary: discriminator and watch.
    """

    settings_type: ClassVar[type[MethodSettings]] = AnoGANSettings
    deviations: ClassVar[Sequence[Deviation]] = _DEVIATIONS
    settings: AnoGANSettings

    def __init__(self, settings: AnoGANSettings, cohort: CohortFacts) -> None:
        """Build the networks.

        Raises:
            SettingError: generator or discriminator do not fit the cohort's slices or intensities.
        """
        super().__init__(settings, cohort)
        axis = settings.slices.axis
        self.generator = Generator(settings.trunk, settings.latent_dim, cohort, axis)
        self.adversary = Adversary(settings.adversary, cohort, axis)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": AnoGANSettings(), "demo": demo(), "tiny": tiny()}

    def stages(self) -> Sequence[Stage]:
        """One stage, ``gan``, that updates ``discriminator`` and ``generator`` in turn."""
        settings = self.settings
        optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=settings.learning_rate, betas=(settings.adversary.beta1, 0.999)
        )
        return [
            self.adversary.stage(
                "gan",
                settings,
                ("generator", self.generator, optimizer),
                discriminator_loss=self.discriminator_loss,
                opponent_loss=self.generator_loss,
                reported="generator_loss",
            )
        ]

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return the discriminator's loss on slices and generated ones, summed; their number; what is watched."""
        with torch.no_grad():
            fake = self._generated(batch)
        return self.adversary.loss(batch.image, fake)

    def generator_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return what the generated slices lack to pass for real, summed, and their number."""
        return self.adversary.fooled(self._generated(batch)).sum(), len(batch)

    def code_shape(self) -> tuple[int]:
        """Return (Z,)."""
        return (self.settings.latent_dim,)

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Search the codes of all volumes' slices together, ``slices.together`` at a time; ``quick`` in fewer steps.

        A slice's search starts at a code drawn from N(0, 1), keyed by the volume's content.
        """
        settings = self.settings
        steps = settings.search.steps if effort == "full" else min(settings.search.quick_steps, settings.search.steps)

        def restore(image: Tensor, start: Tensor) -> Restored:
            code = search_codes(
                self.generator,
                self.adversary.discriminator.features,
                image,
                start,
                steps=steps,
                learning_rate=settings.search.learning_rate,
                feature_weight=settings.search.feature_weight,
            )
            return Restored(image=self.generator(code))

        return score_by_residual(
            volumes,
            restore,
            cohort=self.cohort,
            slices=settings.slices,
            maps=settings.map,
            device=next(self.parameters()).device,
            draw=lambda volume, num: torch.randn(num, settings.latent_dim, generator=volume.generator("code")),
        )

    def _generated(self, batch: Batch) -> Tensor:
        image: Tensor = self.generator(batch.normal("code", (self.settings.latent_dim,)))
        return image
