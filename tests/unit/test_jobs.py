"""Jobs without a cluster: the command, the code that travels, what is compared, what is kept."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.jobs import driver, environment, outcome, records
from vesalius.infra.jobs.command import VERBS, read_command
from vesalius.infra.jobs.records import Attempt, JobBook, JobRecord
from vesalius.infra.jobs.wheel import current_wheel, kept_wheel
from vesalius.platform.errors import JobError, RunError, SettingError, StudyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.store import CohortStore


def _read(words: list[str], home: Path, **options: Any) -> Any:
    return read_command(words, **{"workers": None, "gpus": None, "home": home, **options})


# ---- the command


def test_a_command_is_written_out_complete(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = toy_store.path
    monkeypatch.chdir(where.parent)
    words = ["train", "implicit_field", where.name, "--preset", "tiny", "--set", "method.epochs=3"]
    read = _read(words, tmp_path, workers=2)
    assert read.words[:3] == ("train", "implicit_field", str(where))
    assert {"--preset=tiny", "--set=method.epochs=3", "--workers=2", f"--name={read.run}"} == set(read.words[3:])
    assert read.paths == (str(where),)
    assert read.cpus == 0, "its workers compute, not the verb"
    again = _read(list(read.words), tmp_path)
    assert again.words == read.words, "what is written is read as the same"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what the job runs"),
        (["trian", "x"], "unknown verb for a job 'trian': did you mean 'train'?"),
        (["promote", "x"], "unknown verb for a job 'promote'"),
        (["train", "implicit_feild", "S"], "unknown method 'implicit_feild': did you mean 'implicit_field'?"),
        (["train", "implicit_field", "S", "--set", "method.laten_dim=3"], "did you mean 'method.latent_dim'?"),
        (["train", "implicit_field"], "name a method and a store"),
        (["train", "--resume", "r", "--name", "n"], "leave out --name"),
        (["train", "implicit_field", "S", "--home", "h"], "--home goes before the verb"),
        (["train", "implicit_field", "S", "--json"], "--json goes before the verb"),
        (["train", "implicit_field", "S", "--estimate"], "--estimate creates no run"),
        (["tune", "implicit_field", "S", "--sampler", "tpee"], "unknown sampler 'tpee': did you mean 'tpe'?"),
        (["tune", "implicit_field", "S", "--storage", "postgresql://u:hidden@h/d"], "holds a password"),
        (["tune", "implicit_field", "S", "--space", "x="], "expected KEY=SPACE"),
        (["ingest", "bidz", "R", "S"], "unknown layout 'bidz': did you mean 'bids'?"),
        (["score", "run"], "give either a NIfTI file or --split"),
        (["evaluate", "run", "--split", "tset"], "unknown split 'tset': did you mean 'test'?"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_submitted(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        _read(words, tmp_path)
    assert said in str(error.value)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--resume", "my run"], "'my run' cannot name a run"),
        (["train", "--resume", "../x"], "'../x' cannot name a run"),
        (["train", "implicit_field", "S", "--name", "a/b"], "'a/b' cannot name a run"),
        (["tune", "--resume", "my study"], "'my study' cannot name a study"),
        (["tune", "implicit_field", "S", "--name", "my study"], "'my study' cannot name a study"),
    ],
)
def test_a_name_that_no_job_can_have_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises((RunError, StudyError)) as error:
        _read(words, tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize("words", [["train", "m", "s", "--wrokers", "2"], ["evaluate"], ["tune", "--trials", "many"]])
def test_a_usage_error_reads_as_the_verbs_own(words: list[str], tmp_path: Path) -> None:
    own = CliRunner().invoke(app, words, prog_name="vesalius")
    submitted = CliRunner().invoke(app, ["submit", "--home", str(tmp_path), "--", *words], prog_name="vesalius")
    assert own.exit_code == submitted.exit_code == 2
    assert own.stderr == submitted.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["train", "implicit_field", "S", "--workers", "1"], {"workers": 2}, "--workers is given to submit and"),
        (["evaluate", "r"], {"workers": 2}, "evaluate has no workers"),
        (["ingest", "bids", "R", "S"], {"gpus": 1}, "ingest computes on the CPU"),
        (["train", "implicit_field", "S"], {"gpus": 2}, "--workers 2 --gpus 1"),
        (["train", "implicit_field", "S", "--set", "training.device=cpu"], {"gpus": 1}, "--gpus and training.device"),
        (["evaluate", "r", "--device", "cpu"], {"gpus": 1}, "--gpus and --device"),
    ],
)
def test_workers_and_gpus_are_said_once(words: list[str], options: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        _read(words, tmp_path, **options)
    assert said in str(error.value)


def test_gpus_become_what_each_verb_understands(tmp_path: Path) -> None:
    train = _read(["train", "implicit_field", "S"], tmp_path, gpus=1)
    assert "--set=training.device=cuda" in train.words
    assert (train.cpus, train.gpus) == (0, 0), "Ray Train reserves them for the workers"
    alone = _read(["train", "implicit_field", "S", "--workers", "0"], tmp_path, gpus=1)
    assert (alone.cpus, alone.gpus) == (1, 1)
    assert "--set=training.device=cpu" in _read(["train", "implicit_field", "S"], tmp_path, gpus=0).words
    score = _read(["score", "r", "--split", "test"], tmp_path, gpus=1)
    assert "--device=cuda" in score.words
    assert (score.cpus, score.gpus) == (1, 1)
    actors = _read(["score", "r", "--split", "test"], tmp_path, workers=2, gpus=1)
    assert "--device=cuda" in actors.words
    assert (actors.cpus, actors.gpus) == (0, 0), "its workers would wait for what it holds"
    assert _read(["score", "r", "--split", "test", "--workers", "0"], tmp_path).cpus == 1
    assert _read(["evaluate", "r"], tmp_path).cpus == 1
    tune = _read(["tune", "implicit_field", "S"], tmp_path, gpus=1)
    assert "--gpus=1.0" in tune.words
    assert tune.study is not None


def test_paths_are_looked_for_where_they_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ingest = _read(["ingest", "bids", "raw", "new/store", "--montage", "m.png"], tmp_path)
    assert set(ingest.paths) == {str(tmp_path / "raw"), str(tmp_path / "new"), str(tmp_path)}
    assert str(tmp_path / "new" / "store") in ingest.words
    remote = _read(["train", "implicit_field", "s3://bucket/store"], tmp_path)
    assert remote.paths == ()
    assert "s3://bucket/store" in remote.words


def test_every_verb_for_jobs_is_one() -> None:
    names = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None}
    assert set(VERBS) <= names


# ---- the code that travels


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


def test_the_same_code_is_the_same_wheel(wheels: Path) -> None:
    one, other = current_wheel(wheels), current_wheel(wheels)
    assert one == other
    assert len(list(wheels.iterdir())) == 1
    with zipfile.ZipFile(one.path) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("METADATA"))
        assert b"Requires-Dist" not in archive.read(metadata), "Ray would install torch anew for each job"
    assert "vesalius/infra/jobs/driver.py" in names
    assert "vesalius/infra/pages/templates/page.css" in names
    assert not any("__pycache__" in name for name in names)
    assert "vesalius/__init__.py" not in names


def test_an_installed_wheel_packs_itself_again(wheels: Path, tmp_path: Path) -> None:
    wheel = current_wheel(wheels)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", f"--target={tmp_path}", str(wheel.path)],
        check=True,
        timeout=120,
    )
    code = (
        "import importlib.metadata, pathlib, sys\n"
        "from vesalius.infra.jobs.wheel import current_wheel\n"
        "import vesalius.infra.jobs.wheel as where\n"
        f"assert where.__file__.startswith({str(tmp_path)!r}), where.__file__\n"
        f"print(current_wheel(pathlib.Path({str(tmp_path)!r})).path.name, importlib.metadata.version('vesalius'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    name, version = done.stdout.split()
    assert name == wheel.path.name
    assert f"vesalius-{version}-" in name, "a job knows the code that it runs"


def test_a_wheel_that_was_changed_is_not_taken_again(wheels: Path, tmp_path: Path) -> None:
    wheel = current_wheel(wheels)
    copy = tmp_path / wheel.path.name
    copy.write_bytes(wheel.path.read_bytes())
    assert kept_wheel(tmp_path, copy.name, wheel.sha256) is not None
    copy.write_bytes(b"other")
    assert kept_wheel(tmp_path, copy.name, wheel.sha256) is None
    assert kept_wheel(tmp_path, "gone.whl", wheel.sha256) is None


# ---- what is compared


def _here() -> environment.Report:
    import platform

    names = environment._names()
    packages: dict[str, str | None] = {name: importlib.metadata.version(name) for name in names}
    return environment.Report(python=platform.python_version(), packages=packages)


def test_a_cluster_like_this_one_is_fine() -> None:
    known = environment.check_versions(_here(), "http://c")
    assert known["ray"] == importlib.metadata.version("ray")
    without = _here().packages | {"vesalius": None}
    environment.check_versions(_here().model_copy(update={"packages": without}), "http://c")


@pytest.mark.parametrize(
    ("name", "there"),
    [("ray", "2.59.0"), ("torch", "2.12.0"), ("torch", None), ("vesalius", "0.0.9"), ("zarr", "3.0.0"), ("zarr", None)],
)
def test_another_version_is_refused_with_both_named(name: str, there: str | None) -> None:
    found = _here()
    found = found.model_copy(update={"packages": {**found.packages, name: there}})
    here = importlib.metadata.version(name)
    with pytest.raises(JobError) as error:
        environment.check_versions(found, "http://c")
    assert f"{name} is {there or 'not installed'} there and {here} here" in str(error.value)
    assert "nothing was submitted" in str(error.value)


def test_another_python_is_refused_and_another_patch_is_not() -> None:
    with pytest.raises(JobError, match=r"Python is 3\.9\.1 there and 3\."):
        environment.check_versions(_here().model_copy(update={"python": "3.9.1"}), "http://c")
    patched = f"{sys.version_info.major}.{sys.version_info.minor}.99"
    environment.check_versions(_here().model_copy(update={"python": patched}), "http://c")


def test_the_same_torch_for_another_device_is_the_same() -> None:
    found = _here()
    packages = {**found.packages, "torch": f"{importlib.metadata.version('torch').partition('+')[0]}+cu128"}
    environment.check_versions(found.model_copy(update={"packages": packages}), "http://c")


def test_another_ray_is_refused() -> None:
    with pytest.raises(JobError, match=r"runs Ray 2\.9\.0 and this is Ray 2\."):
        environment.check_ray("2.9.0", "http://c")


@dataclass
class _Probed:
    """A cluster that runs its probe in this machine's shell."""

    address: str = "http://c"
    session: str = "one"
    asked: int = 0

    def run_briefly(self, entrypoint: str, seconds: float) -> str:
        self.asked += 1
        script = entrypoint.replace("python -c", f"{sys.executable} -c", 1)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=seconds)
        return f"Running entrypoint ...\n{done.stdout}"


