"""The implicit-field auto-decoder as the platform sees it: two stages, a third on request, and a score."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.methods.blocks import check_channels, finish_map, image_score
from vesalius.methods.implicit_field.classes import assign_classes, fit_centres, mode_of_points, mode_pool
from vesalius.methods.implicit_field.decoder import Decoder, encode_positions
from vesalius.methods.implicit_field.deviations import DEVIATIONS
from vesalius.methods.implicit_field.restoration import Field, Target, averaged, cross_entropy, restore
from vesalius.methods.implicit_field.settings import ImplicitFieldSettings, demo, official_code, tiny
from vesalius.methods.implicit_field.warm_start import WarmStart
from vesalius.platform.contracts import (
    Method,
    MethodSettings,
    Points,
    Score,
    Stage,
    axis_positions,
    bfloat16_pays,
)
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import (
        Batch,
        CohortFacts,
        Collective,
        Deviation,
        Effort,
        Metrics,
        Update,
        View,
        Volume,
    )

_OFFICIAL_PRIOR_RAMP_EPOCHS = 100


class ImplicitField(Method):
    """Auto-decoder of intensity classes over positions (Naval Marimont and Tarroni 2021).

    Each training subject has a code; a network maps code and position to the probabilities of k intensity classes. A
    new volume gets the code that explains it best; where the network then holds the observed class for improbable,
    the volume departs from healthy anatomy.

    Dense Adam moves a code also in steps that its subject is not in, by what is left of the momentum: each gradient
    acts in full, spread over the following steps. That is the authors' choice too.

    Attributes:
        decoder: the network.
        codes: (subjects, Z), one row a subject of ``cohort.subjects``.
        centres: (k,) intensities of the classes, rising.
        encoder: gives restorations their first code; None where none is trained.
    """

    name: ClassVar[str] = "implicit_field"
    settings_type: ClassVar[type[MethodSettings]] = ImplicitFieldSettings
    any_grid: ClassVar[bool] = True
    deviations: ClassVar[Sequence[Deviation]] = DEVIATIONS
    settings: ImplicitFieldSettings
    centres: Tensor

    def __init__(self, settings: ImplicitFieldSettings, cohort: CohortFacts) -> None:
        """Build the network and draw the codes.

        Raises:
            SettingError: the cohort has several channels; the paper's method knows one modality.
        """
        super().__init__(settings, cohort)
        if len(cohort.channels) != 1:
            raise SettingError(
                f"{self.name} models one modality but the cohort holds {' and '.join(cohort.channels)}: "
                f"choose one with --modality when ingesting, such as --modality {cohort.channels[0]}"
            )
        self.decoder = Decoder(settings)
        self.codes = nn.Embedding(self.num_codes(), settings.latent_dim)
        nn.init.normal_(self.codes.weight, std=settings.code_init_std)
        self.register_buffer("centres", torch.linspace(0, 1, settings.num_classes))
        self.encoder = self.warm_start().new_encoder()
        self._samples: list[Tensor] = []

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``official_code`` where that differs; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": ImplicitFieldSettings(), "official_code": official_code(), "demo": demo(), "tiny": tiny()}

    def num_codes(self) -> int:
        """Return the rows of the code table: one a subject."""
        return len(self.cohort.subjects)

    def code_shape(self) -> tuple[int]:
        """Return (Z,)."""
        return (self.settings.latent_dim,)

    def capacity(self) -> int | None:
        """Volumes restored in one batch."""
        return max(1, self.settings.restoration.volumes // self.settings.restoration.restorations)

    def stages(self) -> Sequence[Stage]:
        """``intensity_classes`` (k-means, no optimiser), ``decoder`` (network and codes), ``encoder`` where asked."""
        settings = self.settings
        num_subjects = len(self.cohort.subjects)
        # One optimiser with two groups: both are stepped on one loss, so one backward pass serves them.
        optimizer = torch.optim.Adam(
            [
                {"params": list(self.decoder.parameters()), "lr": settings.decoder_lr},
                {"params": list(self.codes.parameters()), "lr": settings.code_lr},
            ]
        )
        classes = Stage(
            name="intensity_classes",
            view=Points(per_volume=math.ceil(settings.class_voxels / num_subjects)),
            batch_size=min(settings.batch_volumes, num_subjects),
            epochs=1,
            step=self._sample,
            begin=self._samples.clear,
            finish=self._fit_classes,
        )
        decoder = Stage(
            name="decoder",
            view=self.decoder_view(),
            batch_size=min(settings.batch_volumes, self.num_codes()),
            epochs=settings.epochs,
            trains=(self.decoder, self.codes),
            optimizers={"adam": optimizer},
            step=self._fit_decoder,
            lr=self.learning_rate,
            after_update=self._project_codes,
            selectable=True,
        )
        return [classes, decoder, *self.warm_start().stages(decoder.batch_size)]

    def warm_start(self) -> WarmStart:
        """Return what trains and asks the encoder."""
        return WarmStart(self)

    def decoder_view(self) -> View:
        """Return how network and codes look at the cohort."""
        return Points(per_volume=self.settings.points, neighbourhood=self.settings.mode_pool_training)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return Eq. 2 summed over the batch's points and volumes, and the number of points.

        Divided by that number, as the platform does, it is the mean cross-entropy plus ``|z|^2 / (sigma^2 K)`` a
        volume: with the sum over points gone, so is the prior's weight. (At K = 16,200 that is 0.617, not 1e4.)
        """
        code: Tensor = self.codes(self.code_rows(batch))
        epoch = batch.step / batch.num_steps * self.settings.epochs
        return self.loss_of(code, *self.observed(batch), epoch)

    def code_rows(self, batch: Batch) -> Tensor:
        """Return the row of the code table of each item, (B,) int64."""
        return batch.subjects

    def observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the classes (B, K) uint8 seen at K points of each item, and where: (B, K, 3)."""
        labels = mode_of_points(assign_classes(batch.image[:, :, 0], self.centres), self.settings.num_classes)
        return labels, batch.position

    def loss_of(self, code: Tensor, labels: Tensor, position: Tensor, epoch: float) -> tuple[Tensor, int]:
        """Return Eq. 2 summed over points and items, for codes (B, Z) and what is seen (B, K) at places (B, K, 3)."""
        logits = self.decoder(code, encode_positions(position, self.settings.num_frequencies))
        data = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().long(), reduction="sum")
        return data + self.prior(code, labels.shape[1], epoch).sum(), labels.numel()

    def prior(self, code: Tensor, num_points: int, epoch: float = math.inf) -> Tensor:
        """Return the prior's penalty of codes (V, Z) -> (V,), to be added to a SUM over ``num_points`` points."""
        settings = self.settings
        if settings.prior == "gaussian":
            return code.square().sum(1) / settings.prior_sigma**2
        if settings.prior == "official":
            ramp = min(1.0, epoch / _OFFICIAL_PRIOR_RAMP_EPOCHS)
            norm: Tensor = torch.linalg.vector_norm(code, dim=1)
            return num_points * settings.prior_weight * ramp * norm
        return torch.zeros_like(code[:, 0])

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore all volumes in one batch, then score each; see :class:`vesalius.platform.contracts.Method`.

        The extra map ``spread`` is there where a volume has several restorations.
        """
        scores = []
        for volume, restorations in zip(volumes, self.restorations(volumes, effort=effort), strict=True):
            evidence, restored, spread = averaged(restorations)
            brain = volume.brain.to(evidence.device)
            map_DHW = finish_map(evidence, brain, self.settings.map)
            number = image_score(map_DHW, brain, self.settings.map)
            device = volume.image.device
            scores.append(
                Score(
                    map=map_DHW.to(device),
                    image_score=number,
                    restoration=restored.unsqueeze(0).to(device),
                    extras={} if spread is None else {"spread": spread.to(device)},
                )
            )
        return scores

    def evidence(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> list[tuple[Tensor, Tensor]]:
        """Return each volume's cross-entropy before post-processing and restored intensities, (D, H, W) float32."""
        return [averaged(restorations)[:2] for restorations in self.restorations(volumes, effort=effort)]

    def restorations(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> list[list[tuple[Tensor, Tensor]]]:
        """Return, by volume and restoration, cross-entropy and restored intensities as :meth:`evidence`."""
        field = Field.of(self.decoder, self._dtype())
        targets = [target for volume in volumes for target in self.targets(volume)]
        codes = self.restore(field, volumes, targets, effort=effort)
        expectation = self.settings.restoration_image == "expectation"
        found = [
            cross_entropy(field, code, target, self.centres, expectation=expectation)
            for code, target in zip(codes, targets, strict=True)
        ]
        num = self.settings.restoration.restorations
        return [found[first : first + num] for first in range(0, len(found), num)]

    def restore(self, field: Field, volumes: Sequence[Volume], targets: Sequence[Target], *, effort: Effort) -> Tensor:
        """Return the codes (V, Z) of new volumes (Eq. 4), one a target, in the order of :meth:`targets`."""
        start = torch.cat([self.starts(volume) for volume in volumes])
        return self.optimise(field, targets, start, self.phases(effort))

    def phases(self, effort: Effort) -> list[tuple[int, int]]:
        """Return (steps, points a step) of each phase of a restoration."""
        settings = self.settings.restoration
        if effort == "quick":
            return [(min(settings.quick_steps, sum(settings.steps)), settings.points[0])]
        return list(zip(settings.steps, settings.points, strict=True))

    def optimise(
        self, field: Field, targets: Sequence[Target], start: Tensor, phases: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return the codes (V, Z) that Eq. 4 leads to from ``start``, all targets in one batch."""
        settings = self.settings.restoration
        decay = math.log(settings.learning_rate_end)
        return restore(
            field,
            targets,
            start,
            phases=phases,
            learning_rate=lambda progress: settings.learning_rate * math.exp(decay * progress),
            prior=self.prior if settings.prior and self.settings.prior != "none" else None,
            bound=self.settings.code_bound,
        )

    def targets(self, volume: Volume) -> list[Target]:
        """Return what codes are fitted to: the volume, once a restoration, each with points of its own."""
        first = self._target(volume)
        others = range(1, self.settings.restoration.restorations)
        return [first, *(replace(first, generator=volume.generator(f"points {number}")) for number in others)]

    def starts(self, volume: Volume) -> Tensor:
        """Return the codes (V, Z) that a volume's restorations start from, in the order of :meth:`targets`."""
        first = self._start(volume).to(self.centres.device)
        draws = (volume.generator(f"code {number}") for number in range(1, self.settings.restoration.restorations))
        apart = (self.settings.code_init_std * torch.randn(first.shape, generator=draw) for draw in draws)
        return torch.stack([first, *(first + noise.to(first.device) for noise in apart)], dim=1).flatten(0, 1)

    def _start(self, volume: Volume) -> Tensor:
        """Return where the first restoration's codes start: (1, Z)."""
        start = self.settings.restoration.start
        if start == "mean":
            return self.codes.weight.mean(0, keepdim=True)
        if start == "encoder":
            return self.warm_start().codes_of(volume)
        generator = volume.generator("code")
        return self.settings.code_init_std * torch.randn(1, self.settings.latent_dim, generator=generator)

    def _target(self, volume: Volume) -> Target:
        check_channels(volume, self.cohort)
        labels = assign_classes(volume.image[0].to(self.centres.device), self.centres)
        return Target(
            labels=mode_pool(labels, self.settings.mode_pool_scoring, self.settings.num_classes),
            axes=self.axes(volume.shape, volume.spacing_mm),
            generator=volume.generator("points"),
        )

    def axes(
        self, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coordinates of voxel centres along D, H, W in the cohort's box."""
        d, h, w = (
            axis_positions(num, spacing, box).to(self.centres.device)
            for num, spacing, box in zip(shape, spacing_mm, self.cohort.box_mm, strict=True)
        )
        return d, h, w

    def _dtype(self) -> torch.dtype:
        precision = self.settings.restoration.precision
        if precision == "auto":
            return torch.bfloat16 if bfloat16_pays(self.centres.device) else torch.float32
        return torch.bfloat16 if precision == "bfloat16" else torch.float32

    def _sample(self, batch: Batch, update: Update) -> Metrics:
        self._samples.append(batch.image.flatten())
        return {}

    def _fit_classes(self, collective: Collective) -> None:
        empty = torch.empty(0, device=self.centres.device)
        mine = torch.cat([empty, *(samples.to(empty.device) for samples in self._samples)])
        samples = torch.cat(collective.gather(mine))
        self.centres.copy_(fit_centres(samples, self.settings.num_classes))
        self._samples.clear()

    def _fit_decoder(self, batch: Batch, update: Update) -> Metrics:
        return {"loss": update("adam", self.loss, batch)}

    def learning_rate(self, progress: float) -> float:
        """Return the multiplier of the learning rates at ``progress`` in [0, 1] of a stage."""
        periods = self.settings.lr_periods
        return self.settings.lr_factor ** min(int(progress * periods), periods - 1)

    def _project_codes(self) -> None:
        if self.settings.code_bound is not None:
            with torch.no_grad():
                self.codes.weight.renorm_(2, 0, self.settings.code_bound)
