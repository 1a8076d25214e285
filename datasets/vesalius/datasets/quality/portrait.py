"""A subject in a few kilobytes: coarse, centred on its brain, scaled by its own intensities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.geometry import grid_affine, resample, spacing_of
from vesalius.platform.store import SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

See = Callable[[SubjectRecord, SubjectArrays], None]
"""Called with every subject while its voxels are in memory, so that nobody has to read them twice."""

FRAME_MM = 6.0
FRAME_EDGE = 34
NUM_BINS = 48
_MAX_SAMPLE = 200_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Portrait:
    """What is kept of a subject.

    Attributes:
        subject_id: whose.
        image: (C, 34, 34, 34) float16, 6 mm around the brain's centre; intensities scaled from the brain's 2nd and
            98th percentile to [0, 1], 0 outside the brain.
        brain: the brain's share of each voxel there, float16.
        placed: (X, Y, Z) bool, the brain on a 6 mm grid over the subject's own; see :func:`placed_grid`.
        offset_mm: from the centre of the subject's own grid to the brain's centre.
        brain_ml: its volume.
        histograms: (C, 48) share of the brain's voxels in each bin from the 0.5th to the 99.5th percentile.
        cut_share: where most of the brain ends at a face, that area over the largest cross-section, less a ball's.
        cut_face: which face, in words.
    """

    subject_id: str
    image: NDArray[np.float16]
    brain: NDArray[np.float16]
    placed: NDArray[np.bool_]
    offset_mm: NDArray[np.float64]
    brain_ml: float
    histograms: NDArray[np.float32]
    cut_share: float
    cut_face: str


def portray(record: SubjectRecord, arrays: SubjectArrays) -> Portrait | None:
    """Return a subject's portrait, or None where its brain mask is empty.

    Args:
        record: where its voxels lie.
        arrays: image (C, D, H, W) and brain (D, H, W).
    """
    brain = arrays.brain
    num_voxels = int(np.count_nonzero(brain))
    if num_voxels == 0:
        return None
    affine = np.asarray(record.affine, dtype=np.float64)
    spacing = spacing_of(affine)
    values = arrays.image[:, brain].astype(np.float32)
    bounds = _percentiles(values, (0.5, 2.0, 98.0, 99.5))

    share, coarse_affine = _blocks(brain.astype(np.float32), affine, spacing)
    center = _center(share, coarse_affine)
    frame = grid_affine((FRAME_EDGE,) * 3, (FRAME_MM,) * 3, tuple(center))
    edge = (FRAME_EDGE, FRAME_EDGE, FRAME_EDGE)
    channels = []
    for image, (_, low, high, _) in zip(arrays.image, bounds, strict=True):
        scaled = np.clip((image.astype(np.float32) - low) / max(high - low, 1e-12), 0.0, 1.0) * brain
        channels.append(resample(_blocks(scaled, affine, spacing)[0], coarse_affine, edge, frame))
    cut_share, cut_face = find_cut(record, brain)
    return Portrait(
        subject_id=record.subject_id,
        image=np.stack(channels).astype(np.float16),
        brain=resample(share, coarse_affine, edge, frame).astype(np.float16),
        placed=_placed(share, coarse_affine, record),
        offset_mm=center - _grid_center(record),
        brain_ml=num_voxels * float(np.prod(spacing)) / 1000.0,
        histograms=_histograms(values, bounds),
        cut_share=cut_share,
        cut_face=cut_face,
    )


def _percentiles(values: NDArray[np.float32], wanted: tuple[float, ...]) -> NDArray[np.float64]:
    step = 1 + values.shape[1] // _MAX_SAMPLE
    found: NDArray[np.float64] = np.percentile(values[:, ::step].astype(np.float64), wanted, axis=1).T
    return found


def _histograms(values: NDArray[np.float32], bounds: NDArray[np.float64]) -> NDArray[np.float32]:
    rows = []
    for channel, (low, _, _, high) in zip(values, bounds, strict=True):
        inside = np.clip(channel, low, high)
        counts, _ = np.histogram(inside, bins=NUM_BINS, range=(low, high if high > low else low + 1.0))
        rows.append(counts / counts.sum())
    return np.asarray(rows, dtype=np.float32)


def _blocks(
    array: NDArray[np.float32], affine: NDArray[np.float64], spacing: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Average over blocks of at most 6 mm: what is left aliases no more and is small."""
    factors = [max(1, int(FRAME_MM / step)) for step in spacing]
    padding = [(0, -size % factor) for size, factor in zip(array.shape, factors, strict=True)]
    padded = np.pad(array, padding) if any(after for _, after in padding) else array
    shape = [part for size, factor in zip(padded.shape, factors, strict=True) for part in (size // factor, factor)]
    coarse: NDArray[np.float32] = padded.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)
    moved = affine.copy()
    moved[:3, :3] *= factors
    moved[:3, 3] += affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    return coarse, moved


def _center(share: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    index = np.empty(3)
    for axis, size in enumerate(share.shape):
        line = share.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64)
        index[axis] = line @ np.arange(size) / line.sum()
    center: NDArray[np.float64] = affine[:3, :3] @ index + affine[:3, 3]
    return center


def _grid_center(record: SubjectRecord) -> NDArray[np.float64]:
    own = np.asarray(record.affine, dtype=np.float64)
    center: NDArray[np.float64] = own[:3, :3] @ ((np.asarray(record.shape) - 1) / 2) + own[:3, 3]
    return center


def placed_grid(record: SubjectRecord) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return shape and affine of the 6 mm grid around the centre of a subject's own grid, along its own axes."""
    own = np.asarray(record.affine, dtype=np.float64)
    spacing = np.asarray(spacing_of(own))
    d, h, w = (max(1, round(size * step / FRAME_MM)) for size, step in zip(record.shape, spacing, strict=True))
    target = own.copy()
    target[:3, :3] *= FRAME_MM / spacing
    target[:3, 3] = _grid_center(record) - target[:3, :3] @ ((np.array((d, h, w)) - 1) / 2)
    return (d, h, w), target


def _placed(share: NDArray[np.float32], affine: NDArray[np.float64], record: SubjectRecord) -> NDArray[np.bool_]:
    return resample(share, affine, *placed_grid(record)) >= 0.5


# ---- where the brain is cut off

_SLAB = 0.5
_WORDS = (("left", "right"), ("back", "front"), ("bottom", "top"))


def find_cut(record: SubjectRecord, brain: NDArray[np.bool_]) -> tuple[float, str]:
    """Return the largest share of the brain's cross-section that ends at one face, and which face that is.

    A brain ends rounded: the outermost slice across any axis is a small part of the widest one, 2 t / r of it where a
    ball of radius r is cut into slices of thickness t. Where a box or a field of view cuts it, the outermost slice is
    larger; what exceeds the ball's is returned, so that coarse grids and fine ones are judged alike. Looked at across
    the axes of the grid (a cut by the prepared box, or by a field of view that lies along it) and, where the subject
    came from a file, across the file's own axes at its faces (a scan that ended too early, before it was turned).
    Across an axis on which the grid is a slab, shorter than half of the brain in it, every brain is cut, and nothing
    is asked; across the others it ends as a disc does and not as a ball.

    Args:
        record: with the source's shape and affine where there is one.
        brain: (D, H, W), not empty.
    """
    spacing = spacing_of(np.asarray(record.affine, dtype=np.float64))
    sections = [np.count_nonzero(brain, axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    longest = max(np.count_nonzero(areas) * step for areas, step in zip(sections, spacing, strict=True))
    slabs = [areas.size * step < _SLAB * longest for areas, step in zip(sections, spacing, strict=True)]
    cuts = []
    for areas, is_slab, words in zip(sections, slabs, _WORDS, strict=True):
        if not is_slab:
            (where,) = np.nonzero(areas)
            ends = areas[where[0]], areas[where[-1]]
            cuts += [
                (_flatness(end, areas, disc=any(slabs)), f"the {word}") for end, word in zip(ends, words, strict=True)
            ]
    cuts += _source_cuts(record, brain, disc=any(slabs))
    return max(cuts, key=lambda pair: pair[0])


def _source_cuts(record: SubjectRecord, brain: NDArray[np.bool_], *, disc: bool) -> list[tuple[float, str]]:
    """Return the same at the six faces of the file the subject came from."""
    source = record.source
    if source is None:
        return []
    affine = np.asarray(record.affine, dtype=np.float64)
    to_index = np.linalg.inv(np.asarray(source.affine)) @ np.asarray(source.to_source) @ affine
    index = np.argwhere(brain)
    index = index[:: 1 + len(index) // _MAX_SAMPLE]
    if len(index) < 1000:
        return []
    placed = index @ to_index[:3, :3].T + to_index[:3, 3]
    world = np.asarray(source.affine, dtype=np.float64)[:3, :3]
    cuts = []
    for axis in range(3):
        # Slabs at least as thick as a voxel of either grid, so that every slab is filled where the brain is.
        step = float(np.abs(to_index[axis, :3]).sum())
        thickness = max(1.0, step)
        size = source.shape[axis]
        count = max(1, int(size / thickness))
        slabs = np.clip(((placed[:, axis] + 0.5) / size * count).astype(np.int64), 0, count - 1)
        areas = np.bincount(slabs, minlength=count).astype(np.float64)
        if count < 8:
            continue
        # Which way the file's axis runs in the patient: its largest component, and the sign of it.
        direction = world[:, axis]
        along = int(np.argmax(np.abs(direction)))
        first, last = _WORDS[along] if direction[along] > 0 else _WORDS[along][::-1]
        cuts += [
            (_flatness(areas[0], areas, disc=disc), f"the {first} of the scan"),
            (_flatness(areas[-1], areas, disc=disc), f"the {last} of the scan"),
        ]
    return cuts


def _flatness(end: float, areas: NDArray[Any], *, disc: bool) -> float:
    """Return how much larger an end slice is, as a share of the widest, than a ball's or a disc's of that extent."""
    # n slices of thickness t make a radius of r = n t / 2. At a depth of t a ball's section is 2 t / r of its widest,
    # and a disc's the root of that.
    rounded = 4.0 / int(np.count_nonzero(areas))
    return max(0.0, float(end) / float(areas.max()) - (np.sqrt(rounded) if disc else rounded))


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the Dice overlap of two masks; 0 where both are empty."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else 0.0
