"""Where bfloat16 pays: one rule for the training loop's autocast and for a method's own arithmetic at scoring."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def whole_float32(on: bool = True) -> Iterator[None]:
    """Compute float32 convolutions in float32 for the while.

    On CUDA PyTorch rounds their operands to TensorFloat-32's ten bits unless it is told not to.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and not on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def bfloat16_pays(device: torch.device) -> bool:
    """Return whether ``device`` multiplies bfloat16 matrices in hardware, and so several times as fast as float32.

    True on CUDA from compute capability 8.0 on and on CPUs with AMX tiles or AVX-512 BF16 (measured: matrices of 64 to
    512 columns three to six times as fast, convolutions of 32 channels twice, of 8 channels no faster in 2D and 0.6
    times as fast in 3D). Any other CPU emulates bfloat16 and is slower than with float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