def test_what_a_cluster_says_is_asked_once_a_session(tmp_path: Path) -> None:
    cluster: Any = _Probed()
    there, not_there = str(tmp_path), str(tmp_path / "no")
    found = environment.report(cluster, tmp_path, [there], home=tmp_path)
    assert found.sees_home
    assert found.paths == {there: True}
    assert found.packages["torch"] == importlib.metadata.version("torch")
    assert not list(tmp_path.glob("*.proof"))
    environment.report(cluster, tmp_path, [there], home=tmp_path)
    assert cluster.asked == 1
    assert not environment.report(cluster, tmp_path, [not_there], home=tmp_path).paths[not_there]
    environment.report(cluster, tmp_path, [not_there], home=tmp_path)
    assert cluster.asked == 3, "what was not there may have come"
    cluster.session = "two"
    environment.report(cluster, tmp_path, [there], home=tmp_path)
    assert cluster.asked == 4


def test_two_that_ask_at_once_are_both_answered(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    class Slow(_Probed):
        def run_briefly(self, entrypoint: str, seconds: float) -> str:
            barrier.wait(30)  # both have written their proofs
            said = super().run_briefly(entrypoint, seconds)
            barrier.wait(30)  # and neither has taken its own away
            return said

    found: list[bool] = []

    def ask() -> None:
        cluster: Any = Slow()
        found.append(environment.report(cluster, tmp_path, [], home=tmp_path).sees_home)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [True, True]


def test_a_home_that_was_not_seen_is_asked_about_again(tmp_path: Path) -> None:
    cluster: Any = _Probed()
    real = cluster.run_briefly
    cluster.run_briefly = lambda entrypoint, seconds: real(entrypoint.replace(".proof", ".other"), seconds)
    assert not environment.report(cluster, tmp_path, [], home=tmp_path).sees_home
    cluster.run_briefly = real
    assert environment.report(cluster, tmp_path, [], home=tmp_path).sees_home
    assert cluster.asked == 2


# ---- what is kept


def _record(**changes: Any) -> JobRecord:
    attempt = Attempt(submission="s-1", session="one", wheel="w.whl", wheel_sha256="0", submitted="2026-01-01")
    plain: dict[str, Any] = {
        "job": "brain",
        "command": ("train", "m", "s"),
        "address": "http://c",
        "home": "/h",
        "environment": {},
        "packages": {},
        "attempts": (attempt,),
    }
    return JobRecord.model_validate({**plain, **changes})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    book = JobBook(tmp_path)
    book.make()
    book.write(_record())
    assert book.read("brain") == _record()
    assert book.names() == ["brain"]
    with pytest.raises(JobError, match=r"there is no job 'brian'.*did you mean 'brain'\?"):
        book.read("brian")
    for name in ("../brain", "", "a/b"):
        with pytest.raises(JobError, match="there is no job"):
            book.read(name)
    (book.path / "brain.json").write_text("{")
    with pytest.raises(JobError, match="is damaged"):
        book.read("brain")


def _details(status: str, code: int | None = None, message: str = "") -> Any:
    return SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=code, message=message)


