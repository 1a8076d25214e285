"""Whether two devices, or two ways of computing on one, learn the same: along the gradient, to rounding.

Compared are gradients near the start: steps are so short that weights stay close to where they began. What Adam or
RMSprop make of a gradient, and where a long training ends, is not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from vesalius.platform.store import CohortStore
from vesalius.platform.testing.training_runs import CPU, build, free_port, training_settings
from vesalius.platform.training import Alone, Distributed, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts import Collective, Method, MethodSettings, Stage


class Descent(torch.optim.SGD):
    """Steps of one length along the gradient, in Adam's place: differences of rounding stay as small as they are.

    Adam divides each weight's gradient by its own size. Where that is nothing but rounding (a bias before a
    normalisation), two devices go whole steps in different directions, and a GAN follows them. Plain descent on a
    summed loss takes steps so long that differences grow with each.

    Attributes:
        lengths: of the gradient at each step. The steps do not show what all of it is multiplied by: a backward that
            ran twice, or a sum over workers in place of a mean.
    """

    lengths: list[float]

    def __init__(self, params: Any, lr: float = 1e-3, **_: Any) -> None:
        super().__init__(params, lr=lr)
        self.lengths = []

    def step(self, closure: Any = None) -> Any:
        """Take a step of the learning rate's length."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            self.lengths.append(float(length))
            for gradient in gradients:
                gradient /= length.clamp_min(torch.finfo(gradient.dtype).tiny)
        return super().step(closure)


Lengths = dict[str, list[float]]
"""Of the gradient at each step, by stage and optimiser."""


def descend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods that ask for Adam or RMSprop have :class:`Descent`."""
    monkeypatch.setattr(torch.optim, "Adam", Descent)
    monkeypatch.setattr(torch.optim, "RMSprop", Descent)


def lengths_of(method: Method) -> Lengths:
    """Return a record, empty as yet, of the gradients that ``method`` will be trained with under :func:`descend`.

    The codes that a method searches for while it scores have optimisers of their own, which are not in it.
    """
    found: Lengths = {}
    make = method.stages

    def stages() -> Sequence[Stage]:
        made = make()
        for stage in made:
            for name, optimizer in stage.optimizers.items():
                assert isinstance(optimizer, Descent), f"{stage.name}/{name} is a {type(optimizer).__name__}"
                optimizer.lengths = found.setdefault(f"{stage.name}/{name}", [])
        return made

    method.stages = stages  # type: ignore[method-assign]  # this one method's
    return found


def descended(
    method_type: type[Method],
    settings: MethodSettings,
    store: CohortStore,
    *,
    device: torch.device = CPU,
    collective: Collective | None = None,
    checkpoints: Path | None = None,
    **training: Any,
) -> tuple[dict[str, torch.Tensor], Lengths]:
    """Return a method's state (on the CPU) after its training under :func:`descend`, and its gradients' lengths.

    Args:
        method_type: the method.
        settings: its settings.
        store: the cohort.
        device: that it is trained on.
        collective: the other workers.
        checkpoints: the folder of the run, which all workers share; a temporary one where there are no others.
        training: changes to the loop's settings.
    """
    method = build(method_type, settings, store)
    lengths = lengths_of(method)
    loop = training_settings(**{"device": device.type, **training})
    with tempfile.TemporaryDirectory() as folder:
        train(method, store, loop, checkpoints or Path(folder), collective=collective or Alone(), device=device)
    state = method.state_dict()
    found = {value.device.type for value in state.values()}
    assert found == {device.type}, f"trained on {found} and not on {device}"
    return {key: value.cpu() for key, value in state.items()}, lengths


def assert_two_workers_descend_as_one(
    method_type: type[Method], settings: MethodSettings, store: CohortStore, *, device: str = "cpu", share: float = 1e-3
) -> None:
    """Two gloo processes make the changes of one along gradients as long, and are replicas of each other.

    Args:
        method_type: the method.
        settings: its settings.
        store: the cohort.
        device: that both train on.
        share: by which lengths of gradients may differ.
    """
    begun = build(method_type, settings, store)
    with pytest.MonkeyPatch.context() as patch:
        descend(patch)
        alone, lengths = descended(method_type, settings, store, device=torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        arguments = (free_port(), method_type, settings.model_dump(mode="json"), str(store.path), folder, device)
        torch.multiprocessing.spawn(_one_of_two, args=arguments, nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # torch has no types here
        (one, of_one), (two, of_two) = (torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert of_one == of_two, "the replicas' gradients differ"
    for key, value in one.items():
        assert torch.equal(two[key], value), f"{key}: the replicas differ"
    assert_same_lengths(lengths, of_one, share)
    assert_same_changes(begun, alone, one)


def _one_of_two(
    rank: int,
    port: int,
    method_type: type[Method],
    settings: dict[str, Any],
    store_path: str,
    folder: str,
    device_type: str,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            descend(patch)  # what is patched in the parent is not here
            found = descended(
                method_type,
                method_type.settings_type.model_validate(settings),
                CohortStore.open(Path(store_path)),
                device=torch.device(device_type),
                collective=Distributed(),
                checkpoints=Path(folder) / "checkpoints",
            )
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def assert_same_lengths(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], share: float) -> None:
    """Assert that two trainings took as many steps along gradients as long, to ``share`` of each."""
    assert one.keys() == other.keys()
    for key, lengths in one.items():
        assert any(lengths), f"{key} had no gradient"
        assert len(other[key]) == len(lengths), f"{key}: {len(other[key])} steps and not {len(lengths)}"
        for step, (length, found) in enumerate(zip(lengths, other[key], strict=True)):
            assert abs(found - length) <= share * length, f"{key}, step {step}: a gradient of {found} and not {length}"


def assert_same_changes(
    begun: Method, one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], share: float = 0.02
) -> None:
    """Assert that two trainings changed each tensor alike, to ``share`` of it, or 1e-4 of the most changed parameter.

    What is counted or chosen (integers, booleans) is the same. A method without parameters has fitted its buffers.

    Args:
        begun: the method before either.
        one: state after the first of them.
        other: state after the second.
        share: root mean square of the difference over that of the change.
    """
    before = begun.state_dict()
    assert before.keys() == one.keys() == other.keys()
    changes = {key: (one[key] - value).double() for key, value in before.items() if value.is_floating_point()}
    typical = {key: float(change.square().mean().sqrt()) for key, change in changes.items()}
    learnt = {key for key, _ in begun.named_parameters()}
    assert any(typical[key] > 0 for key in learnt or changes), "nothing was learnt"
    largest = max((typical[key] for key in learnt), default=0.0)
    assert all(torch.isfinite(one[key]).all() for key in changes)
    for key in changes:
        differs = float((other[key] - one[key]).double().square().mean().sqrt())
        assert differs <= share * typical[key] + 1e-4 * largest, f"{key}: {differs:.2e} of {typical[key]:.2e}"
    for key in before.keys() - changes.keys():
        assert torch.equal(one[key], other[key]), f"{key} differs"
