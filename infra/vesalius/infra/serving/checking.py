"""What an upload is, and whether its voxels may be read: decided from its first bytes and its headers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vesalius.datasets.dicom import promised_grid, series_in
from vesalius.datasets.nifti import promise_of
from vesalius.datasets.recipes import recipe_of
from vesalius.infra.serving.archives import unpack
from vesalius.infra.serving.refusals import Refusal
from vesalius.platform.geometry import spacing_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.infra.serving.settings import Limits
    from vesalius.infra.serving.uploads import Upload

_ZIP = b"PK"
_GZIP = b"\x1f\x8b"
_NIFTI = {bytes((348 >> 8 * i) & 255 for i in order) for order in (range(4), range(3, -1, -1))} | {
    bytes((540 >> 8 * i) & 255 for i in order) for order in (range(4), range(3, -1, -1))
}


def checked(upload: Upload, recipe: Mapping[str, Any], limits: Limits) -> tuple[Upload, list[Path], Path | None]:
    """Unpack what is packed and check what an upload's headers promise.

    Args:
        upload: as it came.
        recipe: of the model: what would be made of it.
        limits: of one request.

    Returns:
        The upload with the names of what was unpacked, its images (a NIfTI file, or a folder of DICOM files), its mask.

    Raises:
        Refusal: it is neither NIfTI nor a zip of DICOM, or would become too large.
        VolumeError: its headers are damaged.
    """
    names = dict(upload.names)
    images = [_image(path, upload.names[path], names, recipe, limits) for path in upload.images]
    mask = upload.brain_mask
    if mask is not None:
        _check_kind(mask, upload.names[mask], is_mask=True)
        _check_nifti(mask, upload.names[mask], limits)
    # The longest first: a folder's path begins that of its files.
    ordered = dict(sorted(names.items(), key=lambda item: -len(str(item[0]))))
    return type(upload)(images=upload.images, brain_mask=mask, names=ordered), images, mask


def _image(path: Path, name: str, names: dict[Path, str], recipe: Mapping[str, Any], limits: Limits) -> Path:
    if _check_kind(path, name) == "zip":
        folder = path.with_name(f"{path.name}-files")
        names[folder] = f"the archive of {name}" if name != "the image" else "the archive"
        unpack(path, folder, limits)
        path.unlink()
        shape, spacing_mm = _check_series(folder, name, limits)
        path = folder
    else:
        shape, spacing_mm = _check_nifti(path, name, limits)
    _check_grid(shape, spacing_mm, recipe, name, limits)
    return path


def _check_kind(path: Path, name: str, *, is_mask: bool = False) -> str:
    with path.open("rb") as stream:
        start = stream.read(132)
    if start.startswith(_GZIP) or start[:4] in _NIFTI:
        return "nifti"
    if start.startswith(_ZIP) and not is_mask:
        return "zip"
    if start[128:] == b"DICM":
        raise Refusal(415, f"{name} is a single DICOM file: send a .zip of all files of its series")
    expected = "a .nii or .nii.gz file" if is_mask else "a .nii, a .nii.gz, or a .zip of a DICOM series"
    raise Refusal(415, f"{name} is of no type that is read here: expected {expected}")


def _check_series(folder: Path, name: str, limits: Limits) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    series = series_in(folder)
    first = series.headers[0]
    _check_voxels((len(series.headers), first.rows or 0, first.columns or 0), name, limits)
    grid = promised_grid(series)  # uneven gaps are filled, and a tilted stack reaches further
    _check_voxels(grid.shape, name, limits)
    return grid.shape, spacing_of(grid.affine)


def _check_nifti(path: Path, name: str, limits: Limits) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    promise = promise_of(path)
    _check_voxels(promise.shape, name, limits)
    if promise.num_bytes > limits.unpacked_bytes:
        raise Refusal(413, f"{name} unpacks to {promise.num_bytes:,} bytes: expected {limits.unpacked_bytes:,} at most")
    return promise.shape, promise.spacing_mm


def _check_voxels(shape: Sequence[int], name: str, limits: Limits) -> None:
    if math.prod(shape) > limits.voxels:
        said = " x ".join(str(size) for size in shape)
        raise Refusal(413, f"{name} has {said} voxels: expected {limits.voxels:,} at most: crop or resample it first")


def _check_grid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    recipe: Mapping[str, Any],
    name: str,
    limits: Limits,
) -> None:
    """Check what a recipe without a grid of its own would make of voxels of this size."""
    wanted = recipe_of(recipe)
    if wanted.spacing_mm is None or wanted.target_grid() is not None:
        return
    becomes = math.prod(
        max(1.0, size * own / step) for size, own, step in zip(shape, spacing_mm, wanted.spacing_mm, strict=True)
    )
    if becomes > limits.voxels:
        raise Refusal(
            413, f"{name} would become {becomes:.3g} voxels by the model's recipe: expected {limits.voxels:,} at most"
        )
