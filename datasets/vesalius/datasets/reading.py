"""A raw subject's voxels, checked against each other; and what can be known of it without preparing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.analyze import analyze_sha256, is_analyze, read_analyze
from vesalius.datasets.dicom import read_series, series_sha256
from vesalius.datasets.files import file_sha256
from vesalius.datasets.masks import check_mask_values, check_not_mirrored, check_on_grid
from vesalius.datasets.nifti import RawVolume, check_finite, read_nifti
from vesalius.platform.config import Settings, digest
from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import check_affine, spacing_of
from vesalius.platform.tables import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.layouts.raw import RawSubject

__all__ = ["Inspection", "RawVolume", "RawVolumes", "inspect", "load", "read_nifti", "read_subject"]

MIN_SPACING_MM = 0.005
"""A tenth of what microscopy of whole brains has; finer voxels are metres or a damaged header."""

MAX_SPACING_MM = 100.0
"""Ten times the thickest slices: an axis with larger steps shows nothing."""

MAX_POSITION_MM = 1e5
"""A hundred metres."""

_MIN_VOLUME = 0.1  # of the parallelepiped of the axes' unit vectors: a gantry's 30 degrees leave 0.87


@dataclass(frozen=True, kw_only=True)
class RawVolumes:
    """A subject's voxels as its files have them.

    Attributes:
        images: by modality, in the order of the channels; each may have a grid of its own.
        brain: mask on the first image's grid, above 0.5 inside; likewise ``head`` and ``lesion``.
        head: see ``brain``.
        lesion: see ``brain``.
        structures: whole numbers on the first image's grid.
        structure_names: label value by structure name.
        sha256: of each file's bytes by role, or of a generated subject's parameters.
        notes: further JSON for the record.
    """

    images: Mapping[str, RawVolume]
    brain: RawVolume | None = None
    head: RawVolume | None = None
    lesion: RawVolume | None = None
    structures: RawVolume | None = None
    structure_names: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Inspection(Settings):
    """What is known of a subject before it is prepared.

    Attributes:
        sha256: digest by role: of the files' bytes, or ``parameters`` for a generated subject.
        anomalous: its lesion mask holds a voxel, or its labels say so.
    """

    sha256: dict[str, str]
    anomalous: bool


def inspect(raw: RawSubject, modalities: Sequence[str]) -> Inspection:
    """Hash a subject's files and look whether its lesion mask holds anything.

    Raises:
        VolumeError: a modality or a file is missing, or the lesion mask cannot be read.
    """
    if raw.problem:
        raise VolumeError(raw.problem)
    _require_modalities(raw, modalities)
    sha256 = {}
    anomalous = raw.labels.get("anomalous") is True
    for role, path in raw.files().items():
        if role == "lesion_mask":
            mask = read_volume(Path(path))
            sha256[role] = mask.sha256
            anomalous = anomalous or bool((mask.array > 0.5).any())
        else:
            sha256[role] = analyze_sha256(Path(path)) if is_analyze(Path(path)) else file_sha256(Path(path))
    for modality in modalities:
        if modality in raw.series:
            sha256[modality] = series_sha256([Path(path) for path in raw.series[modality]])
    if raw.parameters:
        sha256["parameters"] = digest({"reader": raw.reader, "parameters": raw.parameters})
    return Inspection(sha256=sha256, anomalous=anomalous)


def load(raw: RawSubject, modalities: Sequence[str]) -> RawVolumes:
    """Read a subject by its own reader and check that its volumes can be used together.

    Raises:
        VolumeError: a file is missing or unusable, an image holds no contrast, or a mask does not lie on the image.
    """
    if raw.problem:
        raise VolumeError(raw.problem)
    volumes: RawVolumes = resolve(raw.reader)(raw, modalities)
    if raw.parameters:
        key = digest({"reader": raw.reader, "parameters": raw.parameters})
        volumes = RawVolumes(**{**vars(volumes), "sha256": {**volumes.sha256, "parameters": key}})
    for image in volumes.images.values():
        _check_image(image)
    first = next(iter(volumes.images.values()))
    for role in ("brain", "head", "lesion", "structures"):
        mask: RawVolume | None = getattr(volumes, role)
        if mask is None:
            continue
        check_on_grid(mask, first)
        if role == "structures":
            _check_labels(mask)
        else:
            check_mask_values(mask, raw.lesion_labels if role == "lesion" else ())
        check_not_mirrored(mask, first, role)
    return volumes


def read_subject(raw: RawSubject, modalities: Sequence[str]) -> RawVolumes:
    """Read a subject whose images are NIfTI files or DICOM series and whose masks are NIfTI: most layouts' reader."""
    _require_modalities(raw, modalities)
    images = {modality: _read_image(raw, modality) for modality in modalities}
    masks = {
        role: read_volume(Path(path)) if path is not None else None
        for role, path in (
            ("brain_mask", raw.brain_mask),
            ("head_mask", raw.head_mask),
            ("lesion_mask", raw.lesion_mask),
            ("structures", raw.structures),
        )
    }
    read = {**images, **{role: mask for role, mask in masks.items() if mask is not None}}
    return RawVolumes(
        images=images,
        brain=masks["brain_mask"],
        head=masks["head_mask"],
        lesion=masks["lesion_mask"],
        structures=masks["structures"],
        structure_names=raw.structure_names,
        sha256={role: volume.sha256 for role, volume in read.items()},
        notes=_notes(images),
    )


