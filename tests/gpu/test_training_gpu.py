"""On a CUDA device: the same weights as on the CPU, two gloo workers on one device, resume in deterministic mode.

Several devices over NCCL are untested until someone has run them; what is tested without is the choice of backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from vesalius.methods import METHODS
from vesalius.platform.tables import lookup
from vesalius.platform.testing.descent import (
    assert_same_changes,
    assert_same_lengths,
    assert_two_workers_descend_as_one,
    descend,
    descended,
)
from vesalius.platform.testing.training_runs import BreakAt, Broken, build, training_settings
from vesalius.platform.training import Unwatched, train

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.store import CohortStore
    from vesalius.platform.testing.descent import Lengths

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


class _Asked(Unwatched):
    """Keeps the first step that training took."""

    first: int | None = None

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        self.first = overall if self.first is None else self.first


DEVICES = 1e-2
"""By what share of itself the length of a gradient may differ between devices."""


def _tiny(name: str) -> tuple[type[Method], MethodSettings]:
    kind: type[Method] = lookup(METHODS, name, "method")
    return kind, kind.presets()["tiny"]


@pytest.mark.parametrize("name", list(METHODS))
def test_a_device_learns_what_the_cpu_learns(
    name: str, phantom_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend(monkeypatch)
    kind, tiny = _tiny(name)
    (on_cpu, lengths), (on_device, others) = (
        descended(kind, tiny, phantom_store, device=torch.device(device)) for device in ("cpu", "cuda")
    )
    assert_same_lengths(lengths, others, DEVICES)
    assert_same_changes(build(kind, tiny, phantom_store), on_cpu, on_device)


@dataclass(frozen=True)
class Rounded:
    """A training in float32 and one of the same in bfloat16.

    Attributes:
        kinds: of numbers that modules in training gave in either.
        apart: length of the difference of what a parameter changes by, over that of the change; the mean over
            parameters, weighted by the change's length.
        lengths: of the gradients of either.
    """

    kinds: tuple[set[torch.dtype], set[torch.dtype]]
    apart: float
    lengths: tuple[Lengths, Lengths]


def rounded(name: str, store: CohortStore, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Rounded:
    """Train a method by descent in float32 and in bfloat16, and say how far apart that comes out."""
    descend(monkeypatch)
    # The best step would be another one in another arithmetic: nothing is chosen.
    monkeypatch.setattr("vesalius.platform.training.loop.validate", lambda *_: None)
    kind, tiny = _tiny(name)
    start = build(kind, tiny, store)
    states, lengths, kinds = [], [], []
    for precision in ("fp32", "bf16"):
        seen: set[torch.dtype] = set()

        def look(module: nn.Module, _: object, output: object, seen: set[torch.dtype] = seen) -> None:
            if module.training and isinstance(output, torch.Tensor):
                seen.add(output.dtype)

        hook = torch.nn.modules.module.register_module_forward_hook(look)
        try:
            state, of_state = descended(kind, tiny, store, device=device, precision=precision, deterministic=True)
        finally:
            hook.remove()
        states.append(state)
        lengths.append(of_state)
        kinds.append(seen)
    exact, other = states
    weights = {key: value.detach() for key, value in start.named_parameters()}
    change = sum(float(torch.linalg.vector_norm(exact[key] - value)) for key, value in weights.items())
    differs = sum(float(torch.linalg.vector_norm(exact[key] - other[key])) for key in weights)
    return Rounded((kinds[0], kinds[1]), differs / change, (lengths[0], lengths[1]))


@pytest.mark.parametrize("name", ["implicit_field", "f_anogan", "position_regression", "autoencoder_3d", "autoencoder"])
def test_bf16_learns_nearly_the_same(name: str, phantom_store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, whose bfloat16 is rounded as a device's, at most 0.016 of the changes and 0.03 of a length differ."""
    found = rounded(name, phantom_store, torch.device("cuda"), monkeypatch)
    exact, in_bfloat16 = found.kinds
    assert exact == {torch.float32}
    assert torch.bfloat16 in in_bfloat16, "bf16 computed in float32"
    assert 0 < found.apart <= 0.1
    assert_same_lengths(*found.lengths, share=0.1)


def test_a_run_in_deterministic_mode_resumes_to_the_same_weights(phantom_store: CohortStore, tmp_path: Path) -> None:
    kind, tiny = _tiny("implicit_field")
    device, settings = torch.device("cuda"), training_settings(device="cuda", deterministic=True)
    whole, broken, resumed = (build(kind, tiny, phantom_store) for _ in range(3))
    train(whole, phantom_store, settings, tmp_path / "whole", device=device)
    with pytest.raises(Broken):
        train(broken, phantom_store, settings, tmp_path / "broken", device=device, watcher=BreakAt(8, "step"))
    asked = _Asked()
    train(resumed, phantom_store, settings, tmp_path / "broken", device=device, watcher=asked)
    assert asked.first is not None
    assert 1 < asked.first <= 8, f"went on at step {asked.first}"
    for key, value in whole.state_dict().items():
        assert value.is_cuda, f"{key} was not trained on the device"
        assert torch.equal(resumed.state_dict()[key], value), f"{key} differs after the break"


def test_two_gloo_workers_on_cuda_tensors_equal_one(phantom_store: CohortStore) -> None:
    assert_two_workers_descend_as_one(*_tiny("implicit_field"), phantom_store, device="cuda:0", share=DEVICES)
