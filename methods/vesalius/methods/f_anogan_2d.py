"""f-AnoGAN of slices, the comparison of Simarro Viana et al. 2020, section 3: all that is not here is the volumes'."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from vesalius.methods.blocks import SliceSettings, score_slices, take_all
from vesalius.methods.f_anogan.deviations import SHARED
from vesalius.methods.f_anogan.inversion import Inversion
from vesalius.methods.f_anogan.settings import (
    DEMO,
    PAPER,
    SCHLEGL,
    TINY,
    EncoderSettings,
    FineTuningSettings,
    GameSettings,
    InversionSettings,
    NetworkSettings,
)
from vesalius.platform.config import override
from vesalius.platform.contracts import Choice, Deviation, MethodSettings, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Effort, Score, View, Volume

_MIDDLE = f"{PAPER}, section 3: slices within a middle brain range; the range is this implementation's"


class MiddleSliceSettings(SliceSettings):
    """The paper's slices: axial ones around the middle."""

    first: float = setting(0.4, "where the slices begin, as a fraction of the axis", ge=0, lt=1, source=_MIDDLE)
    last: float = setting(0.6, "where the slices end, as a fraction of the axis", gt=0, le=1, source=_MIDDLE)


class SliceNetworkSettings(NetworkSettings):
    """The volumes' networks with one axis less, and the code of Schlegl et al. 2019."""

    latent_dim: int = setting(
        128, "Z, length of a code", source=f"{SCHLEGL}, code", ge=1, space=Choice(values=(32, 64, 128, 256))
    )


class SliceGameSettings(GameSettings):
    """How critic and generator are trained against each other."""

    epochs: float = setting(
        2_000,
        "passes over the training slices, one batch an update of the critic",
        source="this implementation: 200,000 batches of 64, as many as of volumes, of the paper's 532 volumes with "
        "12 slices each",
        gt=0,
    )


class SliceEncoderSettings(EncoderSettings):
    """How the encoder is trained on the finished generator."""

    epochs: float = setting(
        500, "passes over the training slices", source=f"{SCHLEGL}, code: 50,000 batches of 64", gt=0
    )


class SliceFineTuningSettings(FineTuningSettings):
    """How encoder and generator are trained on together; by default they are not."""

    epochs: float = setting(
        0,
        "passes over the training slices; 0 leaves the step out",
        source=f"{SCHLEGL}: f-AnoGAN has no such step; {PAPER} adds it to the 3D model",
        ge=0,
    )


class FAnoGAN2DSettings(InversionSettings):
    """Settings of the f-AnoGAN of slices."""

    slices: MiddleSliceSettings = MiddleSliceSettings()
    network: SliceNetworkSettings = SliceNetworkSettings()
    game: SliceGameSettings = SliceGameSettings()
    encoder: SliceEncoderSettings = SliceEncoderSettings()
    fine_tuning: SliceFineTuningSettings = SliceFineTuningSettings()
    batch_size: int = setting(64, "slices in a batch", source=f"{SCHLEGL}, code", ge=2)
    group_size: int = setting(
        64,
        "slices that batch statistics are taken over; a group stays on one worker, so that several workers need "
        "batches of several groups",
        source=f"{SCHLEGL}, code: a batch on one device",
        ge=2,
    )


_DEVIATIONS = (
    *SHARED,
    Deviation(
        paper="the layers of the 2D model are not given; f-AnoGAN's code has residual blocks",
        here="the volumes' networks with one axis less (network)",
        why="the comparison is of two and three dimensions, not of blocks",
    ),
    Deviation(
        paper="slices within a middle brain range, randomly selected (section 3)",
        here="every slice between 0.4 and 0.6 of the axis; elsewhere the map is zero (slices.first, slices.last)",
        why="no range is given; what is not looked at cannot be anomalous",
    ),
    Deviation(
        paper="one slice a subject; those whose anomaly lies elsewhere are left out",
        here="the volume's number is the mean of Eq. 6 over its slices; no subject is left out (image_score)",
        why="a volume is judged; of one slice it is the paper's",
    ),
    Deviation(
        paper="whether the 2D model is fine-tuned is not said",
        here="it is not (fine_tuning.epochs)",
        why="it stands for f-AnoGAN, which the fine-tuning is added to",
    ),
    Deviation(
        paper="the length of the training and the batch size are not given",
        here="200,000 and 50,000 batches of 64 (game.epochs, encoder.epochs, batch_size)",
        why="f-AnoGAN's code for the encoder; it trains its game for fewer, here for as many as of volumes",
    ),
)


class FAnoGAN2D(Inversion):
    """The f-AnoGAN of slices: every slice has a code (Schlegl et al. 2019; Simarro Viana et al. 2020, section 3)."""

    settings_type: ClassVar[type[MethodSettings]] = FAnoGAN2DSettings
    deviations: ClassVar[Sequence[Deviation]] = _DEVIATIONS
    settings: FAnoGAN2DSettings

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        paper = FAnoGAN2DSettings()
        every = {"slices.first": 0.0, "slices.last": 1.0, "slices.every": 2}
        small = {"batch_size": 16, "group_size": 16, "slices.scored": "all"}
        demo = {**DEMO, **every, **small, "game.epochs": 10, "encoder.epochs": 4, "fine_tuning.epochs": 4}
        tiny = {**TINY, **every, "batch_size": 8, "group_size": 4}
        return {
            "paper": paper,
            "demo": override(paper, demo),
            "tiny": override(paper, {**tiny, "game.epochs": 2, "encoder.epochs": 2, "fine_tuning.epochs": 1}),
        }

    def image_shape(self) -> tuple[int, ...]:
        """Return (h, w)."""
        return tuple(num for at, num in enumerate(self.cohort.grid) if at != self.settings.slices.axis)

    def view(self) -> View:
        """Slices, empty ones too."""
        return self.settings.slices.view()

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore all volumes' slices, ``slices.together`` at a time; ``quick`` is no different.

        Raises:
            VolumeError: a volume has other channels, or slices of another make, than the cohort.
        """
        settings = self.settings
        stack, each = take_all(volumes, self.cohort, settings.slices, next(self.parameters()).device)
        parts = [self.inverted(image) for image in torch.split(stack.image, settings.slices.together)]
        restored = torch.cat([part.image for part in parts])
        scores = score_slices(
            volumes,
            each,
            settings.slices,
            settings.map,
            evidence=(stack.image - restored).abs().amax(1),
            restored=restored,
        )
        if settings.image_score == "map":
            return scores
        losses = torch.split(torch.cat([part.loss for part in parts]), [len(own.index) for own in each])
        return [
            replace(score, image_score=float(own.double().mean())) for score, own in zip(scores, losses, strict=True)
        ]
