"""Portraits against the cohort's own median and against MNI152: one number a question."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.quality.portrait import FRAME_EDGE, portray
from vesalius.datasets.template import mni152
from vesalius.platform.geometry import as_matrix, resample, spacing_of
from vesalius.platform.store import SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.quality.portrait import Portrait

_BINS = 16
_MIN_SHARED_VOXELS = 200


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """One of the 24 ways to lay a head on a grid, left and right not told apart.

    Attributes:
        order: where each axis of the answer is taken from.
        flips: axes that are flipped afterwards.
        words: what a head that has to be laid so looks like.
    """

    order: tuple[int, int, int]
    flips: tuple[int, ...]
    words: str

    def of(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return a (X, Y, Z) volume laid out this way."""
        return np.flip(volume.transpose(self.order), self.flips)


@lru_cache(maxsize=1)
def orientations() -> tuple[Orientation, ...]:
    """Return the other 23 orientations.

    Two that are each other's mirror image across the left-right axis are one: a head is so nearly symmetric that no
    picture of it tells them apart.
    """
    found = []
    for first, second, third in itertools.permutations(range(3)):
        order = (first, second, third)
        for back, down in itertools.product((False, True), repeat=2):
            if order == (0, 1, 2) and not back and not down:
                continue
            flips = tuple(axis for axis, flip in ((1, back), (2, down)) if flip)
            found.append(Orientation(order=order, flips=flips, words=_words(order, back=back, down=down)))
    return tuple(found)


def _words(order: tuple[int, ...], *, back: bool, down: bool) -> str:
    turned = [word for word, wrong in (("upside down", down), ("back to front", back)) if wrong]
    names = ("left-right", "front-back", "up-down")
    if order != (0, 1, 2):
        moved = [names[axis] for axis in range(3) if order[axis] != axis]
        turned.append(f"with its {' and '.join(moved)} axes exchanged" if len(moved) == 2 else "with its axes rotated")
    return " and ".join(turned)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What subjects are compared with.

    Attributes:
        image: (C, X, Y, Z) float32 median of the portraits' images.
        brain: (X, Y, Z) float32 median share of brain.
        inside: where the median share is at least a half.
        placed: (X, Y, Z) bool, in at least half of the brains as they lie; None where grids differ.
        offset_mm: the median of the brains' offsets from the centre of their grid.
        histograms: (C, bins) median, summing to 1.
    """

    image: NDArray[np.float32]
    brain: NDArray[np.float32]
    inside: NDArray[np.bool_]
    placed: NDArray[np.bool_] | None
    offset_mm: NDArray[np.float64]
    histograms: NDArray[np.float32]


def reference_of(portraits: Sequence[Portrait], *, one_grid: bool) -> Reference:
    """Return the median of a cohort: a few strange subjects do not move it.

    Args:
        portraits: at least one.
        one_grid: whether all lie on the same voxels.
    """
    # Plane by plane: the median of a thousand portraits at once would need a copy of all of them.
    image = np.stack(
        [
            np.stack([np.median([p.image[c, x] for p in portraits], axis=0) for x in range(FRAME_EDGE)])
            for c in range(portraits[0].image.shape[0])
        ]
    ).astype(np.float32)
    brain = np.stack([np.median([p.brain[x] for p in portraits], axis=0) for x in range(FRAME_EDGE)])
    histograms = np.median([p.histograms for p in portraits], axis=0).astype(np.float32)
    placed = None
    if one_grid:
        count = np.zeros(portraits[0].placed.shape, dtype=np.int64)
        for portrait in portraits:
            count += portrait.placed
        placed = 2 * count >= len(portraits)
    return Reference(
        image=image,
        brain=brain.astype(np.float32),
        inside=brain >= 0.5,
        placed=placed,
        offset_mm=np.median([p.offset_mm for p in portraits], axis=0),
        histograms=histograms / histograms.sum(axis=1, keepdims=True),
    )


@lru_cache(maxsize=1)
def template_brain() -> NDArray[np.float32]:
    """Return the share of the MNI152 brain in each voxel of the frame that portraits are made in."""
    template = mni152()
    d, h, w = template.brain.shape
    record = SubjectRecord(
        subject_id="mni152",
        split="test",
        channels=("T1w",),
        shape=(d, h, w),
        spacing_mm=spacing_of(template.affine),
        affine=as_matrix(template.affine),
    )
    portrait = portray(record, SubjectArrays(image=template.image[None], brain=template.brain))
    assert portrait is not None  # the template has a brain
    return portrait.brain.astype(np.float32)


def template_on(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the MNI152 brain on a grid in MNI millimetres."""
    template = mni152()
    return resample(template.brain.astype(np.float32), template.affine, shape, affine, order=0) > 0.5


