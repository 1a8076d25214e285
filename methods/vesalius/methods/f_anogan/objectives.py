"""Losses of the f-AnoGAN, item by item (Simarro Viana et al. 2020, Eqs. 2 to 6).

B items, C channels, ... an image's axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def slopes(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return (B,) the length of the critic's gradient between real and generated images, with a graph to its weights.

    The length is taken over all of an item's values (Gulrajani et al. 2017, section 4). In float32 whatever the
    autocast: what is learnt from it is a second derivative. (On CUDA convolutions of float32 still round to
    TensorFloat-32 where PyTorch is told so, which is its default.)

    Args:
        critic: images to scores (B,).
        real: (B, C, ...).
        fake: (B, C, ...), without a graph.
        mix: (B, 1) share of the real image, uniform in [0, 1).
    """
    with torch.autocast(real.device.type, enabled=False):
        share = mix.view(-1, *[1] * (real.ndim - 1))
        between = (share * real.float() + (1 - share) * fake.float()).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return length


def critic_loss(real: Tensor, fake: Tensor, slope: Tensor, penalty_weight: float) -> Tensor:
    """Return (B,) D(G(z)) - D(x) + lambda (slope - 1)^2 from scores and slopes (B,): Eq. 2."""
    return fake - real + penalty_weight * (slope - 1).square()


def generator_loss(fake: Tensor) -> Tensor:
    """Return (B,) -D(G(z)) from scores (B,): Eq. 3."""
    return -fake


def distance(wanted: Tensor, found: Tensor) -> Tensor:
    """Return (B,) the mean squared difference over an item's values: Eqs. 4 and 5, of images and of features."""
    return (wanted.float() - found.float()).square().flatten(1).mean(1)
