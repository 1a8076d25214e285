"""The cohort as a method sees it, coordinates, volumes to be scored, and scores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vesalius.platform.config import Matrix4, Settings
from vesalius.platform.contracts.batch import generator

if TYPE_CHECKING:
    from collections.abc import Mapping


class CohortFacts(Settings):
    """What a method may know of the cohort it is built for. Saved with the model.

    Attributes:
        subjects: ids of the training subjects, in order: the rows of a code table.
        grid: voxels along D, H, W of the prepared volumes.
        spacing_mm: voxel size along D, H, W.
        affine: voxel indices to millimetres (RAS+) of the cohort's grid.
        channels: modality names, in the order of the channel axis.
        digest: digest of the cohort the method was trained on.
        background: intensity of what lies outside: the low end of what the recipe scales to, else 0.
        ceiling: no intensity is above it: the high end of what the recipe scales to; None where it does not scale.
    """

    subjects: tuple[str, ...]
    grid: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Matrix4
    channels: tuple[str, ...]
    digest: str
    background: float = 0.0
    ceiling: float | None = None

    @property
    def box_mm(self) -> tuple[float, float, float]:
        """Edges of the cohort's physical box: from the outer face of the first voxel to that of the last."""
        d, h, w = (n * s for n, s in zip(self.grid, self.spacing_mm, strict=True))
        return (d, h, w)


def axis_positions(num: int, spacing_mm: float, box_mm: float) -> Tensor:
    """Return (num,) float32 coordinates of voxel centres along one axis, in units of half the cohort's box.

    Every grid of a cohort shares the box's centre, so a grid of another resolution or extent lands on the same
    physical coordinates: voxel i of n sits at (2 i + 1 - n) * spacing / box. On the cohort's own grid that is
    (2 i + 1) / n - 1.
    """
    index = torch.arange(num, dtype=torch.float64)
    return ((2 * index + 1 - num) * (spacing_mm / box_mm)).to(torch.float32)


def grid_positions(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], box_mm: tuple[float, float, float]
) -> Tensor:
    """Return (D, H, W, 3) float32 normalised coordinates of every voxel centre; see :func:`axis_positions`."""
    axes = [axis_positions(n, s, b) for n, s, b in zip(shape, spacing_mm, box_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A prepared volume to be scored.

    Attributes:
        subject_id: for messages only; a score never depends on it.
        image: (C, D, H, W) float32.
        brain: (D, H, W) bool.
        spacing_mm: voxel size along D, H, W.
        affine: voxel indices to millimetres (RAS+).
        head: (D, H, W) bool, where the recipe keeps one: what is not air.
    """

    subject_id: str
    image: Tensor
    brain: Tensor
    spacing_mm: tuple[float, float, float]
    affine: Matrix4
    head: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        _, d, h, w = self.image.shape
        return (d, h, w)

    def generator(self, name: str) -> torch.Generator:
        """Return a CPU generator keyed by ``name`` and the volume's content.

        A volume scored alone therefore draws the same noise as the same volume scored among others.
        """
        content = hashlib.sha256(self.image.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return generator("volume", content, name)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A method's answer for one volume, on the volume's own grid.

    Attributes:
        map: (D, H, W) float32, higher is more anomalous.
        image_score: one number for the whole volume, higher is more anomalous.
        restoration: (C, D, H, W) float32, the healthy image nearest to the volume, where the method has one.
        extras: further maps (D, H, W) by name, such as the spread of several restorations.
    """

    map: Tensor
    image_score: float
    restoration: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
