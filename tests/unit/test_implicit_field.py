from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from vesalius.methods.implicit_field import ImplicitField, ImplicitFieldSettings
from vesalius.methods.implicit_field.classes import assign_classes, fit_centres, mode_of_points, mode_pool
from vesalius.methods.implicit_field.decoder import Decoder, WeightNormLinear, encode_positions
from vesalius.methods.implicit_field.restoration import Field, Target, cross_entropy, restore
from vesalius.methods.implicit_field.settings import tiny
from vesalius.platform.config import flatten, override, validate
from vesalius.platform.contracts import (
    Batch,
    CohortFacts,
    Points,
    Stage,
    Volume,
    axis_positions,
    generator,
    grid_positions,
    spaces,
)
from vesalius.platform.errors import SettingError, VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (18, 16, 14)


def facts(num: int = 5, channels: tuple[str, ...] = ("T1w",), grid: tuple[int, int, int] = GRID) -> CohortFacts:
    subjects = tuple(f"s{number:02}" for number in range(num))
    return CohortFacts(
        subjects=subjects, grid=grid, spacing_mm=(2.0, 2.0, 2.0), affine=EYE, channels=channels, digest="0"
    )


def box(grid: tuple[int, int, int]) -> tuple[float, float, float]:
    return (2.0 * grid[0], 2.0 * grid[1], 2.0 * grid[2])


def small(**changes: Any) -> ImplicitFieldSettings:
    return override(tiny(), changes)


def head(number: int, grid: tuple[int, int, int] = GRID) -> Tensor:
    """A ball with a darker core whose size and place differ between subjects: (1, D, H, W) in [0, 1]."""
    draw = generator("head", number)
    shift = 0.15 * torch.randn(3, generator=draw)
    radius = 0.35 + 0.1 * torch.rand(1, generator=draw)
    position = grid_positions(grid, (2.0, 2.0, 2.0), box(grid))
    distance = torch.linalg.vector_norm(position - shift, dim=-1)
    image = torch.where(distance < radius, 0.35, 0.8) * (torch.linalg.vector_norm(position, dim=-1) < 0.9)
    noisy: Tensor = image + 0.02 * torch.randn(grid, generator=draw)
    return noisy.clamp(0, 1).unsqueeze(0)


def volume_of(image: Tensor, name: str = "new") -> Volume:
    return Volume(subject_id=name, image=image, brain=image[0] > 0.1, spacing_mm=(2.0, 2.0, 2.0), affine=EYE)


class OneProcess:
    """Trains by hand, as the platform would with one worker: updates, collectives, batches of points."""

    rank, world_size = 0, 1

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.images = images
        self.observed: Mapping[str, float] = {}
        self.stage: Stage

    def sum(self, value: Tensor) -> Tensor:
        return value.clone()

    def gather(self, value: Tensor) -> list[Tensor]:
        return [value.clone()]

    def __call__(self, optimizer: str, loss: Callable[[Batch], tuple[Any, ...]], batch: Batch) -> float:
        chosen = self.stage.optimizers[optimizer]
        chosen.zero_grad()
        total, count = loss(batch)
        (total / count).backward()
        chosen.step()
        return float(total.detach()) / float(count)

    def train(self, method: ImplicitField, stages: Sequence[Stage] | None = None) -> list[float]:
        losses: list[float] = []
        for stage in stages or method.stages():
            self.stage = stage
            num_steps = max(1, round(stage.epochs * len(self.images) / stage.batch_size))
            base = {name: [g["lr"] for g in o.param_groups] for name, o in stage.optimizers.items()}
            stage.begin()
            for step in range(num_steps):
                for name, optimizer in stage.optimizers.items():
                    for group, rate in zip(optimizer.param_groups, base[name], strict=True):
                        group["lr"] = rate * stage.lr(step / num_steps)
                metrics = stage.step(self.batch(stage, step, num_steps), self)
                stage.after_update()
                losses += [float(metrics["loss"])] if "loss" in metrics else []
            stage.finish(self)
        return losses

    def batch(self, stage: Stage, step: int, num_steps: int) -> Batch:
        assert isinstance(stage.view, Points)
        draw = generator("batch", stage.name, step)
        subjects = torch.randperm(len(self.images), generator=draw)[: stage.batch_size]
        view, edge = stage.view, stage.view.neighbourhood
        images, positions = [], []
        for subject in subjects.tolist():
            image = self.images[subject]
            low, high = (edge - 1) // 2, edge // 2
            padded = F.pad(image[None], (low, high) * 3, mode="replicate")[0]
            around = padded.unfold(1, edge, 1).unfold(2, edge, 1).unfold(3, edge, 1).flatten(-3)
            place = torch.randint(image[0].numel(), (view.per_volume,), generator=draw)
            images.append(around.flatten(1, 3)[:, place].movedim(0, 1))
            positions.append(grid_positions(GRID, (2.0, 2.0, 2.0), box(GRID)).view(-1, 3)[place])
        image = torch.stack(images)
        return Batch(
            stage=stage.name,
            step=step,
            num_steps=num_steps,
            seed=0,
            items=torch.arange(len(subjects)),
            global_size=len(subjects),
            subjects=subjects,
            image=image,
            brain=torch.ones(image.shape[:2], dtype=torch.bool),
            position=torch.stack(positions),
        )


