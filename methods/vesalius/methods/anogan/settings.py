"""Settings of the AnoGAN as Baur et al. 2018 compare it: their networks' scale, code of 64, 82 epochs, 100 steps."""

from __future__ import annotations

from typing import ClassVar

from vesalius.methods.blocks.adversarial import AdversarySettings
from vesalius.methods.blocks.autoencoders import SliceTrainingSettings
from vesalius.methods.blocks.convolutional import TrunkSettings
from vesalius.platform.config import Settings, override
from vesalius.platform.contracts import SCORING, Choice, Range, setting

_PAPER = "Baur et al. 2018"
_SCHLEGL = "Schlegl et al. 2017"


class SearchSettings(Settings):
    """How the code of a new slice is found."""

    since: ClassVar[str | None] = SCORING

    steps: int = setting(
        100, "Adam's steps", source=f"{_PAPER}, section 3.1", ge=1, space=Range(low=20, high=500, log=True)
    )
    quick_steps: int = setting(20, "steps of the quick effort", source="this implementation", ge=1)
    learning_rate: float = setting(
        0.05,
        "Adam's learning rate: a hundred steps must span a few standard deviations of a code",
        source="this implementation; the papers give none",
        gt=0,
        space=Range(low=3e-3, high=0.3, log=True),
    )
    feature_weight: float = setting(
        0.1,
        "lambda: weight of the distance between the discriminator's features, beside 1 - lambda of the residual",
        source=f"{_SCHLEGL}, Eq. 5",
        ge=0,
        le=1,
        space=Range(low=0, high=0.5),
    )


class AnoGANSettings(SliceTrainingSettings):
    """Settings of the AnoGAN; defaults are those of Baur et al. 2018."""

    trunk: TrunkSettings = TrunkSettings(output="tanh")
    latent_dim: int = setting(
        64, "length of a code", source=f"{_PAPER}, Table 1", ge=1, space=Choice(values=(16, 64, 128))
    )
    epochs: float = setting(
        82,
        "passes over the training slices",
        source=f"{_PAPER}, section 3.1: of 150, where the slices looked best; training then grew unstable",
        gt=0,
    )
    learning_rate: float = setting(
        1e-4,
        "Adam's learning rate for the generator",
        source=f"{_PAPER}, section 3",
        gt=0,
        space=Range(low=1e-5, high=1e-3, log=True),
        mutable=True,
    )
    adversary: AdversarySettings = AdversarySettings()
    search: SearchSettings = SearchSettings()


def tiny() -> AnoGANSettings:
    """Networks of a few thousand parameters for tests: seconds, and no claim to detect anything.

    Linear, so that they take a cohort of any intensities; what has a tanh needs one that is scaled.
    """
    return override(
        AnoGANSettings(),
        {
            "slices.every": 2,
            "trunk.width": 4,
            "trunk.stages": 2,
            "trunk.output": "linear",
            "latent_dim": 4,
            "epochs": 2,
            "group_size": 4,
            "learning_rate": 1e-3,
            "adversary.width": 2,
            "adversary.stages": 2,
            "search.steps": 8,
            "search.quick_steps": 4,
            "map.median_pool": 3,
        },
    )


def demo() -> AnoGANSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels.

    A search costs a hundred passes a slice: here every second slice is searched, in forty steps.
    """
    return override(
        AnoGANSettings(),
        {
            "trunk.width": 16,
            "trunk.stages": 3,
            "slices.every": 2,
            "latent_dim": 32,
            "epochs": 6,
            "adversary.width": 8,
            "adversary.stages": 3,
            "search.steps": 40,
            "map.median_pool": 3,
        },
    )
