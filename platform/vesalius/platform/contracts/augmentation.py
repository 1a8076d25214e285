"""Augmentation as data: what a stage may ask for, and what was drawn of it for the items of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from vesalius.platform.config import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Augmentation(Settings):
    """Random changes of whole slices or volumes. Every magnitude is 0 by default, and then nothing changes.

    Shape (rotation and scale together), elastic deformation and intensity are each applied with ``probability``, drawn
    item by item. The image is resampled once, linearly, its edge continued outwards; the brain mask follows by nearest
    neighbour. Intensities change inside the brain alone, so that the background stays what the recipe made it.
    """

    probability: float = Field(1.0, ge=0, le=1, description="of each of shape, elastic and intensity, an item")
    rotation_degrees: float = Field(
        0.0, ge=0, le=180, description="largest angle either way: in the plane of a slice, about each axis of a volume"
    )
    scale: tuple[float, float] = Field(
        (0.0, 0.0), description="least and largest relative change of size; 0.1 shows the head a tenth larger"
    )
    elastic_mm: float = Field(
        0.0, ge=0, description="standard deviation of the control points' displacement along each axis"
    )
    elastic_spacing_mm: float = Field(32.0, gt=0, description="between control points of the cubic B-spline")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change of intensities about the centre")
    brightness: float = Field(0.0, ge=0, description="largest shift of intensities, in the image's unit")
    centre: float = Field(0.0, description="the intensity that a change of contrast leaves where it is")

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        low, high = self.scale
        if not -1 < low <= high:
            raise ValueError(f"scale goes from {low} to {high}: expected -1 < least <= largest")
        return self

    @property
    def moves(self) -> bool:
        """Whether any voxel may move."""
        return self.probability > 0 and (self.rotation_degrees > 0 or self.scale != (0.0, 0.0) or self.elastic_mm > 0)

    @property
    def is_identity(self) -> bool:
        """Whether nothing can change."""
        return self.probability == 0 or not (self.moves or self.contrast or self.brightness)


def vae_baselines_2021(*, mean: float = 0.0, deviation: float = 1.0) -> Augmentation:
    """Return the augmentation of the VAE baselines of Naval Marimont & Tarroni 2021.

    The paper (section 3) names the kinds: elastic transforms, scaling, rotations, random brightness and contrast. It
    gives no magnitude. Those here are the brain settings of the first author's public code for the MOOD 2020
    challenge: rotation by up to 5 degrees, scale -15 to +10 %, and brightness and contrast of up to 0.15 on images
    mapped from [-3, 3] standard deviations to [0, 1], each with a probability of a half. That code's elastic transform
    moves voxels by less than a tenth of a voxel; the 4 mm here are ours. Its blur, noise and flips are not the paper's.

    Args:
        mean: the images' mean inside the brain: 0 where they are z-scored.
        deviation: their standard deviation inside the brain: 1 where they are z-scored.
    """
    return Augmentation(
        probability=0.5,
        rotation_degrees=5.0,
        scale=(-0.15, 0.10),
        elastic_mm=4.0,
        elastic_spacing_mm=32.0,
        contrast=0.15,
        brightness=0.15 * 6 * deviation,
        centre=mean - 3 * deviation,
    )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for the items of a batch: everything their augmentation needs, so that it can be replayed.

    S is 2 for slices and 3 for volumes; coordinates are those of :func:`grid_positions`, in the order of the axes.

    Attributes:
        matrix: (B, S, S) float32, from a voxel's position to the one whose intensity it takes.
        elastic: (B, S, n, ...) float32 displacements of the B-spline's control points, or (B, 0) where there are none.
        knots: (S,) float32 intervals between control points along each axis.
        gain: (B,) float32 factor of intensities inside the brain.
        shift: (B,) float32 what is added to them then.
        moved: (B,) bool, the items that are resampled at all.
    """

    matrix: Tensor
    elastic: Tensor
    knots: Tensor
    gain: Tensor
    shift: Tensor
    moved: Tensor

    def of(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        """Return the same with ``change`` applied to every tensor that has a row an item."""
        return Drawn(
            matrix=change(self.matrix),
            elastic=change(self.elastic),
            knots=self.knots,
            gain=change(self.gain),
            shift=change(self.shift),
            moved=change(self.moved),
        )
