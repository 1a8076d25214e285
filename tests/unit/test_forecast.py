"""What `vesalius train --estimate` foresees, and that it leaves nothing behind."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from vesalius.infra import pipeline
from vesalius.infra.cli.app import app
from vesalius.infra.footprint import batch_of_noise, footprint_on, made_up_cohort
from vesalius.infra.pipeline import estimating, forecasting
from vesalius.infra.pipeline.estimating import estimate, mean_step
from vesalius.methods.f_anogan import FAnoGAN
from vesalius.methods.position_regression import PositionRegression, PositionRegressionSettings
from vesalius.methods.vq_vae import VqVae, VqVaeSettings
from vesalius.platform.config import override
from vesalius.platform.errors import SettingError
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone, TrainingSettings, Updater
from vesalius.platform.training.memory import is_out_of_memory, lay_out
from vesalius.platform.training.selection import num_validations

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

ASSIGNMENTS = ["training.device=cpu", "training.threads=1", "training.precision=fp32"]


def call(store: CohortStore, home: Path, *more: str) -> Any:
    sets = [part for text in ASSIGNMENTS for part in ("--set", text)]
    return CliRunner().invoke(
        app, ["train", "f_anogan", str(store.path), "--preset", "tiny", "--estimate", *sets, *more],
        env={"VESALIUS_HOME": str(home), "COLUMNS": "140"},
    )  # fmt: skip


def test_an_estimate_is_one_document_and_creates_nothing(toy_store: CohortStore, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = call(toy_store, home, "--json", "--set", "method.game.epochs=10")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert not home.exists()
    gan, encoder, tuning = document["stages"]
    # Six subjects in batches of four: 10 epochs are 15 steps.
    assert (gan["stage"], gan["steps"]) == ("gan", 15)
    for stage in (gan, encoder, tuning):
        assert stage["seconds"] == pytest.approx(stage["steps"] * stage["seconds_per_step"])
        assert stage["measured_peak_bytes"] >= 0
        added = stage["gradient_bytes"] + stage["optimizer_bytes"] + stage["activation_bytes"]
        assert stage["counted_bytes"] == document["parameter_bytes"] + added
    assert document["steps"] == sum(stage["steps"] for stage in document["stages"])
    assert document["training_seconds"] == pytest.approx(sum(stage["seconds"] for stage in document["stages"]))
    # Four passes over the encoder's 12 steps and three over the 9 of the fine-tuning; then the validation split once.
    assert (encoder["steps"], tuning["steps"]) == (12, 9)
    assert (document["validation_volumes"], document["threshold_volumes"]) == (7 * 4, 4)
    scoring = 28 * document["quick_seconds_per_volume"] + 4 * document["seconds_per_volume"]
    assert document["total_seconds"] == pytest.approx(document["training_seconds"] + scoring)
    assert document["counted_peak_bytes"] == max(stage["counted_bytes"] for stage in document["stages"])
    assert document["measured_peak_bytes"] == max(stage["measured_peak_bytes"] for stage in document["stages"])


def test_an_estimate_for_a_person_names_stages_times_and_memory(toy_store: CohortStore, tmp_path: Path) -> None:
    done = call(toy_store, tmp_path)
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "f_anogan on 12 x 10 x 8 voxels, one worker on cpu, fp32" in text
    for word in ("gan", "encoder", "fine_tuning", "validation", "thresholds", "counted", "measured", "MiB"):
        assert word in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--name", "mine"], "--estimate creates no run and looks at one worker: leave out --name"),
        (["--workers", "2"], "leave out --workers"),
        (["--resume", "mine"], "leave out --resume"),
        (["--set", "training.checkpoint_activation=true"], "checkpoint_activations"),
    ],
)
def test_what_does_not_go_with_an_estimate_is_said(
    more: list[str], words: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    done = call(toy_store, tmp_path, *more)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def test_an_estimate_needs_a_store() -> None:
    done = CliRunner().invoke(app, ["train", "f_anogan", "--estimate"])
    assert done.exit_code == 2
    assert "name a method and a store" in done.stderr


def die(*given: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_machine_that_is_too_small_is_a_sentence(toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the system does to a process that asks for more than there is.
    monkeypatch.setattr(forecasting, "_forecast", die)
    with pytest.raises(SettingError, match="ended early, most likely for want of memory: set training"):
        pipeline.forecast("f_anogan", toy_store.path, preset="tiny")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (OSError("can't allocate memory"), False),
    ],
)
def test_a_want_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_true_want_of_memory_is_known_by_its_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)


def test_what_cannot_be_allocated_is_a_sentence_too(toy_store: CohortStore) -> None:
    with pytest.raises(SettingError, match="training f_anogan with these settings takes more memory than there"):
        pipeline.forecast(
            "f_anogan", toy_store.path, preset="tiny", assignments=["method.network.latent_dim=100000000000"]
        )


WIDE = override(PositionRegressionSettings(), {"network.patch_size": 19, "patches.per_step": 64})


def counted(**changes: object) -> int:
    training = TrainingSettings.model_validate({"precision": "fp32", **changes})
    (stage,) = footprint_on(PositionRegression, WIDE, made_up_cohort((24, 24, 24), 4), training).stages
    return stage.activation_bytes


def test_what_is_counted_follows_the_loops_settings() -> None:
    whole = counted()
    sixteen = counted(micro_batch_size=16)
    # Beside the patches' own there are the normalised kernels, which are kept once.
    assert whole - sixteen == pytest.approx(3 * (counted(micro_batch_size=32) - sixteen), rel=1e-3)
    assert sixteen < 0.3 * whole
    assert counted(checkpoint_activations=True) < 0.85 * whole


def allocated_at_most(profiler: Any) -> int:
    """Return what torch's allocator had given out at most, in bytes: resident memory may be an earlier test's."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held: list[int] = list(
        itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    )
    assert len(held) > 100
    return max(held)