def turned_brain(brain: NDArray[Any]) -> tuple[float, float, str]:
    """Hold a brain's shape against MNI152's: the correlation as it lies, the highest otherwise, and how that is."""
    template = template_brain()
    share = brain.astype(np.float32)
    best, words = max((correlation(turn.of(share), template), turn.words) for turn in orientations())
    return correlation(share, template), best, words


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return Pearson's correlation of two arrays of one size; 0 where one of them is constant."""
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def normalised_information(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return (H(a) + H(b)) / H(a, b) of values in [0, 1] (Studholme et al. 1999): 1 unrelated, 2 equal; 16 bins."""
    joint, _, _ = np.histogram2d(np.ravel(a), np.ravel(b), bins=_BINS, range=((0.0, 1.0), (0.0, 1.0)))
    joint /= max(joint.sum(), 1.0)

    def entropy(p: NDArray[np.float64]) -> float:
        held = p[p > 0]
        return float(-(held * np.log(held)).sum())

    both = entropy(joint)
    return (entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))) / both if both > 0 else 1.0


def histogram_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the first Wasserstein distance of two histograms over [0, 1]: the area between their cumulated shares."""
    return float(np.abs(np.cumsum(a, dtype=np.float64) - np.cumsum(b, dtype=np.float64)).mean())


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How like the reference a subject is.

    Attributes:
        similarity: correlation over both brains, as it lies.
        turned: the highest in another orientation.
        words: which orientation that is.
        contrast: lowest correlation of a channel inside the brain, in the better orientation.
        information: lowest normalised mutual information of a channel there.
        channel: number of the channel with the lowest correlation.
        histogram_distance: the largest of a channel.
        histogram_channel: number of that channel.
    """

    similarity: float
    turned: float
    words: str
    contrast: float
    information: float
    channel: int
    histogram_distance: float
    histogram_channel: int


def liken(portrait: Portrait, reference: Reference, *, least: float) -> Likeness:
    """Compare a subject with the cohort's median.

    Args:
        portrait: the subject's.
        reference: the cohort's median.
        least: similarity that another orientation must have to be taken for the true one.
    """
    image = portrait.image.astype(np.float32)
    brain = portrait.brain.astype(np.float32)
    as_it_lies = _similarity(image, brain, reference)
    others = [
        (_similarity(np.stack([turn.of(c) for c in image]), turn.of(brain), reference), turn) for turn in orientations()
    ]
    turned, best = max(others, key=lambda pair: pair[0])
    if turned > max(as_it_lies, least):
        image, brain = np.stack([best.of(channel) for channel in image]), best.of(brain)
    shared = reference.inside & (brain >= 0.5)
    contrasts, informations = [0.0], [1.0]
    if np.count_nonzero(shared) >= _MIN_SHARED_VOXELS:
        pairs = [(own[shared], common[shared]) for own, common in zip(image, reference.image, strict=True)]
        contrasts = [correlation(own, common) for own, common in pairs]
        informations = [normalised_information(own, common) for own, common in pairs]
    distances = [histogram_distance(a, b) for a, b in zip(portrait.histograms, reference.histograms, strict=True)]
    return Likeness(
        similarity=as_it_lies,
        turned=turned,
        words=best.words,
        contrast=min(contrasts),
        information=min(informations),
        channel=int(np.argmin(contrasts)),
        histogram_distance=max(distances),
        histogram_channel=int(np.argmax(distances)),
    )


def _similarity(image: NDArray[np.float32], brain: NDArray[np.float32], reference: Reference) -> float:
    """Return the mean over channels of the correlation over the voxels of either brain, 0 outside each."""
    either = (brain > 0) | (reference.brain > 0)
    return float(np.mean([correlation(a[either], b[either]) for a, b in zip(image, reference.image, strict=True)]))
