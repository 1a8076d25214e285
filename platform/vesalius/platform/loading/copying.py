"""Copies of short rows, as fast as memory takes them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@functools.lru_cache(maxsize=1024)
def _row(num_bytes: int) -> np.dtype[np.void]:
    return np.dtype((np.void, num_bytes))


def copy_rows(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Do ``target[...] = source`` for equal shapes, whose last axis is one run of memory in both.

    NumPy starts its inner loop anew for each of a patch's short rows, which costs more than the copy of 31 values.
    Seen as one opaque item of so many bytes, a row is one turn of that loop (about twice as fast for image and mask).
    Where types differ or the last axis is no run of memory, the values are assigned one by one.
    """
    size = source.dtype.itemsize
    runs = source.ndim > 1 and source.size and source.strides[-1] == size == target.strides[-1]
    if not runs or source.dtype != target.dtype or source.shape != target.shape:
        target[...] = source
        return
    row = _row(source.shape[-1] * size)
    target.view(row)[...] = source.view(row)
