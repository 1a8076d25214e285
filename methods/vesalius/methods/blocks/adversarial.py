"""Adversarial training: the discriminator of Larsen et al. 2016, its losses, and a watch over the balance.

The alternation is the stage's, :meth:`Adversary.stage`: first the discriminator is updated, then what it plays against.

B items, C channels, h, w a slice.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.methods.blocks.averages import MovingAverages, spread_of
from vesalius.platform.config import Settings
from vesalius.platform.contracts import Range, Stage, segmented, setting
from vesalius.platform.errors import DivergenceError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vesalius.methods.blocks.autoencoders import SliceTrainingSettings
    from vesalius.platform.contracts import Batch, CohortFacts, Metrics, Update
    from vesalius.platform.contracts.stage import LossSum

_KERNEL = 5
_WIDEST = 8
_PAPER = "Baur et al. 2018"
_LARSEN = "Larsen et al. 2016, code"


class WatchSettings(Settings):
    """When an adversarial stage is held to have failed.

    A discriminator that is right nine times in ten is usual and still teaches; one that hardly ever errs over hundreds
    of batches has left its opponent behind. Slices of a generator that has collapsed are one and the same image;
    blurred ones still differ from each other as far as anatomy does.
    """

    grace: int = setting(
        1_000,
        "steps of the stage before anything is judged: fresh networks give one grey image",
        source="this implementation",
        ge=0,
    )
    window: int = setting(500, "steps that the moving averages reach back", source="this implementation", ge=1)
    accuracy: float = setting(
        0.999,
        "the discriminator has won where it is right more often than this on real and on generated slices alike; "
        "1 never stops",
        source="this implementation",
        gt=0.5,
        le=1,
    )
    spread: float = setting(
        0.05,
        "the generator has collapsed where its slices' deviation from each other is less than this fraction of the "
        "real ones'; 0 never stops",
        source="this implementation",
        ge=0,
        lt=1,
    )


class AdversarySettings(Settings):
    """The discriminator, how it is trained, and when the game is given up."""

    width: int = setting(
        32,
        "channels of the first layer; the stages have four, then eight times as many, the linear layer sixteen times",
        source=_LARSEN,
        ge=1,
    )
    stages: int = setting(
        5,
        "halvings before the linear layers: five leave 8 x 8 of 256 pixels, as Larsen's three do of 64",
        source=f"{_LARSEN}; the number is this implementation's",
        ge=1,
        le=8,
    )
    learning_rate: float = setting(
        1e-4,
        "Adam's learning rate for the discriminator",
        source=f"{_PAPER}, section 3",
        gt=0,
        space=Range(low=1e-5, high=1e-3, log=True),
        mutable=True,
    )
    beta1: float = setting(
        0.5,
        "Adam's first moment for the discriminator, and for the AnoGAN's generator",
        source="Radford et al. 2016, section 3; the paper names no optimiser",
        ge=0,
        lt=1,
        mutable=True,
    )
    watch: WatchSettings = WatchSettings()


BESIDE_RECONSTRUCTION = AdversarySettings(watch=WatchSettings(accuracy=1))
"""Where an l1 loss teaches the decoder as well: its slices are smooth, so that noise alone gives them away and the
discriminator is soon nearly always right, which is no failure. Its accuracy is logged, and a collapse still stops."""


class Discriminator(nn.Module):
    """Logits of slices: conv5, stages of conv5 of stride 2 with batch normalisation and ReLU, two linear layers.

    For one channel of 256 x 256 and the default settings 14,229,569 parameters.
    """

    def __init__(self, settings: AdversarySettings, cohort: CohortFacts, axis: int) -> None:
        """Build the layers.

        Raises:
            SettingError: a single pixel is left, over which a batch of one slice has no statistics.
        """
        super().__init__()
        h, w = (num for at, num in enumerate(cohort.grid) if at != axis)
        # An odd plane is halved upwards: nothing of it is cut off.
        r, s = (math.ceil(num / 2**settings.stages) for num in (h, w))
        if r * s < 2:
            raise SettingError(
                f"adversary.stages: {settings.stages} halvings leave one pixel of slices of {h} x {w}: set fewer"
            )
        channels = [settings.width * min(2**at, _WIDEST) for at in (0, *range(2, settings.stages + 2))]
        layers: list[nn.Module] = [nn.Conv2d(len(cohort.channels), channels[0], _KERNEL, padding=_KERNEL // 2)]
        layers.append(nn.ReLU(inplace=True))
        for num_inputs, num_outputs in itertools.pairwise(channels):
            layers.append(nn.Conv2d(num_inputs, num_outputs, _KERNEL, stride=2, padding=_KERNEL // 2, bias=False))
            layers += [nn.BatchNorm2d(num_outputs), nn.ReLU(inplace=True)]
        self.convolutions = nn.Sequential(*layers)
        num_units = 16 * settings.width
        self.judgement = nn.Sequential(
            nn.Flatten(), nn.Linear(channels[-1] * r * s, num_units), nn.ReLU(inplace=True), nn.Linear(num_units, 1)
        )

    def features(self, image: Tensor) -> Tensor:
        """Return what the last convolution gives for slices (B, C, h, w): (B, 8 width, r, s)."""
        return segmented(self.convolutions, image, (nn.Conv2d,))

    def forward(self, image: Tensor) -> Tensor:
        """Return (B,) float32 logits of slices (B, C, h, w) being real."""
        logits: Tensor = self.judgement(self.features(image))
        return logits.squeeze(1).float()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return (B,) binary cross-entropies from logits: -log D(real) - log(1 - D(fake)) (the paper's Eq. 2).

    As softplus of the logits, which neither overflows nor takes the logarithm of zero.
    """
    return F.softplus(-real) + F.softplus(fake)


