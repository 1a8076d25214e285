"""Raw volumes -> prepared ones, by a recipe: the same code at ingest and for a single file to be scored."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets import steps
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.reading import RawVolumes, load
from vesalius.datasets.recipes import TEMPLATE_CENTER_MM, Recipe, recipe_of
from vesalius.platform.config import digest
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import as_matrix, canonical, grid_affine, resample, spacing_of
from vesalius.platform.store import SourceFacts, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.datasets.nifti import RawVolume

    Affine = NDArray[np.float64]

_MARGIN_VOXELS = 4
_INSIDE = 0.99


@dataclass(frozen=True, kw_only=True)
class _Canonical:
    """A volume in canonical orientation, with its brain."""

    image: NDArray[np.float32]
    affine: Affine
    name: str


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Where the prepared volume lies, and the way to the source's world."""

    shape: tuple[int, int, int]
    affine: Affine
    to_source: Affine


def prepare(
    raw: RawSubject, recipe: Recipe, modalities: Sequence[str], *, split: str = "test"
) -> tuple[SubjectRecord, SubjectArrays]:
    """Read a subject and bring it through the recipe.

    Args:
        raw: as a layout found it.
        recipe: what to do.
        modalities: which images, in the order of the channels.
        split: for the record.

    Returns:
        The record, with warnings for a person under ``notes["warnings"]``, and the voxels.

    Raises:
        VolumeError: a file cannot be used, or the recipe cannot be followed; the message names the file.
    """
    volumes = load(raw, modalities)
    notes: dict[str, Any] = dict(volumes.notes)
    warnings = [*raw.warnings, *(sentence for image in volumes.images.values() for sentence in image.warnings)]
    images = [_canonical(volumes.images[modality], recipe) for modality in modalities]
    first = images[0]
    given = _on_image(volumes.brain)
    brain, how = steps.find_brain(first.image, None if given is None else given > 0.5, recipe.brain, first.name)
    notes["brain"] = how
    grid = _grid(first, brain, recipe, notes, warnings)
    brain_out = _place(brain.astype(np.float32), first.affine, grid) > 0.5
    _check_inside(brain, brain_out, first, grid, warnings)

    channels = [_channel(image, brain, first, brain_out, grid, recipe) for image in images]
    head = _head(volumes, first, grid, recipe)
    lesion = _mask(volumes.lesion, first, grid)
    structures = _on_image(volumes.structures)
    if volumes.lesion is not None and lesion is not None and not lesion.any() and (volumes.lesion.array > 0.5).any():
        warnings.append(f"{volumes.lesion.name}: no lesion voxel is left on the grid")
    warnings.extend(
        f"{image.name} does not say where it lies (sform and qform codes are 0): left and right may be swapped"
        for image in volumes.images.values()
        if not image.oriented
    )
    if warnings:
        notes["warnings"] = warnings
    source = volumes.images[modalities[0]]
    record = SubjectRecord(
        subject_id=raw.subject_id,
        split=split,
        group=raw.group,
        channels=tuple(modalities),
        shape=grid.shape,
        spacing_mm=spacing_of(grid.affine),
        affine=as_matrix(grid.affine),
        source=SourceFacts(
            files=raw.file_names(),
            sha256=dict(volumes.sha256),
            shape=source.shape,
            affine=as_matrix(source.affine),
            to_source=as_matrix(grid.to_source),
        ),
        recipe_digest=digest(recipe.model_dump(mode="json")),
        demographics=raw.demographics,
        labels=raw.labels,
        structures={**volumes.structure_names} or raw.structure_names,
        has_lesion=raw.labels.get("anomalous") is True
        or (volumes.lesion is not None and bool((volumes.lesion.array > 0.5).any())),
        notes=notes,
    )
    arrays = SubjectArrays(
        image=np.stack(channels),
        brain=brain_out,
        head=head,
        lesion=lesion,
        structures=None if structures is None else _labels(_place(structures, first.affine, grid, order=0)),
    )
    return record, arrays