def test_what_a_cluster_says_is_kept() -> None:
    assert records.settle(_record(), {"s-1": _details("RUNNING", message="is running")}).last.message == ""
    failed = records.settle(_record(), {"s-1": _details("FAILED", 2, "long log")}).last
    assert (failed.status, failed.exit_code, failed.message) == ("FAILED", 2, "")
    died = records.settle(_record(), {"s-1": _details("FAILED", None, "node  died\n")}).last
    assert (died.status, died.message) == ("FAILED", "node died")
    assert records.settle(_record(), {}).last.status == "LOST"
    assert records.settle(_record(), None).last.status == "UNKNOWN"
    ended = _record().changed(status="SUCCEEDED", exit_code=0)
    assert records.settle(ended, {}) == ended, "a restarted cluster takes nothing back"


def test_a_job_is_gone_on_with_where_there_is_something_to(tmp_path: Path) -> None:
    command = ["train", "m", "s", "--name=r"]
    assert driver.resumed(command, tmp_path, run="r", study=None) == command
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "run.json").write_text("{}")
    assert driver.resumed(command, tmp_path, run="r", study=None) == ["train", "--resume", "r"]
    (tmp_path / "studies" / "t").mkdir(parents=True)
    (tmp_path / "studies" / "t" / "study.json").write_text("{}")
    tune = ["tune", "m", "s", "--budget=2h", "--name=t"]
    assert driver.resumed(tune, tmp_path, run=None, study="t") == ["tune", "--resume", "t", "--budget=2h"]


