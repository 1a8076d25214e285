"""A decoded volume or parts of it, and what it is read from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vesalius.platform.loading.cutting import Box


class VolumeReader(Protocol):
    """What the loader needs of a store: prepared arrays by subject id and role, whole or in part."""

    @property
    def chunk_edge(self) -> int | None:
        """Edge in voxels of the cubes that can be read by themselves; None where parts cost as much as the whole."""
        ...

    def stored(self, subject_id: str, role: str, box: Box | None = None) -> NDArray[Any]:
        """Return the image (C, D, H, W) or a mask (D, H, W), or the part in ``box``, in the type it is stored in."""
        ...


class Voxels:
    """A decoded volume, or some parts of it.

    Attributes:
        subject: id.
        image: (C, D, H, W) in the store's own type; empty where only parts were read.
        finite: whether every intensity is.
        num_bytes: of memory.
        spacing_mm: size of its voxels; None where it is the cohort's.
    """

    def __init__(
        self,
        subject: str,
        image: NDArray[Any],
        masks: Mapping[str, NDArray[np.bool_]],
        parts: Mapping[Box, tuple[NDArray[Any], Mapping[str, NDArray[np.bool_]]]] | None = None,
        spacing_mm: tuple[float, float, float] | None = None,
    ) -> None:
        self.subject = subject
        self.spacing_mm = spacing_mm
        self.image = image
        self.masks = masks
        self._parts = parts
        pieces = [(image, masks)] if parts is None else list(parts.values())
        # Extremes carry NaN and infinity, at a fraction of what asking every voxel costs.
        self.finite = all(bool(np.isfinite([values.min(), values.max()]).all()) for values, _ in pieces)
        self.num_bytes = sum(values.nbytes + sum(mask.nbytes for mask in each.values()) for values, each in pieces)

    @property
    def is_whole(self) -> bool:
        """Whether all of the volume is here."""
        return self._parts is None

    def mask(self, role: str) -> NDArray[np.bool_]:
        """Return a whole (D, H, W) mask."""
        return self.masks[role]

    def part(self, box: Box) -> tuple[NDArray[Any], Mapping[str, NDArray[np.bool_]]]:
        """Return image (C, d, h, w) and masks (d, h, w) inside a box; views where the whole volume is here."""
        if self._parts is not None:
            return self._parts[box]
        where = tuple(slice(*side) for side in box)
        return self.image[(slice(None), *where)], {role: mask[where] for role, mask in self.masks.items()}


def read_whole(
    reader: VolumeReader, subject: str, roles: Sequence[str], spacing_mm: tuple[float, float, float] | None = None
) -> Voxels:
    """Read a subject's image and masks."""
    image = np.ascontiguousarray(reader.stored(subject, "image"))
    masks = {role: _as_bool(reader.stored(subject, role)) for role in roles}
    return Voxels(subject, image, masks, spacing_mm=spacing_mm)


def read_parts(reader: VolumeReader, subject: str, roles: Sequence[str], boxes: Sequence[Box]) -> Voxels:
    """Read some boxes of a subject's image and masks, straight from their chunks."""
    parts = {}
    for box in boxes:
        masks = {role: _as_bool(reader.stored(subject, role, box)) for role in roles}
        parts[box] = (reader.stored(subject, "image", box), masks)
    return Voxels(subject, np.empty(0), {}, parts)


def _as_bool(mask: NDArray[Any]) -> NDArray[np.bool_]:
    return np.ascontiguousarray(mask) != 0 if mask.dtype != np.bool_ else np.ascontiguousarray(mask)
