"""The way home: a map on a stored grid, brought to the grid of the file the volume came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from vesalius.platform.geometry import to_native, write_nifti

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Matrix4
    from vesalius.platform.store import SourceFacts


class Placed(Protocol):
    """A record that says where its voxels are: a subject's or a score's."""

    @property
    def affine(self) -> Matrix4:
        """Voxel indices to mm."""
        ...

    @property
    def source(self) -> SourceFacts | None:
        """The file it came from."""
        ...


def native_map(
    score_map: NDArray[Any], record: Placed, *, order: Literal[0, 1] = 1
) -> tuple[NDArray[np.float32], Matrix4]:
    """Bring a map to the source file's own shape and affine.

    A voxel of the file that the stored grid does not cover gets the map's least value: nothing was found there.

    Args:
        score_map: (D, H, W) on the grid of ``record``.
        record: the subject's record or the score's; a subject without a source file keeps its own grid.
        order: 0 nearest (labels), 1 linear.

    Returns:
        float32 map, and the affine that belongs to it.
    """
    values = np.asarray(score_map, dtype=np.float32)
    if record.source is None:
        return values, record.affine
    native = to_native(values, record.affine, record.source, order=order, fill=float(values.min()))
    return native, record.source.affine


def native_labels(labels: NDArray[Any], record: Placed) -> tuple[NDArray[Any], Matrix4]:
    """Bring a mask or labels to the source file's own shape and affine, by nearest neighbour.

    Args:
        labels: (D, H, W) bool or whole numbers up to 65535, on the grid of ``record``.
        record: the subject's record; a subject without a source file keeps its own grid.

    Returns:
        The labels, bool as uint8 and else of the type given, 0 where the stored grid does not reach; and their affine.
    """
    dtype = np.uint8 if labels.dtype == np.bool_ else labels.dtype
    if record.source is None:
        return labels.astype(dtype), record.affine
    # float32 holds every whole number up to 2^24, and nearest neighbour makes no others.
    native = to_native(labels.astype(np.float32), record.affine, record.source, order=0)
    return native.astype(dtype), record.source.affine


def write_native(path: Path, score_map: NDArray[Any], record: Placed) -> None:
    """Write a map as a NIfTI file (.nii or .nii.gz) in the source file's space; complete or absent."""
    write_nifti(path, *native_map(score_map, record))
