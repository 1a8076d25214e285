"""Where bfloat16 pays, and where it is right: one rule for the loop's autocast and a method's arithmetic at scoring."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_Convolution = nn.modules.conv._ConvNd


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


def trains_in_bfloat16(precision: str, device: torch.device, trained: Iterable[nn.Module]) -> bool:
    """Return whether a stage's forward pass is autocast to bfloat16.

    On a CPU never with convolutions of volumes or with a stride: PyTorch's weight gradients of these in bfloat16 read
    memory that nobody wrote where an edge is small, and what they come to depends on what lay there before (torch 2.13
    on AVX-512 BF16): not finite, off by their own size, or by chance right. Convolutions of slices without a stride,
    linear layers, and all of it on CUDA are right.

    Args:
        precision: ``training.precision``.
        device: that is trained on.
        trained: modules of the stage.

    Raises:
        SettingError: bf16 is asked for where it would be wrong.
    """
    if precision == "fp32" or (precision == "auto" and not bfloat16_pays(device)):
        return False
    if device.type != "cpu" or not convolves_unsafely(trained):
        return True
    if precision == "bf16":
        raise SettingError(
            "training.precision=bf16: on a CPU PyTorch's gradients of 3D and of strided convolutions in bfloat16 can "
            "be wrong: take fp32 or auto"
        )
    return False


def convolves_unsafely(roots: Iterable[nn.Module]) -> bool:
    """Return whether any of the modules holds a kernel of three axes, or a convolution with a stride."""
    modules = [module for root in roots for module in root.modules()]
    return any(isinstance(module, _Convolution) and max(module.stride) > 1 for module in modules) or any(
        parameter.ndim == 5 for module in modules for parameter in module.parameters(recurse=False)
    )
