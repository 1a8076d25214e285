"""Memory that batches are written into, used again once nobody looks at it any more."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


def _references(arrays: Sequence[NDArray[np.uint8]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


_IDLE = _references([np.empty(1, dtype=np.uint8)])[0]
"""References to an array that only a list holds. Counted and not stated: Python 3.14 counts fewer than 3.11 does."""


class Buffers:
    """A few arrays in turn. A fresh array costs a page fault every 4 KiB, several times what writing it costs.

    A tensor made of an array holds a reference to it, and so does every view of the tensor. An array is handed out
    again only when none is left: a method may keep what it was given for as long as it likes.

    Args:
        num: arrays of each kind that are kept.
        pin: page-locked memory, from which a copy to a CUDA device runs beside the computation. PyTorch keeps and
            reuses that itself, and knows when such a copy has ended.
    """

    def __init__(self, num: int, *, pin: bool = False) -> None:
        self._num = num
        self._pin = pin
        self._kept: list[NDArray[np.uint8]] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor on the CPU."""
        if self._pin:
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        num_bytes = math.prod(shape) * dtype.itemsize
        if not num_bytes:
            return torch.empty(tuple(shape), dtype=dtype)
        return torch.from_numpy(self._idle(num_bytes)).view(dtype).view(tuple(shape))

    def _idle(self, num_bytes: int) -> NDArray[Any]:
        for array, references in zip(self._kept, _references(self._kept), strict=True):
            if array.nbytes == num_bytes and references <= _IDLE:
                return array
        array = np.empty(num_bytes, dtype=np.uint8)
        self._kept = [*self._kept, array][-self._num :] if self._num else []
        return array
