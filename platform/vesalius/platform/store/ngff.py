"""OME-Zarr (NGFF 0.5) metadata, by which napari, neuroglancer and others open subjects and maps in millimetres.

A subject's group is an NGFF image, its masks and structure labels are NGFF labels (https://ngff.openmicroscopy.org/0.5)::

    <id>/zarr.json               ome: multiscales, omero; vesalius: the record, every file's checksum
    <id>/image/                  (c, x, y, z)
    <id>/labels/zarr.json        ome: labels
    <id>/labels/<role>/zarr.json ome: multiscales, image-label
    <id>/labels/<role>/0/        (x, y, z)

**Axes** stand as our arrays do: c, x, y, z. The specification asks for z, y, x where planes are stacked along an
anisotropic z, which prepared volumes are not; it fixes no order among spatial axes otherwise, and readers go by name.
Each spatial axis carries the anatomical orientation of RFC-4, which readers of 0.5 may ignore.

**What it cannot say.** NGFF 0.5 knows scale and translation, no rotation. An oblique affine is replaced by the upright
one around the same centre; the whole affine stays in the record (``vesalius.record.affine``).

Score stores carry the same metadata (:func:`map_metadata`); how they lie is said in :mod:`vesalius.platform.scoring`.
"""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vesalius.platform.errors import VolumeError
from vesalius.platform.geometry import spacing_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from vesalius.platform.config import Matrix4
    from vesalius.platform.store.records import SubjectRecord

VERSION = "0.5"
AXES = ("c", "x", "y", "z")
_LABELS = "labels"
_ORIENTATIONS = {"x": "left-to-right", "y": "posterior-to-anterior", "z": "inferior-to-superior"}
# Okabe and Ito's colours (2008), told apart by the colour-blind too.
_MASK_COLORS = {"brain": (86, 180, 233, 255), "head": (153, 153, 153, 255), "lesion": (213, 94, 0, 255)}
_MAX_WINDOW_VOXELS = 200_000
_MAX_COLORS = 256


class Placed(Protocol):
    """A record that says where voxels lie: a subject's, or a scored subject's."""

    @property
    def subject_id(self) -> str:
        """Whose."""
        ...

    @property
    def channels(self) -> tuple[str, ...]:
        """Names along a first axis c, where there is one."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        ...

    @property
    def affine(self) -> Matrix4:
        """Voxel indices to mm."""
        ...


def array_path(role: str) -> str:
    """Return where an array lies below its subject's group."""
    return role if role == "image" else f"{_LABELS}/{role}/0"


def image_metadata(record: SubjectRecord, encoded: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the ``ome`` attribute of a subject's group.

    Args:
        record: the subject.
        encoded: its arrays as they are stored, by role.

    Raises:
        VolumeError: the axes do not run to the right, to the front and up.
    """
    return {
        "version": VERSION,
        "multiscales": [_multiscale(record, AXES, array_path("image"), record.subject_id)],
        "omero": {"name": record.subject_id, "channels": list(_channels(record, encoded))},
    }


def map_metadata(record: Placed, values: NDArray[Any], path: str, name: str) -> dict[str, Any]:
    """Return the ``ome`` attribute of a group that holds one map, or one restoration.

    Args:
        record: where it lies.
        values: (D, H, W), or (C, D, H, W) with the record's channels.
        path: of the array, below the group.
        name: what it is.

    Raises:
        VolumeError: the axes do not run to the right, to the front and up.
    """
    labels = record.channels if values.ndim == len(AXES) else (name,)
    volumes = values.reshape(-1, *values.shape[-3:])
    channels = [
        # Most of a map is background: its window ends where the highest thousandth of the voxels begins.
        _channel(label, volume, volume.ravel(), (1.0, 99.9), number == 0)
        for number, (label, volume) in enumerate(zip(labels, volumes, strict=True))
    ]
    return {
        "version": VERSION,
        "multiscales": [_multiscale(record, AXES[-values.ndim :], path, name)],
        "omero": {"name": f"{record.subject_id} {name}", "channels": channels},
    }


def label_groups(record: SubjectRecord, encoded: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the groups below a subject's that hold its masks and labels, and the ``ome`` attribute of each."""
    roles = [role for role in encoded if role != "image"]
    yield _LABELS, {"version": VERSION, "labels": roles}
    for role in roles:
        yield (
            f"{_LABELS}/{role}",
            {
                "version": VERSION,
                "multiscales": [_multiscale(record, AXES[1:], "0", role)],
                "image-label": {
                    "version": VERSION,
                    **_legend(role, record, encoded[role]),
                    "source": {"image": "../../"},
                },
            },
        )


def _multiscale(record: Placed, axes: tuple[str, ...], path: str, name: str) -> dict[str, Any]:
    scale, translation = _upright(record)
    lead = len(axes) - 3
    return {
        "name": name,
        "axes": [_axis(axis) for axis in axes],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * lead + scale},
                    {"type": "translation", "translation": [0.0] * lead + translation},
                ],
            }
        ],
    }


