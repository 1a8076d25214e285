"""What the autoencoders of Baur et al. 2018 share: trunk and bottleneck as one network, its losses, its settings.

B items, C channels, h, w a slice; a code is (B, Z) in a dense bottleneck, (B, Z, r, s) in a spatial one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from vesalius.methods.blocks.convolutional import Trunk, TrunkSettings
from vesalius.methods.blocks.residuals import ResidualMapSettings, Restored, score_by_residual
from vesalius.methods.blocks.slices import SliceSettings
from vesalius.platform.config import Settings
from vesalius.platform.contracts import SCORING, Choice, MethodSettings, Range, Stage, setting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Metrics, Score, Update, Volume
    from vesalius.platform.contracts.stage import LossSum

_PAPER = "Baur et al. 2018"


class BottleneckSettings(Settings):
    """What stands between encoder and decoder."""

    kind: Literal["dense", "spatial"] = setting(
        "spatial",
        "dense: one code a slice, by linear layers; spatial: a code at each pixel of the bottleneck's plane, by conv1",
        source=f"{_PAPER}, section 3.1",
    )
    size: int = setting(
        64,
        "units of a dense code, channels of a spatial one",
        source=f"{_PAPER}, Table 1: 64 channels; 512 units where dense",
        ge=1,
        space=Choice(values=(16, 32, 64, 128, 256, 512)),
    )


class SliceTrainingSettings(MethodSettings):
    """How a network of slices is trained, on which of them, and what becomes of its residuals."""

    slices: SliceSettings = SliceSettings()
    trunk: TrunkSettings = TrunkSettings()
    epochs: float = setting(190, "passes over the training slices", source=f"{_PAPER}, section 3", gt=0)
    batch_size: int = setting(8, "slices in a batch", source=f"{_PAPER}, section 3", ge=2)
    group_size: int = setting(
        8,
        "slices that batch statistics are taken over; a group stays on one worker, so that several workers need "
        "batches of several groups",
        source=f"{_PAPER}, section 3: a batch on one device",
        ge=2,
    )
    map: ResidualMapSettings = ResidualMapSettings()

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.batch_size % self.group_size:
            raise ValueError(
                f"a batch of {self.batch_size} slices does not part into groups of {self.group_size}: "
                "set batch_size to a multiple of group_size"
            )
        return self


class ReconstructionSettings(SliceTrainingSettings):
    """Settings that every autoencoder of the paper has."""

    bottleneck: BottleneckSettings = BottleneckSettings()
    learning_rate: float = setting(
        1e-3,
        "Adam's learning rate for the reconstruction objective",
        source=f"{_PAPER}, section 3; the optimiser is this implementation's",
        gt=0,
        space=Range(low=1e-4, high=3e-3, log=True),
        mutable=True,
    )


class PosteriorSettings(ReconstructionSettings):
    """Settings of those whose code has a posterior."""

    samples: int = setting(
        0,
        "draws that a restoration is the mean of, the deviation of several given as 'spread'; 0 takes the posterior's "
        "mean",
        source="this implementation; the paper does not say what is decoded in testing",
        ge=0,
        since=SCORING,
        inference_space=Choice(values=(0, 4, 16)),
    )


TINY: Mapping[str, Any] = {
    "slices.every": 2,
    "trunk.width": 4,
    "trunk.stages": 2,
    "bottleneck.size": 4,
    "epochs": 2,
    "group_size": 4,
    "learning_rate": 3e-3,
    "map.median_pool": 3,
}
"""Networks of a few thousand parameters for tests: seconds, and no claim to detect anything."""

DEMO: Mapping[str, Any] = {
    "trunk.width": 16,
    "trunk.stages": 3,
    "bottleneck.size": 16,
    "slices.every": 2,
    "slices.scored": "all",
    "epochs": 12,
    "map.median_pool": 3,
}
"""A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels: a plane of 6 x 6 to 8 x 8 codes."""


class AutoEncoder(nn.Module):
    """A trunk around a bottleneck, with a posterior of the code where ``variational``.

    Dense: the features flattened, one linear layer to the code and one back. Spatial: a conv1 to the code's channels
    and one back. The code's mean has no bias (nor has the way back): the normalisation at the decoder's entry takes a
    constant away. log sigma has one.

    Attributes:
        trunk: encoder and decoder.
        code_shape: shape of one item's code.
    """

    def __init__(
        self,
        trunk: TrunkSettings,
        bottleneck: BottleneckSettings,
        cohort: CohortFacts,
        axis: int,
        *,
        variational: bool = False,
    ) -> None:
        """Build the layers.

        Raises:
            SettingError: the trunk does not fit the cohort's slices or intensities.
        """
        super().__init__()
        self.trunk = Trunk(trunk, cohort, axis)
        num_features, plane = self.trunk.decoder.num_features, self.trunk.decoder.plane
        size = bottleneck.size
        self.mean: nn.Module
        self.log_sigma: nn.Module | None = None
        self.back: nn.Module
        self.code_shape: tuple[int, ...]
        if bottleneck.kind == "dense":
            num_units = num_features * plane[0] * plane[1]
            self.code_shape = (size,)
            self.mean = nn.Sequential(nn.Flatten(), nn.Linear(num_units, size, bias=False))
            if variational:
                self.log_sigma = nn.Sequential(nn.Flatten(), nn.Linear(num_units, size))
            self.back = nn.Sequential(nn.Linear(size, num_units, bias=False), nn.Unflatten(1, (num_features, *plane)))
        else:
            self.code_shape = (size, *plane)
            self.mean = nn.Conv2d(num_features, size, 1, bias=False)
            if variational:
                self.log_sigma = nn.Conv2d(num_features, size, 1)
            self.back = nn.Conv2d(size, num_features, 1, bias=False)

    def encode(self, image: Tensor) -> Tensor:
        """Return the code of slices (B, C, h, w); of a posterior its mean."""
        code: Tensor = self.mean(self.trunk.features(image))
        return code

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log sigma of each slice's code, float32."""
        assert self.log_sigma is not None, "only a variational network has a posterior"
        features = self.trunk.features(image)
        return self.mean(features).float(), self.log_sigma(features).float()

    def decode(self, code: Tensor) -> Tensor:
        """Return slices (B, C, h, w), float32."""
        image: Tensor = self.trunk.decoder(self.back(code))
        return image

    def forward(self, image: Tensor) -> Tensor:
        """Return the reconstruction of slices, without sampling."""
        return self.decode(self.encode(image))


