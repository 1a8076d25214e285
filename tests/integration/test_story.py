"""From an empty folder to a served model and back, with a node killed on the way: the whole platform, as it is used."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import psutil
import pytest

from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.phantom import CohortSettings, PhantomSettings
from vesalius.infra.services.kinds import Services
from vesalius.infra.services.state import ServiceSettings, ServicesFolder
from vesalius.infra.serving.testing.server import served
from vesalius.platform.registry import Gates
from vesalius.platform.registry.gates import BetterGate, LineageGate, SecondsGate
from vesalius.platform.runs import RunFolder
from vesalius.platform.store import CohortStore
from vesalius.platform.testing.training_runs import logged_steps
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import ServedHome

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000), pytest.mark.filterwarnings("ignore")]  # Ray's own

NAME = "brain"
SEED = 20261127


@contextlib.contextmanager
def second_node(home: ServedHome) -> Iterator[Callable[[], None]]:
    """Let a second machine of one core join the head, as another user would; yields what kills it without a word."""
    secret = home.home / "services" / "secrets" / "ray_token"
    told = {**home.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(secret)}
    ray = str(Path(sys.executable).with_name("ray"))
    join = [ray, "start", f"--address=127.0.0.1:{home.ports['ray']}", "--num-cpus=1", "--block"]
    # As another machine has: two nodes that share a folder install what jobs bring over each other.
    folder = Path(tempfile.mkdtemp(prefix="node-"))  # short: sockets lie in it
    join.append(f"--temp-dir={folder}")
    with (home.home / "node.log").open("w") as log:
        node = subprocess.Popen(
            [*join, f"--object-store-memory={100 * 2**20}"], env=told, stdout=log, stderr=log, start_new_session=True
        )
    processes: list[psutil.Process] = []

    def kill() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.extend(psutil.Process(node.pid).children(recursive=True))
        for process in [psutil.Process(node.pid), *processes] if node.poll() is None else processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        node.wait(30)

    try:
        _wait(lambda: "Ray runtime started" in (home.home / "node.log").read_text(), "the second node")
        yield kill
    finally:
        kill()
        shutil.rmtree(folder, ignore_errors=True)


class Story:
    """What was done, in which order, and how long it took."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self.lines: list[str] = []

    def tell(self, what: str) -> None:
        now = time.monotonic()
        self.lines.append(f"{now - self._last:6.1f} s  {what}")
        self._last = now

    def __str__(self) -> str:
        return "\n".join([*self.lines, f"{self._last - self._begun:6.1f} s  in all"])


class Clients:
    """Four clients that score one volume again and again."""

    def __init__(self, server: Any, body: bytes) -> None:
        self.answers: list[tuple[int, Any]] = []
        self._server, self._body, self._ended = server, body, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)

    def _ask(self) -> None:
        while not self._ended.is_set():
            self.answers.append(self._server.tried("/v1/score", self._body))

    def wait_for(self, version: str) -> None:
        def came() -> bool:
            assert all(thread.is_alive() for thread in self._threads)
            assert {status for status, _ in self.answers} <= {200}, self.lost
            return any(said["model"]["version"] == version for _, said in self.answers[-8:])

        _wait(came, f"version {version}")

    @property
    def lost(self) -> list[tuple[int, Any]]:
        """What was no answer."""
        return [(status, said) for status, said in self.answers if status != 200]


def _wait(condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.3)


def _submit(home: ServedHome, *words: object, workers: int = 0) -> dict[str, Any]:
    flags = ("--workers", workers) if workers else ()
    answer: dict[str, Any] = json.loads(home.call("submit", "--json", *flags, "--follow", "--", *words).stdout)
    assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0)
    return answer


