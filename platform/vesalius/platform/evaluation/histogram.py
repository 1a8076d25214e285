"""Counting a float16 map: 65,536 possible values make the counts exact and the memory fixed.

Every voxel-wise figure depends on the voxels only through how many healthy and how many lesion voxels hold each
score. A float16 map has at most 65,536 scores, so those counts replace the voxels, however many there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.platform.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike

Counts = NDArray[np.int64]

NUM_BINS = 1 << 16
_SIGN = 1 << 15
# Voxels counted at a time. bincount widens its input to 8 bytes a voxel: 2^19 of them are 4 MB, which stays in cache.
_CHUNK = 1 << 19


def _ordered_codes() -> NDArray[np.uint16]:
    """Return the float16 bit patterns by increasing value: negative ones run backwards, then the positive ones."""
    negative = np.arange(NUM_BINS - 1, _SIGN - 1, -1)
    return np.concatenate([negative, np.arange(_SIGN)]).astype(np.uint16)


def _ordered_values() -> NDArray[np.float64]:
    """Return what each bin stands for; a NaN pattern becomes the infinity of its sign, so that the order holds."""
    values = _CODES.view(np.float16).astype(np.float64)
    return np.where(np.isnan(values), np.where(np.arange(NUM_BINS) < _SIGN, -np.inf, np.inf), values)


_CODES = _ordered_codes()
VALUES = _ordered_values()
"""(65536,) float64: the score of each bin, never decreasing; not finite where the bit pattern is not."""
_NOT_FINITE = ~np.isfinite(VALUES)
_MINUS_ZERO, _ZERO = _SIGN - 1, _SIGN


class Histogram:
    """How many healthy and how many lesion voxels hold each float16 score. Immutable; only occupied bins are kept.

    Attributes:
        bins: (B,) int64, increasing: the occupied bins; bin b stands for the score ``VALUES[b]``.
        negative_counts: (B,) int64, healthy voxels in those bins.
        positive_counts: (B,) int64, lesion voxels in those bins.
    """

    __slots__ = ("bins", "negative_counts", "positive_counts")

    bins: Counts
    negative_counts: Counts
    positive_counts: Counts

    def __init__(self, *, negatives: ArrayLike, positives: ArrayLike) -> None:
        """Keep counts given for every bin.

        Args:
            negatives: (65536,) healthy voxels by increasing score.
            positives: (65536,) lesion voxels by increasing score.

        Raises:
            ValueError: another shape.
        """
        dense = [np.asarray(counts).astype(np.int64, copy=False) for counts in (negatives, positives)]
        if any(counts.shape != (NUM_BINS,) for counts in dense):
            raise ValueError(f"a histogram has ({NUM_BINS},) counts of each kind, not {[c.shape for c in dense]}")
        self.bins = np.flatnonzero(dense[0] | dense[1])
        self.negative_counts = dense[0][self.bins]
        self.positive_counts = dense[1][self.bins]

    @classmethod
    def empty(cls) -> Histogram:
        """Return a histogram of no voxel."""
        nothing = np.zeros(NUM_BINS, dtype=np.int64)
        return cls(negatives=nothing, positives=nothing)

    @classmethod
    def of(
        cls, score_map: NDArray[np.float16], lesion: NDArray[np.bool_] | None, inside: NDArray[np.bool_] | None = None
    ) -> Histogram:
        """Count a map. Beyond the arguments it needs a few megabytes, whatever their size.

        Args:
            score_map: float16, any shape; -0.0 counts as 0.0, its equal.
            lesion: bool of the same shape; None where the subject has no lesion.
            inside: bool of the same shape: count these voxels only; None counts all.

        Raises:
            DivergenceError: a counted voxel is NaN or infinite.
            TypeError: the map is not float16: rounding it is the caller's decision.
            ValueError: the shapes differ.
        """
        if score_map.dtype != np.float16:
            raise TypeError(f"a map is counted as float16, not as {score_map.dtype}")
        for name, mask in (("lesion", lesion), ("inside", inside)):
            if mask is not None and mask.shape != score_map.shape:
                raise ValueError(f"the {name} mask has shape {mask.shape}, the map {score_map.shape}")
        codes = np.ascontiguousarray(score_map).reshape(-1).view(np.uint16)
        flat_lesion, flat_inside = _flat(lesion), _flat(inside)
        everything = np.zeros(NUM_BINS, dtype=np.int64)
        positives = np.zeros(NUM_BINS, dtype=np.int64)
        for start in range(0, codes.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            chunk = codes[part]
            marked = None if flat_lesion is None else flat_lesion[part]
            if flat_inside is not None:
                kept = flat_inside[part]
                chunk = chunk[kept]
                marked = None if marked is None else marked[kept]
            everything += np.bincount(chunk, minlength=NUM_BINS)
            if marked is not None and marked.any():
                positives += np.bincount(chunk[marked], minlength=NUM_BINS)
        everything, positives = everything[_CODES], positives[_CODES]
        for counts in (everything, positives):
            counts[_ZERO] += counts[_MINUS_ZERO]
            counts[_MINUS_ZERO] = 0
        if everything[_NOT_FINITE].any():
            raise DivergenceError(
                f"an anomaly map holds {int(everything[_NOT_FINITE].sum())} voxels that are NaN or infinite: "
                "every score must be finite"
            )
        return cls(negatives=everything - positives, positives=positives)

    @classmethod
    def pooled(cls, histograms: Iterable[Histogram]) -> Histogram:
        """Return the histogram of all their voxels together."""
        negatives, positives = np.zeros((2, NUM_BINS), dtype=np.int64)
        for histogram in histograms:
            negatives[histogram.bins] += histogram.negative_counts
            positives[histogram.bins] += histogram.positive_counts
        return cls(negatives=negatives, positives=positives)

    @property
    def negatives(self) -> Counts:
        """(65536,) int64 healthy voxels by increasing score."""
        return self._dense(self.negative_counts)

    @property
    def positives(self) -> Counts:
        """(65536,) int64 lesion voxels by increasing score."""
        return self._dense(self.positive_counts)

    @property
    def num_negatives(self) -> int:
        """Healthy voxels."""
        return int(self.negative_counts.sum())

    @property
    def num_positives(self) -> int:
        """Lesion voxels."""
        return int(self.positive_counts.sum())

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram.pooled((self, other))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # what Python itself asks of a mutable value

    def __repr__(self) -> str:
        return (
            f"Histogram({self.num_negatives} healthy and {self.num_positives} lesion voxels, {self.bins.size} scores)"
        )

    def _dense(self, counts: Counts) -> Counts:
        dense = np.zeros(NUM_BINS, dtype=np.int64)
        dense[self.bins] = counts
        return dense


def _flat(mask: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    return None if mask is None else np.ascontiguousarray(mask, dtype=np.bool_).reshape(-1)