def plain_logits(decoder: Decoder, inputs: Tensor) -> Tensor:
    """The network as drawn: [z, gamma(p)] for every point (N, Z + G) through every layer, dropout aside."""
    hidden = inputs
    for place, (weight, bias) in enumerate(decoder.weights()):
        if place == decoder.skip_layer:
            hidden = torch.cat([hidden, inputs], dim=1)
        hidden = hidden @ weight.t() + bias
        if place < len(decoder.hidden):
            hidden = hidden.relu()
    return hidden


def a_batch(method: ImplicitField, num_points: int = 50, num_volumes: int = 3, step: int = 0) -> Batch:
    draw = generator("a batch")
    shape = (num_volumes, num_points, 1, method.settings.mode_pool_training**3)
    return Batch(
        stage="decoder",
        step=step,
        num_steps=100,
        seed=0,
        items=torch.arange(num_volumes),
        global_size=num_volumes,
        subjects=torch.tensor([4, 0, 2])[:num_volumes],
        image=torch.rand(shape, generator=draw),
        brain=torch.ones(shape[:2], dtype=torch.bool),
        position=torch.rand((*shape[:2], 3), generator=draw) * 2 - 1,
    )


# ---------------------------------------------------------------------------------------------------- the network


def test_papers_network_has_the_released_models_number_of_parameters() -> None:
    decoder = Decoder(ImplicitFieldSettings())
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 1_847_698
    shapes = [tuple(weight.shape) for weight, _ in decoder.weights()]
    assert shapes == [(512, 316), (512, 512), (512, 512), (196, 512), *[(512, 512)] * 4, (10, 512)]


def test_position_encoding_is_equation_3() -> None:
    position = torch.rand(7, 5, 3, generator=generator("p"), dtype=torch.float64).float() * 2 - 1
    encoded = encode_positions(position, 10).numpy()
    turns = position.double().numpy()[..., None] * 2.0 ** np.arange(10)
    expected = np.concatenate(
        [np.sin(np.pi * turns).reshape(7, 5, 30), np.cos(np.pi * turns).reshape(7, 5, 30)], axis=-1
    )
    # Float32 angles up to 512 pi would be off by 1e-4; ours are not.
    np.testing.assert_allclose(encoded, expected, atol=1e-6)


def test_weight_norm_is_that_of_torch() -> None:
    torch.manual_seed(1)
    layer = WeightNormLinear(7, 4)
    reference = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(7, 4))
    with torch.no_grad():
        layer.gain.mul_(1.7)
        reference.parametrizations.weight.original0.copy_(layer.gain)
        reference.parametrizations.weight.original1.copy_(layer.direction)
    torch.testing.assert_close(layer.weight, reference.weight)


