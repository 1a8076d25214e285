"""Ray for real: tasks with bounded flight, training that equals the plain loop, failures that keep their words."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from vesalius.methods import METHODS
from vesalius.platform import cluster
from vesalius.platform.cluster.training import _UNNEEDED, _said, _trainer_type
from vesalius.platform.cluster.worker import work
from vesalius.platform.errors import DiskSpaceError, DivergenceError, RunError, StoreError
from vesalius.platform.runs import RunFolder, RunSpec, create_run
from vesalius.platform.store.lock import exclusive
from vesalius.platform.tables import lookup
from vesalius.platform.testing.methods import training_settings
from vesalius.platform.training import Checkpoints, backend_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def _square(value: int) -> int:
    if value == 3:
        raise ValueError("three is out")
    return value * value


_KNOCK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]); print('in')"


@pytest.mark.long
def test_nobody_else_is_let_into_a_runtime_of_our_own(ray_session: None) -> None:
    """Ray's ports are open on every interface: who comes without the token, or with another, computes nothing here."""
    import ray

    address = ray.get_runtime_context().gcs_address
    ours = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    assert ours["RAY_AUTH_MODE"] == "token"
    strangers = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    answers = {}
    for who, known in {
        "ours": ours,
        "nothing": {"RAY_AUTH_MODE": "disabled"},
        "a guess": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64},
    }.items():
        command = [sys.executable, "-c", _KNOCK, address]
        done = subprocess.run(
            command, env={**strangers, **known}, capture_output=True, text=True, timeout=120, check=False
        )
        answers[who] = done.stdout.strip() or ("refused" if "InvalidAuthToken" in done.stderr else done.stderr[-500:])
    assert answers == {"ours": "in", "nothing": "refused", "a guess": "refused"}


_LATE = """
import psutil
import ray
from ray._private import services
from vesalius.platform import cluster

found, asked = services.get_node, []


def get_node(*arguments, **options):
    asked.append(1)
    if len(asked) == 1:
        raise Exception("The current node timed out during startup. This could happen because some raylet failed.")
    return found(*arguments, **options)


services.get_node = get_node
with cluster.session(1):
    one = ray.get(ray.remote(lambda: 1).remote())
    alive = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    names = [child.name() for child in alive]
    print(one, names.count("raylet"), names.count("gcs_server"))
"""


@pytest.mark.long
def test_a_runtime_that_comes_up_late_is_begun_anew_and_leaves_no_process() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", _LATE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.split() == ["1", "1", "1"], done.stderr[-2000:]
    assert "trying once more" in done.stderr


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tasks_hand_over_results_and_errors(num_workers: int, ray_session: None) -> None:
    seen: list[tuple[int, int]] = []
    outcomes = dict(
        cluster.map_tasks(
            _square, range(8), num_workers=num_workers, progress=lambda d, t, _: seen.append((d, t)), total=8
        )
    )
    error = outcomes.pop(3)
    assert isinstance(error, ValueError)
    assert str(error).endswith("three is out")
    assert outcomes == {value: value * value for value in range(8) if value != 3}
    assert seen == [(done, 8) for done in range(1, 9)]


def test_no_more_is_taken_than_workers_can_hold(ray_session: None) -> None:
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for value in range(10, 40):
            taken += 1
            yield value

    for done, _ in enumerate(cluster.map_tasks(_square, source(), num_workers=2), start=1):
        assert taken <= done + 4, "at most two tasks a worker are in flight"
    assert taken == 30


def _run(home: Path, name: str, method: str, store: CohortStore, num_workers: int, **training: object) -> RunFolder:
    settings = lookup(METHODS, method, "method").presets()["tiny"]
    spec = RunSpec(
        run_id=name,
        method=method,
        settings=settings.model_dump(mode="json"),
        training=training_settings(threads=1, **training),
        store=str(store.path),
        cohort_digest=store.digest,
        num_workers=num_workers,
        created="2026-01-01T00:00:00Z",
    )
    return create_run(home, spec)


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    last = Checkpoints(run.checkpoints).last()
    assert last is not None
    weights: dict[str, torch.Tensor] = load_file(run.checkpoints / last / "weights.safetensors")
    return weights


