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
from vesalius.platform.testing.descent import assert_same_changes, descend
from vesalius.platform.testing.methods import build, free_port, training_settings
from vesalius.platform.testing.training_runs import BreakAt, Broken
from vesalius.platform.training import Distributed, Unwatched, train

if TYPE_CHECKING:
    from vesalius.platform.contracts import Method

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


class _Asked(Unwatched):
    """Keeps the first step that training took."""

    first: int | None = None

    def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
        self.first = overall if self.first is None else self.first


def _trained(method_type: type[Method], store: CohortStore, device: str, **changes: Any) -> dict[str, torch.Tensor]:
    method = build(method_type, method_type.presets()["tiny"], store)
    settings = training_settings(**{"device": device, **changes})
    with tempfile.TemporaryDirectory() as folder:
        train(method, store, settings, Path(folder), device=torch.device(device))
    return _state_on(method, device)


def _state_on(method: Method, device: str) -> dict[str, torch.Tensor]:
    """Return the weights, which must be where they were to be trained."""
    found = {value.device.type for value in method.state_dict().values()}
    assert found == {device}, f"trained on {found} and not on {device}"
    return {name: value.cpu() for name, value in method.state_dict().items()}


@pytest.mark.parametrize("name", list(METHODS))
def test_a_device_learns_what_the_cpu_learns(
    name: str, phantom_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend(monkeypatch)
    method_type = lookup(METHODS, name, "method")
    begun = build(method_type, method_type.presets()["tiny"], phantom_store)
    on_cpu, on_device = (_trained(method_type, phantom_store, device) for device in ("cpu", "cuda"))
    assert_same_changes(begun, on_cpu, on_device)


def test_bf16_learns_nearly_the_same(phantom_store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    descend(monkeypatch)
    method_type = lookup(METHODS, "implicit_field", "method")
    begun = build(method_type, method_type.presets()["tiny"], phantom_store)
    exact, rounded = (_trained(method_type, phantom_store, "cuda", precision=name) for name in ("fp32", "bf16"))
    assert_same_changes(begun, exact, rounded, share=0.5)
    assert any(not torch.equal(exact[key], rounded[key]) for key in exact), "bf16 computed in float32"


def test_a_run_in_deterministic_mode_resumes_to_the_same_weights(phantom_store: CohortStore, tmp_path: Path) -> None:
    method_type = lookup(METHODS, "implicit_field", "method")
    settings = training_settings(device="cuda", deterministic=True)
    whole = _trained(method_type, phantom_store, "cuda", deterministic=True)
    broken = build(method_type, method_type.presets()["tiny"], phantom_store)
    with pytest.raises(Broken):
        train(broken, phantom_store, settings, tmp_path, device=torch.device("cuda"), watcher=BreakAt(8, "step"))
    resumed, asked = build(method_type, method_type.presets()["tiny"], phantom_store), _Asked()
    train(resumed, phantom_store, settings, tmp_path, device=torch.device("cuda"), watcher=asked)
    assert asked.first is not None
    assert 1 < asked.first <= 8, f"went on at step {asked.first}"
    for key, value in whole.items():
        assert torch.equal(resumed.state_dict()[key].cpu(), value), f"{key} differs after the break"


def _one_of_two(rank: int, port: int, store_path: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            descend(patch)
            store = CohortStore.open(Path(store_path))
            method_type = lookup(METHODS, "implicit_field", "method")
            method = build(method_type, method_type.presets()["tiny"], store)
            device = torch.device("cuda", 0)
            train(method, store, training_settings(), Path(folder) / "c", collective=Distributed(), device=device)
            torch.save(_state_on(method, "cuda"), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_gloo_workers_on_cuda_tensors_equal_one(
    phantom_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend(monkeypatch)
    method_type = lookup(METHODS, "implicit_field", "method")
    begun = build(method_type, method_type.presets()["tiny"], phantom_store)
    alone = _trained(method_type, phantom_store, "cuda")
    arguments = (free_port(), str(phantom_store.path), str(tmp_path))
    torch.multiprocessing.spawn(_one_of_two, args=arguments, nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # torch has no types here
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key in alone:
        assert torch.equal(first[key], second[key]), f"{key}: the replicas differ"
    assert_same_changes(begun, alone, first)
