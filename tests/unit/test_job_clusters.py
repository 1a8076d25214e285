"""What answers, or does not, where a cluster is to take jobs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import requests

from vesalius.infra import services
from vesalius.infra.jobs import cluster as clusters
from vesalius.infra.jobs import submission
from vesalius.infra.jobs.cluster import Cluster
from vesalius.infra.jobs.records import Attempt, JobBook, JobRecord
from vesalius.infra.services import ports
from vesalius.infra.services.kinds import Services
from vesalius.infra.services.state import Running, ServiceSettings, ServicesFolder, ServicesState, this_boot
from vesalius.platform.cluster import session
from vesalius.platform.errors import ClusterGoneError, JobError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _write_job(home: Path, address: str) -> None:
    book = JobBook(home)
    book.make()
    attempt = Attempt(submission="s-1", wheel="w.whl", wheel_sha256="0", submitted="2026-01-01")
    words = ("train", "m", "s")
    record = JobRecord(
        job="brain", command=words, address=address, home="/h", environment={}, packages={}, attempts=(attempt,)
    )
    book.write(record)


_VERSION = json.dumps({"ray_version": importlib.metadata.version("ray"), "session_name": "one"}).encode()


@contextlib.contextmanager
def _dashboard(
    code: int, body: bytes, jobs: bytes = b"[]", *, length: int | None = None
) -> Iterator[tuple[str, list[str | None]]]:
    """Answer as a dashboard would; yields the address and, as they come, the tokens that were sent.

    Where a ``length`` is given, that many bytes of jobs are announced, and what is missing never comes.
    """
    tokens: list[str | None] = []
    done = threading.Event()

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            said = jobs if self.path == "/api/jobs/" else body
            self.send_response(code)
            stalls = length is not None and said is jobs
            self.send_header("Content-Length", str(length if stalls else len(said)))
            self.end_headers()
            self.wfile.write(said)
            if stalls:
                self.wfile.flush()
                done.wait(30)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", tokens
        finally:
            done.set()
            server.shutdown()


def test_a_head_that_is_stopped_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_LOOK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # it takes connections, as the system does for it
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        _write_job(tmp_path, address)
        looked: list[Any] = []
        thread = threading.Thread(target=lambda: looked.append(submission.refresh(tmp_path)), daemon=True)
        thread.start()
        thread.join(30)
    assert looked, "the look has not ended"
    (found,), silent = looked[0]
    assert found.last.status == "UNKNOWN"
    assert silent == [f"the cluster at {address} has sent no answer for 0 s: is its head node well?"]


def test_an_answer_that_stops_half_way_is_not_waited_for_without_end() -> None:
    with _dashboard(200, _VERSION, b"[", length=10) as (address, _):
        cluster = Cluster(address, seconds=0.3)
        with pytest.raises(JobError, match="has sent no answer for 0 s"):
            cluster.jobs()


def test_a_wheel_may_take_longer_to_be_sent_than_an_answer_to_come() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for seconds in (0.0, 0.0, 2.5):  # Ray's client asks for the version twice
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as asked:
                    time.sleep(seconds)
                    lines = iter(asked.readline, b"\r\n")
                    length = sum(int(line.split()[1]) for line in lines if line.lower().startswith(b"content-length"))
                    asked.read(length)
                    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_VERSION) + _VERSION)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        client = clusters._client(f"http://127.0.0.1:{listening.getsockname()[1]}", None, 1.0)
        assert client._do_request("PUT", "/api/packages/gcs/x.whl", data=bytes(64 * 2**20)).status_code == 200
        thread.join(30)


def test_a_wheel_that_is_no_longer_taken_is_no_sign_that_the_cluster_is_gone() -> None:
    with _dashboard(200, _VERSION) as (address, _):
        cluster = Cluster(address)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # it takes the connection and reads nothing
        place = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(JobError, match="takes no more of what it is sent") as error, cluster._answering():
            requests.put(place, data=bytes(64 * 2**20), timeout=0.3)
    assert not isinstance(error.value, ClusterGoneError)


def test_a_quiet_log_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet:
        async def tail_job_logs(self, submission: str) -> Any:
            yield "one line"
            await asyncio.sleep(60)
            yield "another"

    monkeypatch.setattr(clusters, "_QUIET_SECONDS", 0.1)
    assert list(clusters._tail(Quiet(), "s-1")) == ["one line"]


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (401, b"Unauthorized: Missing authentication token", "lets nobody in without its token: set RAY_AUTH_MODE"),
        (403, b"Forbidden: Invalid token", "lets nobody in without its token: set RAY_AUTH_MODE"),
        (200, b'{"status": "ok"}', "does not answer as a Ray dashboard does"),
        (200, b'{"ray_version": "recent"}', "does not answer as a Ray dashboard does"),
        (200, b"<html>", r"does not answer as a Ray dashboard does \(what it sends is no JSON\): name one"),
        (503, b"{}", r"no Ray cluster takes jobs at .* \(it answers 503\)"),
    ],
)
def test_a_dashboard_that_does_not_let_one_in_is_a_sentence(code: int, body: bytes, said: str) -> None:
    with _dashboard(code, body) as (address, _), pytest.raises(JobError, match=said) as error:
        Cluster(address)
    assert not isinstance(error.value, ClusterGoneError), "something is there, and may have jobs"


@pytest.mark.parametrize(("listens", "said"), [(False, "nothing answers"), (True, "it closed the connection")])
def test_a_cluster_that_is_not_there_is_told_from_one_that_does_not_answer(listens: bool, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def close() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.recv(4096)  # as a tunnel does whose other end is gone
                connection.close()

        if listens:
            threading.Thread(target=close, daemon=True).start()
        else:
            listening.close()
        with pytest.raises(ClusterGoneError, match=said):
            Cluster(address, seconds=20)


def test_a_job_whose_name_has_the_number_is_not_taken_for_unknown() -> None:
    with _dashboard(200, _VERSION) as (address, _):
        cluster = Cluster(address)
    said = {"brain-a404": "code 500: job brain-a404 cannot be read", "gone": "code 404: no job gone"}

    def get_job_info(submission: str) -> None:
        raise RuntimeError(f"Request failed with status {said[submission]}")

    cluster._client.get_job_info = get_job_info
    assert cluster.job("gone") is None
    with pytest.raises(JobError, match="brain-a404 cannot be read"):
        cluster.job("brain-a404")


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_the_address_that_was_given_is_the_one_that_is_asked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _dashboard(200, _VERSION) as (address, asked), _dashboard(200, _VERSION) as (other, others):
        monkeypatch.setenv(variable, other)
        assert Cluster(address, headers={"Authorization": "Bearer ours"}).jobs() == {}
        assert os.environ[variable] == other
    assert set(asked) == {"Bearer ours"}
    assert others == []


@pytest.fixture
def home_with_services(tmp_path: Path, no_access: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home whose services live, as far as their processes go."""
    for name in ("RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = ServicesFolder(tmp_path)
    folder.make()
    one = Running(pid=os.getpid(), created=psutil.Process().create_time(), mark="", url="", since="")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = ServiceSettings(ports={**ports.PORTS, "ray_dashboard": listening.getsockname()[1]})
    running = {"postgres": one, "mlflow": one, "ray": one}
    folder.write(ServicesState(settings=settings, boot=this_boot(), running=running))
    monkeypatch.setattr(Services, "problem", lambda services, name: None)
    return tmp_path


def test_a_head_without_its_dashboard_is_not_gone(home_with_services: Path) -> None:
    with pytest.raises(JobError, match="nothing answers") as error:
        submission.reach(None, home_with_services)
    assert not isinstance(error.value, ClusterGoneError), "its jobs go on"


def test_who_only_tracks_sends_no_token_to_other_clusters(home_with_services: Path) -> None:
    services.join_tracking(home_with_services)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    known = json.dumps([{"type": "SUBMISSION", "submission_id": "s-1", "status": "RUNNING", "entrypoint": "x"}])
    with _dashboard(200, _VERSION, known.encode()) as (address, tokens):
        _write_job(home_with_services, address)
        (found,), silent = submission.refresh(home_with_services)
    assert (found.last.status, silent) == ("RUNNING", [])
    assert set(tokens) == {None}


def test_the_token_of_a_runtime_that_has_ended_is_sent_to_no_cluster(no_access: pytest.MonkeyPatch) -> None:
    from ray._private.authentication import authentication_token_setup

    no_access.setattr("ray.is_initialized", lambda: False)
    no_access.setattr("ray.init", lambda **_: authentication_token_setup.enable_token_auth_by_default())
    no_access.setattr("ray.shutdown", lambda: None)
    with session():
        own = f"Bearer {os.environ['RAY_AUTH_TOKEN']}"
        with _dashboard(200, _VERSION) as (address, tokens):
            Cluster(address)
        assert set(tokens) == {own}, "the runtime that lives is guarded by it"
    with _dashboard(200, _VERSION) as (address, tokens):
        Cluster(address)
    assert set(tokens) == {None}