def prepare_file(
    path: Path | Mapping[str, Path],
    recipe: Recipe | Mapping[str, Any],
    brain_mask: Path | None = None,
    *,
    channel: str = "image",
) -> tuple[SubjectRecord, SubjectArrays]:
    """Prepare a single volume as ingest would: for scoring a file.

    Args:
        path: a NIfTI file, or one by channel in the order of the channels.
        recipe: the model's recipe, as settings or as the JSON kept with it.
        brain_mask: mask on the first file's grid.
        channel: the channel's name where ``path`` is one file.

    Raises:
        VolumeError: a file cannot be used, or the recipe cannot be followed; the message names the file.
        SettingError: the recipe's JSON is not one.
    """
    files = dict(path) if isinstance(path, Mapping) else {channel: path}
    first = next(iter(files.values()))
    raw = RawSubject(
        subject_id=_id_of(first),
        images={name: str(file) for name, file in files.items()},
        brain_mask=None if brain_mask is None else str(brain_mask),
        origin=str(first),
    )
    return prepare(raw, recipe_of(recipe), tuple(files))


def _id_of(path: Path) -> str:
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    text = re.sub(r"[^A-Za-z0-9._-]", "_", stem)
    return text.lstrip(".")[:128] or "volume"


def _canonical(volume: RawVolume, recipe: Recipe) -> _Canonical:
    array, affine = canonical(volume.array, volume.affine)
    return _Canonical(image=steps.raise_minimum(array, recipe.clip_minimum), affine=affine, name=volume.name)


def _on_image(mask: RawVolume | None) -> NDArray[np.float32] | None:
    """Return a mask in canonical orientation: then it lies voxel on voxel on its image (checked when it was read)."""
    return None if mask is None else canonical(mask.array, mask.affine)[0]


def _grid(
    image: _Canonical, brain: NDArray[np.bool_], recipe: Recipe, notes: dict[str, Any], warnings: list[str]
) -> _Grid:
    to_source = np.eye(4)
    if recipe.registration == "affine":
        from vesalius.datasets.registration import GOOD_DICE, register_affine

        found = register_affine(image.image, image.affine, brain, image.name)
        to_source = found.to_source
        notes["registration"] = {
            "template": "mni152",
            "mutual_information": round(found.mutual_information, 6),
            "dice": round(found.dice, 6),
        }
        if found.dice < GOOD_DICE:
            warnings.append(
                f"{image.name} overlaps the MNI152 brain with a Dice of {found.dice:.3f} only (expected at least "
                f"{GOOD_DICE:g}): look at its registration and its brain mask"
            )
    shape = recipe.target_grid()
    if recipe.spacing_mm is None:
        return _Grid(shape=_shape3(image.image), affine=image.affine, to_source=to_source)
    if shape is None:
        return _own_extent(image, recipe.spacing_mm)
    center = recipe.center_mm or (TEMPLATE_CENTER_MM if recipe.registration == "affine" else None)
    if center is None:
        points = steps.world_points(brain, image.affine)
        to_source[:3, 3] = (points.min(axis=0) + points.max(axis=0)) / 2
        center = (0.0, 0.0, 0.0)
    return _Grid(shape=shape, affine=grid_affine(shape, recipe.spacing_mm, center), to_source=to_source)


def _own_extent(image: _Canonical, spacing_mm: tuple[float, float, float]) -> _Grid:
    """Return a grid of another spacing over the source's own extent and axes, sharing its physical centre."""
    own = np.array(spacing_of(image.affine))
    extent = own * image.image.shape
    d, h, w = (max(1, int(np.rint(size / step))) for size, step in zip(extent, spacing_mm, strict=True))
    affine = image.affine.copy()
    affine[:3, :3] *= np.array(spacing_mm) / own
    center = image.affine[:3, :3] @ ((np.array(image.image.shape) - 1) / 2) + image.affine[:3, 3]
    affine[:3, 3] = center - affine[:3, :3] @ ((np.array((d, h, w)) - 1) / 2)
    return _Grid(shape=(d, h, w), affine=affine, to_source=np.eye(4))


