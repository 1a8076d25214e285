"""Memory as settings of the loop: segments that backward computes again, channels last, gradient accumulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from vesalius.infra.footprint import _Kept, batch_of_noise, made_up_cohort
from vesalius.methods import METHODS
from vesalius.methods.f_anogan.objectives import slopes
from vesalius.methods.position_regression import PositionRegression
from vesalius.platform.config import override
from vesalius.platform.contracts import Method, Stage, segment, segmented, segments_by
from vesalius.platform.tables import lookup
from vesalius.platform.testing import methods as contract
from vesalius.platform.testing.descent import Descent, Lengths, assert_same_changes, assert_same_lengths, descend
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone, TrainingSettings, Unwatched, Updater, train
from vesalius.platform.training.memory import PeakMemory, lay_out, recomputed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.platform.contracts import Batch
    from vesalius.platform.contracts.stage import LossSum
    from vesalius.platform.store import CohortStore

CPU = torch.device("cpu")
GRID = (32, 24, 32)
LEARNING = [name for name in METHODS if name not in ("healthy_atlas", "intensity_threshold")]
"""Methods that learn by gradients; every one of them marks segments."""


def ready(name: str, training: TrainingSettings, num_channels: int = 1) -> tuple[Method, list[Stage]]:
    """Return a tiny method on a made-up cohort, laid out, and its stages that learn by gradients."""
    kind: type[Method] = lookup(METHODS, name, "method")
    torch.manual_seed(0)
    # Of a prior of one block that block would be the whole of what is held.
    settings = override(kind.presets()["tiny"], {"prior.blocks": 2} if name == "vq_vae" else {})
    cohort = made_up_cohort(GRID, 8).model_copy(update={"channels": ("T1w", "FLAIR")[:num_channels]})
    method = kind(settings, cohort)
    lay_out(method, training, CPU)
    return method, [stage for stage in method.stages() if stage.optimizers]


def stepped(name: str, **changes: object) -> tuple[dict[str, Tensor], Lengths]:
    """Return a method's state after two steps of every stage, and the lengths of the gradients.

    Batches are of two micro-batches or groups where they can. A tiny GAN updates its generator in every second step: in
    two, every optimiser has changed something. Under :func:`descend`, since Adam would not show that a gradient is a
    multiple of another.
    """
    training = training_settings(**changes)
    method, stages = ready(name, training)
    lengths: Lengths = {}
    for stage in stages:
        enter(method, stage)
        update = Updater(stage, Alone(), training, CPU)
        before = {key: weights_of(optimizer) for key, optimizer in stage.optimizers.items()}
        stage.begin()
        for step in range(2):
            torch.manual_seed(step)
            stage.step(batch_of_noise(method, stage, max(stage.batch_size, 2), step), update)
            stage.after_update()
        for key, optimizer in stage.optimizers.items():
            pairs = zip(before[key], weights_of(optimizer), strict=True)
            assert any(not torch.equal(*pair) for pair in pairs), f"{stage.name}/{key} changed nothing"
            assert isinstance(optimizer, Descent)
            lengths[f"{stage.name}/{key}"] = optimizer.lengths
    return dict(method.state_dict()), lengths


def weights_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value.detach().clone() for group in optimizer.param_groups for value in group["params"]]


def enter(method: Method, stage: Stage) -> None:
    method.eval().requires_grad_(False)
    for module in stage.trains:
        module.train().requires_grad_(True)


class KeptByEach(_Kept):
    """Counts what autograd keeps for each optimiser's update apart."""

    def __init__(self, method: Method, stage: Stage, *, checkpoints: bool) -> None:
        super().__init__(method, stage, checkpoints=checkpoints)
        self.of: dict[str, int] = {}

    def __call__(self, optimizer: str, loss: Callable[[Batch], LossSum], batch: Batch) -> float:
        self.most = 0
        found = super().__call__(optimizer, loss, batch)
        self.of[optimizer] = self.most
        return found


def kept_bytes(name: str, **changes: object) -> dict[str, int]:
    """Return the bytes that autograd keeps for the update of each optimiser of each stage."""
    training = training_settings(**changes)
    method, stages = ready(name, training)
    found: dict[str, int] = {}
    for stage in stages:
        enter(method, stage)
        counting = KeptByEach(method, stage, checkpoints=training.checkpoint_activations)
        stage.begin()
        for step in range(2):
            stage.step(batch_of_noise(method, stage, stage.batch_size, step), counting)
        assert counting.of.keys() == stage.optimizers.keys()
        found |= {f"{stage.name}/{optimizer}": num for optimizer, num in counting.of.items()}
    return found


@pytest.mark.parametrize("name", LEARNING)
def test_computed_again_or_kept_the_steps_are_the_same_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    descend(monkeypatch)
    (kept, lengths), (again, others) = stepped(name), stepped(name, checkpoint_activations=True)
    # Running statistics are part of the state: a second forward must not move them again. So is what dropout drew.
    assert kept.keys() == again.keys()
    for key, value in kept.items():
        assert torch.equal(value, again[key]), key
    assert_same_lengths(lengths, others, share=0)


@pytest.mark.parametrize("name", LEARNING)
def test_less_is_held_of_every_update_with_its_largest_segment_counted_in(name: str) -> None:
    kept, again = kept_bytes(name), kept_bytes(name, checkpoint_activations=True)
    assert kept
    for key, before in kept.items():
        assert again[key] < before, key


