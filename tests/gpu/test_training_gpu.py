"""On a CUDA device: the same weights as on the CPU, two gloo workers on one device, resume in deterministic mode.

Several devices over NCCL are untested until someone has run them; what is tested without is the choice of backend.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from vesalius.methods import METHODS
from vesalius.platform.store import CohortStore
from vesalius.platform.tables import lookup
from vesalius.platform.testing.methods import build, free_port, training_settings
from vesalius.platform.testing.training_runs import BreakAt, Broken
from vesalius.platform.training import Distributed, train

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from vesalius.platform.contracts import Method

    State: TypeAlias = Mapping[str, torch.Tensor]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def _trained(method_type: type[Method], store: CohortStore, device: str, **changes: Any) -> dict[str, torch.Tensor]:
    method = build(method_type, method_type.presets()["tiny"], store)
    settings = training_settings(**{"device": device, **changes})
    with tempfile.TemporaryDirectory() as folder:
        train(method, store, settings, Path(folder), device=torch.device(device))
    return {name: value.cpu() for name, value in method.state_dict().items()}


class _Descent(torch.optim.SGD):
    """Plain steps along the gradient, in Adam's place: differences of rounding stay as small as they are.

    Adam divides by the gradient's own size. Where that is nothing but rounding (a bias before a normalisation), or its
    sign hangs on it, two devices go whole steps in different directions, and a GAN follows them.
    """

    def __init__(self, params: Any, lr: float = 1e-3, **_: Any) -> None:
        super().__init__(params, lr=lr)


def assert_same_changes(begun: Method, one: State, other: State) -> None:
    """Assert that two trainings changed each tensor alike, to a fiftieth, or to a ten-thousandth of the largest.

    Args:
        begun: the method before either.
        one: state after the first of them.
        other: state after the second.
    """
    changes = {
        key: (one[key] - value).double() for key, value in begun.state_dict().items() if value.is_floating_point()
    }
    typical = {key: float(change.square().mean().sqrt()) for key, change in changes.items()}
    learnt = {key for key, _ in begun.named_parameters()}
    largest = max((typical[key] for key in learnt), default=0.0)
    assert largest > 0 or not learnt
    assert all(torch.isfinite(one[key]).all() for key in changes)
    for key in changes:
        differs = float((other[key] - one[key]).double().square().mean().sqrt())
        assert differs <= 0.02 * typical[key] + 1e-4 * largest, f"{key}: {differs:.2e} of {typical[key]:.2e}"


@pytest.mark.parametrize("name", list(METHODS))
def test_a_device_learns_what_the_cpu_learns(
    name: str, phantom_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim, "Adam", _Descent)
    monkeypatch.setattr(torch.optim, "RMSprop", _Descent)
    method_type = lookup(METHODS, name, "method")
    begun = build(method_type, method_type.presets()["tiny"], phantom_store)
    on_cpu, on_device = (_trained(method_type, phantom_store, device) for device in ("cpu", "cuda"))
    assert_same_changes(begun, on_cpu, on_device)


def test_bf16_learns_too(phantom_store: CohortStore) -> None:
    method_type = lookup(METHODS, "implicit_field", "method")
    weights = _trained(method_type, phantom_store, "cuda", precision="bf16")
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


def test_a_run_in_deterministic_mode_resumes_to_the_same_weights(phantom_store: CohortStore, tmp_path: Path) -> None:
    method_type = lookup(METHODS, "implicit_field", "method")
    settings = training_settings(device="cuda", deterministic=True)
    whole = _trained(method_type, phantom_store, "cuda", deterministic=True)
    broken = build(method_type, method_type.presets()["tiny"], phantom_store)
    with pytest.raises(Broken):
        train(broken, phantom_store, settings, tmp_path, device=torch.device("cuda"), watcher=BreakAt(8, "step"))
    resumed = build(method_type, method_type.presets()["tiny"], phantom_store)
    train(resumed, phantom_store, settings, tmp_path, device=torch.device("cuda"))
    for key, value in whole.items():
        assert torch.equal(resumed.state_dict()[key].cpu(), value), f"{key} differs after the break"


def _one_of_two(rank: int, port: int, store_path: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        store = CohortStore.open(Path(store_path))
        method_type = lookup(METHODS, "implicit_field", "method")
        method = build(method_type, method_type.presets()["tiny"], store)
        device = torch.device("cuda", 0)
        train(method, store, training_settings(), Path(folder) / "c", collective=Distributed(), device=device)
        weights = {name: value.cpu() for name, value in method.state_dict().items()}
        torch.save(weights, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_gloo_workers_on_cuda_tensors_equal_one(phantom_store: CohortStore, tmp_path: Path) -> None:
    method_type = lookup(METHODS, "implicit_field", "method")
    alone = _trained(method_type, phantom_store, "cuda")
    arguments = (free_port(), str(phantom_store.path), str(tmp_path))
    torch.multiprocessing.spawn(_one_of_two, args=arguments, nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # torch has no types here
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), f"{key}: the replicas differ"
        torch.testing.assert_close(first[key], value, rtol=2e-2, atol=2e-3)