def _flags(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def _versions(home: ServedHome) -> dict[str, Any]:
    document: dict[str, Any] = home.ask("registry", NAME)
    return document


def test_the_whole_story(
    served_homes: Callable[[], ServedHome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story, home = Story(), served_homes()
    home.up("--supervisor", "--cpus", 1)
    story.tell("services up: PostgreSQL, MLflow, a Ray head, optuna-dashboard, a supervisor")

    phantom = PhantomSettings(shape=(24, 28, 24))
    splits = CohortSettings(num_train=10, num_validation=4, num_gate=8, num_test=2, phantom=phantom, seed=SEED)
    raw, path = write_cohort(tmp_path / "raw", splits), tmp_path / "cohort"
    _submit(home, "ingest", "phantom", raw, path)
    store = CohortStore.open(path)
    assert len(store.subjects()) == 24
    story.tell("24 heads ingested by a job")

    small = {"method.epochs": 60, "method.points": 400, "training.device": "cpu"}
    space = ("--space", "num_classes=4..8", "--space", "decoder_lr=log:1e-3..1e-2")
    words = ("tune", "implicit_field", path, "--preset", "tiny", "--name", "sweep", "--trials", 3, *space)
    _submit(home, *words, *_flags(small))
    study = home.ask("study", "sweep")
    trials = {row["number"]: row for row in study["trials"]}
    assert len(trials) == 3
    assert {row["state"] for row in trials.values()} <= {"complete", "pruned"}
    best = trials[study["best"]]
    story.tell("a sweep of 3 trials, by a job")

    # The best one's settings, for longer, by two workers on two nodes; one of these dies under it.
    chosen = {**small, **best["values"], "method.epochs": 200}
    patient = {"training.wait_for_nodes_seconds": 5, "training.checkpoint_every": 10}
    training = ("train", "implicit_field", path, "--preset", "tiny", "--name", "best", *_flags({**chosen, **patient}))
    run = RunFolder(home.home / "runs" / "best")
    checkpoints = Checkpoints(run.checkpoints)
    with second_node(home) as kill:
        home.call("submit", "--workers", 2, "--", *training)
        _wait(lambda: run.checkpoints.is_dir() and checkpoints.last(), "a checkpoint")
        assert run.groups[-1].num_workers == 2
        kill()
        killed = time.monotonic()
        _wait(lambda: len(run.groups) > 1, "a smaller group")
        stood = checkpoints.last()
        _wait(lambda: checkpoints.last() != stood or run.state == "finished", "a later checkpoint")
        seconds = time.monotonic() - killed
        _wait(lambda: run.state == "finished", "the end of the training")
    assert [group.num_workers for group in run.groups] == [2, 1]
    assert run.groups[1].step > 0
    _wait(lambda: home.ask("jobs")["jobs"][0]["status"] == "SUCCEEDED", "the end of its job")
    story.tell(f"its best trained by two workers; their node killed: the next checkpoint after {seconds:.1f} s")

    gates = tmp_path / "gates.json"
    asked = Gates(
        better=BetterGate(),
        seconds=SecondsGate(limit=60, volumes=2),
        lineage=LineageGate(required=("cohort_digest", "recipe_digest", "settings", "weights", "run_id")),
    )
    gates.write_text(asked.model_dump_json())
    promote = ("promote", "--name", NAME, "--gates", gates, "--device", "cpu")
    first = home.ask(*promote, "best", "--why", "the best of the sweep")
    assert (first["promoted"], first["version"]) == (True, "1")
    story.tell("promoted past its gates: the first champion")

    _submit(home, "train", "healthy_atlas", path, "--preset", "tiny", "--name", "atlas", workers=1)
    story.tell("a challenger trained by a job")
    subject = next(one for one in store.subjects() if one.split == "test")
    image = nibabel.Nifti1Image(np.asarray(store.image(subject.subject_id))[0], np.asarray(subject.affine))
    body = image.to_bytes()
    place = ("--home", str(home.home))
    with served(tmp_path / "server", f"models:/{NAME}@champion", *place, environment=home.environment) as server:
        assert server.json("/v1/model")["version"] == "1"
        story.tell("served")
        with Clients(server, body) as clients:
            clients.wait_for("1")
            second = home.ask(*promote, "atlas", code=0)
            assert (second["promoted"], second["champion_version"]) == (True, "1")
            assert second["lower_bound"] > 0
            clients.wait_for("2")
            trial = home.ask(*promote, trials[0]["run"], code=1)
            assert not trial["promoted"]
            back = home.call("promote", "--rollback", "--name", NAME, "--why", "the story wants it")
            assert "INFO" not in back.stderr, "a library's own log"
            clients.wait_for("1")
        assert clients.lost == []
        answers = list(clients.answers)
        story.tell(f"{len(answers)} volumes scored while a challenger won, another was kept back, and a step back")
    scores: dict[str, set[float]] = {said["model"]["version"]: set() for _, said in answers}
    for _, said in answers:
        scores[said["model"]["version"]].add(said["image_score"])
    assert set(scores) == {"1", "2"}
    assert all(len(one) == 1 for one in scores.values()), "a version answers alike, always"

    # Nothing is lost: every decision is on record, every artefact of the runs is with the server.
    registry = _versions(home)
    kinds = [entry["kind"] for entry in registry["decisions"]]
    assert kinds == ["promoted", "promoted", "kept back", "rolled back"]
    assert registry["champion"] == "1"
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{home.ports['mlflow']}")
    for name in ("best", "atlas"):
        tracked = client.get_run(str(RunFolder(home.home / "runs" / name).spec.mlflow_run_id))
        assert tracked.info.status == "FINISHED"
        assert client.list_artifacts(tracked.info.run_id)
    told = client.get_metric_history(str(run.spec.mlflow_run_id), "decoder/loss")
    assert [one.step for one in told] == logged_steps(run), "metrics were lost, or came twice or out of order"
    assert {row["status"] for row in home.ask("jobs")["jobs"]} == {"SUCCEEDED"}

    stopped = home.ask("down")["stopped"]
    assert stopped == ["supervisor", "studies", "ray", "mlflow", "postgres"]
    sessions = Services(ServicesFolder(home.home), ServiceSettings()).session_folder().parent
    left = [words for words in _command_lines() if any(str(home.home) in one or str(sessions) in one for one in words)]
    assert left == []
    story.tell("down, with nothing left running")
    with capsys.disabled():
        print(f"\n{story}")


def _command_lines() -> Iterator[list[str]]:
    """Yield those of all processes but this one; Ray's name the folder of their session, the others the home."""
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid():
            yield process.info["cmdline"] or []