def generator_loss(fake: Tensor) -> Tensor:
    """Return (B,) -log D(fake) from logits: the form that does not fade while the discriminator is winning (Eq. 1)."""
    return F.softplus(-fake)


class Watch(MovingAverages):
    """Moving averages of the discriminator's accuracy and of the slices' spread; stops a game that is over."""

    NAMES: ClassVar[tuple[str, ...]] = ("real_accuracy", "fake_accuracy", "real_variance", "fake_variance")

    def __init__(self, settings: WatchSettings) -> None:
        super().__init__(settings.window)
        self._settings = settings

    def see(self, observed: Mapping[str, float], batch: Batch) -> dict[str, float]:
        """Take in a step's means of :attr:`NAMES` and return the moving averages by name, the spread as a ratio.

        Raises:
            DivergenceError: the discriminator has won, or the generator gives one image; names stage and step.
        """
        real, fake, real_variance, fake_variance = self.take(observed)
        spread = spread_of(real_variance, fake_variance)
        if int(self.seen) > self._settings.grace:
            self._judge(min(real, fake), spread, f"at step {batch.step} of stage '{batch.stage}'")
        return {"real_accuracy": real, "fake_accuracy": fake, "spread": spread}

    def _judge(self, accuracy: float, spread: float, where: str) -> None:
        steps = min(int(self.seen), self._settings.window)
        if spread < self._settings.spread:
            raise DivergenceError(
                f"the generator has collapsed {where}: over some {steps} steps its slices differ from each other by "
                f"{100 * spread:.2g} % of what real slices do (adversary.watch.spread allows "
                f"{100 * self._settings.spread:g} %): train for fewer epochs, lower the learning rates, or weight "
                "the adversarial and prior terms less where the method has them"
            )
        if accuracy > self._settings.accuracy:
            raise DivergenceError(
                f"the discriminator has won {where}: over some {steps} steps it was right on {100 * accuracy:.4g} % of "
                f"real and of generated slices (adversary.watch.accuracy allows {100 * self._settings.accuracy:g} %), "
                "so that its opponent learns nothing more: lower adversary.learning_rate, make it smaller with "
                "adversary.width, or train for fewer epochs"
            )


class Adversary(nn.Module):
    """A discriminator with its optimiser's settings and its watch.

    Attributes:
        discriminator: the network.
        watch: over the balance.
    """

    OBSERVES: ClassVar[tuple[str, ...]] = Watch.NAMES

    def __init__(self, settings: AdversarySettings, cohort: CohortFacts, axis: int) -> None:
        """Build the discriminator; errors as its own."""
        super().__init__()
        self._settings = settings
        self.discriminator = Discriminator(settings, cohort, axis)
        self.watch = Watch(settings.watch)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam over the discriminator's parameters."""
        settings = self._settings
        return torch.optim.Adam(
            self.discriminator.parameters(), lr=settings.learning_rate, betas=(settings.beta1, 0.999)
        )

    def stage(
        self,
        name: str,
        settings: SliceTrainingSettings,
        opponent: tuple[str, nn.Module, torch.optim.Optimizer],
        *,
        discriminator_loss: Callable[[Batch], LossSum],
        opponent_loss: Callable[[Batch], LossSum],
        reported: str,
        observes: Sequence[str] = (),
    ) -> Stage:
        """Return a stage that updates the discriminator, looks at the balance, then updates its opponent.

        Args:
            name: of the stage.
            settings: view, batches and epochs.
            opponent: the optimiser's name, the module it trains, and itself.
            discriminator_loss: of a batch; reports :attr:`OBSERVES`.
            opponent_loss: of a batch.
            reported: what the opponent's loss is called among the metrics.
            observes: what it reports beside.
        """
        role, module, optimizer = opponent

        def step(batch: Batch, update: Update) -> Metrics:
            lost = update("discriminator", discriminator_loss, batch)
            balance = self.watch.see(update.observed, batch)
            loss = update(role, opponent_loss, batch)
            return {reported: loss, "discriminator_loss": lost, **balance, **update.observed}

        return Stage(
            name=name,
            view=settings.slices.view(),
            batch_size=settings.batch_size,
            group_size=settings.group_size,
            epochs=settings.epochs,
            trains=(module, self.discriminator),
            optimizers={"discriminator": self.optimizer(), role: optimizer},
            step=step,
            begin=self.watch.begin,
            selectable=True,
            observes=(*self.OBSERVES, *observes),
        )

    def loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, int, dict[str, Tensor]]:
        """Return the discriminator's loss on slices (B, C, h, w), summed; the number of pairs; what is watched.

        Real and generated slices pass apart: normalised together, the one would shift the other.

        Args:
            real: slices of the batch.
            fake: as many generated ones, without a graph.
        """
        on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        num = len(real)
        observed = {
            "real_accuracy": (on_real > 0).float().sum(),
            "fake_accuracy": (on_fake < 0).float().sum(),
            "real_variance": num * real.float().var(0, unbiased=False).mean(),
            "fake_variance": num * fake.float().var(0, unbiased=False).mean(),
        }
        return discriminator_loss(on_real, on_fake).sum(), num, observed

    def fooled(self, fake: Tensor) -> Tensor:
        """Return (B,) what generated slices (B, C, h, w) still lack to pass for real, with a graph to them."""
        return generator_loss(self.discriminator(fake))
