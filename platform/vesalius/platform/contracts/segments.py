"""Segments of a network: what may be computed anew in backward, where memory counts for more than time.

A network says where its segments are and nothing else; whether they are kept or computed anew is the run's affair
(``training.checkpoint_activations``). No module is wrapped, so that a state's names stay what they are.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    Segment = Callable[..., Tensor]
    Way = Callable[..., Tensor]

_way: ContextVar[Way | None] = ContextVar("way of segments", default=None)


def segment(function: Segment, *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)``: a part of a forward pass whose inner values backward may compute again.

    The function must be repeatable: no in-place change of its inputs, no state that it moves but the running statistics
    of batch normalisation, no random numbers but torch's own (which are set back before it runs again). What it closes
    over is kept as it is. Segments within it are part of it.

    Args:
        function: of tensors to a tensor.
        inputs: what it works on; they alone are kept where the run asks for that.
    """
    way = _way.get()
    if way is None or not torch.is_grad_enabled():
        return function(*inputs)

    def whole(*again: Tensor) -> Tensor:
        # The same in both passes: on CUDA the second is another thread's, which knows no way.
        with segments_by(None):
            return function(*again)

    return way(whole, *inputs)


def segmented(layers: Iterable[nn.Module], value: Tensor, begins: tuple[type[nn.Module], ...]) -> Tensor:
    """Return what ``layers`` make of ``value`` one after the other, a segment from each layer of the kinds ``begins``.

    Choose what begins one so that little is handed from each to the next: an upsampling rather than the convolution
    behind it, a convolution rather than its activation.
    """
    parts: list[list[nn.Module]] = []
    for layer in layers:
        if not parts or isinstance(layer, begins):
            parts.append([])
        parts[-1].append(layer)
    for part in parts:
        value = segment(partial(_one_after_the_other, part), value)
    return value


def _one_after_the_other(layers: Iterable[nn.Module], value: Tensor) -> Tensor:
    for layer in layers:
        value = layer(value)
    return value


@contextlib.contextmanager
def segments_by(way: Way | None) -> Iterator[None]:
    """Have segments pass through ``way(function, *inputs)`` in this thread; None runs them as they stand."""
    token = _way.set(way)
    try:
        yield
    finally:
        _way.reset(token)
