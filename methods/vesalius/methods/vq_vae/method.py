"""The VQ-VAE as the platform sees it: three stages and a score."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vesalius.methods.blocks import (
    Box,
    brain_moments,
    cohort_augmentation,
    crop_plane,
    pad_plane,
    padded_plane,
    score_slices,
    take_all,
)
from vesalius.methods.vq_vae.deviations import DEVIATIONS
from vesalius.methods.vq_vae.network import Autoencoder
from vesalius.methods.vq_vae.prior import Prior
from vesalius.methods.vq_vae.restoration import resample, weighted, weights
from vesalius.methods.vq_vae.settings import VqVaeSettings, demo, tiny
from vesalius.platform.contracts import Method, MethodSettings, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Batch, CohortFacts, Deviation, Effort, Score, Volume


class VqVae(Method):
    """Codes of slices, a prior that knows which are unlikely, and restorations that replace those.

    Map: |x - r| in the cohort's standard deviations over several restorations r, weighted towards those nearest to the
    image. Number of the volume: sum of -log p over its unlikely codes. ``spread``, beside the map and in its
    unit, is the weighted standard deviation of the restorations at each voxel: where they disagree the map is less
    certain.

    Attributes:
        autoencoder: encoder, codebook and decoder.
        prior: the autoregressive network over codes.
        mean: (C,) intensity over the training brains' voxels, fitted by the stage ``moments``. With it a store in any
            unit serves, such as [0, 1]. The 2021 paper does not say over what it normalises; the code of 2020 takes
            each volume's voxels that are not zero and leaves the background at zero.
        deviation: (C,) its standard deviation.
    """

    settings_type: ClassVar[type[MethodSettings]] = VqVaeSettings
    deviations: ClassVar[Sequence[Deviation]] = DEVIATIONS
    settings: VqVaeSettings
    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: VqVaeSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.register_buffer("mean", torch.zeros(len(cohort.channels)))
        self.register_buffer("deviation", torch.ones(len(cohort.channels)))
        self.padded = padded_plane(cohort, settings.slices.axis, 2 ** (len(settings.widths) - 1))
        self.autoencoder = Autoencoder(len(cohort.channels), settings)
        self.prior = Prior(settings.num_codes, settings.prior)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": VqVaeSettings(), "demo": demo(), "tiny": tiny()}

    def code_shape(self) -> tuple[int, int]:
        """Return the plane of a slice's codes, (h, w)."""
        halvings = len(self.settings.widths) - 1
        return self.padded[0] >> halvings, self.padded[1] >> halvings

    def capacity(self) -> int | None:
        """Volumes whose slices are restored in one batch."""
        return self.settings.volumes

    def stages(self) -> Sequence[Stage]:
        """``moments`` (no optimiser), ``autoencoder``, then ``prior`` over the codes of the finished autoencoder.

        Batch normalisation takes its statistics over ``group_slices`` slices, whatever the number of workers; the
        prior has none. Only the prior's stage is selectable: before it there is nothing to restore with.
        """
        settings = self.settings
        augmentation = cohort_augmentation(self) if settings.augment else None
        first = torch.optim.Adam(self.autoencoder.parameters(), settings.learning_rate)
        # The hook sees the gradient of the global batch, the same on every rank.
        first.register_step_pre_hook(self._clip)
        second = torch.optim.Adam(self.prior.parameters(), settings.prior.learning_rate)
        view = settings.slices.view()
        return [
            brain_moments("vq_vae", self),
            Stage(
                name="autoencoder",
                view=view,
                batch_size=settings.batch_slices,
                group_size=settings.group_slices,
                epochs=settings.epochs,
                trains=(self.autoencoder,),
                optimizers={"adam": first},
                step=lambda batch, update: {"loss": update("adam", self.autoencoder_loss, batch)},
                augmentation=augmentation,
            ),
            Stage(
                name="prior",
                view=view,
                batch_size=settings.batch_slices,
                epochs=settings.prior.epochs,
                trains=(self.prior,),
                optimizers={"adam": second},
                step=lambda batch, update: {"loss": update("adam", self.prior_loss, batch)},
                augmentation=augmentation,
                selectable=True,
            ),
        ]

    def standardised(self, image: Tensor) -> Tensor:
        """Return slices (B, C, h', w') of a store as the networks take them: padded, in standard deviations."""
        image = pad_plane(image, self.padded, self.cohort.background)
        return (image - self.mean[:, None, None]) / self.deviation[:, None, None]

    def autoencoder_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return reconstruction, codebook and commitment losses, each a mean over its slice, and the slices."""
        losses = self.autoencoder.losses(self.standardised(batch.image), _axial(batch.position))
        return torch.stack(losses).sum(), len(batch)

    def prior_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return -log p summed over the batch's codes, and their number."""
        position = _axial(batch.position)
        # Codes as scoring encodes them: under bfloat16 some places would take another one of two near codes.
        with torch.no_grad(), torch.autocast(position.device.type, enabled=False):
            codes = self.codes(self.standardised(batch.image), position)
        return self.prior.surprise(codes, position).sum(), codes.numel()

    def codes(self, image: Tensor, position: Tensor) -> Tensor:
        """Return the codes (B, h, w) of slices as the networks take them."""
        return self.autoencoder.codes(self.autoencoder.encode(image, position))

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore all slices of all volumes in one batch; see :class:`vesalius.platform.contracts.Method`."""
        settings = self.settings
        given = settings.resampling
        stack, each = take_all(volumes, self.cohort, settings.slices, self.mean.device)
        image, position = self.standardised(stack.image), _axial(stack.position)
        together = settings.slices.together
        parts = zip(torch.split(image, together), torch.split(position, together), strict=True)
        codes = torch.cat([self.codes(*part) for part in parts])
        num = given.restorations if effort == "full" else min(given.quick_restorations, given.restorations)
        sizes = [len(own.index) for own in each]
        drawn = [
            torch.rand(num, size, *codes.shape[1:], generator=volume.generator("codes"))
            for volume, size in zip(volumes, sizes, strict=True)
        ]
        _, _, h, w = stack.image.shape
        restorations = crop_plane(self.restorations(codes, position, torch.cat(drawn, dim=1)), (h, w))
        difference = (crop_plane(image, (h, w)) - restorations).abs().mean(2)
        weight = weights(difference, given.sharpness)
        restored, spread = weighted(restorations, weight)
        scores = score_slices(
            volumes,
            each,
            settings.slices,
            settings.map,
            evidence=(weight[:, :, None, None] * difference).sum(0),
            restored=restored * self.deviation[:, None, None] + self.mean[:, None, None],
            extras={"spread": spread},
            average=self._window(),
        )
        if settings.image_score == "map":
            return scores
        pairs = zip(torch.split(codes, together), torch.split(position, together), strict=True)
        surprise = torch.cat([self.prior.surprise(*pair) for pair in pairs]).double()
        unlikely = surprise.where(surprise > settings.unlikely, 0).flatten(1).sum(1)
        numbers = [float(part.sum()) for part in torch.split(unlikely, sizes)]
        return [replace(score, image_score=number) for score, number in zip(scores, numbers, strict=True)]

    def restorations(self, codes: Tensor, position: Tensor, uniform: Tensor) -> Tensor:
        """Return restorations (R, S, C, h', w') of codes (S, h, w), as many as ``uniform`` (R, S, h, w) has."""
        num, sequences = len(uniform), self.settings.resampling.sequences
        together = self.settings.slices.together
        everywhere = position.repeat(num)
        parts = zip(
            torch.split(codes.repeat(num, 1, 1), sequences),
            torch.split(everywhere, sequences),
            torch.split(uniform.flatten(0, 1).to(codes.device), sequences),
            strict=True,
        )
        resampled = torch.cat([resample(self.prior, *part, self.settings.resampling.threshold) for part in parts])
        pairs = zip(torch.split(resampled, together), torch.split(everywhere, together), strict=True)
        decoded = [self.autoencoder.decode(self.autoencoder.vectors(some), where) for some, where in pairs]
        whole = torch.cat(decoded)
        return whole.view(num, -1, *whole.shape[1:])

    def _window(self) -> Box:
        settings = self.settings
        box = [settings.map.average_pool] * 3
        if settings.map.average_across is not None:
            box[settings.slices.axis] = settings.map.average_across
        return (box[0], box[1], box[2])

    def _clip(self, *_: Any) -> None:
        nn.utils.clip_grad_value_(self.autoencoder.parameters(), self.settings.clip_value)


def _axial(position: Tensor) -> Tensor:
    """Return (B,) axial positions in [-0.5, 0.5], as the reference has them, from a batch's (B, 1) in [-1, 1]."""
    return position[:, 0] / 2
