"""Whether two devices, or two ways of computing on one, learn the same: along the gradient, to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from vesalius.platform.contracts import Method


class Descent(torch.optim.SGD):
    """Steps of one length along the gradient, in Adam's place: differences of rounding stay as small as they are.

    Adam divides each weight's gradient by its own size. Where that is nothing but rounding (a bias before a
    normalisation), two devices go whole steps in different directions, and a GAN follows them. Plain descent on a
    summed loss takes steps so long that differences grow with each.
    """

    def __init__(self, params: Any, lr: float = 1e-3, **_: Any) -> None:
        super().__init__(params, lr=lr)

    def step(self, closure: Any = None) -> Any:
        """Take a step of the learning rate's length."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            for gradient in gradients:
                gradient /= length.clamp_min(torch.finfo(gradient.dtype).tiny)
        return super().step(closure)


def descend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods that ask for Adam or RMSprop have :class:`Descent`."""
    monkeypatch.setattr(torch.optim, "Adam", Descent)
    monkeypatch.setattr(torch.optim, "RMSprop", Descent)


def assert_same_changes(
    begun: Method, one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], share: float = 0.02
) -> None:
    """Assert that two trainings changed each tensor alike, to ``share`` of it, or 1e-4 of the most changed parameter.

    Args:
        begun: the method before either.
        one: state after the first of them.
        other: state after the second.
        share: root mean square of the difference over that of the change.
    """
    changes = {
        key: (one[key] - value).double() for key, value in begun.state_dict().items() if value.is_floating_point()
    }
    typical = {key: float(change.square().mean().sqrt()) for key, change in changes.items()}
    learnt = {key for key, _ in begun.named_parameters()}
    largest = max((typical[key] for key in learnt), default=0.0)
    assert largest > 0 or not learnt, "nothing was learnt"
    assert all(torch.isfinite(one[key]).all() for key in changes)
    for key in changes:
        differs = float((other[key] - one[key]).double().square().mean().sqrt())
        assert differs <= share * typical[key] + 1e-4 * largest, f"{key}: {differs:.2e} of {typical[key]:.2e}"