def _notes(images: Mapping[str, RawVolume]) -> dict[str, dict[str, Any]]:
    """Return what is to be noted of the images: by kind of note, then by modality."""
    notes: dict[str, dict[str, Any]] = {}
    for modality, image in images.items():
        for kind, note in image.notes.items():
            notes.setdefault(kind, {})[modality] = note
    return notes


def read_volume(path: Path) -> RawVolume:
    """Read a NIfTI file, or an Analyze pair where the name ends in .hdr or .img.

    Raises:
        VolumeError: as :func:`read_nifti` and :func:`vesalius.datasets.analyze.read_analyze`.
    """
    return read_analyze(path) if is_analyze(path) else read_nifti(path)


def _read_image(raw: RawSubject, modality: str) -> RawVolume:
    if modality in raw.images:
        return read_volume(Path(raw.images[modality]))
    return read_series([Path(path) for path in raw.series[modality]])


def _require_modalities(raw: RawSubject, modalities: Sequence[str]) -> None:
    for modality in modalities:
        if modality not in raw.images and not raw.series.get(modality) and not raw.parameters:
            known = sorted({*raw.images, *raw.series})
            there = f"it has {', '.join(known)}" if known else "it has no image"
            raise VolumeError(f"{raw.origin or raw.subject_id}: there is no {modality} image ({there})")


def _check_image(image: RawVolume) -> None:
    check_finite(image.array, image.name)
    check_affine(image.affine, image.name)
    _check_voxels(image)
    low, high = float(image.array.min()), float(image.array.max())
    if low == high:
        raise VolumeError(f"{image.name}: every voxel is {low:g}: expected an image with contrast")


def _check_voxels(image: RawVolume) -> None:
    """Check that voxels have a size and a shape that a scanner could give them: grids are made by them.

    Raises:
        VolumeError: they are too small, too large, nearly flat, or far off.
    """
    spacing = spacing_of(image.affine)
    if min(spacing) < MIN_SPACING_MM or max(spacing) > MAX_SPACING_MM:
        sizes = " x ".join(f"{size:.4g}" for size in spacing)
        raise VolumeError(
            f"{image.name}: its voxels measure {sizes} mm: expected {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g}: "
            "repair the file's header (are its units millimetres?)"
        )
    if abs(np.linalg.det(image.affine[:3, :3] / np.array(spacing))) < _MIN_VOLUME:
        raise VolumeError(f"{image.name}: its axes are sheared almost into a plane: repair the file's header")
    if np.abs(image.affine[:3, 3]).max() > MAX_POSITION_MM:
        raise VolumeError(
            f"{image.name} lies {np.abs(image.affine[:3, 3]).max():.4g} mm from the world's origin: expected "
            f"{MAX_POSITION_MM:g} at most: repair the file's header"
        )


def _check_labels(structures: RawVolume) -> None:
    array: NDArray[np.float32] = structures.array
    if not np.array_equal(array, np.rint(array)) or array.min() < 0 or array.max() > 65535:
        raise VolumeError(f"{structures.name}: structure labels must be whole numbers from 0 to 65535")
