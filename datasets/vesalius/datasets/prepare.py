"""Raw volumes -> prepared ones, by a recipe: the same code at ingest and for a single file to be scored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.channels import channel_of, clipped
from vesalius.datasets.dicom import series_in
from vesalius.datasets.foreground import CT_STRUCTURES, check_hounsfield, ct_structures, find_brain, find_head
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.placing import (
    Canonical,
    Masks,
    Placement,
    canonical_of,
    check_inside,
    check_spacing,
    placement_of,
)
from vesalius.datasets.reading import RawVolumes, load
from vesalius.datasets.recipes import Recipe, recipe_of
from vesalius.platform.config import digest
from vesalius.platform.geometry import as_matrix, spacing_of
from vesalius.platform.store import SourceFacts, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.datasets.nifti import RawVolume


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
    recipe = recipe_of(recipe)
    volumes = load(raw, modalities)
    notes: dict[str, Any] = dict(volumes.notes)
    warnings = [*raw.warnings, *(sentence for image in volumes.images.values() for sentence in image.warnings)]
    images = [canonical_of(volumes.images[modality]) for modality in modalities]
    for image in images:
        check_spacing(image, recipe.max_spacing_ratio)
        if recipe.hounsfield:
            check_hounsfield(image.image, image.name)
    images = [clipped(image, recipe) for image in images]
    first = images[0]
    brain, notes["brain"] = find_brain(first.image, first.affine, _mask(volumes.brain), recipe.brain, first.name)
    if recipe.hounsfield:
        check_hounsfield(first.image, first.name, brain)
    head = find_head(first.image, first.affine, _mask(volumes.head), recipe.head, first.name)
    masks = Masks(brain=brain, head=head)
    grid = placement_of(first, masks, recipe, notes, warnings)
    brain_out = grid.place_mask(brain, first.affine)
    check_inside(brain, brain_out, first, grid, warnings)
    head_out = None if head is None else grid.place_mask(head, first.affine)

    channels = [
        channel_of(image, masks, first, Masks(brain=brain_out, head=head_out), grid, recipe) for image in images
    ]
    structures, structure_names = _structures(volumes, first, brain_out, head_out, grid, recipe)
    given_lesion = _mask(volumes.lesion)
    lesion = None if given_lesion is None else grid.place_mask(given_lesion, first.affine)
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
        structures=structure_names or raw.structure_names,
        has_lesion=raw.labels.get("anomalous") is True
        or (volumes.lesion is not None and bool((volumes.lesion.array > 0.5).any())),
        notes=notes,
    )
    arrays = SubjectArrays(
        image=np.stack(channels),
        brain=brain_out,
        head=head_out,
        lesion=lesion,
        structures=structures,
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
        path: a NIfTI file or a folder that holds one DICOM study, or one by channel in the order of the channels.
        recipe: the model's recipe, as settings or as the JSON kept with it.
        brain_mask: mask on the first file's grid.
        channel: the channel's name where ``path`` is one file.

    Raises:
        VolumeError: a file cannot be used, or the recipe cannot be followed; the message names the file.
        SettingError: the recipe's JSON is not one.
    """
    files = dict(path) if isinstance(path, Mapping) else {channel: path}
    first = next(iter(files.values()))
    series = {name: series_in(file.absolute()) for name, file in files.items() if file.is_dir()}
    raw = RawSubject(
        subject_id=_id_of(first),
        images={name: str(file) for name, file in files.items() if name not in series},
        series={name: tuple(str(file) for file in found.files) for name, found in series.items()},
        brain_mask=None if brain_mask is None else str(brain_mask),
        origin=str(first),
        warnings=tuple(sentence for found in series.values() for sentence in found.warnings),
    )
    return prepare(raw, recipe_of(recipe), tuple(files))


def _id_of(path: Path) -> str:
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    text = re.sub(r"[^A-Za-z0-9._-]", "_", stem)
    return text.lstrip(".")[:128] or "volume"


def _mask(mask: RawVolume | None) -> NDArray[np.bool_] | None:
    """Return a mask in canonical orientation: then it lies voxel on voxel on its image (checked when it was read)."""
    if mask is None:
        return None
    inside: NDArray[np.bool_] = canonical_of(mask).image > 0.5
    return inside


def _structures(
    volumes: RawVolumes,
    first: Canonical,
    brain_out: NDArray[np.bool_],
    head_out: NDArray[np.bool_] | None,
    grid: Placement,
    recipe: Recipe,
) -> tuple[NDArray[np.integer[Any]] | None, dict[str, int]]:
    """Return structure labels on the grid and their names; those that come with the data go first where they serve."""
    wanted = recipe.structures == "ct"
    if volumes.structures is not None and not (wanted and CT_STRUCTURES.keys() - volumes.structure_names.keys()):
        given = canonical_of(volumes.structures)
        values = grid.place(given.image, first.affine, order=0)
        return values.astype(np.uint8 if values.max() <= 255 else np.uint16), dict(volumes.structure_names)
    if not wanted:
        return None, dict(volumes.structure_names)
    from vesalius.datasets.reference import midline_of

    # What is not registered lies in MNI space already, by the user's word.
    midline = np.eye(4)
    if recipe.registration != "none":
        midline = np.array(midline_of(recipe.reference, recipe.reference_sha256, hounsfield=recipe.hounsfield))
    to_midline = midline @ grid.to_reference @ grid.affine
    hounsfield = grid.place(first.image, first.affine, fill=float(first.image.min()), order=1)
    return ct_structures(hounsfield, brain_out, head_out, to_midline), dict(CT_STRUCTURES)
