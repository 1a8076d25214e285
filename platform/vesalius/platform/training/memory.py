"""Memory of training: what is kept for backward, how it is laid out, and how much of it there was at most."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from vesalius.platform.contracts import Points

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vesalius.platform.contracts import Batch, Method, View
    from vesalius.platform.training.settings import TrainingSettings

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
"""How torch words it where it has no type for it: the CPU's allocator, CUDA's driver, and libraries without room for
their workspace or for so much as their handle."""


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)``, of which the inputs alone are kept; backward computes the rest again.

    Not the reentrant way, which runs a backward within backward: that one cannot be asked for gradients by
    ``torch.autograd.grad``, nor for gradients of gradients. A gradient penalty needs both.
    """
    value: Tensor = checkpoint(function, *inputs, use_reentrant=False)
    return value


def lay_out(method: Method, settings: TrainingSettings, device: torch.device) -> None:
    """Move a method to where it is trained, its kernels laid out as ``settings`` ask.

    Values stay what they are, and so do shapes and names: checkpoints are written in torch's own order.
    """
    method.to(device)
    if settings.channels_last:
        for parameter in method.parameters():
            parameter.data = _channels_last(parameter.data)


def with_channels_last(batch: Batch, view: View) -> Batch:
    """Return a batch whose slices, patches or volumes lie in memory with a voxel's channels side by side."""
    return batch if isinstance(view, Points) else replace(batch, image=_channels_last(batch.image))


def _channels_last(value: Tensor) -> Tensor:
    layout = _FORMATS.get(value.ndim)
    return value if layout is None else value.contiguous(memory_format=layout)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a want of memory, of the CPU's or of the device's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def is_out_of_shared_memory(error: BaseException, device: str) -> bool:
    """Return whether an error is a want of memory that fewer workers beside it leave more of: not of a GPU of its own.

    Args:
        error: that a worker has met.
        device: that it computes on.
    """
    of_the_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return is_out_of_memory(error) and (of_the_host or not device.startswith("cuda"))


class PeakMemory:
    """The most memory that was held since the last :meth:`begin`.

    On CUDA what torch's allocator gave out; on a CPU the process's resident memory beyond what it was when this object
    was made, so that the libraries loaded by then are left out and a cache of volumes is not. Where the system does not
    let its high-water mark be set back (Linux does), a peak may be an earlier one's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = 0 if device.type == "cuda" else _resident_bytes()

    def begin(self) -> None:
        """Forget earlier peaks."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
        except OSError:
            return

    def read(self) -> int:
        """Return the peak in bytes."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        return max(0, _high_water_bytes() - self._base)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _high_water_bytes()


def _high_water_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
