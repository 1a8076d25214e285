"""Settings of the f-AnoGAN: Kwon's networks, Schlegl's training, the 2020 paper's code and fine-tuning."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from vesalius.methods.blocks import MapSettings
from vesalius.methods.blocks.convolutional import Output
from vesalius.platform.config import Settings, override
from vesalius.platform.contracts import SCORING, Choice, MethodSettings, Range, setting

PAPER = "Simarro Viana et al. 2020"
KWON = "Kwon et al. 2019, code"
SCHLEGL = "Schlegl et al. 2019"

Norm = Literal["batch", "instance", "layer"]


class NetworkSettings(Settings):
    """Depth, width and normalisation of generator, critic and encoder."""

    latent_dim: int = setting(
        2_500, "Z, length of a code", source=f"{PAPER}, section 2", ge=1, space=Choice(values=(128, 500, 1_000, 2_500))
    )
    stages: int = setting(
        4,
        "halvings between the volume and the coarsest grid: four take 64 voxels to 4, five take 128",
        source=f"{KWON}: four",
        ge=1,
        le=8,
    )
    width: int = setting(
        512,
        "channels on the coarsest grid; every finer one has half as many",
        source=KWON,
        ge=2,
        space=Choice(values=(128, 256, 512)),
    )
    critic_norm: Norm = setting(
        "layer",
        "normalisation in the critic, from its second block on; of a batch's statistics an item's gradient is not its "
        "own, which the penalty takes it for, and running statistics, which features and score are then taken with, "
        "are of real, generated and mixed images alike",
        source=f"{SCHLEGL}, code, and Gulrajani et al. 2017, section 4; batch in {KWON}",
        space=Choice(values=("instance", "layer")),
    )
    encoder_norm: Norm = setting(
        "batch",
        "normalisation in the encoder, from its second block on",
        source=f"{KWON}, and {SCHLEGL}, code",
        space=Choice(values=("batch", "instance", "layer")),
        since="encoder",
    )
    code: Literal["tanh", "linear"] = setting(
        "tanh",
        "the encoder's last activation: codes in [-1, 1], or none",
        source=f"{PAPER}, section 2, model architecture",
        since="encoder",
    )
    output: Output = setting(
        "tanh",
        "the generator's last activation: one that keeps its images in [0, 1] or [-1, 1], for a cohort scaled to "
        "within that range, or none",
        source=KWON,
    )

    @model_validator(mode="after")
    def _wide_enough(self) -> Self:
        if self.width % 2 ** (self.stages - 1):
            raise ValueError(
                f"{self.width} channels cannot be halved {self.stages - 1} times: set width to a multiple of "
                f"{2 ** (self.stages - 1)}, or fewer stages"
            )
        return self


class CriticWatchSettings(Settings):
    """When the game is held to have failed.

    The penalty keeps the critic's slope near one, and lets no slope pay beyond 1 + W / (2 lambda) for images W apart; a
    critic far above that has run away. Images of a generator that has collapsed are one and the same.
    """

    grace: int = setting(
        1_000,
        "steps of the stage before anything is judged: fresh networks give one grey image",
        source="this implementation",
        ge=0,
    )
    window: int = setting(500, "steps that the moving averages reach back", source="this implementation", ge=1)
    steepness: float = setting(
        3.0,
        "the critic has run away where its mean slope is more than this many times 1 + (mean distance of real from "
        "generated images) / (2 lambda); 0 never stops",
        source="this implementation",
        ge=0,
    )
    spread: float = setting(
        0.05,
        "the generator has collapsed where its images' deviation from each other is less than this fraction of the "
        "real ones'; 0 never stops",
        source="this implementation",
        ge=0,
        lt=1,
    )


class GameSettings(Settings):
    """How critic and generator are trained against each other."""

    epochs: float = setting(
        1_500,
        "passes over the training images, one batch an update of the critic",
        source=f"{KWON}: 200,000 iterations with a batch of four, here of the paper's 532 volumes",
        gt=0,
    )
    critic_steps: int = setting(
        5,
        "updates of the critic to one of the generator",
        source=f"{SCHLEGL}, code, and Gulrajani et al. 2017, Algorithm 1",
        ge=1,
        space=Range(low=1, high=5),
        mutable=True,
    )
    penalty_weight: float = setting(
        10.0,
        "lambda: weight of the gradient penalty",
        source=f"{KWON}, and Gulrajani et al. 2017; {PAPER}, Eq. 2, gives none",
        ge=0,
        mutable=True,
    )
    learning_rate: float = setting(
        1e-4,
        "Adam's learning rate for critic and generator",
        source=f"{SCHLEGL}, code; 2e-4 in {KWON}",
        gt=0,
        space=Range(low=1e-5, high=1e-3, log=True),
        mutable=True,
    )
    beta1: float = setting(0.0, "Adam's first moment", source=f"{SCHLEGL}, code", ge=0, lt=1, mutable=True)
    beta2: float = setting(0.9, "Adam's second moment", source=f"{SCHLEGL}, code", ge=0, lt=1, mutable=True)
    watch: CriticWatchSettings = CriticWatchSettings()


class EncoderSettings(Settings):
    """How the encoder is trained on the finished generator."""

    since: ClassVar[str | None] = "encoder"

    epochs: float = setting(
        375,
        "passes over the training images",
        source=f"{SCHLEGL}, code: 50,000 batches, here of four of the paper's 532 volumes",
        gt=0,
    )
    learning_rate: float = setting(
        5e-5,
        "RMSProp's learning rate",
        source=f"{SCHLEGL}, code",
        gt=0,
        space=Range(low=1e-5, high=1e-3, log=True),
        mutable=True,
    )


class FineTuningSettings(Settings):
    """How encoder and generator are trained on together."""

    since: ClassVar[str | None] = "fine_tuning"

    epochs: float = setting(
        375,
        "passes over the training images; 0 leaves the step out",
        source="this implementation: as long as the encoder; the paper gives none",
        ge=0,
    )
    learning_rate: float = setting(
        5e-5,
        "RMSProp's learning rate",
        source="this implementation: the encoder's; the paper gives none",
        gt=0,
        space=Range(low=1e-6, high=1e-3, log=True),
        mutable=True,
    )


class InversionSettings(MethodSettings):
    """What the f-AnoGAN of volumes and that of slices have in common."""

    network: NetworkSettings = NetworkSettings()
    game: GameSettings = GameSettings()
    encoder: EncoderSettings = EncoderSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()
    batch_size: int = setting(4, "images in a batch", source=KWON, ge=2)
    group_size: int = setting(
        4,
        "images that batch statistics are taken over; a group stays on one worker, so that several workers need "
        "batches of several groups",
        source=f"{KWON}: a batch on one device",
        ge=2,
    )
    feature_weight: float = setting(
        1.0,
        "kappa: weight of the distance between the critic's features, in training and in the image score",
        source=f"{SCHLEGL}, code; {PAPER}, Eq. 6, gives none",
        ge=0,
        space=Range(low=0.01, high=10, log=True),
        since="encoder",
        mutable=True,
    )
    feature_block: int = setting(
        1,
        "the critic's block that gives the features f, counted back from its score: 1 is the last",
        source=f"{SCHLEGL}, code; {PAPER} marks it in its Figure 3",
        ge=1,
        since="encoder",
    )
    image_score: Literal["loss", "map"] = setting(
        "loss",
        "the volume's number: loss takes that of Eq. 6, over images and features as they are; map takes it from the "
        "finished map (map.image_score)",
        source=f"{PAPER}, section 2, anomaly score",
        since=SCORING,
    )
    map: MapSettings = MapSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.group_size:
            raise ValueError(
                f"a batch of {self.batch_size} images does not part into groups of {self.group_size}: "
                "set batch_size to a multiple of group_size"
            )
        if self.image_score == "loss":
            for name in ("image_score", "top_fraction"):
                if getattr(self.map, name) != MapSettings.model_fields[name].default:
                    raise ValueError(f"map.{name} has no effect on the score of Eq. 6: set image_score to map as well")
        if self.feature_block > self.network.stages:
            raise ValueError(
                f"feature_block is {self.feature_block} but the critic has {self.network.stages} blocks: "
                "set one of them, or more network.stages"
            )
        return self


class FAnoGANSettings(InversionSettings):
    """Settings of the f-AnoGAN of whole volumes; defaults are the paper's."""

    together: int = setting(8, "volumes scored in one pass at most", source="this implementation", ge=1, since=SCORING)


TINY = {
    "network.latent_dim": 8,
    "network.stages": 2,
    "network.width": 8,
    "network.output": "linear",
    "game.critic_steps": 2,
    "encoder.learning_rate": 1e-3,
    "fine_tuning.learning_rate": 1e-3,
    "group_size": 2,
}
"""Networks of a few thousand parameters for tests: seconds, and no claim to detect anything.

Linear, so that they take a cohort of any intensities; what has a tanh needs one that is scaled."""


def tiny() -> FAnoGANSettings:
    """For tests: a few steps of every stage."""
    return override(FAnoGANSettings(), {**TINY, "game.epochs": 6, "encoder.epochs": 8, "fine_tuning.epochs": 6})


DEMO = {
    "network.latent_dim": 64,
    "network.width": 64,
    "game.critic_steps": 2,
    "encoder.learning_rate": 1e-3,
    "fine_tuning.learning_rate": 5e-4,
    "map.average_pool": 5,
    "map.voxels": "brain",
}
"""Small networks and short stages at greater rates, for two CPU cores."""


def demo() -> FAnoGANSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels."""
    return override(FAnoGANSettings(), {**DEMO, "game.epochs": 40, "encoder.epochs": 15, "fine_tuning.epochs": 25})