def test_the_outcome_is_for_programs_and_the_log_for_people() -> None:
    shown: list[str] = []
    write = outcome._without_outcome(shown.append)
    for part in ("one\ntw", "o\n" + driver.OUTCOME[:5], driver.OUTCOME[5:] + json.dumps({"exit_code": 0}) + "\n"):
        write(part)
    assert "".join(shown) == "one\ntwo\n"


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("FAILED", 2, 2), ("SUCCEEDED", 0, 0), ("STOPPED", None, 130), ("FAILED", None, 1)]
)
def test_whoever_waits_ends_with_the_jobs_code(status: str, code: int | None, expected: int) -> None:
    assert outcome.exit_code({"status": status, "exit_code": code}) == expected


def test_a_password_of_the_tracking_store_does_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.infra.jobs import submission

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@lab:5000")
    travelling = submission._travelling()
    assert "hidden" not in json.dumps(travelling)
    monkeypatch.setenv(submission.TRACKED_AT, travelling[submission.TRACKED_AT])
    assert driver._untracked() is None, "the cluster's environment has it"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    said = driver._untracked()
    assert said is not None
    assert "set MLFLOW_TRACKING_URI" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    assert submission._travelling() == {"MLFLOW_TRACKING_URI": "off"}


def test_without_a_cluster_there_is_a_way_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.infra.jobs import submission

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(JobError, match="`vesalius up` starts one on this machine"):
        submission.reach(None, tmp_path)
    for address in ("127.0.0.1:8265", "http://me:hidden@h:1", "auto", "ray://h:10001"):
        with pytest.raises(JobError, match="names no Jobs API") as error:
            submission.reach(address, tmp_path)
        assert "hidden" not in str(error.value)
    with pytest.raises(JobError, match=r"no Ray cluster takes jobs at http://127\.0\.0\.1:9"):
        submission.reach("http://127.0.0.1:9", tmp_path)


