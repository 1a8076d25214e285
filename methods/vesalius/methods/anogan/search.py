"""Codes of new slices by gradient descent, all slices at once (Schlegl et al. 2017, section 2.2).

S slices, C channels, h, w a slice, Z length of a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def mapping_loss(
    image: Tensor,
    generated: Tensor,
    image_features: Tensor,
    generated_features: Tensor,
    feature_weight: float,
) -> Tensor:
    """Return (S,) how far each generated slice is from the one looked for: Eqs. 3 to 5 of Schlegl et al. 2017.

    (1 - lambda) sum |x - G(z)| + lambda sum |f(x) - f(G(z))|, sums over a slice's values and over its features f.
    """
    residual = (image - generated).abs().flatten(1).sum(1)
    features = (image_features.float() - generated_features.float()).abs().flatten(1).sum(1)
    return (1 - feature_weight) * residual + feature_weight * features


def search_codes(
    generate: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    image: Tensor,
    start: Tensor,
    *,
    steps: int,
    learning_rate: float,
    feature_weight: float,
) -> Tensor:
    """Return (S, Z) codes whose slices are nearest to ``image``, after ``steps`` of Adam.

    Slices share the passes through the networks and nothing else: Adam works number by number, so a slice's code takes
    the same way whatever stands beside it. Networks must be in eval mode; only the codes get gradients.

    Args:
        generate: codes to slices (S, C, h, w).
        features: slices to the discriminator's features.
        image: (S, C, h, w), the slices to be found.
        start: (S, Z).
        steps: of Adam.
        learning_rate: Adam's.
        feature_weight: lambda.
    """
    code = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([code], lr=learning_rate)
    with torch.no_grad():
        wanted = features(image)
    with torch.enable_grad():
        for _ in range(steps):
            generated = generate(code)
            loss = mapping_loss(image, generated, wanted, features(generated), feature_weight).sum()
            (code.grad,) = torch.autograd.grad(loss, code)
            optimizer.step()
    return code.detach()
