"""Where a run computes, how exactly, and who shares its machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from typing import TYPE_CHECKING

import torch

from vesalius.platform.contracts import whole_float32
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.platform.contracts import Collective
    from vesalius.platform.training.settings import TrainingSettings


def choose_device(name: str, setting: str = "training.device") -> torch.device:
    """Return the device that ``setting`` asks for by ``name``: cpu, cuda or auto.

    Raises:
        SettingError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"{setting} is 'cuda' and this machine has no usable CUDA device: use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextlib.contextmanager
def computing_as(settings: TrainingSettings, device: torch.device) -> Iterator[None]:
    """Compute as exactly as training with these settings does: whatever times or measures it is to do so too."""
    with determinism(settings.deterministic, device), whole_float32(settings.precision == "fp32"):
        yield


@contextlib.contextmanager
def determinism(wanted: bool, device: torch.device) -> Iterator[None]:
    """Refuse operations that are not deterministic, where ``wanted``; the CPU's all are."""
    if not (wanted and device.type == "cuda"):
        yield
        return
    # Without a workspace of its own cuBLAS is not, and PyTorch refuses the first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def workers_here(collective: Collective, device: torch.device) -> int:
    """Return how many of the ranks share this machine and so its memory."""
    name = int.from_bytes(hashlib.blake2b(socket.gethostname().encode(), digest_size=7).digest(), "little")
    names = collective.gather(torch.tensor([name], dtype=torch.int64, device=device))
    return sum(int(one) == name for one in names)
