"""Settings of the 3D autoencoder: the paper's values, and Baur's where it takes his layout."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from vesalius.methods.blocks import MapSettings, Window
from vesalius.platform.config import Settings, override
from vesalius.platform.contracts import SCORING, Choice, MethodSettings, Range, setting

_PAPER = "Bieder et al. 2022"
_BAUR = "Baur et al. 2021, code"


class NetworkSettings(Settings):
    """Depth, width and code."""

    width: int = setting(
        16,
        "m: channels after the first halving; the next have twice, all others four times as many",
        source=f"{_PAPER}, section 4.1: 1 to 64; 32 in {_BAUR}",
        ge=1,
        le=64,
        space=Choice(values=(1, 2, 4, 8, 16, 32, 64)),
    )
    stages: int = setting(
        5,
        "halvings between the volume and the coarsest grid: five take 256 voxels to 8",
        source=f"{_BAUR}: 8 x 8 of 256 x 256",
        ge=1,
        le=8,
    )
    latent_dim: int = setting(
        128, "Z, length of a code", source=_BAUR, ge=1, space=Choice(values=(32, 64, 128, 256, 512))
    )
    norm: Literal["batch", "instance"] = setting(
        "batch",
        "normalisation: over the voxels of a group of volumes, or of each volume alone, which lets a batch be computed "
        "one volume after the other (training.micro_batch_size)",
        source=f"{_BAUR}: batch",
        space=Choice(values=("batch", "instance")),
    )


class ErrorMapSettings(MapSettings):
    """The paper's filter of size 5: a grey erosion for haemorrhages (a median for fractures, preset ``fracture``)."""

    median_pool: Window = setting(
        1,
        "edge of the median window in voxels; 1 is none",
        source=f"{_PAPER}, section 3.4: 5 for fractures",
        space=Choice(values=(1, 3, 5, 7)),
    )
    min_pool: Window = setting(
        5,
        "edge of the minimum window, a grey erosion, in voxels; 1 is none",
        source=f"{_PAPER}, section 3.4: 5 for haemorrhages",
        space=Choice(values=(1, 3, 5, 7)),
    )
    image_score: Literal["top_mean", "max", "mean"] = setting(
        "max",
        "the volume's number: mean of the highest fraction, maximum or mean of the map inside the brain",
        source=f"{_PAPER}, section 4: does the error of a structure exceed a threshold",
        space=Choice(values=("max", "top_mean")),
    )


class Autoencoder3DSettings(MethodSettings):
    """Settings of the 3D autoencoder; defaults are the paper's."""

    network: NetworkSettings = NetworkSettings()
    epochs: float = setting(2000, "passes over the training volumes", source=f"{_PAPER}, appendix C", gt=0)
    batch_size: int = setting(4, "volumes in a batch", source=f"{_PAPER}, section 4.1", ge=1)
    group_size: int = setting(
        4,
        "volumes that batch statistics are taken over (network.norm = batch); a group is computed at once and stays on "
        "one worker",
        source=f"{_PAPER}, section 4.1: a batch on one device",
        ge=2,
    )
    learning_rate: float = setting(
        1e-3,
        "Adam's learning rate",
        source=f"{_PAPER}, appendix C",
        gt=0,
        space=Range(low=1e-4, high=3e-3, log=True),
        mutable=True,
    )
    together: int = setting(2, "volumes scored in one pass at most", source="this implementation", ge=1, since=SCORING)
    map: ErrorMapSettings = ErrorMapSettings()

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.network.norm == "batch" and self.batch_size % self.group_size:
            raise ValueError(
                f"a batch of {self.batch_size} volumes does not part into groups of {self.group_size}: set batch_size "
                "to a multiple of group_size, or network.norm to instance"
            )
        return self


def fracture() -> Autoencoder3DSettings:
    """The paper's for fractures: a median in the place of the erosion, which leaves no thin line."""
    return override(Autoencoder3DSettings(), {"map.median_pool": 5, "map.min_pool": 1})


def demo() -> Autoencoder3DSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels."""
    changes = {
        "network.width": 8,
        "network.stages": 3,
        "epochs": 40,
        "map.min_pool": 3,
        "map.voxels": "brain",
        "map.outside": "left_out",
        "map.image_score": "top_mean",
    }
    return override(Autoencoder3DSettings(), changes)


def tiny() -> Autoencoder3DSettings:
    """The smallest that still learns, for tests: seconds, and no claim to detect anything."""
    changes = {
        "network.width": 2,
        "network.stages": 2,
        "network.latent_dim": 8,
        "epochs": 8,
        "group_size": 2,
        "learning_rate": 1e-2,
        "map.min_pool": 3,
    }
    return override(Autoencoder3DSettings(), changes)