def test_taking_the_code_out_of_the_points_changes_nothing() -> None:
    torch.manual_seed(2)
    decoder = Decoder(ImplicitFieldSettings()).eval()
    code = torch.randn(3, 256) * 0.1
    encoded = encode_positions(torch.rand(3, 40, 3) * 2 - 1, 10)
    inputs = torch.cat([code.unsqueeze(1).expand(-1, 40, -1), encoded], dim=-1)
    with torch.no_grad():
        expected = plain_logits(decoder, inputs.flatten(0, 1)).view(3, 40, 10)
        torch.testing.assert_close(decoder(code, encoded), expected, rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(3)
    decoder = Decoder(small(dropout=0.5))
    code, encoded = torch.randn(1, 8), torch.randn(1, 200, 24)
    assert not torch.equal(decoder(code, encoded), decoder(code, encoded))
    decoder.eval()
    assert torch.equal(decoder(code, encoded), decoder(code, encoded))


def test_frozen_field_gives_the_decoders_logits_and_code_gradients() -> None:
    torch.manual_seed(4)
    decoder = Decoder(ImplicitFieldSettings()).eval()
    labels = torch.randint(10, (5, 4, 6)).to(torch.uint8)
    axes = (axis_positions(5, 2.0, 10.0), axis_positions(4, 2.0, 10.0), axis_positions(6, 2.0, 10.0))
    target = Target(labels=labels, axes=axes, generator=generator("t"))
    code = (torch.randn(256) * 0.1).requires_grad_()
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    encoded = encode_positions(positions, 10)
    logits = plain_logits(decoder, torch.cat([code.expand(120, -1), encoded], dim=1))
    expected = F.cross_entropy(logits, labels.flatten().long(), reduction="none")

    field = Field.of(decoder, torch.float32)
    centres = torch.linspace(0, 1, 10)
    with torch.no_grad():
        anomaly, restored = cross_entropy(field, code, target, centres, expectation=False)
        _, expectation = cross_entropy(field, code, target, centres, expectation=True)
    torch.testing.assert_close(anomaly.flatten(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(restored.flatten(), centres[logits.argmax(1)])
    probabilities = np.exp(logits.detach().double().numpy())
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(expectation.flatten().numpy(), probabilities @ centres.numpy(), atol=1e-5)

    # One step over points drawn by the volume's own generator, against autograd through the plain network.
    place = torch.randint(120, (64,), generator=generator("t"))
    (gradient,) = torch.autograd.grad(expected[place].mean(), code)
    start = code.detach()[None]
    moved = restore(field, [target], start, phases=[(1, 64)], learning_rate=lambda _: 1.0, prior=None, bound=None)
    # Adam's first step is the gradient's sign: compare where the gradient is not too small to have one.
    clear = gradient.abs() > 1e-6
    assert clear.sum() > 200
    assert torch.equal((start - moved)[0][clear].sign(), gradient[clear].sign())


def test_code_gradient_is_exact_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.methods.implicit_field import restoration

    torch.manual_seed(5)
    decoder = Decoder(small()).eval()
    field = Field.of(decoder, torch.float32)
    axes = tuple(axis_positions(n, 2.0, 24.0) for n in (12, 11, 10))
    labels = torch.randint(5, (12, 11, 10)).to(torch.uint8)
    targets = [Target(labels=labels, axes=axes, generator=generator(n)) for n in range(2)]  # type: ignore[arg-type]  # three axes
    tables, offsets = restoration._tables(field, targets)
    rows, drawn = restoration._draw(targets, offsets, 700)
    code = torch.randn(2, 8)
    gradients = []
    for budget in (1 << 14, 1 << 30):
        monkeypatch.setattr(restoration, "_CPU_ACTIVATION_BYTES", budget)
        leaf = code.clone().requires_grad_()
        restoration._backward(field, tables, leaf, rows, drawn)
        gradients.append(leaf.grad)
    assert field.chunk > 1000
    plain = code.clone().requires_grad_()
    total = torch.zeros(())
    for number, target in enumerate(targets):
        place = torch.randint(labels.numel(), (700,), generator=generator(number))
        grid = torch.stack(torch.meshgrid(*target.axes, indexing="ij"), dim=-1).reshape(-1, 3)[place]
        inputs = torch.cat([plain[number].expand(700, -1), encode_positions(grid, 4)], dim=1)
        total = total + F.cross_entropy(plain_logits(decoder, inputs), labels.flatten()[place].long())
    (expected,) = torch.autograd.grad(total, plain)
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------------------------------------- intensity classes


def inertia(samples: np.ndarray[Any, Any], centres: np.ndarray[Any, Any]) -> float:
    return float(np.min((samples[:, None] - centres[None]) ** 2, axis=1).sum())


@pytest.mark.parametrize("num_classes", [2, 5, 10])
def test_centres_are_those_of_sklearn(num_classes: int) -> None:
    draw = np.random.default_rng(0)
    samples = np.concatenate([np.zeros(3000), draw.normal(0.3, 0.05, 4000), draw.normal(0.7, 0.1, 3000)])
    samples = samples.astype(np.float32)
    reference = KMeans(num_classes, n_init=30, random_state=0, tol=1e-10).fit(samples[:, None].astype(float))
    centres = fit_centres(torch.from_numpy(samples), num_classes)
    assert inertia(samples, centres.double().numpy()) <= reference.inertia_ * (1 + 1e-6)
    if num_classes < 10:
        np.testing.assert_allclose(centres.numpy(), np.sort(reference.cluster_centers_[:, 0]), atol=2e-3)


def test_centres_are_optimal_where_every_partition_can_be_tried() -> None:
    samples = torch.rand(14, generator=generator("few"))
    ordered = samples.double().sort().values.numpy()
    best = min(
        sum(((run - run.mean()) ** 2).sum() for run in np.split(ordered, cuts))
        for cuts in itertools.combinations(range(1, 14), 3)
    )
    assert inertia(ordered, fit_centres(samples, 4).double().numpy()) == pytest.approx(best, rel=1e-5)


def test_centres_do_not_depend_on_the_order_of_samples() -> None:
    samples = torch.rand(20_000, generator=generator("many")) ** 3
    shuffled = samples[torch.randperm(20_000, generator=generator("order"))]
    assert torch.equal(fit_centres(samples, 10), fit_centres(shuffled, 10))


def test_a_long_tail_leaves_the_bulk_resolved() -> None:
    draw = np.random.default_rng(1)
    samples = np.concatenate([draw.normal(size=30_000), [400.0, 401.0, 900.0]]).astype(np.float32)
    centres = fit_centres(torch.from_numpy(samples), 6).double().numpy()
    reference = KMeans(6, n_init=20, random_state=0, tol=1e-10).fit(samples[:, None].astype(float))
    assert inertia(samples.astype(float), centres) <= reference.inertia_ * (1 + 1e-4)


def test_more_classes_than_intensities_are_refused() -> None:
    with pytest.raises(SettingError, match="num_classes: 10 intensity classes need as many distinct intensities, but"):
        fit_centres(torch.tensor([0.0, 0.5, 1.0]).repeat(100), 10)
    assert fit_centres(torch.tensor([0.0, 0.5, 1.0]).repeat(100), 3).tolist() == [0.0, 0.5, 1.0]


def test_class_is_the_nearest_centre() -> None:
    centres = torch.tensor([0.05, 0.2, 0.21, 0.7])
    image = torch.rand(4, 5, 6, generator=generator("image"))
    expected = np.abs(image.numpy()[..., None] - centres.numpy()).argmin(-1)
    np.testing.assert_array_equal(assign_classes(image, centres).numpy(), expected)
    assert assign_classes(torch.tensor([-9.0, 9.0, 0.125]), centres).tolist() == [0, 3, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(7, 6, 9), (2, 8, 3)])
def test_mode_pooling_is_the_commonest_class_and_on_a_tie_the_lowest(size: int, shape: tuple[int, int, int]) -> None:
    labels = torch.randint(4, shape, generator=generator("labels", size)).to(torch.uint8)
    low, high = (size - 1) // 2, size // 2
    padded = np.pad(labels.numpy(), ((low, high),) * 3, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size,) * 3).reshape(*shape, -1)
    expected = stats.mode(windows, axis=-1).mode  # SciPy, too, takes the smallest of equals
    np.testing.assert_array_equal(mode_pool(labels, size, 4).numpy(), expected)
    np.testing.assert_array_equal(mode_of_points(torch.from_numpy(windows.copy()), 4).numpy(), expected)


def test_mode_pooling_leaves_flat_regions_and_removes_specks() -> None:
    labels = torch.full((9, 9, 9), 3, dtype=torch.uint8)
    labels[4, 4, 4] = 1
    assert (mode_pool(labels, 3, 5) == 3).all()


# ------------------------------------------------------------------------------------------------ prior and ball


def test_prior_on_sums_equals_its_rescaled_form_on_means() -> None:
    """Eq. 2 sums over K points: with a mean over points the prior's weight is 1 / (sigma^2 K)."""
    torch.manual_seed(6)
    method = ImplicitField(small(prior_sigma=0.01), facts())
    batch = a_batch(method)
    total, count = method.loss(batch)
    assert count == 150
    by_sum = torch.autograd.grad(total / count, [method.codes.weight, *method.decoder.parameters()])

    labels = mode_of_points(assign_classes(batch.image[:, :, 0], method.centres), 5)
    code = method.codes(batch.subjects)
    logits = method.decoder(code, encode_positions(batch.position, 4))
    mean = F.cross_entropy(logits.flatten(0, 1), labels.flatten().long())
    weight = 1 / (0.01**2 * 50)
    mean = mean + (weight * code.square().sum(1)).mean()
    by_mean = torch.autograd.grad(mean, [method.codes.weight, *method.decoder.parameters()])
    for first, second in zip(by_sum, by_mean, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)
    assert 1 / (0.01**2 * ImplicitFieldSettings().points) == pytest.approx(0.617, abs=5e-4)


def test_the_papers_prior_keeps_codes_where_the_naive_one_sends_them_to_zero() -> None:
    images = [head(number) for number in range(5)]
    norms = {}
    for name, sigma in (("right", 1.0), ("naive", 1.0 / math.sqrt(256))):
        # Weight 1 / sigma^2 on a MEAN over K = 256 points is sigma / sqrt(K) on their sum.
        torch.manual_seed(7)
        method = ImplicitField(small(num_classes=3, prior_sigma=sigma, epochs=60), facts())
        OneProcess(images).train(method)
        norms[name] = float(method.codes.weight.detach().norm(dim=1).mean())
    assert norms["right"] > 0.2
    assert norms["naive"] < 0.1 * norms["right"]


def test_official_prior_is_the_norm_a_point_ramped_over_100_epochs() -> None:
    method = ImplicitField(small(prior="official", epochs=400.0), facts())
    code = torch.tensor([[3.0, 4.0] + [0.0] * 6])
    assert float(method.prior(code, 16_384)) == pytest.approx(16_384 * 1e-4 * 5)
    assert float(method.prior(code, 10, epoch=25)) == pytest.approx(10 * 1e-4 * 5 / 4)
    torch.manual_seed(8)
    first, count = method.loss(a_batch(method, step=0))
    later, _ = method.loss(a_batch(method, step=25))
    norms = method.codes.weight.detach()[torch.tensor([4, 0, 2])].norm(dim=1).sum()
    assert count == 150
    assert float((later - first).detach()) == pytest.approx(50 * 1e-4 * float(norms), rel=0.05)


def two_volumes(method: ImplicitField) -> tuple[Field, list[Target]]:
    volumes = [volume_of(head(number)) for number in (60, 61)]
    return Field.of(method.decoder, torch.float32), [method._target(volume) for volume in volumes]


def test_restoration_descends_equation_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient is that of sum CE + |z|^2 / sigma^2, by autograd through the plain network, divided by K."""
    torch.manual_seed(11)
    sigma, num_points = 0.05, 200
    method = ImplicitField(small(prior_sigma=sigma), facts()).eval()
    field, targets = two_volumes(method)
    start = torch.randn(2, 8)
    seen: list[Tensor] = []

    def watch(optimizer: torch.optim.Adam) -> None:
        (code,) = optimizer.param_groups[0]["params"]
        seen.append(code.grad.clone())

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    phases = [(1, num_points)]
    left = restore(field, targets, start, phases=phases, learning_rate=lambda _: 1.0, prior=method.prior, bound=None)
    assert torch.equal(left, start)

    code = start.clone().requires_grad_()
    total = torch.zeros(())
    position = grid_positions(GRID, (2.0, 2.0, 2.0), box(GRID)).view(-1, 3)
    for number, target in enumerate(targets):
        draw = volume_of(head(60 + number)).generator("points")
        place = torch.randint(target.labels.numel(), (num_points,), generator=draw)
        inputs = torch.cat([code[number].expand(num_points, -1), encode_positions(position[place], 4)], dim=1)
        labels = target.labels.flatten()[place].long()
        data = F.cross_entropy(plain_logits(method.decoder, inputs), labels, reduction="sum")
        total = total + data + code[number].square().sum() / sigma**2
    (expected,) = torch.autograd.grad(total, code)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected / num_points, rtol=1e-4, atol=1e-6)


def test_a_strong_prior_shortens_restored_codes() -> None:
    torch.manual_seed(12)
    method = ImplicitField(small(prior_sigma=0.02), facts()).eval()
    norms = {}
    for prior in (True, False):
        settings = override(method.settings, {"restoration.prior": prior, "restoration.steps": [60]})
        twin = ImplicitField(settings, facts()).eval()
        twin.load_state_dict(method.state_dict())
        volumes = [volume_of(head(number)) for number in (60, 61)]
        field, targets = two_volumes(twin)
        norms[prior] = twin.restore(field, volumes, targets, effort="full").norm(dim=1)
    assert (norms[True] < 0.5 * norms[False]).all()


def test_codes_stay_in_the_ball() -> None:
    images = [head(number) for number in range(5)]
    torch.manual_seed(9)
    method = ImplicitField(small(prior="none", code_bound=0.05, epochs=5), facts())
    before = method.codes.weight.detach().clone()
    OneProcess(images).train(method)
    norms = method.codes.weight.detach().norm(dim=1)
    assert before.norm(dim=1).max() > 0.05
    assert norms.max() <= 0.05 * (1 + 1e-6)
    assert norms.max() > 0.049
    method.eval()
    targets = [method._target(volume_of(head(99)))]
    code = method.restore(Field.of(method.decoder, torch.float32), [volume_of(head(99))], targets, effort="full")
    assert code.norm() <= 0.05 * (1 + 1e-6)


def test_without_a_bound_codes_are_left_alone() -> None:
    method = ImplicitField(small(code_init_std=5.0), facts())
    before = method.codes.weight.detach().clone()
    method._project_codes()
    assert torch.equal(method.codes.weight, before)


def test_learning_rate_is_halved_after_each_quarter() -> None:
    method = ImplicitField(ImplicitFieldSettings(latent_dim=64), facts())
    lr = method.stages()[1].lr
    assert [lr(p) for p in (0.0, 0.2499, 0.25, 0.5, 0.75, 1.0)] == [1, 1, 0.5, 0.25, 0.125, 0.125]


# --------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def trained() -> tuple[ImplicitField, list[Tensor], list[float]]:
    images = [head(number) for number in range(12)]
    torch.manual_seed(10)
    method = ImplicitField(
        small(
            num_classes=3,
            prior_sigma=1.0,
            epochs=200.0,
            **{"restoration.steps": [100], "restoration.precision": "float32"},
        ),
        facts(12),
    )
    losses = OneProcess(images).train(method)
    return method.eval(), images, losses


def test_loss_falls(trained: tuple[ImplicitField, list[Tensor], list[float]]) -> None:
    _, _, losses = trained
    first, last = np.mean(losses[:10]), np.mean(losses[-10:])
    assert last < 0.5 * first


def test_classes_are_fitted_on_the_training_images(trained: tuple[ImplicitField, list[Tensor], list[float]]) -> None:
    method, images, _ = trained
    voxels = torch.stack(images).flatten().double().numpy()
    reference = KMeans(3, n_init=10, random_state=0).fit(voxels[:, None])
    assert inertia(voxels, method.centres.double().numpy()) <= 1.05 * reference.inertia_


def test_restoration_explains_a_training_volume_as_well_as_its_own_code(
    trained: tuple[ImplicitField, list[Tensor], list[float]],
) -> None:
    method, images, _ = trained
    volumes = [volume_of(image) for image in images[:3]]
    field = Field.of(method.decoder, torch.float32)
    with torch.no_grad():
        found = method.evidence(volumes)
        for number, (anomaly, restored) in enumerate(found):
            target = method._target(volumes[number])
            code = method.codes.weight[number]
            own, _ = cross_entropy(field, code, target, method.centres, expectation=False)
            another, _ = cross_entropy(
                field, method.codes.weight[number + 3], target, method.centres, expectation=False
            )
            assert anomaly.mean() < 1.15 * own.mean() + 0.01
            assert anomaly.mean() < 0.8 * another.mean()
            agreement = (restored == method.centres[target.labels.long()]).float().mean()
            assert agreement > 0.9


def test_an_anomaly_stands_out_and_is_not_restored(trained: tuple[ImplicitField, list[Tensor], list[float]]) -> None:
    method, _, _ = trained
    image = head(77)
    healthy = image.clone()
    lesion = torch.zeros(GRID, dtype=torch.bool)
    lesion[8:14, 3:9, 4:10] = True
    image[0][lesion] = 0.02
    with torch.no_grad():
        score, reference = method.score([volume_of(image), volume_of(healthy)])
    assert score.map.shape == GRID
    assert score.restoration is not None
    assert score.restoration.shape == (1, *GRID)
    assert score.map[lesion].mean() > 4 * score.map[~lesion].mean()
    assert score.image_score > reference.image_score
    planted = (image - healthy)[0][lesion].abs().mean()
    assert (score.restoration[0] - healthy[0])[lesion].abs().mean() < 0.4 * planted


def test_a_volume_alone_scores_as_among_others_of_other_shapes(
    trained: tuple[ImplicitField, list[Tensor], list[float]],
) -> None:
    method, _, _ = trained
    first = volume_of(head(50))
    other = volume_of(head(51, grid=(12, 16, 10)))
    with torch.no_grad():
        (alone,) = method.score([first])
        again = method.score([first])[0]
        among = method.score([other, first])[1]
    assert torch.equal(alone.map, again.map)
    torch.testing.assert_close(alone.map, among.map, rtol=1e-3, atol=1e-3)
    assert alone.image_score == pytest.approx(among.image_score, rel=1e-3)


def test_a_score_does_not_depend_on_the_subjects_name(
    trained: tuple[ImplicitField, list[Tensor], list[float]],
) -> None:
    method, _, _ = trained
    with torch.no_grad():
        (first,), (second,) = (method.score([volume_of(head(52), name)], effort="quick") for name in ("a", "b"))
    assert torch.equal(first.map, second.map)


def test_bfloat16_scores_nearly_the_same(trained: tuple[ImplicitField, list[Tensor], list[float]]) -> None:
    method, _, _ = trained
    half = ImplicitField(override(method.settings, {"restoration.precision": "bfloat16"}), method.cohort).eval()
    half.load_state_dict(method.state_dict())
    with torch.no_grad():
        (exact,), (rounded,) = method.score([volume_of(head(53))]), half.score([volume_of(head(53))])
    difference = (exact.map - rounded.map).abs().mean() / exact.map.mean()
    assert 0 < difference < 0.1


def test_map_is_minimum_then_average_of_the_cross_entropy(
    trained: tuple[ImplicitField, list[Tensor], list[float]],
) -> None:
    from scipy import ndimage

    method, _, _ = trained
    volume = volume_of(head(54))
    with torch.no_grad():
        ((anomaly, _),) = method.evidence([volume])
        (score,) = method.score([volume])
    least = ndimage.minimum_filter(anomaly.numpy(), 3, mode="constant", cval=np.inf)
    inside = ndimage.uniform_filter(np.ones(GRID), 3, mode="constant")
    expected = ndimage.uniform_filter(least.astype(float), 3, mode="constant") / inside
    np.testing.assert_allclose(score.map.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_classes_do_not_depend_on_the_number_of_workers() -> None:
    images = [head(number) for number in range(4)]
    process = OneProcess(images)
    one = ImplicitField(small(), facts(4))
    stage = one.stages()[0]
    process.train(one, [stage])

    class Ranks(OneProcess):
        def gather(self, value: Tensor) -> list[Tensor]:
            third = value.numel() // 3
            return [value[third:], value[:0], value[:third]]

    several = ImplicitField(small(), facts(4))
    Ranks(images).train(several, [several.stages()[0]])
    assert torch.equal(one.centres, several.centres)


def test_too_many_classes_stop_the_first_stage() -> None:
    images = [(head(number) * 2).round() / 2 for number in range(3)]
    method = ImplicitField(small(num_classes=7), facts(3))
    with pytest.raises(SettingError, match="hold 3: set num_classes to 3 or fewer"):
        OneProcess(images).train(method)


# ----------------------------------------------------------------------------------------------------- settings


def test_presets_are_the_papers_the_codes_and_two_small_ones() -> None:
    presets = ImplicitField.presets()
    assert set(presets) == {"paper", "official_code", "demo", "tiny"}
    paper, official = presets["paper"], presets["official_code"]
    assert isinstance(paper, ImplicitFieldSettings)
    assert isinstance(official, ImplicitFieldSettings)
    assert (paper.points, paper.batch_volumes, paper.epochs, paper.prior_sigma) == (16_200, 6, 2_000, 0.01)
    assert (paper.restoration.steps, paper.restoration.points, paper.restoration.prior) == ((700,), (16_200,), True)
    assert (paper.map.min_pool, paper.map.average_pool, paper.map.voxels) == (3, 15, "all")
    assert (official.restoration.steps, official.restoration.points) == ((501, 101), (10_000, 50_000))
    assert (official.code_bound, official.code_init_std, official.prior) == (1.0, 0.0625, "official")
    assert not official.restoration.prior
    for settings in presets.values():
        again = validate(ImplicitFieldSettings, settings.model_dump(mode="json"), "model.json")
        assert again == settings


def test_quick_effort_takes_fewer_steps() -> None:
    method = ImplicitField(small(**{"restoration.steps": [400], "restoration.quick_steps": 3}), facts()).eval()
    with torch.no_grad():
        (quick,) = method.score([volume_of(head(1))], effort="quick")
    short = ImplicitField(small(**{"restoration.steps": [3]}), facts()).eval()
    short.load_state_dict(method.state_dict())
    with torch.no_grad():
        (full,) = short.score([volume_of(head(1))])
    assert torch.equal(quick.map, full.map)


def test_several_channels_are_refused() -> None:
    with pytest.raises(SettingError, match="one modality but the cohort holds T1w and T2w: choose one with --modality"):
        ImplicitField(small(), facts(channels=("T1w", "T2w")))
    method = ImplicitField(small(), facts()).eval()
    with pytest.raises(VolumeError, match="new: the volume has 2 channels"), torch.no_grad():
        method.score([volume_of(head(1).repeat(2, 1, 1, 1))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 300}, "width must exceed latent_dim"),
        ({"skip_layer": 8}, "skip_layer must be smaller"),
        ({"code_bound": 0}, "code_bound must be positive"),
        ({"restoration.steps": [1, 2]}, "one number for each phase"),
        ({"restoration.points": [0]}, "must be at least 1"),
        ({"num_classes": 300}, "num_classes"),
        ({"latent_dimension": 3}, "did you mean 'latent_dim'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        override(ImplicitFieldSettings(), changes)


def test_search_spaces_hold_their_defaults() -> None:
    flat = flatten(ImplicitFieldSettings())
    found = spaces(ImplicitFieldSettings)
    assert {"num_classes", "latent_dim", "prior_sigma", "code_lr", "restoration.learning_rate"} <= set(found)
    for name, space in found.items():
        value = flat[name]
        if hasattr(space, "values"):
            assert value in space.values
        else:
            assert space.low <= value <= space.high
