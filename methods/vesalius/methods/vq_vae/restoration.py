"""Restorations by resampling unlikely codes, and how several of them become one map.

Shapes: N sequences, R restorations, S slices, h w the latent plane, H W the image's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from vesalius.methods.vq_vae.scan import Scan

if TYPE_CHECKING:
    from torch import Tensor

    from vesalius.methods.vq_vae.prior import Prior

_LEAST_DIFFERENCE = 1e-6


def resample(prior: Prior, codes: Tensor, position: Tensor, uniform: Tensor, threshold: float) -> Tensor:
    """Return codes (N, h, w) of which, in raster order, each unlikely one is drawn again from the prior.

    A code is unlikely where -log p, given the codes before it as they stand by then, exceeds ``threshold`` (nats).

    Args:
        prior: in eval mode.
        codes: (N, h, w) int64.
        position: (N,) axial positions.
        uniform: (N, h, w) in [0, 1): which code is drawn where one is.
        threshold: infinite for none.
    """
    num_rows, num_columns = codes.shape[1:]
    scan = Scan(prior, position, (num_rows, num_columns))
    restored = codes.flatten(1).clone()
    level = uniform.flatten(1)
    for number in range(num_rows * num_columns):
        restored[:, number] = choose(scan.logits(), restored[:, number], level[:, number], threshold)
        scan.put(restored[:, number])
    return restored.view_as(codes)


def choose(logits: Tensor, codes: Tensor, uniform: Tensor, threshold: float) -> Tensor:
    """Return ``codes`` (N,) with the unlikely ones drawn again from the distributions of ``logits`` (N, K)."""
    log_p = logits.double().log_softmax(-1)
    surprise = -log_p.gather(1, codes[:, None])[:, 0]
    # The inverse of the distribution function: the same number gives the same code whatever draws it.
    below = _running_sum(log_p.exp()) <= uniform.double()[:, None]
    drawn = below.sum(-1).clamp(max=logits.shape[-1] - 1)
    return torch.where(surprise > threshold, drawn, codes)


def _running_sum(values: Tensor) -> Tensor:
    """Return the running sums of (N, K) along K; in deterministic mode in an order that is fixed on CUDA too."""
    if not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(-1)
    step = 1
    while step < values.shape[-1]:
        values = values + F.pad(values[:, :-step], (step, 0))
        step *= 2
    return values


def weights(difference: Tensor, sharpness: float) -> Tensor:
    """Return each restoration's weight (R, S): softmax over restorations of sharpness / mean difference.

    Args:
        difference: (R, S, H, W) |x - r|.
        sharpness: 3 in the authors' public code.
    """
    # A restoration equal to the image would give infinity, and two of them no number at all.
    return (sharpness / difference.mean(dim=(2, 3)).clamp(min=_LEAST_DIFFERENCE)).softmax(0)


def weighted(restorations: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted mean (S, C, H, W) and standard deviation (S, H, W) of restorations (R, S, C, H, W).

    The deviation is the mean over channels.
    """
    each = weight[:, :, None, None, None]
    mean = (each * restorations).sum(0)
    variance = (each * (restorations - mean).square()).sum(0)
    return mean, variance.sqrt().mean(1)
