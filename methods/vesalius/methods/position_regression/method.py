"""Position regression as the platform sees it: one stage and a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vesalius.methods.blocks import check_channels, finish_map, image_score, one_pass
from vesalius.methods.position_regression.calibration import Calibration
from vesalius.methods.position_regression.dense import error_map, reached
from vesalius.methods.position_regression.deviations import DEVIATIONS
from vesalius.methods.position_regression.network import PositionNetwork
from vesalius.methods.position_regression.settings import PositionRegressionSettings, demo, tiny
from vesalius.methods.position_regression.spectral import SpectralConvolution
from vesalius.platform.contracts import Method, MethodSettings, Patches, Score, Stage, axis_positions
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Batch, CohortFacts, Deviation, Effort, Metrics, Update, Volume


class PositionRegression(Method):
    """Score = |x - f(p_x)|: how far from its place the network takes the patch around a voxel to be (section 2).

    Places and errors are in fractions of the edges of the cohort's box, as in the paper: 0.1 is a tenth of its edge.

    Attributes:
        network: from patches to places.
        calibration: the error of healthy subjects; None where ``scoring.calibrate`` is off.
    """

    settings_type: ClassVar[type[MethodSettings]] = PositionRegressionSettings
    deviations: ClassVar[Sequence[Deviation]] = DEVIATIONS
    settings: PositionRegressionSettings

    def __init__(self, settings: PositionRegressionSettings, cohort: CohortFacts) -> None:
        """Build it.

        Raises:
            CohortError: ``scoring.calibrate`` with one training subject, which has no deviation.
        """
        super().__init__(settings, cohort)
        size = settings.network
        self.network = PositionNetwork(size.patch_size, size.width, len(cohort.channels))
        self.calibration = None
        if settings.scoring.calibrate:
            if len(cohort.subjects) < 2:
                raise CohortError(
                    "scoring.calibrate needs two healthy training subjects at least: a single one has no deviation"
                )
            self.calibration = Calibration(cohort, settings.scoring.quick_stride)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` and ``tiny`` say what they are for."""
        return {"paper": PositionRegressionSettings(), "demo": demo(), "tiny": tiny()}

    def stages(self) -> Sequence[Stage]:
        """``regression``, whose step is ``patches.per_step`` patches of one volume; ``calibration`` if asked for."""
        settings, calibration = self.settings, self.calibration
        stages = [
            Stage(
                name="regression",
                view=Patches(
                    size=settings.network.patch_size,
                    per_volume=settings.patches.per_step,
                    sampling=settings.patches.sampling,
                    foreground=settings.patches.foreground,
                ),
                batch_size=settings.patches.per_step,
                epochs=settings.epochs,
                trains=(self.network,),
                optimizers={"adam": torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)},
                step=self._step,
                after_update=self._follow,
                selectable=True,
            )
        ]
        if calibration is not None:
            stages.append(one_pass("calibration", calibration.begin, self._add_errors, calibration.solve))
        return stages

    def _step(self, batch: Batch, update: Update) -> Metrics:
        return {"loss": update("adam", self.loss, batch)}

    @torch.no_grad()
    def _add_errors(self, batch: Batch, update: Update) -> Metrics:
        assert self.calibration is not None  # its stage is there with it alone
        cohort, stride = self.cohort, self.settings.scoring.quick_stride
        for image in batch.image:
            everywhere = torch.ones(cohort.grid, dtype=torch.bool, device=image.device)
            errors = self._errors(image, cohort.grid, cohort.spacing_mm, everywhere, stride)
            self.calibration.add(errors)
        return {}

    def _follow(self) -> None:
        """Let the estimated spectral norms follow the weights."""
        for module in self.network.modules():
            if isinstance(module, SpectralConvolution):
                module.iterate()

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the distances between true and regressed places, summed over the batch's patches, and their number."""
        true = (batch.position + 1) / 2
        distance = torch.linalg.vector_norm(self.network(self.centred(batch.image)) - true, dim=1)
        return distance.sum(), len(batch)

    def centred(self, image: Tensor) -> Tensor:
        """Return intensities on [-1, 1] where the recipe says what they reach from and to; else as they are.

        Norm-one layers pass on what an image is on average, if it is not zero, more than what tells places apart.
        """
        low, high = self.cohort.background, self.cohort.ceiling
        return image if high is None else (image - (low + high) / 2) * (2 / (high - low))

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Compute the error map of each volume; ``quick`` evaluates every ``scoring.quick_stride``-th voxel.

        Raises:
            VolumeError: a volume has other channels than the model was trained on.
        """
        scoring = self.settings.scoring
        stride = max(scoring.stride, scoring.quick_stride) if effort == "quick" else scoring.stride
        return [self._score(volume, stride) for volume in volumes]

    def _score(self, volume: Volume, stride: int) -> Score:
        check_channels(volume, self.cohort)
        settings = self.settings
        seen = self._seen(volume)
        brain = volume.brain.bool()
        # A median is taken before the map is kept inside the brain, and then needs what surrounds it.
        within = settings.map.voxels == "brain" and settings.map.median_pool == 1
        wanted = seen & brain if within else seen
        errors = self._errors(volume.image, volume.shape, volume.spacing_mm, wanted, stride)
        if self.calibration is not None:
            errors = self.calibration.apply_to(errors, volume).masked_fill(~wanted, 0)
        score_map = finish_map(errors, brain, settings.map)
        return Score(map=score_map, image_score=image_score(score_map, brain, settings.map))

    def _errors(
        self,
        image_CDHW: Tensor,
        shape: tuple[int, int, int],
        spacing_mm: tuple[float, float, float],
        wanted_DHW: Tensor,
        stride: int,
    ) -> Tensor:
        """Return the error map (D, H, W) of the voxels asked for; the others are zero."""
        axes = [
            (axis_positions(num, spacing, box).to(image_CDHW.device) + 1) / 2
            for num, spacing, box in zip(shape, spacing_mm, self.cohort.box_mm, strict=True)
        ]
        return error_map(
            self.network,
            self.centred(image_CDHW),
            axes,
            wanted_DHW,
            background=float(self.centred(torch.tensor(self.cohort.background))),
            stride=stride,
            tile_bytes=self.settings.scoring.tile_mib * 2**20,
        )

    def _seen(self, volume: Volume) -> Tensor:
        """Return the voxels (D, H, W) whose patches training would not have left out.

        Where a volume comes without its head's mask, what has not the background's value is taken for it.
        """
        size = self.settings.network.patch_size
        brain = volume.brain.bool()
        if self.settings.patches.foreground == "brain":
            return reached(brain, size)
        if volume.head is not None:
            return reached(volume.head.bool(), size)
        return reached((volume.image != self.cohort.background).any(0) | brain, size)
