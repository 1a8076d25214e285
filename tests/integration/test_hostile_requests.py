"""Hundreds of requests and uploads that mean harm, each distinct: all answered in words, the server alive and right."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from vesalius.infra.serving.testing.hostile_archives import hostile_archives
from vesalius.infra.serving.testing.hostile_requests import hostile_requests, raw
from vesalius.infra.serving.testing.hostile_volumes import good, hostile_volumes
from vesalius.infra.serving.testing.server import AFFINE, head, make_model, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.infra.serving.testing.server import Served

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

MOST_GROWTH_BYTES = 500 << 20
MOST_SECONDS = 20.0
TOKEN = "a-token-of-tests-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hostile")
    model = make_model(folder / "model")
    limits = ("--max-upload-mb", "8", "--max-voxels", "2000000", "--upload-timeout", "2", "--queue", "8")
    with served(folder / "server", str(model), *limits) as running:
        yield running


def exchange(port: int, request: bytes, *, seconds: float = MOST_SECONDS) -> tuple[int, str]:
    """Send bytes over a line of their own and return status and body of what comes back, before the line is closed."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        line.settimeout(seconds)
        sender = threading.Thread(target=_send, args=(line, request), daemon=True)
        sender.start()
        try:
            while chunk := line.recv(65536):
                answer += chunk
                if _is_whole(answer):
                    break
        except ConnectionError:
            pass
        sender.join(seconds)
    start, _, body = answer.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.[01] (\d{3})", start)
    return (int(found[1]) if found else 0), body.decode("utf-8", "replace")


def _send(line: socket.socket, request: bytes) -> None:
    with contextlib.suppress(OSError):  # it was refused before its end
        line.sendall(request)


def _is_whole(answer: bytes) -> bool:
    start, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", start.lower())
    return bool(found) and length is not None and len(body) >= int(length[1])


def memory(server: Served) -> int:
    """Return the bytes that the processes of the server hold for themselves."""
    total = 0
    for process in server.processes():
        try:
            memory = psutil.Process(process).memory_info()
        except psutil.NoSuchProcess:
            continue
        total += memory.rss - memory.shared
    return total


def uploads(server: Served) -> list[Path]:
    """Return what lies in the server's folder of uploads."""
    return list(server.scratch.glob("vesalius-serving-*/server-*/uploads/*"))


def answer_of(server: Served) -> dict[str, object]:
    answer = server.json("/v1/score", good(head(0), AFFINE))
    return {key: answer[key] for key in ("image_score", "highest", "anomalous_ml", "model")}


class Watch(threading.Thread):
    """Sees the most memory that the server ever holds."""

    def __init__(self, server: Served) -> None:
        super().__init__(daemon=True)
        self.server, self.most, self.ended = server, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            with contextlib.suppress(psutil.Error):  # a process that ends while it is looked at
                self.most = max(self.most, memory(self.server))


def test_every_hostile_request_is_answered_in_words(server: Served) -> None:
    before, begun = answer_of(server), memory(server)
    cases: list[tuple[str, bytes]] = []
    host = f"127.0.0.1:{server.port}"
    for name, sent in (*hostile_volumes(head(0), AFFINE), *hostile_archives()):
        length = f"Content-Length: {len(sent)}"
        cases.append((name, raw("POST /v1/score HTTP/1.1", length, body=sent, host=host)))
    cases += hostile_requests(good(head(0), AFFINE), server.port)
    assert len({request for _, request in cases}) == len(cases) >= 200
    watch = Watch(server)
    watch.start()
    wrong = []
    slowest = (0.0, "")
    for name, request in cases:
        start = time.monotonic()
        try:
            status, body = exchange(server.port, request)
        except TimeoutError:
            status, body = -1, "no answer"
        slowest = max(slowest, (time.monotonic() - start, name))
        in_words = len(body.split()) >= 2 or (name.startswith("a websocket") and status == 403)
        hidden = "Traceback" not in body and "/uploads/" not in body and str(server.scratch) not in body
        if not (400 <= status < 500 and in_words and hidden):
            wrong.append((name, status, body[:300]))
        elif body.startswith("{"):
            assert set(json.loads(body)) == {"error"}, (name, body)
    watch.ended.set()
    watch.join()
    print(f"{len(cases)} requests; slowest {slowest}; memory grew by {(watch.most - begun) >> 20} MB at most")
    assert not wrong, "\n".join(map(str, wrong))
    assert answer_of(server) == before
    assert server.process.poll() is None
    assert uploads(server) == []
    assert watch.most - begun < MOST_GROWTH_BYTES
    assert "Traceback" not in server.log.read_text()
