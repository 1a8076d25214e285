"""The trainer on five families of toy methods, each against a reference written out by hand."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from vesalius.platform.contracts import (
    Batch,
    CohortFacts,
    Collective,
    Effort,
    Method,
    MethodSettings,
    Metrics,
    Patches,
    Points,
    Score,
    Slices,
    Stage,
    Update,
    Volume,
    WholeVolumes,
)
from vesalius.platform.errors import CohortError, DivergenceError, RunError, SettingError
from vesalius.platform.loading import VolumeCache, load_batch
from vesalius.platform.testing import methods as contract
from vesalius.platform.testing.training_runs import BreakAt, Broken, training_settings
from vesalius.platform.training import Alone, Checkpoints, State, TrainingSettings, Unwatched, Updater, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.platform.store import CohortStore

CPU = torch.device("cpu")


class ToySettings(MethodSettings):
    """Settings of the toys."""

    lr: float = 0.02


class Toy(Method):
    """What the toys share: a score that is defined and depends on the state."""

    settings_type = ToySettings

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        assert isinstance(settings, ToySettings)
        self.lr = settings.lr

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        bias = sum(float(p.sum()) for p in self.parameters())
        maps = [(v.image - 0.4).abs().mean(dim=0) + abs(bias) for v in volumes]
        return [Score(map=m, image_score=float(m.max())) for m in maps]


class AutoDecoder(Toy):
    """A code a subject, kept in a ball, and a decoder of points; then a second stage on the codes alone."""

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.codes = nn.Embedding(len(cohort.subjects), 4)
        self.net = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def stages(self) -> Sequence[Stage]:
        first = {
            "net": torch.optim.Adam(self.net.parameters(), self.lr),
            "codes": torch.optim.Adam(self.codes.parameters(), self.lr),
        }
        return [
            Stage(
                name="decoder",
                view=Points(per_volume=64),
                batch_size=4,
                epochs=8,
                trains=[self.net, self.codes],
                optimizers=first,
                step=self._both,
                lr=lambda progress: 0.5 ** int(4 * progress),
                after_update=self._project,
                selectable=True,
            ),
            Stage(
                name="codes",
                view=Points(per_volume=32),
                batch_size=3,
                epochs=3,
                trains=[self.codes],
                optimizers={"codes": torch.optim.SGD(self.codes.parameters(), self.lr, momentum=0.9)},
                step=lambda batch, update: {"refinement": update("codes", self._loss, batch)},
            ),
        ]

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        z = self.codes(batch.subjects)[:, None].expand(-1, batch.position.shape[1], -1)
        answer = self.net(torch.cat([z, batch.position], dim=-1)).squeeze(-1)
        return ((answer - batch.image[:, :, 0, 0]) ** 2).sum(), answer.numel()

    def _both(self, batch: Batch, update: Update) -> Metrics:
        return {"loss": update("net", self._loss, batch), "code_loss": update("codes", self._loss, batch)}

    def _project(self) -> None:
        with torch.no_grad():
            norm = self.codes.weight.norm(dim=1, keepdim=True)
            self.codes.weight.mul_((1 / norm).clamp(max=1))


class Adversarial(Toy):
    """Alternating updates, a penalty by double backward, noise of the batch."""

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.generator = nn.Linear(3, 25)
        self.critic = nn.Sequential(nn.Linear(25, 8), nn.Tanh(), nn.Linear(8, 1))
        self.leaked = 0.0

    def stages(self) -> Sequence[Stage]:
        return [
            Stage(
                name="gan",
                view=Slices(axis=2),
                batch_size=5,
                epochs=1,
                trains=[self.generator, self.critic],
                optimizers={
                    "generator": torch.optim.Adam(self.generator.parameters(), self.lr),
                    "critic": torch.optim.Adam(self.critic.parameters(), self.lr),
                },
                step=self._step,
            )
        ]

    def _fake(self, batch: Batch) -> Tensor:
        fake: Tensor = self.generator(batch.normal("z", (3,)))
        return fake

    def _critic_loss(self, batch: Batch) -> tuple[Tensor, int]:
        real = batch.image[:, 0, :5, :5].reshape(len(batch), 25)
        fake = self._fake(batch).detach()
        mixed = (real + batch.uniform("mix", (1,)) * (fake - real)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.norm(dim=1) - 1) ** 2
        return (self.critic(fake) - self.critic(real)).sum() + 10 * penalty.sum(), len(batch)

    def _generator_loss(self, batch: Batch) -> tuple[Tensor, int]:
        return -self.critic(self._fake(batch)).sum(), len(batch)

    def _step(self, batch: Batch, update: Update) -> Metrics:
        metrics = {"critic": update("critic", self._critic_loss, batch)}
        if batch.step % 3 == 2:
            before = [None if p.grad is None else p.grad.clone() for p in self.critic.parameters()]
            metrics["generator"] = update("generator", self._generator_loss, batch)
            for p, kept in zip(self.critic.parameters(), before, strict=True):
                assert p.grad is not None
                assert kept is not None
                self.leaked += float((p.grad - kept).abs().sum())
        return metrics


class Moments(Toy):
    """No optimiser: a voxel-wise mean solved in ``finish``."""

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(cohort.grid))
        self.begun = 0

    def stages(self) -> Sequence[Stage]:
        return [
            Stage(
                name="moments",
                view=WholeVolumes(),
                batch_size=2,
                epochs=1,
                begin=self._begin,
                step=self._step,
                finish=self._finish,
            )
        ]

    def _begin(self) -> None:
        self.begun += 1
        self.total = torch.zeros(self.cohort.grid, dtype=torch.float64)
        self.count = torch.zeros(1, dtype=torch.float64)

    def _step(self, batch: Batch, update: Update) -> Metrics:
        self.total += batch.image[:, 0].double().sum(dim=0)
        self.count += len(batch)
        return {}

    def _finish(self, collective: Collective) -> None:
        self.mean.copy_((collective.sum(self.total) / collective.sum(self.count)).float())


class Regressor(Toy):
    """Patches of one volume, those centred in the background discarded: counts differ over ranks."""

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
        self.shift: Tensor
        self.register_buffer("shift", torch.zeros(()))  # what was observed, kept: ranks must agree on it

    def stages(self) -> Sequence[Stage]:
        return [
            Stage(
                name="regress",
                view=Patches(size=5, per_volume=16),
                batch_size=16,
                epochs=4,
                trains=[self.net],
                optimizers={"net": torch.optim.Adam(self.net.parameters(), self.lr / 4)},
                step=self._step,
                observes=("never", "shift"),
            )
        ]

    def _step(self, batch: Batch, update: Update) -> Metrics:
        loss = update("net", self._loss, batch)
        self.shift += update.observed["shift"]
        return {"loss": loss}

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        keep = batch.brain[:, 2, 2, 2]
        answer = self.net(batch.image)
        error = (answer - batch.position).norm(dim=1)
        shift = (answer - batch.position).mean(dim=1)
        return (error * keep).sum(), keep.sum(), {"shift": (shift * keep).sum()}


TOYS = [AutoDecoder, Adversarial, Moments, Regressor]


class _NoDropout(AutoDecoder):
    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.net[2] = nn.Identity()


@pytest.mark.parametrize("toy", TOYS)
def test_exact_resume(toy: type[Method], toy_store: CohortStore) -> None:
    contract.assert_exact_resume(toy, ToySettings(), toy_store)


@pytest.mark.parametrize(
    "toy",
    [Adversarial, Moments, *(pytest.param(toy, marks=pytest.mark.long) for toy in (_NoDropout, Regressor))],
)
def test_two_workers_equal_one(toy: type[Method], toy_store: CohortStore) -> None:
    contract.assert_two_workers_equal_one(toy, ToySettings(), toy_store)


@pytest.mark.parametrize("toy", [_NoDropout, Moments, Regressor])
def test_loss_falls(toy: type[Method], toy_store: CohortStore) -> None:
    contract.assert_loss_falls(toy, ToySettings(), toy_store)


@pytest.mark.parametrize("toy", TOYS)
def test_nan_stops(toy: type[Method], toy_store: CohortStore) -> None:
    contract.assert_nan_stops(toy, ToySettings(), toy_store)


def test_the_suite_catches_a_method_that_hides_state(toy_store: CohortStore) -> None:
    class Hides(Moments):
        """Keeps its accumulators over a resume and never clears them."""

        def _begin(self) -> None:
            if not hasattr(self, "total"):
                super()._begin()

        def _step(self, batch: Batch, update: Update) -> Metrics:
            self.mean += 0.1  # state outside what a restart clears
            return super()._step(batch, update)

        def _finish(self, collective: Collective) -> None:
            self.mean += self.total.float()

    with pytest.raises(AssertionError, match="mean differs"):
        contract.assert_exact_resume(Hides, ToySettings(), toy_store)


def test_a_generator_loss_leaves_nothing_in_the_critic(toy_store: CohortStore) -> None:
    method = contract.trained(Adversarial, ToySettings(), toy_store)
    assert isinstance(method, Adversarial)
    assert method.leaked == 0.0


def _first(store: CohortStore, method: Method) -> tuple[Stage, Batch]:
    (stage, *_) = method.stages()
    cache = VolumeCache(store, method.cohort.subjects, 2**30)
    for module in stage.trains:
        module.train()
    return stage, load_batch(cache, stage, method.cohort, seed=0, step=0)


@pytest.mark.parametrize("micro", [1, 3, 7, 16])
def test_micro_batches_weight_unequal_counts_right(toy_store: CohortStore, micro: int) -> None:
    method = contract.build(Regressor, ToySettings(), toy_store)
    assert isinstance(method, Regressor)
    stage, batch = _first(toy_store, method)
    keep = batch.brain[:, 2, 2, 2]
    assert 0 < int(keep.sum()) < len(keep), "the case needs discarded patches"
    reference = (method.net(batch.image) - batch.position).norm(dim=1)[keep].mean()
    expected = torch.autograd.grad(reference, list(method.net.parameters()))
    shift = (method.net(batch.image) - batch.position)[keep].mean()
    update = Updater(stage, Alone(), TrainingSettings(micro_batch_size=micro, precision="fp32"), CPU)
    assert update("net", method._loss, batch) == pytest.approx(reference.item(), rel=1e-5)
    assert update.observed == {"shift": pytest.approx(shift.item(), rel=1e-4)}
    for parameter, gradient in zip(method.net.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_count_may_be_a_fraction(toy_store: CohortStore) -> None:
    method = contract.build(Regressor, ToySettings(), toy_store)
    assert isinstance(method, Regressor)
    stage, batch = _first(toy_store, method)
    update = Updater(replace(stage, observes=()), Alone(), TrainingSettings(precision="fp32"), CPU)
    total = sum(float(parameter.detach().sum()) for parameter in method.net.parameters())

    def quarter(_: Batch) -> tuple[Tensor, float]:
        return torch.stack([parameter.sum() for parameter in method.net.parameters()]).sum(), 0.25

    assert update("net", quarter, batch) == pytest.approx(total / 0.25, rel=1e-5)
    for parameter in method.net.parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 4.0))


def test_what_a_stage_does_not_observe_may_not_be_reported(toy_store: CohortStore) -> None:
    method = contract.build(Regressor, ToySettings(), toy_store)
    assert isinstance(method, Regressor)
    stage, batch = _first(toy_store, method)
    update = Updater(replace(stage, observes=()), Alone(), TrainingSettings(precision="fp32"), CPU)
    with pytest.raises(SettingError, match="'regress' reports 'shift'"):
        update("net", method._loss, batch)


def test_clipping_bounds_the_norm(toy_store: CohortStore) -> None:
    method = contract.build(Regressor, ToySettings(), toy_store)
    assert isinstance(method, Regressor)
    stage, batch = _first(toy_store, method)
    Updater(stage, Alone(), TrainingSettings(clip_norm=1e-3, precision="fp32"), CPU)("net", method._loss, batch)
    norm = torch.cat([p.grad.flatten() for p in method.net.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_stage_step_and_optimiser(toy_store: CohortStore, bad: float) -> None:
    method = contract.build(Regressor, ToySettings(), toy_store)
    assert isinstance(method, Regressor)
    stage, batch = _first(toy_store, method)
    update = Updater(stage, Alone(), TrainingSettings(precision="fp32"), CPU)
    before = [p.clone() for p in method.net.parameters()]

    def loss(micro: Batch) -> tuple[Tensor, Tensor]:
        total, count, _ = method._loss(micro)
        return total * bad, count

    with pytest.raises(DivergenceError, match=r"'net' is not finite at step 0 of stage 'regress'"):
        update("net", loss, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, method.net.parameters(), strict=True)), "no step was taken"


def test_only_what_a_stage_trains_is_trainable(toy_store: CohortStore, tmp_path: Path) -> None:
    seen: dict[str, tuple[bool, bool, bool]] = {}

    class Watches(AutoDecoder):
        def _loss(self, batch: Batch) -> tuple[Tensor, int]:
            seen[batch.stage] = (
                self.net.training,
                next(self.net.parameters()).requires_grad,
                self.codes.weight.requires_grad,
            )
            return super()._loss(batch)

    method = contract.build(Watches, ToySettings(), toy_store)
    train(method, toy_store, contract.training_settings(), tmp_path, device=CPU)
    assert seen == {"decoder": (True, True, True), "codes": (False, False, True)}


def test_learning_rates_follow_progress(toy_store: CohortStore, tmp_path: Path) -> None:
    rates: list[float] = []

    class Watches(AutoDecoder):
        def stages(self) -> Sequence[Stage]:
            self.built = super().stages()
            return self.built

        def _both(self, batch: Batch, update: Update) -> Metrics:
            rates.append(self.built[0].optimizers["net"].param_groups[0]["lr"])
            return super()._both(batch, update)

    method = contract.build(Watches, ToySettings(lr=0.08), toy_store)
    train(method, toy_store, contract.training_settings(), tmp_path, device=CPU)
    num = len(rates)
    assert rates == [0.08 * 0.5 ** int(4 * step / num) for step in range(num)]


def test_moments_equal_numpy_and_restart_at_their_first_step(toy_store: CohortStore) -> None:
    method = contract.trained(Moments, ToySettings(), toy_store)
    images = [torch.from_numpy(toy_store.image(s)[0]) for s in method.cohort.subjects]
    torch.testing.assert_close(method.get_buffer("mean"), torch.stack(images).mean(dim=0))


def test_the_best_state_is_the_one_later_stages_build_on(toy_store: CohortStore, tmp_path: Path) -> None:
    method = contract.build(AutoDecoder, ToySettings(), toy_store)
    result = train(method, toy_store, contract.training_settings(), tmp_path, device=CPU)
    best = result.state.best
    assert best is not None
    assert best.criterion == "validation_average_precision"
    assert best.stage == "decoder"
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best() == best
    kept, after = (contract.build(AutoDecoder, ToySettings(), toy_store) for _ in range(2))
    checkpoints.load_weights(best.checkpoint, kept)
    checkpoints.load_weights(checkpoints.end_of("decoder"), after)
    assert all(torch.equal(v, after.state_dict()[k]) for k, v in kept.state_dict().items())


class _Heard(Unwatched):
    """Keeps the validation passes, and whether a checkpoint of their step stood when they were told."""

    def __init__(self, folder: Path, ends_at: int | None = None) -> None:
        self.folder = folder
        self.passes: dict[int, bool] = {}
        self._ends_at = ends_at

    def milestone(self, overall: int, metrics: Mapping[str, float]) -> None:
        if "validation_average_precision" in metrics:
            self.passes[overall] = any(int(name[-8:]) == overall for name in Checkpoints(self.folder).names())
        if overall == self._ends_at:
            raise Broken


def test_no_validation_pass_goes_unheard(toy_store: CohortStore, tmp_path: Path) -> None:
    """It is told before its checkpoint is written, so that a run killed in between makes and tells it again."""
    settings = contract.training_settings(checkpoint_every=1000, validate_every=3)
    whole, broken, resumed = _Heard(tmp_path / "a"), _Heard(tmp_path / "b", ends_at=3), _Heard(tmp_path / "b")
    for heard in (whole, broken, resumed):
        method = contract.build(AutoDecoder, ToySettings(), toy_store)
        with contextlib.suppress(Broken):
            train(method, toy_store, settings, heard.folder, device=CPU, watcher=heard)
    assert list(broken.passes) == [3]
    assert list(resumed.passes) == list(whole.passes)
    assert not any(whole.passes.values())


def test_last_best_and_stage_ends_are_kept_and_no_more(toy_store: CohortStore, tmp_path: Path) -> None:
    method = contract.build(AutoDecoder, ToySettings(), toy_store)
    train(method, toy_store, contract.training_settings(checkpoint_every=1), tmp_path, device=CPU)
    checkpoints = Checkpoints(tmp_path)
    best = checkpoints.best()
    assert best is not None
    ends = [n for n in checkpoints.names() if n.endswith("-00000000")]
    assert ends == ["0001-00000000", "0002-00000000"]
    assert set(checkpoints.names()) == {*ends, best.checkpoint, "0001-00000006"}
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}


def test_a_damaged_checkpoint_is_named_and_never_replaced_by_a_fresh_start(
    toy_store: CohortStore, tmp_path: Path
) -> None:
    method = contract.build(Regressor, ToySettings(), toy_store)
    train(method, toy_store, contract.training_settings(), tmp_path, device=CPU)
    last = Checkpoints(tmp_path).last()
    assert last is not None
    weights = tmp_path / last / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(RunError, match=f"{last}/weights.safetensors is damaged"):
        train(
            contract.build(Regressor, ToySettings(), toy_store),
            toy_store,
            contract.training_settings(),
            tmp_path,
            device=CPU,
        )
    weights.unlink()
    with pytest.raises(RunError, match=f"{last}/weights.safetensors is missing"):
        Checkpoints(tmp_path).load_weights(last, method)
    optimizers = tmp_path / last / "optimizers.safetensors"
    optimizers.write_bytes(b"{}")
    with pytest.raises(RunError, match=f"{last}/optimizers.safetensors is damaged"):
        Checkpoints(tmp_path).load_optimizers(last, {})
    (tmp_path / last / "state.json").write_text("{")
    with pytest.raises(RunError, match=last):
        Checkpoints(tmp_path).state(last)


def test_training_may_start_after_another_runs_stage(toy_store: CohortStore, tmp_path: Path) -> None:
    first = contract.build(AutoDecoder, ToySettings(), toy_store)
    train(first, toy_store, contract.training_settings(), tmp_path / "a", device=CPU)
    second = contract.build(AutoDecoder, ToySettings(), toy_store, seed=9)
    begin = (Checkpoints(tmp_path / "a"), "decoder")
    train(second, toy_store, contract.training_settings(), tmp_path / "b", device=CPU, start_from=begin)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    with pytest.raises(RunError, match="no stage 'decodr'"):
        train(
            second,
            toy_store,
            contract.training_settings(),
            tmp_path / "c",
            device=CPU,
            start_from=(Checkpoints(tmp_path / "a"), "decodr"),
        )


def test_after_the_last_stage_nothing_is_trained(toy_store: CohortStore, tmp_path: Path) -> None:
    first = contract.build(AutoDecoder, ToySettings(), toy_store)
    theirs = train(first, toy_store, contract.training_settings(), tmp_path / "a", device=CPU)
    begin = (Checkpoints(tmp_path / "a"), "codes")
    second = contract.build(AutoDecoder, ToySettings(), toy_store)
    ours = train(second, toy_store, contract.training_settings(), tmp_path / "b", device=CPU, start_from=begin)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert ours.state.seconds == theirs.state.seconds, "what the other run has spent is what these weights have cost"
    assert (ours.state.steps, ours.state.inherited) == (theirs.state.steps, theirs.state.finished_stages)


class HalfThere(Alone):
    """One of two ranks, of which the other one adds nothing: it could not read what this one has read."""

    world_size = 2


def test_stages_are_shared_by_all_ranks_or_by_none(toy_store: CohortStore, tmp_path: Path) -> None:
    first = contract.build(AutoDecoder, ToySettings(), toy_store)
    train(first, toy_store, contract.training_settings(), tmp_path / "a", device=CPU)
    shared = (Checkpoints(tmp_path / "a"), "decoder")
    taken = []
    for name, ranks in (("b", Alone()), ("c", HalfThere())):
        method = contract.build(AutoDecoder, ToySettings(), toy_store)
        folder = tmp_path / name
        loop = contract.training_settings()
        train(method, toy_store, loop, folder, collective=ranks, device=CPU, shared_from=shared)
        taken.append(Checkpoints(folder).names()[0])
    assert taken[0] == "0001-00000000"
    assert taken[1].startswith("0000-"), "the first stage was trained"


def test_a_checkpoint_that_does_not_say_what_was_learnt_is_no_start(toy_store: CohortStore, tmp_path: Path) -> None:
    first = contract.build(AutoDecoder, ToySettings(), toy_store)
    train(first, toy_store, contract.training_settings(), tmp_path / "a", device=CPU)
    checkpoints = Checkpoints(tmp_path / "a")
    place = tmp_path / "a" / checkpoints.end_of("decoder") / "state.json"
    kept = json.loads(place.read_text())
    del kept["state"]["learnt"]
    place.write_text(json.dumps(kept))
    second = contract.build(AutoDecoder, ToySettings(), toy_store)
    begin = (checkpoints, "decoder")
    with pytest.raises(RunError, match="does not say what its stages have learnt"):
        train(second, toy_store, contract.training_settings(), tmp_path / "b", device=CPU, start_from=begin)
    assert not (tmp_path / "b").exists()


def test_a_slash_in_an_optimisers_name_loses_no_state(toy_store: CohortStore, tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(3))
    method = contract.build(AutoDecoder, ToySettings(), toy_store)
    optimizers = {"gan/critic": torch.optim.Adam([parameter]), "gan": torch.optim.Adam([parameter], lr=0.5)}
    for optimizer in optimizers.values():
        parameter.grad = torch.ones(3)
        optimizer.step()
    Checkpoints(tmp_path).save(State(stage="s", step=1), method, optimizers)
    fresh = {name: torch.optim.Adam([nn.Parameter(torch.ones(3))]) for name in optimizers}
    Checkpoints(tmp_path).load_optimizers("0000-00000001", fresh)
    for name, optimizer in optimizers.items():
        kept, loaded = optimizer.state_dict()["state"][0], fresh[name].state_dict()["state"][0]
        assert kept.keys() == loaded.keys()
        assert all(torch.equal(kept[key], loaded[key]) for key in kept)


def test_what_a_killed_process_left_half_written_is_swept_away(toy_store: CohortStore, tmp_path: Path) -> None:
    left = tmp_path / ".0000-00000002.1.partial"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    method = contract.build(Moments, ToySettings(), toy_store)
    train(method, toy_store, contract.training_settings(), tmp_path, device=CPU)
    assert not left.exists()


def test_the_suite_fails_where_a_break_never_comes(toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BreakAt, "_break", lambda self, moment: None)
    with pytest.raises(AssertionError, match="was not broken off at step"):
        contract.assert_exact_resume(Moments, ToySettings(), toy_store)


def test_stages_must_have_names_of_their_own(toy_store: CohortStore, tmp_path: Path) -> None:
    class Twice(Moments):
        def stages(self) -> Sequence[Stage]:
            return [*super().stages(), *super().stages()]

    with pytest.raises(SettingError, match="share a name: moments, moments"):
        train(
            contract.build(Twice, ToySettings(), toy_store),
            toy_store,
            contract.training_settings(),
            tmp_path,
            device=CPU,
        )


def test_metrics_are_means_over_the_logging_window(toy_store: CohortStore, tmp_path: Path) -> None:
    logged: dict[int, Mapping[str, float]] = {}

    class Keeps(Unwatched):
        def metrics(self, overall: int, metrics: Mapping[str, float]) -> None:
            logged[overall] = {**logged.get(overall, {}), **metrics}

    each = contract.build(Regressor, ToySettings(), toy_store)
    train(each, toy_store, contract.training_settings(log_every=1), tmp_path / "1", device=CPU, watcher=Keeps())
    single = {step: m["regress/loss"] for step, m in logged.items()}
    logged.clear()
    wide = contract.build(Regressor, ToySettings(), toy_store)
    train(wide, toy_store, contract.training_settings(log_every=4), tmp_path / "4", device=CPU, watcher=Keeps())
    assert logged[8]["regress/loss"] == pytest.approx(sum(single[s] for s in (5, 6, 7, 8)) / 4)
    assert logged[24]["regress/seconds"] > 0


class Normalised(Toy):
    """Batch statistics over groups of two; the last batch holds half a group."""

    group_size = 2

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.net = nn.Sequential(nn.Linear(80, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def stages(self) -> Sequence[Stage]:
        return [
            Stage(
                name="normalised",
                view=Slices(axis=0),
                batch_size=8,
                epochs=2,
                group_size=self.group_size,
                trains=[self.net],
                optimizers={"net": torch.optim.SGD(self.net.parameters(), 0.01)},
                step=lambda batch, update: {"loss": update("net", self._loss, batch)},
            )
        ]

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        assert len(batch) <= 2, "a micro-batch is one group"
        return ((self.net(batch.image.flatten(1)) - batch.position) ** 2).sum(), len(batch)


def test_batch_statistics_do_not_depend_on_the_number_of_workers(toy_store: CohortStore) -> None:
    contract.assert_two_workers_equal_one(Normalised, ToySettings(), toy_store)
    contract.assert_exact_resume(Normalised, ToySettings(), toy_store, moments=2)


def test_running_statistics_are_the_mean_over_groups(toy_store: CohortStore) -> None:
    method = contract.build(Normalised, ToySettings(), toy_store)
    assert isinstance(method, Normalised)
    stage, batch = _first(toy_store, method)
    linear, norm = method.net[0], method.net[1]
    groups = linear(batch.image.flatten(1)).detach().reshape(4, 2, 8)
    Updater(stage, Alone(), TrainingSettings(precision="fp32"), CPU)("net", method._loss, batch)
    torch.testing.assert_close(norm.running_mean, 0.1 * groups.mean(dim=1).mean(dim=0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * groups.var(dim=1).mean(dim=0))
    assert norm.get_buffer("num_batches_tracked").item() == 1


def test_batch_normalisation_without_a_group_size_is_refused(toy_store: CohortStore, tmp_path: Path) -> None:
    class Ungrouped(Normalised):
        group_size = 1

    method = contract.build(Ungrouped, ToySettings(), toy_store)
    with pytest.raises(SettingError, match="'normalised' trains batch normalisation but states no group_size"):
        train(method, toy_store, contract.training_settings(), tmp_path, device=CPU)


@pytest.mark.parametrize("split", ["test", "gate"])
def test_nothing_is_learnt_from_gate_or_test(toy_store: CohortStore, tmp_path: Path, split: str) -> None:
    class Cheats(Moments):
        def stages(self) -> Sequence[Stage]:
            return [replace(stage, split=split) for stage in super().stages()]

    method = contract.build(Cheats, ToySettings(), toy_store)
    with pytest.raises(SettingError, match=f"the split '{split}': only train and validation may be learnt from"):
        train(method, toy_store, contract.training_settings(), tmp_path, device=CPU)


def test_stages_of_one_split_share_its_decoded_volumes(toy_store: CohortStore, tmp_path: Path) -> None:
    reads: list[str] = []

    class Counts:
        def __getattr__(self, name: str) -> Any:
            return getattr(toy_store, name)

        def stored(self, subject_id: str, role: str, box: Any = None) -> Any:
            if role == "image":
                reads.append(subject_id)
            return toy_store.stored(subject_id, role, box)

    method = contract.build(AutoDecoder, ToySettings(), toy_store)
    settings = contract.training_settings(prefetch=0, validate_every=1000)
    train(method, Counts(), settings, tmp_path, device=CPU)  # type: ignore[arg-type]  # stands in for a store
    assert sorted(reads) == list(method.cohort.subjects), "each volume once, over two stages"


def test_a_rank_that_looks_late_follows_rank_0(toy_store: CohortStore, tmp_path: Path) -> None:
    from vesalius.platform.training.loop import _Run

    class RankOne:
        """Rank 0 has seen no checkpoint; this rank could see one by now."""

        rank = 1
        world_size = 2

        def sum(self, value: Tensor) -> Tensor:
            return value.clone()  # rank 0 adds zeros

        def gather(self, value: Tensor) -> list[Tensor]:
            return [value, value]

    method = contract.build(Moments, ToySettings(), toy_store)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(State(stage="moments", step=1), method, {})
    run = _Run(method, toy_store, contract.training_settings(), checkpoints, RankOne(), CPU, Unwatched())
    assert checkpoints.last() == "0000-00000001"
    assert run._agree_on_last() is None


def test_state_survives_json() -> None:
    state = State(stage_index=1, stage="a", step=5, finished_stages=("b",), seconds={"b": 1.5})
    assert State.model_validate_json(state.model_dump_json()) == state


def test_an_optional_stage_without_subjects_begins_and_finishes_and_takes_no_step(
    toy_store: CohortStore, tmp_path: Path
) -> None:
    class Nobody:
        """The toy cohort without healthy validation subjects."""

        def __getattr__(self, name: str) -> Any:
            return getattr(toy_store, name)

        def subjects(self, split: str | None = None, healthy: bool | None = None) -> Any:
            return [] if split == "validation" else toy_store.subjects(split, healthy=healthy)

    called: list[str] = []

    class Optional(Moments):
        required = False

        def stages(self) -> Sequence[Stage]:
            (first,) = super().stages()
            second = replace(
                first,
                name="second",
                split="validation",
                optional=not self.required,
                begin=lambda: called.append("begin"),
                step=self._counted,
                finish=lambda collective: called.append("finish"),
            )
            return [first, second]

        def _counted(self, batch: Batch, update: Update) -> Metrics:
            called.append("step")
            return {}

    class Required(Optional):
        required = True

    method = contract.build(Optional, ToySettings(), toy_store)
    result = train(method, Nobody(), contract.training_settings(), tmp_path / "a", device=CPU)  # type: ignore[arg-type]  # stands in for a store
    assert called == ["begin", "finish"]
    assert result.state.finished_stages == ("moments", "second")
    contract.trained(Optional, ToySettings(), toy_store)
    assert "step" in called
    method = contract.build(Required, ToySettings(), toy_store)
    with pytest.raises(CohortError, match="stage 'second' needs healthy subjects in the 'validation' split"):
        train(method, Nobody(), contract.training_settings(), tmp_path / "b", device=CPU)  # type: ignore[arg-type]  # stands in for a store


def test_what_a_finished_stage_held_is_let_go(toy_store: CohortStore, tmp_path: Path) -> None:
    """Moments of the game's Adam would lie beside those of the encoder's optimiser, which is as large again."""
    from vesalius.methods.f_anogan import FAnoGAN

    torch.manual_seed(0)
    method = FAnoGAN(FAnoGAN.presets()["tiny"], toy_store.facts())  # type: ignore[arg-type]  # the preset is its own
    stages = method.stages()
    held: list[tuple[int, int]] = []
    true = stages[1].begin

    def noted() -> None:
        states = sum(len(optimizer.state) for optimizer in stages[0].optimizers.values())
        held.append((states, sum(parameter.grad is not None for parameter in method.parameters())))
        true()

    second = replace(stages[1], begin=noted)
    method.stages = lambda: [stages[0], second, *stages[2:]]  # type: ignore[method-assign]  # watched at its beginning
    train(method, toy_store, training_settings(), tmp_path, device=torch.device("cpu"))
    assert held == [(0, 0)]
    assert not any(optimizer.state for stage in stages for optimizer in stage.optimizers.values())