def test_a_segment_keeps_its_inputs_alone() -> None:
    layers = nn.Sequential(nn.Linear(8, 100), nn.Softplus(), nn.Linear(100, 8), nn.Softplus())
    value = torch.rand(5, 8, requires_grad=True)
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), segments_by(recomputed):
        segmented(layers, value, (nn.Linear,))
    # Two segments, each of a linear layer and what follows it, and what is handed from the one to the other.
    assert sorted(size for size in sizes if size) == [5 * 8, 5 * 100]


def test_segments_within_a_segment_and_without_gradients_run_once() -> None:
    calls: list[str] = []

    def way(function: object, *inputs: Tensor) -> Tensor:
        calls.append("segment")
        assert callable(function)
        value: Tensor = function(*inputs)
        return value

    with segments_by(way):
        segment(lambda value: segment(torch.exp, value), torch.ones(2, requires_grad=True))
        with torch.no_grad():
            segment(torch.exp, torch.ones(2))
    segment(torch.exp, torch.ones(2))
    assert calls == ["segment"]


def test_gradients_of_gradients_pass_through_segments() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 3, 3), nn.Softplus(), nn.Conv3d(3, 2, 3), nn.Tanh()]
    real, fake = torch.rand(2, 2, 1, 6, 6, 6).double().unbind()
    module = nn.Sequential(*layers).double()

    def critic(image: Tensor) -> Tensor:
        return segmented(layers, image, (nn.Conv3d,)).flatten(1).sum(1)

    def gradients() -> list[Tensor]:
        slope = slopes(critic, real.float(), fake.float(), torch.full((2, 1), 0.3))
        return list(torch.autograd.grad((slope - 1).square().sum(), list(module.parameters()), allow_unused=True))

    module.float()
    plain = gradients()
    with segments_by(recomputed):
        again = gradients()
    for one, other in zip(plain, again, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("name", ["position_regression", "f_anogan", "autoencoder"])
def test_channels_last_gives_the_same_steps_to_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    descend(monkeypatch)
    (plain, lengths), (laid_out, others) = stepped(name), stepped(name, channels_last=True)
    assert_same_changes(ready(name, training_settings())[0], plain, laid_out)
    assert_same_lengths(lengths, others, share=1e-3)


@pytest.mark.parametrize("name", ["position_regression", "f_anogan", "autoencoder"])
def test_channels_last_reaches_kernels_and_images(name: str) -> None:
    training = training_settings(channels_last=True)
    method, (stage, *_) = ready(name, training, num_channels=2)
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    kernels = [value for value in method.parameters() if value.ndim in layouts]
    assert kernels
    assert all(value.is_contiguous(memory_format=layouts[value.ndim]) for value in kernels)
    enter(method, stage)
    update = Updater(stage, Alone(), training, CPU)
    seen: list[Tensor] = []
    loss = next(iter(stage.optimizers))

    def look(batch: object) -> tuple[Tensor, int]:
        seen.append(batch.image)  # type: ignore[attr-defined]  # a Batch, which the hook need not know
        return sum(p.sum() for p in method.parameters() if p.requires_grad), 1  # type: ignore[return-value]  # a tensor

    update(loss, look, batch_of_noise(method, stage, 4))
    # Of one channel every layout is both: only several can tell.
    assert all(image.shape[1] > 1 for image in seen)
    assert all(image.is_contiguous(memory_format=layouts[image.ndim]) for image in seen)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("position_regression", {"epochs": 1}),
        ("f_anogan", {"game.epochs": 2, "encoder.epochs": 1, "fine_tuning.epochs": 1}),
    ],
)
def test_exact_resume_holds(name: str, changes: dict[str, int], phantom_store: CohortStore) -> None:
    kind: type[Method] = lookup(METHODS, name, "method")
    settings = override(kind.presets()["tiny"], changes)
    training = training_settings(checkpoint_activations=True, channels_last=True)
    contract.assert_exact_resume(kind, settings, phantom_store, moments=2, training=training)


def test_gradients_accumulate_over_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    descend(monkeypatch)
    whole, of_whole = stepped("position_regression")
    lengths: list[int] = []
    loss = PositionRegression.loss

    def counted(self: PositionRegression, batch: Batch) -> Any:
        lengths.append(len(batch))
        return loss(self, batch)

    monkeypatch.setattr(PositionRegression, "loss", counted)
    parts, of_parts = stepped("position_regression", micro_batch_size=5)
    assert max(lengths) == 5
    assert len(lengths) > 1
    assert_same_changes(ready("position_regression", training_settings())[0], whole, parts)
    assert_same_lengths(of_whole, of_parts, share=1e-3)


def test_the_peak_is_what_was_held_and_is_forgotten() -> None:
    peak = PeakMemory(CPU)
    peak.begin()
    num_bytes = 200 * 2**20
    held = torch.ones(num_bytes // 4)
    assert held.sum() > 0
    first = peak.read()
    del held
    assert num_bytes * 0.98 < first < num_bytes + 40 * 2**20
    peak.begin()
    assert peak.read() < num_bytes / 2


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("auto", True)])
def test_float32_is_not_rounded_where_it_is_asked_for(
    precision: str, rounded: bool, toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    class Looking(Unwatched):
        def step(self, *_: object) -> None:
            seen.append(torch.backends.cudnn.allow_tf32)

    kind: type[Method] = lookup(METHODS, "autoencoder", "method")
    method = kind(kind.presets()["tiny"], toy_store.facts())
    train(method, toy_store, training_settings(precision=precision), tmp_path, watcher=Looking())
    assert set(seen) == {rounded}
    assert torch.backends.cudnn.allow_tf32