def _axis(name: str) -> dict[str, Any]:
    if name == "c":
        return {"name": name, "type": "channel"}
    orientation = {"type": "anatomical", "value": _ORIENTATIONS[name]}
    return {"name": name, "type": "space", "unit": "millimeter", "orientation": orientation}


def _upright(record: Placed) -> tuple[list[float], list[float]]:
    """Return the scale and translation that stand for the affine: exact for an upright one, else the same centre."""
    from nibabel.orientations import aff2axcodes

    affine = np.asarray(record.affine, dtype=np.float64)
    codes = "".join(aff2axcodes(affine))
    if codes != "RAS":
        raise VolumeError(
            f"subject {record.subject_id}: its axes run {codes} and not RAS (to the right, to the front, up): "
            "bring it to canonical orientation first"
        )
    spacing = np.asarray(spacing_of(affine))
    # For an upright affine the difference is exactly zero, and its own translation is kept to the last bit.
    tilt = affine[:3, :3] - np.diag(spacing)
    translation = affine[:3, 3] + tilt @ ((np.asarray(record.shape, dtype=np.float64) - 1) / 2)
    return spacing.tolist(), translation.tolist()


def _channels(record: SubjectRecord, encoded: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, Any]]:
    brain = encoded["brain"].astype(np.bool_) if encoded["brain"].any() else np.ones(record.shape, dtype=np.bool_)
    for number, name in enumerate(record.channels):
        image = encoded["image"][number]
        yield _channel(name, image, image[brain], (1.0, 99.0), number == 0)


def _channel(
    name: str, image: NDArray[Any], inside: NDArray[Any], percent: tuple[float, float], active: bool
) -> dict[str, Any]:
    # Steps of a fixed width: enough for a window, and the same on every machine.
    values = inside[:: 1 + inside.size // _MAX_WINDOW_VOXELS].astype(np.float64)
    start, end = np.percentile(values, percent).tolist()
    low, high = float(image.min()), float(image.max())
    if end <= start:
        # A window without width shows nothing, and some readers divide by it.
        start, end = low, high if high > low else low + 1.0
    return {
        "label": name,
        # Grey, one at a time: modalities added up in colours are nothing that anybody reads.
        "color": "FFFFFF",
        "active": active,
        "window": {"min": low, "max": max(high, end), "start": start, "end": end},
    }


def _legend(role: str, record: SubjectRecord, labels: NDArray[Any]) -> dict[str, Any]:
    """Return the colours of a label array's values and, where they have names, the names of the same values."""
    if role in _MASK_COLORS:
        named, colors = {1: role}, {1: _MASK_COLORS[role]}
    else:
        named = {}
        for name, value in sorted(record.structures.items()):
            named[value] = f"{named[value]}, {name}" if value in named else name
        # Readers want a colour of any kind (the specification asks for one a value): of what is there, without names.
        present = np.flatnonzero(np.bincount(labels.ravel()))[:_MAX_COLORS].tolist()
        colors = {value: _spread(number) for number, value in enumerate(sorted(named) or present)}
    legend: dict[str, Any] = {"colors": [{"label-value": value, "rgba": list(colors[value])} for value in colors]}
    if named:
        legend["properties"] = [{"label-value": value, "name": named[value]} for value in sorted(named)]
    return legend


def _spread(number: int) -> tuple[int, int, int, int]:
    """Return the n-th of any number of colours: hues by the golden angle, neighbours far apart."""
    red, green, blue = colorsys.hsv_to_rgb((number * 0.381966) % 1.0, 0.65, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255), 255
