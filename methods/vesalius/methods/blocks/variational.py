"""The variational auto-encoder of slices that ``residual_vae`` and ``vae_restoration`` share.

Naval Marimont and Tarroni 2021 say of it: latent length, L1 loss, "deeper architectures with residual blocks, batch
normalization" (section 3), images of zero mean and unit deviation, and the kinds of augmentation. The layers are ours:

::

    entry   conv3 C > w0, BN, ReLU
    down    L times: conv3 stride 2 w > w', BN, ReLU; ``blocks`` residual blocks of w'
    latent  linear w_L h w > mean and log variance of Z
    up      linear Z > w_L h w; L times: ``blocks`` residual blocks of w'; nearest x 2, conv3 w' > w, BN, ReLU
    exit    conv3 w0 > C

A residual block is conv3, BN, ReLU, conv3, BN, added to its input, ReLU. Convolutions before BN carry no bias.

Shapes: B slices, C channels, h w the plane as padded, Z length of the latent.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.methods.blocks.counting import brain_moments, cohort_augmentation
from vesalius.methods.blocks.maps import AVERAGES, MINIMA, MapSettings, Window
from vesalius.methods.blocks.slices import SliceSettings, crop_plane, pad_plane, padded_plane
from vesalius.platform.contracts import Choice, Deviation, MethodSettings, Range, Stage, segmented, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Batch, CohortFacts, Metrics, Update

_PAPER = "Naval Marimont and Tarroni 2021"
_OURS = "this implementation; the paper gives none"

# Where methods of the paper part from it alike.
LAYERS = Deviation(
    paper="deeper architectures with residual blocks and batch normalisation; no layers are given (section 3)",
    here="five halvings from 16 to 256 channels, two residual blocks each (widths, blocks)",
    why="the paper gives none",
)
MOMENTS = Deviation(
    paper="images of zero mean and unit deviation; over what is not said (section 3)",
    here="mean and deviation of all training brains' voxels; the background is shifted with them",
    why="a volume's score then depends on no statistic of its own lesion",
)
AUGMENTED = Deviation(
    paper="elastic transforms, scaling, rotations, brightness and contrast; no magnitudes (section 3)",
    here="the first author's magnitudes for MOOD 2020 and 4 mm of elastic deformation, each half of the time (augment)",
    why="that code's elastic transform moves next to nothing",
)
TRAINING = Deviation(
    paper="epochs, batch, learning rate and the divergence's weight of the VAEs are not given",
    here="600 epochs, batches of 64 slices and Adam at 1e-4 as for the VQ-VAE; weight 1 on sums (kl_weight)",
    why="some values are needed",
)
GROUPS = Deviation(
    paper="batch normalisation, over the batch",
    here="over groups of 16 slices (group_slices)",
    why="statistics must not depend on the number of workers",
)
REPLICATED = Deviation(
    paper="each axial score is replicated four times; which way is not said (section 3)",
    here="every slice takes the nearest scored one's map (slices.scored = all scores every slice)",
    why="it shifts the map least",
)
BORDERS = Deviation(
    paper="minimum and average pooling of the map; borders are not described (section 2)",
    here="voxels outside the volume count for neither: the mean divides by those inside",
    why="zeros would dim the border",
)
IMAGE_SCORE = Deviation(
    paper="no score of a whole image",
    here="the mean of the highest hundredth of the map inside the brain (map.image_score)",
    why="the platform asks for one",
)
SELECTED = Deviation(
    paper="no choice among states of training",
    here="the best of the validation passes is kept",
    why="the platform's rule",
)
VAE_DEVIATIONS = (LAYERS, MOMENTS, AUGMENTED, TRAINING, GROUPS, REPLICATED, BORDERS, IMAGE_SCORE, SELECTED)
"""What both of the paper's VAEs share."""


class EveryFourthSlice(SliceSettings):
    """The slices that Naval Marimont and Tarroni 2021 take: one axial slice of four, its map replicated."""

    every: int = setting(4, "take each n-th slice", source=f"{_PAPER}, section 3", ge=1)


class PooledMapSettings(MapSettings):
    """The post-processing of the whole table of Naval Marimont and Tarroni 2021: minimum over 3^3, mean over 15^3."""

    min_pool: Window = setting(
        3, "edge of the minimum window in voxels; 1 is none", source=f"{_PAPER}, section 2", inference_space=MINIMA
    )
    average_pool: Window = setting(
        15,
        "edge of the averaging window in voxels, as in the paper at 160^3; 1 is none",
        source=f"{_PAPER}, section 2",
        inference_space=AVERAGES,
    )


