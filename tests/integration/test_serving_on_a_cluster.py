"""A server where a cluster or a network is there already: it finds room, stands alone, and ends without a loss."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from vesalius.infra.serving.testing.hostile_requests import raw
from vesalius.infra.serving.testing.in_process import BODY
from vesalius.infra.serving.testing.server import make_model, served
from vesalius.platform.cluster import session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own

TOKEN = "a-token-of-tests-0123456789"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Hold a head of one core, as a small machine's services have it; yields its address."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    try:
        yield made.address
    finally:
        made.shutdown()


def test_it_finds_room_beside_nothing_stands_alone_and_answers_what_is_under_way_before_it_ends(
    cluster: str, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with served(tmp_path / "server", str(model), environment=environment) as server:
        expected = server.json("/v1/score", BODY)["image_score"]

        program = [sys.executable, "-c", "from vesalius.infra.cli import main; main()", "serve", str(model)]
        second = [*program, "--port", "0", "--json", "--home", str(tmp_path / "home"), "--device", "cpu"]
        done = subprocess.run(second, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        message = json.loads(done.stdout)["error"]["message"]
        assert message.startswith("Ray Serve runs on this cluster already, with 'vesalius'"), message
        assert server.json("/v1/score", BODY)["image_score"] == expected

        size = f"Content-Length: {len(BODY)}"
        with socket.create_connection(("127.0.0.1", server.port), timeout=120) as line:
            line.sendall(raw("POST /v1/score HTTP/1.1", size, body=BODY[:100], host=f"127.0.0.1:{server.port}"))
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 10
            while server.tried("/readyz")[0] != 503:
                assert time.monotonic() < deadline, "it goes on taking requests in"
                time.sleep(0.1)
            status, said = server.tried("/v1/score", BODY)
            assert (status, "is ending" in said["error"]) == (503, True)
            assert server.process.poll() is None
            line.sendall(BODY[100:])
            answer = b""
            while chunk := line.recv(65536):
                answer += chunk
        start, _, document = answer.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 200"), answer
        assert json.loads(document)["image_score"] == expected
        assert server.process.wait(120) == 0
    from ray import serve

    with session():
        left = serve.status()
    assert (left.applications, left.proxies) == ({}, {})


def test_others_reach_it_by_its_name_and_with_its_token(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    nobody = "http://127.0.0.1:9"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"http_proxy": nobody, "HTTP_PROXY": nobody, "VESALIUS_SERVE_TOKEN": TOKEN}
    options = ("--host", "0.0.0.0", "--token-file", str(token), "--allowed-host", "brain.example.org")
    with served(tmp_path / "server", str(model), *options, environment=environment) as server:
        assert server.address == f"http://0.0.0.0:{server.port}"
        bearing = {"Authorization": f"Bearer {TOKEN}"}
        assert server.ask("/v1/model", Host="brain.example.org", **bearing)[0] == 200
        assert server.ask("/v1/model", Host="brain.example.org")[0] == 401
        assert server.ask("/v1/model", Host="10.0.0.7", **bearing)[0] == 421
        assert server.ask("/readyz", Host="10.0.0.7")[0] == 200
        import psutil

        below = [psutil.Process(process).environ() for process in server.processes()[1:]]
        assert below
        assert not any(TOKEN in value for variables in below for value in variables.values())