@pytest.mark.parametrize("method", ["implicit_field", pytest.param("healthy_atlas", marks=pytest.mark.long)])
def test_ray_train_equals_the_plain_loop(
    method: str, toy_store: CohortStore, tmp_path: Path, ray_session: None
) -> None:
    method_type = lookup(METHODS, method, "method")
    plain = cluster.train(_run(tmp_path, "plain", method, toy_store, 0), method_type)
    seen: list[tuple[int, int, str]] = []
    one = cluster.train(
        _run(tmp_path, "one", method, toy_store, 1),
        method_type,
        progress=lambda d, t, s: seen.append((d, t, s)),
        watch_every_seconds=0.05,
    )
    two = cluster.train(_run(tmp_path, "two", method, toy_store, 2), method_type)
    assert {run.state for run in (plain, one, two)} == {"finished"}
    assert seen[-1][0] == seen[-1][1] > 0
    for name, value in _weights(plain).items():
        assert torch.equal(value, _weights(one)[name]), f"{name}: one Ray worker is the plain loop"
        torch.testing.assert_close(value, _weights(two)[name], rtol=2e-3, atol=2e-4)


def test_a_divergence_on_a_worker_keeps_its_words(toy_store: CohortStore, tmp_path: Path, ray_session: None) -> None:
    method_type = lookup(METHODS, "implicit_field", "method")
    run = _run(tmp_path, "wild", "implicit_field", toy_store, 2)
    settings = {**run.spec.settings}
    for key in settings:
        if key.endswith(("learning_rate", "lr")):
            settings[key] = 1e30
    assert settings != run.spec.settings, "the test must make it diverge"
    spec = run.spec.model_copy(update={"settings": settings, "run_id": "wilder"})
    with pytest.raises(DivergenceError, match=r"step \d+ of stage"):
        cluster.train(create_run(tmp_path, spec), method_type)
    assert RunFolder(tmp_path / "runs" / "wilder").state == "failed"


def test_a_changed_store_is_refused(toy_store: CohortStore, tmp_path: Path) -> None:
    run = _run(tmp_path, "stale", "healthy_atlas", toy_store, 0)
    spec = run.spec.model_copy(update={"cohort_digest": "0" * 64, "run_id": "staler"})
    with pytest.raises(RunError, match="has changed since run 'staler' was created"):
        cluster.train(create_run(tmp_path, spec), lookup(METHODS, "healthy_atlas", "method"))


def test_one_driver_at_a_time_trains_a_run(toy_store: CohortStore, tmp_path: Path) -> None:
    run = _run(tmp_path, "twice", "healthy_atlas", toy_store, 0)
    method_type = lookup(METHODS, "healthy_atlas", "method")
    with exclusive(run.lock), pytest.raises(StoreError, match=r"runs/twice is being written by process \d+"):
        cluster.train(run, method_type)
    assert run.state == "created"
    assert cluster.train(run, method_type).state == "finished"


def test_lost_checkpoints_never_start_afresh_in_silence(toy_store: CohortStore, tmp_path: Path) -> None:
    run = _run(tmp_path, "lost", "healthy_atlas", toy_store, 0)
    method_type = lookup(METHODS, "healthy_atlas", "method")
    cluster.train(run, method_type)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match=r"'lost' has had checkpoints and .*checkpoints holds none"):
        cluster.train(run, method_type)
    assert not run.checkpoints.exists()


def test_a_worker_that_an_earlier_driver_left_behind_stops(toy_store: CohortStore, tmp_path: Path) -> None:
    run = _run(tmp_path, "taken", "healthy_atlas", toy_store, 0)
    run.begin_attempt()
    with pytest.raises(RunError, match="'taken' was taken over by another driver"):
        work(
            {
                "run": str(run.path),
                "method": lookup(METHODS, "healthy_atlas", "method"),
                "attempt": "an earlier one",
                "lost": "",
                "tuned": False,
            }
        )
    assert not Checkpoints(run.checkpoints).names()