def test_a_true_update_holds_less_where_segments_are_computed_again() -> None:
    # Blocks of one size one after the other: what is kept of them is most of what the update holds.
    cohort, cpu = made_up_cohort((48, 48, 8), 4), torch.device("cpu")
    settings = override(VqVaeSettings(), {"batch_slices": 16, "group_slices": 16})
    peaks = {}
    for again in (True, False):
        training = training_settings(checkpoint_activations=again)
        method = VqVae(settings, cohort)
        lay_out(method, training, cpu)
        stage = next(stage for stage in method.stages() if stage.optimizers)
        method.autoencoder.train().requires_grad_(True)
        update, batch = Updater(stage, Alone(), training, cpu), batch_of_noise(method, stage, 16)
        stage.step(batch.select(0, 2), update)  # what libraries load at their first use is loaded
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            stage.step(batch, update)
        peaks[again] = allocated_at_most(profiler)
    assert peaks[True] < 0.8 * peaks[False]


def test_validation_passes_are_those_of_the_loop() -> None:
    every_seven = TrainingSettings(validate_every=7)
    assert [num_validations(num, every_seven) for num in (1, 7, 8, 21)] == [1, 1, 2, 3]
    assert [num_validations(num, TrainingSettings()) for num in (0, 1, 3, 30, 1000)] == [0, 1, 3, 4, 4]
    assert [num_validations(num, TrainingSettings(validations=9)) for num in (5, 9, 100)] == [5, 9, 9]


def test_a_probe_measures_every_stage(toy_store: CohortStore) -> None:
    kind = pipeline.method_type("f_anogan")
    training = TrainingSettings(device="cpu", threads=1, precision="fp32")
    found = estimate("f_anogan", kind.presets()["tiny"], training, toy_store, ["validation"], math.inf)
    assert list(found.peak_bytes) == ["gan", "encoder", "fine_tuning"]
    nothing = estimate("f_anogan", kind.presets()["tiny"], training, toy_store, [], math.inf)
    assert nothing.complete
    assert nothing.volume_seconds > 0
    assert nothing.num_volumes == 0


