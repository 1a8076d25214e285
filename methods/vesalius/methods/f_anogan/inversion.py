"""The three stages of an f-AnoGAN, of volumes or of slices, and what a new image lacks.

B items, C channels, ... an image's axes, Z length of a code.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vesalius.methods.f_anogan.networks import Critic, Encoder, Generator, frame_of
from vesalius.methods.f_anogan.objectives import critic_loss, distance, generator_loss, slopes
from vesalius.methods.f_anogan.watch import CriticWatch
from vesalius.platform.contracts import Method, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from vesalius.methods.f_anogan.settings import InversionSettings
    from vesalius.platform.contracts import Batch, CohortFacts, Metrics, Update, View

# TensorFlow's, which f-AnoGAN's code takes; torch's own average reaches ten times as far back.
_RMSPROP_DECAY = 0.9


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """Images as generator and encoder would have them healthy.

    Attributes:
        image: (B, C, ...) G(E(x)).
        image_distance: (B,) Eq. 4.
        feature_distance: (B,) Eq. 5.
        loss: (B,) Eq. 6: the loss of encoder and fine-tuning, and the anomaly score.
    """

    image: Tensor
    image_distance: Tensor
    feature_distance: Tensor
    loss: Tensor


class Inversion(Method):
    """A generator trained against a critic, then an encoder that inverts it, then both trained on together.

    Batch statistics are taken over groups of ``group_size`` images: over what a worker happens to have, two workers
    could not equal one. The encoder learns on a generator and critic that keep still, with the statistics that they
    have when scoring.

    Attributes:
        generator: codes to images.
        critic: images to scores.
        encoder: images to codes.
        watch: over the game.
    """

    settings: InversionSettings

    def __init__(self, settings: InversionSettings, cohort: CohortFacts) -> None:
        """Build the networks.

        Raises:
            SettingError: the networks do not fit the cohort's images or intensities.
        """
        super().__init__(settings, cohort)
        frame = frame_of(settings.network, cohort, self.image_shape())
        self.generator: nn.Module = Generator(settings.network, frame, cohort)
        self.critic = Critic(settings.network, frame)
        self.encoder: nn.Module = Encoder(settings.network, frame)
        self.watch = CriticWatch(settings.game.watch, settings.game.penalty_weight)

    @abstractmethod
    def image_shape(self) -> tuple[int, ...]:
        """Return an image's axes."""

    @abstractmethod
    def view(self) -> View:
        """Return how all stages look at the cohort."""

    def code_shape(self) -> tuple[int]:
        """Return (Z,)."""
        return (self.settings.network.latent_dim,)

    def stages(self) -> Sequence[Stage]:
        """``gan``: the critic in every step, the generator in every n-th; ``encoder``; ``fine_tuning`` of both.

        The best may be chosen in the last two, which alone can restore anything.
        """
        game, learning, tuning = self.settings.game, self.settings.encoder, self.settings.fine_tuning
        gan = Stage(
            name="gan",
            view=self.view(),
            batch_size=self.settings.batch_size,
            group_size=self.settings.group_size,
            epochs=game.epochs,
            trains=(self.generator, self.critic),
            optimizers={"critic": self._adam(self.critic), "generator": self._adam(self.generator)},
            step=self._play,
            begin=self.watch.begin,
            observes=("distance", "penalty", "slope", "apart", "real_variance", "fake_variance"),
        )
        stages = [gan, self._restoring("encoder", learning.epochs, learning.learning_rate, (self.encoder,))]
        if tuning.epochs:
            both = (self.encoder, self.generator)
            stages.append(self._restoring("fine_tuning", tuning.epochs, tuning.learning_rate, both))
        return stages

    def critic_loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return Eq. 2 summed over the batch's images; their number; and what is watched.

        That is the distance of real from generated images that the critic sees, its penalty, its slope (1 in a critic
        of the theory), the Euclidean distance of the pairs, and how far images of a group differ from each other.
        Real, generated and mixed images pass apart: normalised together, the one would shift the other.
        """
        real, num, weight = batch.image, len(batch), self.settings.game.penalty_weight
        with torch.no_grad():
            fake = self.generator(batch.normal("critic", self.code_shape()))
        on_real, on_fake = self.critic(real), self.critic(fake)
        slope = slopes(self.critic, real, fake, batch.uniform("mix", (1,)))
        observed = {
            "distance": (on_real - on_fake).sum(),
            "penalty": weight * (slope - 1).square().sum(),
            "slope": slope.sum(),
            "apart": torch.linalg.vector_norm((real.float() - fake).flatten(1), dim=1).sum(),
            "real_variance": num * real.float().var(0, unbiased=False).mean(),
            "fake_variance": num * fake.float().var(0, unbiased=False).mean(),
        }
        return critic_loss(on_real, on_fake, slope, weight).sum(), num, observed

    def generator_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return Eq. 3 summed over as many generated images as the batch has, and their number."""
        fake = self.generator(batch.normal("generator", self.code_shape()))
        return generator_loss(self.critic(fake)).sum(), len(batch)

    def restoration_loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return Eq. 6 summed over the batch's images; their number; and its two terms."""
        found = self.inverted(batch.image)
        observed = {"image": found.image_distance.sum(), "features": found.feature_distance.sum()}
        return found.loss.sum(), len(batch), observed

    def inverted(self, image: Tensor) -> Inverted:
        """Return what generator and encoder make of images (B, C, ...), and what they lack."""
        settings = self.settings
        restored = self.generator(self.encoder(image))
        with torch.no_grad():
            wanted = self.critic.features(image, settings.feature_block)
        in_image = distance(image, restored)
        in_features = distance(wanted, self.critic.features(restored, settings.feature_block))
        return Inverted(
            image=restored,
            image_distance=in_image,
            feature_distance=in_features,
            loss=in_image + settings.feature_weight * in_features,
        )

    def _play(self, batch: Batch, update: Update) -> Metrics:
        metrics: dict[str, float | Tensor] = {"critic_loss": update("critic", self.critic_loss, batch)}
        metrics |= {**update.observed, **self.watch.see(update.observed, batch)}
        if (batch.step + 1) % self.settings.game.critic_steps == 0:
            metrics["generator_loss"] = update("generator", self.generator_loss, batch)
        return metrics

    def _restoring(self, name: str, epochs: float, learning_rate: float, trains: Sequence[nn.Module]) -> Stage:
        def step(batch: Batch, update: Update) -> Metrics:
            loss = update(name, self.restoration_loss, batch)
            return {"loss": loss, **update.observed}

        parameters = [parameter for module in trains for parameter in module.parameters()]
        return Stage(
            name=name,
            view=self.view(),
            batch_size=self.settings.batch_size,
            group_size=self.settings.group_size,
            epochs=epochs,
            trains=trains,
            optimizers={name: torch.optim.RMSprop(parameters, lr=learning_rate, alpha=_RMSPROP_DECAY)},
            step=step,
            selectable=True,
            observes=("image", "features"),
        )

    def _adam(self, module: nn.Module) -> torch.optim.Optimizer:
        game = self.settings.game
        return torch.optim.Adam(module.parameters(), lr=game.learning_rate, betas=(game.beta1, game.beta2))
