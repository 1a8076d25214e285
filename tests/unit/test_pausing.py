"""A run that pauses at a share of its steps and goes on as another run, under its own settings or others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from vesalius.platform.contracts import (
    Batch,
    CohortFacts,
    Effort,
    Method,
    MethodSettings,
    Score,
    Slices,
    Stage,
    Volume,
    WholeVolumes,
    mutables,
    setting,
)
from vesalius.platform.errors import RunError
from vesalius.platform.testing import pauses
from vesalius.platform.testing.training_runs import CPU, BreakAt, Broken, build, training_settings
from vesalius.platform.training import (
    Checkpoints,
    Forerunner,
    Pause,
    TrainingResult,
    Unwatched,
    Watcher,
    is_judged,
    pause_at,
    train,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.platform.store import CohortStore


class InnerSettings(MethodSettings):
    lr: float = setting(0.02, "learning rate", mutable=True)


class ToySettings(MethodSettings):
    width: int = 4
    beta1: float = setting(0.9, "first moment", lt=1, mutable=True)
    weight: float = setting(1.0, "of the loss", mutable=True)
    inner: InnerSettings = InnerSettings()


class Toy(Method):
    """A mean that is fitted, a network that is selectable, and the same network once more."""

    settings_type = ToySettings
    adam: torch.optim.Adam

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        assert isinstance(settings, ToySettings)
        self.own = settings
        self.register_buffer("mean", torch.zeros(()))
        width = settings.width
        self.net = nn.Sequential(nn.Linear(cohort.grid[1], width), nn.Dropout(0.2), nn.Linear(width, 1))
        self.sums: list[Tensor] = []

    def stages(self) -> Sequence[Stage]:
        self.adam = torch.optim.Adam(self.net.parameters(), self.own.inner.lr, betas=(self.own.beta1, 0.99))
        tuning = torch.optim.SGD(self.net.parameters(), self.own.inner.lr, momentum=0.9)
        fitted = Stage(
            name="mean",
            view=WholeVolumes(),
            batch_size=1,
            epochs=1,
            step=self._add,
            begin=self.sums.clear,
            finish=self._solve,
        )
        return [fitted, self._stage("net", self.adam, selectable=True), self._stage("tuning", tuning)]

    def _stage(self, name: str, optimizer: torch.optim.Optimizer, *, selectable: bool = False) -> Stage:
        return Stage(
            name=name,
            view=Slices(axis=2),
            batch_size=4,
            epochs=1,
            trains=(self.net,),
            optimizers={name: optimizer},
            step=lambda batch, update: {"loss": update(name, self._loss, batch)},
            lr=lambda progress: 1 - progress / 2,
            selectable=selectable,
        )

    def _add(self, batch: Batch, update: object) -> dict[str, float]:
        self.sums.append(batch.image.mean())
        return {}

    def _solve(self, collective: object) -> None:
        self.get_buffer("mean").copy_(torch.stack(self.sums).mean())

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        answer = self.net(batch.image.mean(1) - self.get_buffer("mean"))
        return self.own.weight * ((answer - batch.normal("target", (1, 1))) ** 2).sum(), answer.numel()

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        total = sum(float(p.sum()) for p in self.parameters())
        return [Score(map=(v.image - total).abs().mean(0), image_score=abs(total)) for v in volumes]


def goes(
    store: CohortStore,
    folder: Path,
    *,
    until: float,
    after: tuple[Path, Forerunner] | None = None,
    settings: ToySettings | None = None,
    watcher: Watcher | None = None,
) -> tuple[Toy, TrainingResult]:
    method = build(Toy, settings or ToySettings(), store)
    forerunner = None if after is None else (Checkpoints(after[0]), after[1])
    result = train(
        method, store, training_settings(), folder, device=CPU, until=until, forerunner=forerunner, watcher=watcher
    )
    assert isinstance(method, Toy)
    return method, result


def of(result: TrainingResult) -> Forerunner:
    assert result.paused is not None
    return Forerunner(run="other", checkpoint=result.paused.checkpoint, weights_sha256=result.paused.weights_sha256)


# ---- where


def test_where_a_run_pauses(toy_store: CohortStore) -> None:
    stages = build(Toy, ToySettings(), toy_store).stages()
    steps = [4, 10, 6]
    places = {share: pause_at(share, stages, steps) for share in (0.1, 0.2, 0.3, 0.7, 0.75, 1.0)}
    assert places == {
        0.1: Pause(1, 0),  # inside of a stage without optimisers: at its end
        0.2: Pause(1, 0),
        0.3: Pause(1, 2),
        0.7: Pause(2, 0),
        0.75: Pause(2, 1),
        1.0: Pause(3, 0),
    }
    assert [is_judged(places[share], stages) for share in (0.2, 0.3, 0.7, 0.75)] == [False, True, True, True]


def test_which_settings_are_mutable() -> None:
    assert mutables(ToySettings) == {"beta1", "weight", "inner.lr"}


# ---- going on


def test_going_on_equals_an_unbroken_run(toy_store: CohortStore) -> None:
    pauses.assert_exact_pause(Toy, ToySettings(), toy_store)


def test_mutable_settings_are_those_of_the_run_that_goes_on(toy_store: CohortStore) -> None:
    pauses.assert_mutable_settings(Toy, ToySettings(), toy_store)


def test_optimisers_keep_their_memory_and_get_the_new_settings(toy_store: CohortStore, tmp_path: Path) -> None:
    _, first = goes(toy_store, tmp_path / "a", until=0.3)
    built = build(Toy, ToySettings(beta1=0.5, inner=InnerSettings(lr=0.1)), toy_store)
    assert isinstance(built, Toy)
    method = built
    seen: list[tuple[Any, ...]] = []

    class Looks(Unwatched):
        def step(self, stage: str, step: int, num_steps: int, overall: int, total: int) -> None:
            if stage == "net":
                group = method.adam.param_groups[0]
                count: Any = next(iter(method.adam.state.values()))["step"]
                seen.append((group["lr"] / (1 - (step - 1) / num_steps / 2), group["betas"], float(count) - step))

    forerunner = (Checkpoints(tmp_path / "a"), of(first))
    train(method, toy_store, training_settings(), tmp_path / "b", device=CPU, forerunner=forerunner, watcher=Looks())
    assert seen, "the run went on in the stage of the network"
    assert all(one == (pytest.approx(0.1), (0.5, 0.99), 0.0) for one in seen)


@pytest.mark.parametrize("until", [0.45, 0.75])
def test_a_pause_that_is_broken_off_is_the_same_pause(until: float, toy_store: CohortStore, tmp_path: Path) -> None:
    _, whole = goes(toy_store, tmp_path / "whole", until=until)
    assert whole.paused is not None
    last = round(until * whole.num_steps)
    for moment in ("step", "saved"):
        folder = tmp_path / moment
        with pytest.raises(Broken):
            goes(toy_store, folder, until=until, watcher=BreakAt(last, moment))
        _, again = goes(toy_store, folder, until=until)
        assert again.paused == whole.paused
    assert whole.paused.criterion == "validation_average_precision"


def test_the_pass_at_a_pause_is_no_candidate_for_the_best(toy_store: CohortStore, tmp_path: Path) -> None:
    _, result = goes(toy_store, tmp_path / "a", until=0.3)
    assert result.paused is not None
    assert result.paused.value is not None
    assert result.state.best is None, "the pause comes before the first regular pass"


def test_nothing_is_judged_before_a_selectable_stage(toy_store: CohortStore, tmp_path: Path) -> None:
    _, result = goes(toy_store, tmp_path / "a", until=0.01)
    assert result.paused is not None
    assert result.paused.checkpoint == "0001-00000000"
    assert (result.paused.criterion, result.paused.value) == (None, None)


def test_the_best_so_far_and_stage_ends_come_along(toy_store: CohortStore, tmp_path: Path) -> None:
    _, first = goes(toy_store, tmp_path / "a", until=0.6)
    assert first.state.best is not None
    goes(toy_store, tmp_path / "b", until=0.7, after=(tmp_path / "a", of(first)))
    other = Checkpoints(tmp_path / "b")
    assert other.end_of("mean")
    assert other.best() is not None
    assert {first.state.best.checkpoint, "0001-00000000"} <= set(other.names())


def test_a_run_does_not_fall_back_to_where_it_came_from(toy_store: CohortStore, tmp_path: Path) -> None:
    _, first = goes(toy_store, tmp_path / "a", until=0.3)
    goes(toy_store, tmp_path / "b", until=0.6, after=(tmp_path / "a", of(first)))
    names = Checkpoints(tmp_path / "b").names()
    Checkpoints(tmp_path / "b").adopt(Checkpoints(tmp_path / "a"), of(first).checkpoint, of(first).weights_sha256)
    assert Checkpoints(tmp_path / "b").names() == names


def test_a_half_taken_over_checkpoint_is_taken_over_again(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = goes(toy_store, tmp_path / "a", until=0.6)
    link = Checkpoints._link
    linked: list[str] = []

    def once(self: Checkpoints, source: Path) -> None:
        if linked:
            raise Broken
        linked.append(source.name)
        link(self, source)

    monkeypatch.setattr(Checkpoints, "_link", once)
    with pytest.raises(Broken):
        goes(toy_store, tmp_path / "b", until=1.0, after=(tmp_path / "a", of(first)))
    monkeypatch.setattr(Checkpoints, "_link", link)
    assert Checkpoints(tmp_path / "b").last() not in (None, of(first).checkpoint), "an older one stands there"
    method, _ = goes(toy_store, tmp_path / "b", until=1.0, after=(tmp_path / "a", of(first)))
    whole, _ = goes(toy_store, tmp_path / "whole", until=1.0)
    assert all(value.equal(whole.state_dict()[name]) for name, value in method.state_dict().items())


def test_weights_that_have_changed_since_are_refused(toy_store: CohortStore, tmp_path: Path) -> None:
    _, first = goes(toy_store, tmp_path / "a", until=0.3)
    chosen = of(first).model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(RunError, match=f"{chosen.checkpoint} has other weights than when it was chosen"):
        goes(toy_store, tmp_path / "b", until=1.0, after=(tmp_path / "a", chosen))
    assert not (tmp_path / "b").exists()