def check_widths_and_groups(widths: tuple[int, ...], batch_slices: int, group_slices: int) -> None:
    """Refuse layers without a halving of the plane, and batches that do not part into whole groups.

    Raises:
        ValueError: says which setting is wrong, for a settings class to pass on.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError("widths needs two positive numbers at least: before and after one halving of the plane")
    if batch_slices % group_slices:
        raise ValueError(f"batch_slices ({batch_slices}) must be a multiple of group_slices ({group_slices})")


class VaeSettings(MethodSettings):
    """What the two methods set alike."""

    latent_dim: int = setting(
        10,
        "Z, length of the latent",
        source=f"{_PAPER}, Table 1",
        ge=1,
        space=Choice(values=(10, 32, 128)),
        since="vae",
    )
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 128, 256, 256),
        "channels before the first halving of the plane and after each",
        source=_OURS,
        since="vae",
    )
    blocks: int = setting(2, "residual blocks at each resolution below the first", source=_OURS, ge=1, since="vae")
    reconstruction: Literal["l1", "l2"] = setting(
        "l1",
        "what the ELBO's reconstruction term sums over the pixels: absolute or squared differences",
        source=f"{_PAPER}, Table 1",
        since="vae",
    )
    kl_weight: float = setting(
        1.0,
        "weight of the divergence in the ELBO",
        source=_OURS,
        ge=0,
        space=Range(low=0.1, high=10, log=True),
        since="vae",
        mutable=True,
    )
    batch_slices: int = setting(64, "slices in a batch", source=_OURS, ge=2, since="vae")
    group_slices: int = setting(
        16,
        "slices that batch statistics are taken over; batch_slices must be a multiple",
        source=_OURS,
        ge=2,
        since="vae",
    )
    epochs: float = setting(
        600,
        "passes over the training slices",
        source="the VQ-VAE's; the paper gives none for the VAEs",
        gt=0,
        since="vae",
    )
    learning_rate: float = setting(
        1e-4,
        "Adam's learning rate",
        source="the VQ-VAE's; the paper gives none for the VAEs",
        gt=0,
        space=Range(low=3e-5, high=3e-3, log=True),
        since="vae",
        mutable=True,
    )
    augment: bool = setting(
        True,
        "elastic, scaling, rotation, brightness and contrast; the paper names the kinds, not the magnitudes",
        source=f"{_PAPER}, section 3",
        since="vae",
    )
    slices: EveryFourthSlice = EveryFourthSlice()
    map: PooledMapSettings = PooledMapSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_widths_and_groups(self.widths, self.batch_slices, self.group_slices)
        return self


TINY: Mapping[str, Any] = {
    "latent_dim": 4,
    "widths": (4, 8, 8),
    "blocks": 1,
    "batch_slices": 8,
    "group_slices": 4,
    "epochs": 4,
    "learning_rate": 3e-3,
    "map": PooledMapSettings(min_pool=1, average_pool=3),
}
"""A network of some thousand parameters for tests: seconds, and no claim to detect anything."""


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)) in nats, summed over the latent: (B, Z) or (B, Z, h, w) -> (B,).

    Kingma and Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def reconstruction_error(image: Tensor, reconstruction: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Return absolute or squared differences summed over channels and pixels: (B, C, h, w) -> (B,)."""
    difference = image - reconstruction
    return (difference.abs() if kind == "l1" else difference.square()).flatten(1).sum(1)


