"""The implicit-field auto-decoder as the platform sees it: two stages and a score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.methods.blocks import check_channels, finish_map, image_score
from vesalius.methods.implicit_field.classes import assign_classes, fit_centres, mode_of_points, mode_pool
from vesalius.methods.implicit_field.decoder import Decoder, encode_positions
from vesalius.methods.implicit_field.deviations import DEVIATIONS
from vesalius.methods.implicit_field.restoration import Field, Target, cross_entropy, restore
from vesalius.methods.implicit_field.settings import ImplicitFieldSettings, demo, official_code, tiny
from vesalius.platform.contracts import Method, MethodSettings, Points, Score, Stage, axis_positions, bfloat16_pays
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Batch, CohortFacts, Collective, Deviation, Effort, Metrics, Update, Volume

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
    """

    settings_type: ClassVar[type[MethodSettings]] = ImplicitFieldSettings
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
                f"implicit_field models one modality but the cohort holds {' and '.join(cohort.channels)}: "
                f"choose one with --modality when ingesting, such as --modality {cohort.channels[0]}"
            )
        self.decoder = Decoder(settings)
        self.codes = nn.Embedding(len(cohort.subjects), settings.latent_dim)
        nn.init.normal_(self.codes.weight, std=settings.code_init_std)
        self.register_buffer("centres", torch.linspace(0, 1, settings.num_classes))
        self._samples: list[Tensor] = []

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``official_code`` where that differs; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": ImplicitFieldSettings(), "official_code": official_code(), "demo": demo(), "tiny": tiny()}

    def capacity(self) -> int | None:
        """Volumes restored in one batch."""
        return self.settings.restoration.volumes

    def stages(self) -> Sequence[Stage]:
        """``intensity_classes`` (k-means, no optimiser), then ``decoder`` (network and codes)."""
        settings = self.settings
        num_subjects = len(self.cohort.subjects)
        batch_size = min(settings.batch_volumes, num_subjects)
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
            batch_size=batch_size,
            epochs=1,
            step=self._sample,
            begin=self._samples.clear,
            finish=self._fit_classes,
        )
        decoder = Stage(
            name="decoder",
            view=Points(per_volume=settings.points, neighbourhood=settings.mode_pool_training),
            batch_size=batch_size,
            epochs=settings.epochs,
            trains=(self.decoder, self.codes),
            optimizers={"adam": optimizer},
            step=self._fit_decoder,
            lr=self._learning_rate,
            after_update=self._project_codes,
            selectable=True,
        )
        return [classes, decoder]

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return Eq. 2 summed over the batch's points and volumes, and the number of points.

        Divided by that number, as the platform does, it is the mean cross-entropy plus ``|z|^2 / (sigma^2 K)`` a
        volume: with the sum over points gone, so is the prior's weight. (At K = 16,200 that is 0.617, not 1e4.)
        """
        labels = mode_of_points(assign_classes(batch.image[:, :, 0], self.centres), self.settings.num_classes)
        code: Tensor = self.codes(batch.subjects)
        logits = self.decoder(code, encode_positions(batch.position, self.settings.num_frequencies))
        data = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().long(), reduction="sum")
        epoch = batch.step / batch.num_steps * self.settings.epochs
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
        """Restore all volumes in one batch, then score each; see :class:`vesalius.platform.contracts.Method`."""
        scores = []
        for volume, (evidence, restored) in zip(volumes, self.evidence(volumes, effort=effort), strict=True):
            brain = volume.brain.to(evidence.device)
            map_DHW = finish_map(evidence, brain, self.settings.map)
            number = image_score(map_DHW, brain, self.settings.map)
            device = volume.image.device
            scores.append(
                Score(map=map_DHW.to(device), image_score=number, restoration=restored.unsqueeze(0).to(device))
            )
        return scores

    def evidence(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> list[tuple[Tensor, Tensor]]:
        """Return each volume's cross-entropy before post-processing and restored intensities, (D, H, W) float32."""
        field = Field.of(self.decoder, self._dtype())
        targets = [self._target(volume) for volume in volumes]
        codes = self.restore(field, volumes, targets, effort=effort)
        expectation = self.settings.restoration_image == "expectation"
        return [
            cross_entropy(field, code, target, self.centres, expectation=expectation)
            for code, target in zip(codes, targets, strict=True)
        ]

    def restore(self, field: Field, volumes: Sequence[Volume], targets: Sequence[Target], *, effort: Effort) -> Tensor:
        """Return the codes (V, Z) of new volumes (Eq. 4)."""
        settings = self.settings.restoration
        phases = list(zip(settings.steps, settings.points, strict=True))
        if effort == "quick":
            phases = [(min(settings.quick_steps, sum(settings.steps)), settings.points[0])]
        decay = math.log(settings.learning_rate_end)
        return restore(
            field,
            targets,
            torch.stack([self._start(volume) for volume in volumes]).to(self.centres.device),
            phases=phases,
            learning_rate=lambda progress: settings.learning_rate * math.exp(decay * progress),
            prior=self.prior if settings.prior and self.settings.prior != "none" else None,
            bound=self.settings.code_bound,
        )

    def _start(self, volume: Volume) -> Tensor:
        if self.settings.restoration.start == "mean":
            return self.codes.weight.mean(0)
        generator = volume.generator("code")
        return self.settings.code_init_std * torch.randn(self.settings.latent_dim, generator=generator)

    def _target(self, volume: Volume) -> Target:
        check_channels(volume, self.cohort)
        device = self.centres.device
        labels = assign_classes(volume.image[0].to(device), self.centres)
        axes = [
            axis_positions(num, spacing, box).to(device)
            for num, spacing, box in zip(volume.shape, volume.spacing_mm, self.cohort.box_mm, strict=True)
        ]
        return Target(
            labels=mode_pool(labels, self.settings.mode_pool_scoring, self.settings.num_classes),
            axes=(axes[0], axes[1], axes[2]),
            generator=volume.generator("points"),
        )

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

    def _learning_rate(self, progress: float) -> float:
        periods = self.settings.lr_periods
        return self.settings.lr_factor ** min(int(progress * periods), periods - 1)

    def _project_codes(self) -> None:
        if self.settings.code_bound is not None:
            with torch.no_grad():
                self.codes.weight.renorm_(2, 0, self.settings.code_bound)