def test_a_probe_goes_on_until_each_optimiser_has_stepped(
    toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for name in ("critic_loss", "generator_loss"):
        true = getattr(FAnoGAN, name)

        def noted(self: FAnoGAN, batch: Any, name: str = name, true: Any = true) -> Any:
            called.append(name)
            return true(self, batch)

        monkeypatch.setattr(FAnoGAN, name, noted)
    monkeypatch.setattr(estimating, "_ENOUGH_SECONDS", 0.0)
    settings = override(FAnoGAN.presets()["tiny"], {"game.critic_steps": 4, "batch_size": 2})
    training = TrainingSettings(threads=1, device="cpu")
    estimate("f_anogan", settings, training, toy_store, ["validation"], math.inf)
    assert (called.count("critic_loss"), called.count("generator_loss")) == (4, 1)
    # Where the critic alone is too long already, nothing more is waited for.
    called.clear()
    estimate("f_anogan", settings, training, toy_store, ["validation"], 0.0)
    assert (called.count("critic_loss"), called.count("generator_loss")) == (1, 0)


def test_a_mean_step_is_of_whole_rounds_and_the_first_does_not_count() -> None:
    critic, both = ("critic",), ("critic", "generator")
    # One round: the critic's 2 s stand for its first, slow step too, and the generator comes once in five.
    assert mean_step([90.0, 2.0, 2.0, 2.0, 7.0], [critic] * 4 + [both], 5) == pytest.approx((4 * 2 + 7) / 5)
    # Sixteen steps are three rounds, and one that belongs to none.
    rounds = [critic, *([critic] * 3 + [both, critic]) * 3]
    assert mean_step([90.0, *([2.0] * 3 + [7.0, 2.0]) * 3], rounds, 5) == pytest.approx((4 * 2 + 7) / 5)
    assert mean_step([90.0, 1.0, 3.0], [critic] * 3, 1) == 2.0
    assert mean_step([90.0], [critic], 1) == 90.0


def test_a_slow_round_is_timed_with_the_generators_true_share(
    toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def noted(spent: list[float], kinds: list[tuple[str, ...]], round_length: int) -> float:
        seen.append((kinds.count(("critic", "generator")), len(kinds)))
        assert len(spent) == len(kinds)
        return mean_step(spent, kinds, round_length)

    monkeypatch.setattr(estimating, "mean_step", noted)
    monkeypatch.setattr(estimating, "_ENOUGH_SECONDS", 0.0)
    settings = override(FAnoGAN.presets()["tiny"], {"game.critic_steps": 4, "batch_size": 2})
    estimate("f_anogan", settings, TrainingSettings(threads=1, device="cpu"), toy_store, [], math.inf)
    assert seen[0] == (1, 4)


def test_a_probe_computes_as_training_does(toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor_float: list[tuple[str, bool]] = []
    true_stage, true_score = estimating._stage_seconds, estimating._score_seconds

    def stage_seconds(*given: Any) -> float:
        tensor_float.append(("stage", torch.backends.cudnn.allow_tf32))
        return true_stage(*given)

    def score_seconds(*given: Any, quick: bool) -> float:
        tensor_float.append(("quick" if quick else "full", torch.backends.cudnn.allow_tf32))
        return true_score(*given, quick=quick)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(estimating, "_stage_seconds", stage_seconds)
    monkeypatch.setattr(estimating, "_score_seconds", score_seconds)
    tiny = pipeline.method_type("autoencoder").presets()["tiny"]
    for precision, expected in (("fp32", False), ("auto", True)):
        tensor_float.clear()
        training = TrainingSettings.model_validate({"device": "cpu", "threads": 1, "precision": precision})
        estimate("autoencoder", tiny, training, toy_store, ["test"], math.inf)
        # The scoring that follows training is what the device does by itself.
        assert tensor_float == [("stage", expected), ("quick", expected), ("full", True)]


def test_a_probe_stops_where_the_reduced_scoring_is_too_long_already(
    toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[bool] = []

    def an_hour(*given: Any, quick: bool) -> float:
        done.append(quick)
        return 3600.0

    monkeypatch.setattr(estimating, "_score_seconds", an_hour)
    tiny = pipeline.method_type("autoencoder").presets()["tiny"]
    training = TrainingSettings(device="cpu", threads=1)
    found = estimate("autoencoder", tiny, training, toy_store, ["test"], math.inf, scoring_limit_seconds=60.0)
    assert (done, found.complete) == ([True], False)


def test_the_counted_steps_stay_below_the_number_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    true = FAnoGAN.critic_loss

    def noted(self: FAnoGAN, batch: Any) -> Any:
        seen.append(batch.step / batch.num_steps)
        return true(self, batch)

    monkeypatch.setattr(FAnoGAN, "critic_loss", noted)
    footprint_on(FAnoGAN, FAnoGAN.presets()["tiny"], made_up_cohort((16, 16, 16), 4))
    assert max(seen) < 1
    assert len(set(seen)) > 1
