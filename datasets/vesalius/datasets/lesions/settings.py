"""How lesions are set, and what was done."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vesalius.platform.config import Settings

HeldOut = Literal["validation", "gate", "test"]


class PlantingSettings(Settings):
    """How lesions are set.

    Attributes:
        contrast: relative change of the intensity inside; -0.4 is 40 % darker. The same in every channel.
        softness_mm: width of the border over which the change rises from nothing to full; below twice the voxel size
            there is next to none.
        texture: deviation of the change from place to place, as a fraction of it.
        seed: with a subject's id, decides its lesion.
        splits: where lesions go; one that is named twice counts once. Training subjects stay healthy.
        healthy_fraction: share of the healthy subjects of each of these splits that stay healthy.
        min_voxels: a mask that has fewer voxels in a subject's brain is put back and another one is drawn.
    """

    contrast: float = Field(-0.4, ge=-1, le=3)
    softness_mm: float = Field(6.0, ge=0, le=50)
    texture: float = Field(0.2, ge=0, le=1)
    seed: int = 0
    splits: tuple[HeldOut, ...] = Field(("validation", "gate", "test"), min_length=1)
    healthy_fraction: float = Field(1 / 3, ge=0, lt=1)
    min_voxels: int = Field(50, ge=1)


class LesionReport(Settings):
    """What was done.

    Attributes:
        store: the new store's folder.
        planted: file name of the mask by id, for every subject that got a lesion.
        healthy: ids of the held-out subjects that stayed healthy, sorted.
        copied: ids of all others: training subjects, and those that had a lesion of their own.
        digest: of the new store.
    """

    store: str
    planted: dict[str, str]
    healthy: tuple[str, ...]
    copied: tuple[str, ...]
    digest: str