class ResidualBlock(nn.Module):
    """Conv3, BN, ReLU, conv3, BN, added to the input, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        hidden = F.relu(self.first_norm(self.first(features)))
        return F.relu(features + self.second_norm(self.second(hidden)))


class VaeNetwork(nn.Module):
    """Encoder and decoder; see the module's docstring.

    Args:
        channels: C.
        plane: h, w; multiples of 2^L.
        settings: widths, blocks and latent length.
    """

    def __init__(self, channels: int, plane: tuple[int, int], settings: VaeSettings) -> None:
        super().__init__()
        widths = settings.widths
        scale = 2 ** (len(widths) - 1)
        self.coarse = (widths[-1], plane[0] // scale, plane[1] // scale)
        encoder: list[nn.Module] = _convolution(channels, widths[0])
        for before, after in itertools.pairwise(widths):
            encoder += _convolution(before, after, stride=2)
            encoder += [ResidualBlock(after) for _ in range(settings.blocks)]
        decoder: list[nn.Module] = []
        for before, after in itertools.pairwise(reversed(widths)):
            decoder += [ResidualBlock(before) for _ in range(settings.blocks)]
            decoder += [nn.Upsample(scale_factor=2, mode="nearest"), *_convolution(before, after)]
        decoder.append(nn.Conv2d(widths[0], channels, 3, padding=1))
        self.encoder = nn.Sequential(*encoder)
        self.to_latent = nn.Linear(math.prod(self.coarse), 2 * settings.latent_dim)
        self.from_latent = nn.Linear(settings.latent_dim, math.prod(self.coarse))
        self.decoder = nn.Sequential(*decoder)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, (B, Z) float32 each."""
        features = segmented(self.encoder, image, (nn.Conv2d, ResidualBlock))
        mean, log_variance = self.to_latent(features.flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Return the mean image (B, C, h, w) float32 of latents (B, Z)."""
        coarse = F.relu(self.from_latent(latent)).view(-1, *self.coarse)
        return segmented(self.decoder, coarse, (ResidualBlock, nn.Upsample)).float()

    def reconstruct(self, image: Tensor) -> Tensor:
        """Return what the latent's mean decodes to: no sampling."""
        return self.decode(self.encode(image)[0])

    def negative_elbo(self, image: Tensor, noise: Tensor, settings: VaeSettings) -> Tensor:
        """Return reconstruction error plus weighted divergence, (B,), of one latent z = mean + deviation * noise.

        Args:
            image: (B, C, h, w).
            noise: (B, Z) standard normal; zeros for no sampling.
            settings: the reconstruction term and the divergence's weight.
        """
        mean, log_variance = self.encode(image)
        restored = self.decode(mean + (0.5 * log_variance).exp() * noise)
        error = reconstruction_error(image, restored, settings.reconstruction)
        return error + settings.kl_weight * gaussian_divergence(mean, log_variance)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class SliceVae(nn.Module):
    """The network with what it is trained on: slices of the cohort in the brain's standard deviations.

    Attributes:
        mean: (C,) intensity over the training brains' voxels, fitted by the stage ``moments``. With it a store in any
            unit serves, such as [0, 1]; the paper does not say over what it normalises.
        deviation: (C,) its standard deviation.
        network: encoder and decoder.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: VaeSettings, cohort: CohortFacts) -> None:
        super().__init__()
        self.settings = settings
        self.cohort = cohort
        self.register_buffer("mean", torch.zeros(len(cohort.channels)))
        self.register_buffer("deviation", torch.ones(len(cohort.channels)))
        self.padded = padded_plane(cohort, settings.slices.axis, 2 ** (len(settings.widths) - 1))
        self.network = VaeNetwork(len(cohort.channels), self.padded, settings)

    def stages(self, method: str) -> Sequence[Stage]:
        """Return ``moments`` (no optimiser), then ``vae``.

        Batch normalisation takes its statistics over ``group_slices`` slices, whatever the number of workers: with
        one slice they would say nothing of the cohort, with all a worker holds they would change with the workers.
        """
        optimizer = torch.optim.Adam(self.network.parameters(), self.settings.learning_rate)
        vae = Stage(
            name="vae",
            view=self.settings.slices.view(),
            batch_size=self.settings.batch_slices,
            group_size=self.settings.group_slices,
            epochs=self.settings.epochs,
            trains=(self.network,),
            optimizers={"adam": optimizer},
            step=self._step,
            augmentation=cohort_augmentation(self) if self.settings.augment else None,
            selectable=True,
        )
        return [brain_moments(method, self), vae]

    def standardised(self, image: Tensor) -> Tensor:
        """Return slices (B, C, h', w') of a store as the network takes them: padded, in standard deviations."""
        image = pad_plane(image, self.padded, self.cohort.background)
        return (image - self.mean[:, None, None]) / self.deviation[:, None, None]

    def original(self, image: Tensor, plane: tuple[int, int]) -> Tensor:
        """Return slices (B, C, *plane) in the store's unit from what the network gives."""
        return crop_plane(image, plane) * self.deviation[:, None, None] + self.mean[:, None, None]

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the negative ELBO summed over the batch, and its number of values: the mean is per pixel."""
        image = self.standardised(batch.image)
        noise = batch.normal("latent", (self.settings.latent_dim,))
        return self.network.negative_elbo(image, noise, self.settings).sum(), image.numel()

    def _step(self, batch: Batch, update: Update) -> Metrics:
        return {"loss": update("adam", self.loss, batch)}