def test_a_worker_left_behind_does_not_fail_the_run_that_took_over(toy_store: CohortStore, tmp_path: Path) -> None:
    run = _run(tmp_path, "taken", "healthy_atlas", toy_store, 1)
    run.begin_attempt()
    method_type = lookup(METHODS, "healthy_atlas", "method")
    # As a worker on Ray stands there: in a process group.
    meeting = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        with pytest.raises(RunError, match="taken over by another driver"):
            work({"run": str(run.path), "method": method_type, "attempt": "an earlier one", "lost": "", "tuned": False})
    finally:
        torch.distributed.destroy_process_group()
    assert not (run.path / "failure.json").exists(), "the new driver would take this for its own workers' failure"


def test_a_full_disk_in_mid_training_is_one_sentence(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, "full", "implicit_field", toy_store, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vesalius.platform.training.checkpoint.save_file", full)
    with pytest.raises(DiskSpaceError, match="the disk or quota is full"):
        cluster.train(run, lookup(METHODS, "implicit_field", "method"))
    assert run.state == "failed"
    assert not list(run.checkpoints.iterdir()), "nothing half-written is left"
    monkeypatch.undo()
    assert cluster.train(run, lookup(METHODS, "implicit_field", "method")).state == "finished"


def test_ray_train_starts_no_helper_that_has_nothing_to_do(ray_session: None) -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    def helpers(kind: type[Any]) -> set[str]:
        trainer = kind(lambda: None, scaling_config=ScalingConfig(num_workers=1))
        return {type(one).__name__ for one in trainer._create_default_callbacks()}

    # Under the names that Ray gives them, and nothing else of its is left out.
    assert helpers(TorchTrainer) - helpers(_trainer_type()) == set(_UNNEEDED)


def test_of_memory_our_own_advice_is_given_and_of_all_else_the_last_line() -> None:
    killed = RuntimeError("Task was killed due to the node running low on memory.\nRefer to the documentation")
    assert _said(killed).startswith("workers were ended because their machine ran out of memory: set a lower training.")
    assert _said(RuntimeError("Traceback\n  one\nValueError: two")) == "ValueError: two"
    assert _said(RuntimeError()) == "RuntimeError"


@pytest.mark.long
def test_out_of_memory_is_said_and_not_rays_advice(
    toy_store: CohortStore, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.exceptions
    import ray.train.torch

    def fit(_: object) -> None:
        raise ray.exceptions.OutOfMemoryError(
            "Task was killed due to the node running low on memory.\nRefer to the documentation on how to address it"
        )

    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", fit)
    run = _run(tmp_path, "large", "healthy_atlas", toy_store, 1)
    with pytest.raises(RunError, match=r"failed on the cluster: workers were ended because .* training\.cache_mib"):
        cluster.train(run, lookup(METHODS, "healthy_atlas", "method"))


def test_more_workers_than_cores_is_one_sentence(toy_store: CohortStore, tmp_path: Path, ray_session: None) -> None:
    run = _run(tmp_path, "many", "healthy_atlas", toy_store, 64)
    with pytest.raises(RunError, match="64 workers need 64 cores"):
        cluster.train(run, lookup(METHODS, "healthy_atlas", "method"))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes to cores")
def test_a_process_takes_no_more_cores_than_it_is_given() -> None:
    (core, *_) = os.sched_getaffinity(0)
    say = "from vesalius.platform.cluster import available_cores; print(available_cores())"
    pin = f"import os; os.sched_setaffinity(0, {{{core}}}); {say}"
    told = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for code in (pin, say)]
    assert told == [b"1\n", f"{len(os.sched_getaffinity(0))}\n".encode()]


def test_the_backend_follows_the_device() -> None:
    assert backend_for("cpu") == "gloo"
    assert backend_for("cuda") == "nccl"
