"""Settings of the 2D implicit field: those of the implicit field, and what a slice changes."""

from __future__ import annotations

from typing import ClassVar

from vesalius.methods.blocks import SliceSettings
from vesalius.methods.implicit_field.settings import ImplicitFieldSettings, demo, tiny
from vesalius.platform.contracts import SCORING, Range, setting

_PAPER = "Naval Marimont and Tarroni 2021"


class FieldSliceSettings(SliceSettings):
    """The paper's slices: every fourth axial one, 40 of 160."""

    since: ClassVar[str | None] = "decoder"

    every: int = setting(4, "take each n-th slice", source=f"{_PAPER}, section 3", ge=1)
    together: int = setting(
        160, "slices restored in one batch at most", source="this implementation", ge=1, since=SCORING
    )


class ImplicitField2DSettings(ImplicitFieldSettings):
    """Settings of the 2D implicit field; defaults are the paper's."""

    mode_pool_training: int = setting(
        2,
        "edge of the mode-pooling square for training slices",
        source=f"{_PAPER}, section 2: a cube of 2; a slice allows a square",
        ge=1,
        le=6,
        since="decoder",
    )
    mode_pool_scoring: int = setting(
        3,
        "edge of the mode-pooling square for slices to be scored",
        source=f"{_PAPER}, section 2: a cube of 3; a slice allows a square",
        ge=1,
        le=6,
        since=SCORING,
        inference_space=Range(low=1, high=5),
    )
    points: int = setting(
        16_200,
        "K, points of a slice in a training batch; there a plane of no more voxels gives each of them once",
        source=f"{_PAPER}, section 3",
        ge=1,
        since="decoder",
    )
    batch_volumes: int = setting(
        6, "slices in a batch", source=f"{_PAPER}, section 3: six volumes; here any six slices", ge=1
    )
    epochs: float = setting(
        2_000, "passes over the training subjects' slices", source=f"{_PAPER}, section 3", gt=0, since="decoder"
    )
    slices: FieldSliceSettings = FieldSliceSettings()


def tiny_2d() -> ImplicitField2DSettings:
    """For tests: the implicit field's ``tiny``, on every fourth slice."""
    return _of(tiny(), points=128, batch_volumes=8, epochs=5)


def demo_2d() -> ImplicitField2DSettings:
    """For two CPU cores: the implicit field's ``demo``, with as many points a step, on every fourth slice."""
    return _of(demo(), points=512, batch_volumes=24, epochs=40)


def _of(volumes: ImplicitFieldSettings, *, points: int, batch_volumes: int, epochs: float) -> ImplicitField2DSettings:
    """Return the settings of an implicit field of volumes for slices: fewer points each, of more of them."""
    restoration = {**volumes.restoration.model_dump(), "points": (points,) * len(volumes.restoration.steps)}
    changes = {"points": points, "batch_volumes": batch_volumes, "epochs": epochs, "restoration": restoration}
    return ImplicitField2DSettings.model_validate({**volumes.model_dump(), **changes})
