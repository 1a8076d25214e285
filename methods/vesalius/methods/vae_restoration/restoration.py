"""Restoration: gradient ascent on ELBO(x) - rho * TV(x0 - x) over the image x, from x = x0.

As in the public code of You, Chen, Tezcan and Konukoglu (2019): the latent is drawn anew at every step, the gradient is
clipped voxel by voxel and multiplied by the brain mask, the step is larger at first. The total variation is that of
the DIFFERENCE: it asks for changes in one piece, and leaves the image's own edges alone.

Shapes: B slices, C channels, h w the plane as padded, Z length of the latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def total_variation(image: Tensor) -> Tensor:
    """Return the anisotropic total variation: |differences| of neighbours down and across, (B, C, h, w) -> (B,).

    Its gradient where neighbours are equal is 0, one of the subgradients.
    """
    down = image.diff(dim=-2).abs().flatten(1).sum(1)
    across = image.diff(dim=-1).abs().flatten(1).sum(1)
    return down + across


def restore(
    negative_elbo: Callable[[Tensor, Tensor], Tensor],
    image: Tensor,
    brain: Tensor,
    noise: Tensor,
    *,
    rho: float,
    step_sizes: Sequence[float],
    clip: float,
) -> Tensor:
    """Return the restored slices (B, C, h, w); gradients are computed whatever the caller's mode.

    Args:
        negative_elbo: image (B, C, h, w) and noise (B, Z) -> (B,).
        image: (B, C, h, w), x0.
        brain: (B, h, w) bool; nothing changes outside.
        noise: (steps, B, Z) standard normal.
        rho: weight of the total variation.
        step_sizes: one a step.
        clip: largest gradient of a voxel, either way.
    """
    mask = brain[:, None]
    restored = image.detach().clone()
    for size, drawn in zip(step_sizes, noise, strict=True):
        with torch.enable_grad():
            current = restored.requires_grad_()
            # Slices do not see one another: the gradient of the sum is that of each.
            loss = (negative_elbo(current, drawn) + rho * total_variation(image - current)).sum()
            (gradient,) = torch.autograd.grad(loss, current)
        restored = current.detach() - size * gradient.clamp(-clip, clip) * mask
    return restored
