"""Settings of position regression: the paper's values."""

from __future__ import annotations

from typing import ClassVar, Literal

from vesalius.methods.blocks import MapSettings
from vesalius.platform.config import Settings, override
from vesalius.platform.contracts import SCORING, Choice, MethodSettings, Range, setting

_PAPER = "Bieder et al. 2022"


class NetworkSettings(Settings):
    """Size of the network and of what it sees."""

    patch_size: Literal[19, 23, 27, 31, 35, 39] = setting(
        31,
        "edge of a patch in voxels: more context finds its place better and feels a small anomaly less",
        source=f"{_PAPER}, section 3 and appendix A",
        space=Choice(values=(19, 23, 27, 31, 35, 39)),
    )
    width: int = setting(
        16,
        "m: channels of the first convolution; the others have 2 m to 8 m",
        source=f"{_PAPER}, section 4.1: 1 to 64, of which figure 4 takes 16",
        ge=1,
        le=64,
        space=Choice(values=(1, 2, 4, 8, 16, 32, 64)),
    )


class PatchSettings(Settings):
    """Which patches a step learns from."""

    per_step: int = setting(256, "patches of one volume that a step draws", source=f"{_PAPER}, section 3.1", ge=1)
    sampling: Literal["discard", "touching", "centre"] = setting(
        "discard",
        "where patches are drawn: discard takes centres of the whole grid and leaves out patches of background only; "
        "touching draws those that discard would keep; centre draws centres in the foreground",
        source=f"{_PAPER}, sections 2 and 3.1",
        space=Choice(values=("discard", "touching", "centre")),
    )
    foreground: Literal["head", "brain"] = setting(
        "head",
        "the mask whose voxels make a patch more than background; the head's needs a recipe that keeps one",
        source=f"{_PAPER}, sections 3.1 and 3.3: the subject's anatomy",
    )


class ScoringSettings(Settings):
    """How the error map of a volume is computed."""

    since: ClassVar[str | None] = "calibration"

    stride: int = setting(
        1,
        "voxels between evaluated patches along each axis; between their centres the error is interpolated",
        source=f"{_PAPER}, section 2: every voxel",
        ge=1,
        le=32,
        since=SCORING,
        inference_space=Choice(values=(1, 2, 4)),
    )
    quick_stride: int = setting(
        4, "the stride of the quick effort, at least stride", ge=1, le=32, source="this implementation"
    )
    calibrate: bool = setting(
        False,
        "score by how many deviations the error exceeds its mean over the training subjects at that place, and not by "
        "the error itself; both are taken at every quick_stride-th voxel",
        source="this implementation",
        space=Choice(values=(False, True)),
    )
    tile_mib: int = setting(
        512,
        "MiB that scoring holds beside a volume and its map, which does not depend on it; the time grows where tiles "
        "become as small as patches: give 2048 for a width of 64",
        ge=96,
        source="this implementation",
    )


class PositionMapSettings(MapSettings):
    """The error as it is, and its maximum, as the paper takes it of a structure."""

    image_score: Literal["top_mean", "max", "mean"] = setting(
        "max",
        "the volume's number: mean of the highest fraction, maximum or mean of the map inside the brain",
        source=f"{_PAPER}, section 4: does the error of a structure exceed a threshold",
        space=Choice(values=("max", "top_mean")),
    )


class PositionRegressionSettings(MethodSettings):
    """Settings of position regression; defaults are the paper's."""

    network: NetworkSettings = NetworkSettings()
    patches: PatchSettings = PatchSettings()
    epochs: float = setting(2000, "visits to every training volume, a step each", source=f"{_PAPER}, section 3", gt=0)
    learning_rate: float = setting(
        1e-4,
        "Adam's learning rate",
        source=f"{_PAPER}, section 3",
        gt=0,
        space=Range(low=3e-5, high=3e-3, log=True),
        mutable=True,
    )
    scoring: ScoringSettings = ScoringSettings()
    map: PositionMapSettings = PositionMapSettings()


def demo() -> PositionRegressionSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels, brains without a head among them.

    Smaller steps than the paper's, and more of them: for the same work 64 patches come further than 256
    (decision 18). What it finds are things that stand where nothing like them stands, such as bleeds in CT.
    """
    changes = {
        "network.patch_size": 19,
        "network.width": 8,
        "patches.per_step": 64,
        "patches.foreground": "brain",
        "epochs": 60,
        "learning_rate": 1e-3,
        "map.voxels": "brain",
        "map.image_score": "top_mean",
    }
    return override(PositionRegressionSettings(), changes)


def tiny() -> PositionRegressionSettings:
    """The smallest that still learns, for tests: seconds, and no claim to detect anything."""
    changes = {
        "network.patch_size": 19,
        "network.width": 2,
        "patches.per_step": 24,
        "patches.foreground": "brain",
        "epochs": 4,
        "learning_rate": 1e-2,
        "scoring.tile_mib": 96,
    }
    return override(PositionRegressionSettings(), changes)