def reconstruction_stage(
    settings: ReconstructionSettings,
    network: AutoEncoder,
    loss: Callable[[Batch], LossSum],
    observes: Sequence[str] = (),
) -> Stage:
    """Return the stage ``autoencoder`` of a network that has nothing but its own loss to learn from."""

    def step(batch: Batch, update: Update) -> Metrics:
        return {"loss": update("adam", loss, batch), **update.observed}

    return Stage(
        name="autoencoder",
        view=settings.slices.view(),
        batch_size=settings.batch_size,
        group_size=settings.group_size,
        epochs=settings.epochs,
        trains=(network,),
        optimizers={"adam": torch.optim.Adam(network.parameters(), lr=settings.learning_rate)},
        step=step,
        selectable=True,
        observes=observes,
    )


def score_by_reconstruction(
    volumes: Sequence[Volume], network: AutoEncoder, settings: SliceTrainingSettings, cohort: CohortFacts
) -> list[Score]:
    """Return scores of volumes from one pass of their slices through the network."""
    return score_by_residual(
        volumes,
        lambda image, drawn: Restored(image=network(image)),
        cohort=cohort,
        slices=settings.slices,
        maps=settings.map,
        device=next(network.parameters()).device,
    )


def score_by_posterior(
    volumes: Sequence[Volume],
    network: AutoEncoder,
    settings: PosteriorSettings,
    cohort: CohortFacts,
    effort: Effort,
) -> list[Score]:
    """Return scores of volumes from their slices' posteriors; ``quick`` takes the mean, whatever ``samples`` says."""
    num_samples = settings.samples if effort == "full" else 0
    return score_by_residual(
        volumes,
        lambda image, noise: restore_by_posterior(network, image, noise),
        cohort=cohort,
        slices=settings.slices,
        maps=settings.map,
        device=next(network.parameters()).device,
        draw=lambda volume, num: posterior_noise(volume, num, num_samples, network.code_shape),
    )


def reconstruction_loss(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Return (B,) the l1 distance of each slice to its reconstruction, a mean over its values."""
    return (reconstruction.float() - image).abs().flatten(1).mean(1)


def draw_code(mean: Tensor, log_sigma: Tensor, noise: Tensor) -> Tensor:
    """Return mean + sigma * noise."""
    return mean + log_sigma.exp() * noise


def posterior_noise(volume: Volume, num_slices: int, num_samples: int, code_shape: tuple[int, ...]) -> Tensor:
    """Return (S, samples, *code) standard normal noise for a volume's slices, keyed by the volume's content."""
    shape = (num_slices, num_samples, *code_shape)
    return torch.randn(shape, generator=volume.generator("posterior"))


def restore_by_posterior(network: AutoEncoder, image: Tensor, noise: Tensor) -> Restored:
    """Return the reconstruction from the posterior's mean, or the mean over as many draws as there is noise for.

    Args:
        network: variational.
        image: (S, C, h, w).
        noise: (S, samples, *code). Of several draws the standard deviation comes as ``spread``, of several channels
            the largest; one draw has none.
    """
    num_samples = noise.shape[1]
    if num_samples == 0:
        return Restored(image=network(image))
    mean, log_sigma = network.posterior(image)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    first = network.decode(draw_code(mean, log_sigma, noise[:, 0]))
    for sample in range(1, num_samples):
        # Sums of departures from the first draw: little cancels, and memory does not grow with the draws.
        departure = network.decode(draw_code(mean, log_sigma, noise[:, sample])) - first
        total += departure
        squares += departure.square()
    if num_samples == 1:
        return Restored(image=first)
    average = total / num_samples
    variance = (squares / num_samples - average.square()).clamp(min=0) * num_samples / (num_samples - 1)
    return Restored(image=first + average, extras={"spread": variance.sqrt().amax(1)})
