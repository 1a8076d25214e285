"""The VAE restoration as the platform sees it: three stages and a score."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vesalius.methods.blocks import SliceStack, SliceVae, crop_plane, pad_plane, score_slices, take_all
from vesalius.methods.vae_restoration.deviations import DEVIATIONS
from vesalius.methods.vae_restoration.restoration import restore
from vesalius.methods.vae_restoration.settings import VaeRestorationSettings, demo, tiny
from vesalius.platform.contracts import Method, MethodSettings, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import (
        Batch,
        CohortFacts,
        Collective,
        Deviation,
        Effort,
        Metrics,
        Score,
        Update,
        Volume,
    )

_LOG = logging.getLogger(__name__)


class VaeRestoration(Method):
    """Score = |x0 - x|: how far the image moves to become probable under a VAE of healthy slices.

    The images are in the cohort's standard deviations. Several modalities are restored together; the map is the mean
    of their changes.

    Attributes:
        vae: the network and the cohort's moments.
        rho: weight of the total variation, a number: as set, as chosen by the stage ``rho``, or the default.
    """

    settings_type: ClassVar[type[MethodSettings]] = VaeRestorationSettings
    deviations: ClassVar[Sequence[Deviation]] = DEVIATIONS
    settings: VaeRestorationSettings
    rho: Tensor

    def __init__(self, settings: VaeRestorationSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.vae = SliceVae(settings, cohort)
        given = settings.restoration
        self.register_buffer("rho", torch.tensor(given.rho_default if given.rho == "chosen" else given.rho))
        self._changes = torch.zeros(0)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": VaeRestorationSettings(), "demo": demo(), "tiny": tiny()}

    def code_shape(self) -> tuple[int]:
        """Return (Z,)."""
        return (self.settings.latent_dim,)

    def capacity(self) -> int | None:
        """Volumes whose slices are restored in one batch."""
        return self.settings.volumes

    def stages(self) -> Sequence[Stage]:
        """``moments`` (no optimiser), ``vae``, then ``rho`` (no optimiser) unless rho is set.

        Of the rhos the one is chosen that changes healthy validation slices least, by the mean of |x0 - x| over the
        brain: a healthy image should be restored to itself. (The reference's public code computes this L1 for each
        rho on healthy images. With a small rho the image follows the decoder, which blurs; with a large one each step's
        subgradient shakes it, by the step size times rho: so there is a least change in between.) Ties go to the
        smaller rho. A choice that falls on the largest one tried is logged as a warning.
        """
        stages = list(self.vae.stages("vae_restoration"))
        if self.settings.restoration.rho == "chosen":
            view = self.settings.slices.view()
            choice = Stage(
                name="rho",
                view=replace(view, every=view.every * self.settings.restoration.rho_every),
                batch_size=self.settings.slices.together,
                epochs=1,
                split="validation",
                optional=True,
                begin=self._begin_choice,
                step=self._try_rhos,
                finish=self._choose_rho,
            )
            stages.append(choice)
        return stages

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore all slices of all volumes in one batch; see :class:`vesalius.platform.contracts.Method`."""
        settings = self.settings
        given = settings.restoration
        stack, each = take_all(volumes, self.cohort, settings.slices, self.vae.mean.device)
        sizes = given.step_sizes(given.steps if effort == "full" else min(given.quick_steps, given.steps))
        noise = self._noise(volumes, each, len(sizes))
        image = self.vae.standardised(stack.image)
        brain = pad_plane(stack.brain, self.vae.padded, False)
        together = settings.slices.together
        parts = zip(
            torch.split(image, together),
            torch.split(brain, together),
            torch.split(noise, together, dim=1),
            strict=True,
        )
        restored = torch.cat([self._restore(*part, float(self.rho), sizes) for part in parts])
        _, _, h, w = stack.image.shape
        return score_slices(
            volumes,
            each,
            settings.slices,
            settings.map,
            evidence=crop_plane((image - restored).abs().mean(1), (h, w)),
            restored=self.vae.original(restored, (h, w)),
        )

    def _noise(self, volumes: Sequence[Volume], each: Sequence[SliceStack], steps: int) -> Tensor:
        """Return (steps, S, Z) noise: that of a volume's slices is a function of its content."""
        drawn = [
            torch.randn(steps, len(stack.index), self.settings.latent_dim, generator=volume.generator("latent"))
            for volume, stack in zip(volumes, each, strict=True)
        ]
        return torch.cat(drawn, dim=1).to(self.vae.mean.device)

    def _restore(self, image: Tensor, brain: Tensor, noise: Tensor, rho: float, step_sizes: Sequence[float]) -> Tensor:
        def negative_elbo(current: Tensor, drawn: Tensor) -> Tensor:
            return self.vae.network.negative_elbo(current, drawn, self.settings)

        clip = self.settings.restoration.clip
        return restore(negative_elbo, image, brain, noise, rho=rho, step_sizes=step_sizes, clip=clip)

    def _begin_choice(self) -> None:
        # For each rho the sum of |x0 - x| over brain voxels, then their number.
        num = len(self.settings.restoration.rhos())
        self._changes = torch.zeros(num + 1, dtype=torch.float64, device=self.rho.device)

    def _try_rhos(self, batch: Batch, update: Update) -> Metrics:
        given = self.settings.restoration
        image = self.vae.standardised(batch.image)
        brain = pad_plane(batch.brain, self.vae.padded, False)
        sizes = given.step_sizes(given.rho_steps)
        # The same noise for every rho: they differ by nothing else.
        noise = batch.normal("latent", (len(sizes), self.settings.latent_dim)).movedim(1, 0)
        for number, rho in enumerate(given.rhos()):
            change = (image - self._restore(image, brain, noise, rho, sizes)).abs().mean(1)
            self._changes[number] += change[brain].double().sum()
        self._changes[-1] += brain.sum()
        return {}

    def _choose_rho(self, collective: Collective) -> None:
        *changes, num_voxels = collective.sum(self._changes).tolist()
        if num_voxels:
            rhos = self.settings.restoration.rhos()
            chosen = min(zip(changes, rhos, strict=True))[1]
            self.rho.fill_(chosen)
            if chosen == rhos[-1] and collective.rank == 0:
                _LOG.warning(
                    "rho is %g, the largest tried, and a larger one may be better: raise restoration.rho_last", chosen
                )
        self._changes = torch.zeros(0)