def _channel(
    image: _Canonical,
    brain: NDArray[np.bool_],
    first: _Canonical,
    brain_out: NDArray[np.bool_],
    grid: _Grid,
    recipe: Recipe,
) -> NDArray[np.float32]:
    inside = brain if image is first else _on_own_grid(brain, first, image)
    low = float(np.percentile(image.image[inside], recipe.percentile_low)) if recipe.scale else 0.0
    values, affine = image.image, image.affine
    if recipe.background == "zero":
        # Set before sampling: a background far below the tissue would otherwise bleed into the brain's edge.
        box = steps.bounding_box(inside, _MARGIN_VOXELS)
        values = steps.outside_to(values[box], inside[box], low)
        affine = _cropped(affine, box)
        fill = low
    else:
        fill = float(values.min())
    if recipe.antialias and recipe.spacing_mm is not None:
        values = steps.smooth_for(values, spacing_of(affine), recipe.spacing_mm)
    placed = _place(values, affine, grid, fill=fill, order=1)
    if recipe.scale:
        placed = steps.scale_over(placed, brain_out, recipe.percentile_low, recipe.percentile_high, image.name)
    return steps.outside_to(placed, brain_out, 0.0) if recipe.background == "zero" else placed


def _on_own_grid(brain: NDArray[np.bool_], first: _Canonical, image: _Canonical) -> NDArray[np.bool_]:
    """Return the brain on another modality's grid; both are in one scanner's world."""
    there = resample(brain.astype(np.float32), first.affine, _shape3(image.image), image.affine, order=0) > 0.5
    if not there.any():
        raise VolumeError(
            f"{image.name} does not overlap the brain of {first.name} by their affines: register them to each other"
        )
    return there


def _head(volumes: RawVolumes, first: _Canonical, grid: _Grid, recipe: Recipe) -> NDArray[np.bool_] | None:
    if recipe.head == "otsu" and volumes.head is None:
        return _place(steps.brain_otsu(first.image).astype(np.float32), first.affine, grid) > 0.5
    if recipe.head == "given" and volumes.head is None:
        raise VolumeError(f"{first.name} has no head mask: give one or set recipe.head to otsu or none")
    return _mask(volumes.head, first, grid)


def _mask(mask: RawVolume | None, first: _Canonical, grid: _Grid) -> NDArray[np.bool_] | None:
    values = _on_image(mask)
    return None if values is None else _place((values > 0.5).astype(np.float32), first.affine, grid) > 0.5


def _labels(values: NDArray[np.float32]) -> NDArray[np.integer[Any]]:
    return values.astype(np.uint8 if values.max() <= 255 else np.uint16)


def _place(
    values: NDArray[np.float32], affine: Affine, grid: _Grid, *, fill: float = 0.0, order: Any = 0
) -> NDArray[np.float32]:
    return resample(values, affine, grid.shape, grid.affine, to_source=grid.to_source, order=order, fill=fill)


def _check_inside(
    brain: NDArray[np.bool_], brain_out: NDArray[np.bool_], image: _Canonical, grid: _Grid, warnings: list[str]
) -> None:
    if not brain_out.any():
        raise VolumeError(
            f"{image.name}: its brain lies outside the grid: register it, or set recipe.center_mm to where it lies"
        )
    to_index = np.linalg.inv(grid.to_source @ grid.affine) @ image.affine
    box = np.array([[part.start, part.stop - 1] for part in steps.bounding_box(brain)])
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*box)]) @ to_index[:3].T
    if ((corners > -0.5) & (corners < np.array(grid.shape) - 0.5)).all():
        return
    index = steps.world_points(brain, to_index)
    inside = ((index > -0.5) & (index < np.array(grid.shape) - 0.5)).all(axis=1).mean()
    if inside < _INSIDE:
        warnings.append(
            f"{image.name}: {100 * (1 - inside):.1f} % of its brain lies outside the grid: give a larger recipe.box_mm"
        )


def _cropped(affine: Affine, box: steps.Box) -> Affine:
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ [part.start for part in box] + affine[:3, 3]
    return moved


def _shape3(array: NDArray[Any]) -> tuple[int, int, int]:
    d, h, w = array.shape
    return (d, h, w)
