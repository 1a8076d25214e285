"""Where a prepared volume lies: its grid, the registration to the reference, and the way back to the source's world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vesalius.datasets import steps
from vesalius.datasets.nifti import MAX_VOXELS
from vesalius.datasets.recipes.settings import MNI152
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import canonical, grid_affine, resample, spacing_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.datasets.nifti import RawVolume
    from vesalius.datasets.recipes import Recipe

    Affine = NDArray[np.float64]

_INSIDE = 0.99
_SLAB = 0.5


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """A volume in canonical orientation."""

    image: NDArray[np.float32]
    affine: Affine
    name: str


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What is known of the first image's voxels; the head is None where no one asks for it."""

    brain: NDArray[np.bool_]
    head: NDArray[np.bool_] | None

    def of(self, part: Literal["brain", "head"]) -> NDArray[np.bool_]:
        """Return one of the two.

        Raises:
            VolumeError: it is the head's, and there is none.
        """
        mask = self.brain if part == "brain" else self.head
        if mask is None:
            raise VolumeError("there is no head mask to go by: set recipe.head to mr, ct, otsu or given")
        return mask


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the prepared volume lies, and the ways from its mm to other worlds.

    Attributes:
        shape: voxels of the grid.
        affine: (4, 4) voxel indices to the stored world's mm.
        to_source: (4, 4) from the stored world's mm to the source's.
        to_reference: (4, 4) from the stored world's mm to the reference's; the identity but for ``crop``.
    """

    shape: tuple[int, int, int]
    affine: Affine
    to_source: Affine
    to_reference: Affine

    def place(
        self, values: NDArray[np.float32], affine: Affine, *, fill: float = 0.0, order: Any = 0
    ) -> NDArray[np.float32]:
        """Sample a canonical volume on the grid."""
        return resample(values, affine, self.shape, self.affine, to_source=self.to_source, order=order, fill=fill)

    def place_mask(self, mask: NDArray[np.bool_], affine: Affine) -> NDArray[np.bool_]:
        """Sample a mask on the grid, by nearest neighbour."""
        placed: NDArray[np.bool_] = self.place(mask.astype(np.float32), affine) > 0.5
        return placed

    def widened(self, num_voxels: int) -> Placement:
        """Return the grid with so many voxels more on every side."""
        d, h, w = (size + 2 * num_voxels for size in self.shape)
        affine = self.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ np.full(3, float(num_voxels))
        return Placement(shape=(d, h, w), affine=affine, to_source=self.to_source, to_reference=self.to_reference)


def canonical_of(volume: RawVolume) -> Canonical:
    """Return a volume in canonical orientation."""
    array, affine = canonical(volume.array, volume.affine)
    return Canonical(image=array, affine=affine, name=volume.name)


def shape_of(array: NDArray[Any]) -> tuple[int, int, int]:
    """Return (D, H, W)."""
    d, h, w = array.shape
    return (d, h, w)


def check_spacing(image: Canonical, ratio: float | None) -> None:
    """Check that no voxel edge is more than ``ratio`` times another.

    Raises:
        VolumeError: one is.
    """
    spacing = spacing_of(image.affine)
    if ratio is not None and max(spacing) > ratio * min(spacing):
        said = " x ".join(f"{step:.3g}" for step in spacing)
        raise VolumeError(
            f"{image.name} has voxels of {said} mm, whose longest edge is more than {ratio:g} times the shortest: "
            "give a volume of thinner slices, or raise recipe.max_spacing_ratio"
        )


def placement_of(
    image: Canonical, masks: Masks, recipe: Recipe, notes: dict[str, Any], warnings: list[str]
) -> Placement:
    """Register a volume if the recipe says so, and return where it will lie.

    What a person should know is added to ``notes`` and ``warnings``.

    Raises:
        VolumeError: it cannot be registered.
        SettingError: the reference is gone or is another one.
    """
    to_source, to_reference = np.eye(4), np.eye(4)
    center = recipe.center_mm
    if recipe.registration != "none":
        to_source, center = _register(image, masks, recipe, notes, warnings)
    shape = recipe.target_grid()
    if recipe.spacing_mm is None:
        own = shape_of(image.image)
        return Placement(shape=own, affine=image.affine, to_source=to_source, to_reference=to_reference)
    if shape is None:
        return _own_extent(image, recipe.spacing_mm)
    if center is None:
        points = steps.world_points(steps.row_ends(masks.brain), image.affine)
        to_source[:3, 3] = (points.min(axis=0) + points.max(axis=0)) / 2
        center = (0.0, 0.0, 0.0)
    affine = grid_affine(shape, recipe.spacing_mm, center)
    if recipe.crop == "brain":
        to_reference = _stretched(image, masks.brain, to_source, shape, affine)
    return Placement(shape=shape, affine=affine, to_source=to_source @ to_reference, to_reference=to_reference)


def check_inside(
    brain: NDArray[np.bool_], brain_out: NDArray[np.bool_], image: Canonical, grid: Placement, warnings: list[str]
) -> None:
    """Check that the brain lies on the grid; say so in ``warnings`` where a hundredth of it does not.

    Along an axis on which the grid is a slab, shorter than half the brain, nothing is asked.

    Raises:
        VolumeError: none of it does.
    """
    if not brain_out.any():
        raise VolumeError(
            f"{image.name}: its brain lies outside the grid: register it, or set recipe.center_mm to where it lies"
        )
    to_index = np.linalg.inv(grid.to_source @ grid.affine) @ image.affine
    index = steps.world_points(steps.row_ends(brain), to_index)
    extent = index.max(axis=0) - index.min(axis=0)
    asked = np.array(grid.shape) >= _SLAB * extent
    limits = np.array(grid.shape) - 0.5
    if (((index > -0.5) & (index < limits)) | ~asked).all():
        return
    index = steps.world_points(brain, to_index)
    inside = (((index > -0.5) & (index < limits)) | ~asked).all(axis=1).mean()
    if inside < _INSIDE:
        warnings.append(
            f"{image.name}: {100 * (1 - inside):.1f} % of its brain lies outside the grid: give a larger recipe.box_mm"
        )


def _register(
    image: Canonical, masks: Masks, recipe: Recipe, notes: dict[str, Any], warnings: list[str]
) -> tuple[Affine, tuple[float, float, float]]:
    """Return the transform from the reference's mm to the source's, and the centre of the grid."""
    from vesalius.datasets.reference import reference_of, seen_by_registration
    from vesalius.datasets.registration import GOOD_DICE, GOOD_SHARE, register

    kind, part = recipe.registration, recipe.registration_of
    mask = masks.of(part)
    assert kind != "none"  # asked by the caller
    reference = reference_of(recipe)
    seen = seen_by_registration(image.image, part, hounsfield=recipe.hounsfield)
    found = register(seen, image.affine, mask, image.name, reference.target, kind)
    notes["registration"] = {
        "kind": kind,
        "of": part,
        "template": reference.name,
        "mutual_information": round(found.mutual_information, 6),
        "dice": round(found.dice, 6),
        "share": round(found.share, 6),
    }
    name = "MNI152" if reference.name == MNI152 else reference.name
    if kind == "affine" and found.dice < GOOD_DICE:
        doubt = f"overlaps the {name} {part} with a Dice of {found.dice:.3f} only (expected at least {GOOD_DICE:g})"
    elif kind == "rigid" and found.share < GOOD_SHARE:
        doubt = f"shares {found.share:.3f} of its {part} with that of {name} only (expected at least {GOOD_SHARE:g})"
    else:
        doubt = ""
    if doubt:
        warnings.append(f"{image.name} {doubt}: look at its registration and its {part} mask")
    return found.to_source, recipe.center_mm or reference.center_mm


def _stretched(
    image: Canonical, brain: NDArray[np.bool_], to_source: Affine, shape: tuple[int, int, int], affine: Affine
) -> Affine:
    """Return the transform that takes the whole grid's box to the brain's bounding box, in the same world's mm."""
    to_world = np.linalg.inv(to_source) @ image.affine
    points = steps.world_points(steps.row_ends(brain), to_world)
    half = np.abs(to_world[:3, :3]).sum(axis=1) / 2
    low, high = points.min(axis=0) - half, points.max(axis=0) + half
    spacing = np.array(spacing_of(affine))
    stretch = (high - low) / (spacing * shape)
    answer = np.diag([*stretch, 1.0])
    answer[:3, 3] = low - stretch * (affine[:3, 3] - spacing / 2)
    return answer


def _own_extent(image: Canonical, spacing_mm: tuple[float, float, float]) -> Placement:
    """Return a grid of another spacing over the source's own extent and axes, sharing its physical centre."""
    own = np.array(spacing_of(image.affine))
    extent = own * image.image.shape
    d, h, w = (max(1, int(np.rint(size / step))) for size, step in zip(extent, spacing_mm, strict=True))
    if d * h * w > MAX_VOXELS:
        # A small file may claim voxels of ten centimetres: at the recipe's spacing they would fill any memory.
        raise VolumeError(
            f"{image.name} would become a grid of {d} x {h} x {w} voxels, more than {MAX_VOXELS:,}: "
            "crop it first, or give the recipe a grid or a box_mm"
        )
    affine = image.affine.copy()
    affine[:3, :3] *= np.array(spacing_mm) / own
    center = image.affine[:3, :3] @ ((np.array(image.image.shape) - 1) / 2) + image.affine[:3, 3]
    affine[:3, 3] = center - affine[:3, :3] @ ((np.array((d, h, w)) - 1) / 2)
    return Placement(shape=(d, h, w), affine=affine, to_source=np.eye(4), to_reference=np.eye(4))