@contextlib.contextmanager
def _dashboard(code: int, body: bytes, jobs: bytes = b"[]") -> Iterator[tuple[str, list[str | None]]]:
    """Answer as a dashboard would; yields the address and, as they come, the tokens that were sent."""
    tokens: list[str | None] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            said = jobs if self.path == "/api/jobs/" else body
            self.send_response(code)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", tokens
        finally:
            server.shutdown()


_VERSION = json.dumps({"ray_version": importlib.metadata.version("ray"), "session_name": "one"}).encode()


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (401, b"Unauthorized: Missing authentication token", "lets nobody in without its token: set RAY_AUTH_MODE"),
        (403, b"Forbidden: Invalid token", "lets nobody in without its token: set RAY_AUTH_MODE"),
        (200, b'{"status": "ok"}', "does not answer as a Ray dashboard does"),
        (200, b'{"ray_version": "recent"}', "does not answer as a Ray dashboard does"),
    ],
)
def test_a_dashboard_that_does_not_let_one_in_is_a_sentence(code: int, body: bytes, said: str) -> None:
    from vesalius.infra.jobs.cluster import Cluster

    with _dashboard(code, body) as (address, _), pytest.raises(JobError, match=said):
        Cluster(address)


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_the_address_that_was_given_is_the_one_that_is_asked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.infra.jobs.cluster import Cluster

    with _dashboard(200, _VERSION) as (address, asked), _dashboard(200, _VERSION) as (other, others):
        monkeypatch.setenv(variable, other)
        assert Cluster(address, headers={"Authorization": "Bearer ours"}).jobs() == {}
        assert os.environ[variable] == other
    assert set(asked) == {"Bearer ours"}
    assert others == []


def test_who_only_tracks_sends_no_token_to_other_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    from vesalius.infra import services
    from vesalius.infra.jobs import submission
    from vesalius.infra.services import ports
    from vesalius.infra.services.state import Running, ServiceSettings, ServicesFolder, ServicesState, this_boot

    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = ServicesFolder(tmp_path)
    folder.make()
    one = Running(pid=os.getpid(), created=psutil.Process().create_time(), mark="", url="", since="")
    settings = ServiceSettings(ports=dict(ports.PORTS))
    folder.write(ServicesState(settings=settings, boot=this_boot(), running={"mlflow": one, "ray": one}))
    services.join_tracking(tmp_path)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    running = json.dumps([{"type": "SUBMISSION", "submission_id": "s-1", "status": "RUNNING", "entrypoint": "x"}])
    with _dashboard(200, _VERSION, running.encode()) as (address, tokens):
        book = JobBook(tmp_path)
        book.make()
        book.write(_record(address=address))
        (found,), silent = submission.refresh(tmp_path)
    assert (found.last.status, silent) == ("RUNNING", [])
    assert set(tokens) == {None}


def test_jobs_of_a_home_without_any(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["jobs", "--home", str(tmp_path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"jobs": []}
    for verb in ("logs", "stop", "retry"):
        done = CliRunner().invoke(app, [verb, "nothing", "--home", str(tmp_path)])
        assert done.exit_code == 2
        assert "there is no job 'nothing'" in done.stderr
