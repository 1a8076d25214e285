"""A head that keeps what it knows in Redis: the address, whether it answers, what the head is told."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.services import lifecycle, ports, redis
from vesalius.infra.services.kinds import Services
from vesalius.infra.services.state import ServiceSettings, ServicesFolder
from vesalius.platform.errors import ServiceError, SettingError
from vesalius.platform.testing.training_runs import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> ServicesFolder:
    made = ServicesFolder(tmp_path)
    made.make()
    return made


@pytest.fixture
def answering() -> Iterator[Any]:
    """Return a function that starts a server, which answers a PING with some bytes, and returns its address."""
    with contextlib.ExitStack() as stack:

        def answer(said: bytes) -> str:
            class Handler(socketserver.BaseRequestHandler):
                def handle(self) -> None:
                    if self.request.recv(100) == b"PING\r\n":
                        self.request.sendall(said)

            server = stack.enter_context(socketserver.TCPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"127.0.0.1:{server.server_address[1]}"

        yield answer


def test_the_head_is_told_of_redis_and_nobody_else(folder: ServicesFolder) -> None:
    settings = ServiceSettings(redis="lab:6380", ports=dict(ports.PORTS), database="postgresql+psycopg://u@h/d")
    remembered = {"RAY_REDIS_ADDRESS", "RAY_external_storage_namespace", "RAY_gcs_rpc_server_reconnect_timeout_s"}
    told = Services(folder, settings)
    assert remembered <= set(told.plan("ray").environment)
    assert told.plan("ray").environment["RAY_REDIS_ADDRESS"] == "lab:6380"
    assert not remembered & set(told.plan("mlflow").environment)
    alone = Services(folder, settings.model_copy(update={"redis": None}))
    assert not remembered & set(alone.plan("ray").environment)
    other = ServicesFolder(folder.home / "other")
    other.make()
    name = "RAY_external_storage_namespace"
    assert told.plan("ray").environment[name] != Services(other, settings).plan("ray").environment[name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lab", "expected HOST:PORT of a Redis"),
        ("lab:70000", "expected HOST:PORT of a Redis"),
        ("redis://lab:6379", "expected HOST:PORT of a Redis"),
        ("lab:6379,lab:6380", "expected HOST:PORT of a Redis"),
        ("redis://:hidden@lab:6379", "has a password, and Ray hands a password to its gcs_server among the arguments"),
        (":hidden@lab:6379", "has a password, and Ray hands a password to its gcs_server among the arguments"),
    ],
)
def test_what_is_no_address_of_a_redis_is_refused(folder: ServicesFolder, given: str, said: str) -> None:
    with pytest.raises(SettingError) as error:
        lifecycle.up(folder.home, {"redis": given}, {})
    assert said in str(error.value)
    assert "hidden" not in str(error.value)
    assert folder.read() is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"-NOAUTH Authentication required.\r\n", r"asks for a password, and Ray hands a password"),
        (b"HTTP/1.1 400 Bad Request\r\n", r"no Redis answers a PING at 127.* \(HTTP/1.1 400 Bad Request\)"),
        (None, r"no Redis answers a PING at 127.* \(Connection refused\)"),
    ],
)
def test_a_redis_that_does_not_answer_is_told_before_anything_starts(
    folder: ServicesFolder, answering: Any, answer: bytes | None, said: str
) -> None:
    address = f"127.0.0.1:{free_port()}" if answer is None else answering(answer)
    with pytest.raises(ServiceError, match=said):
        lifecycle.up(folder.home, {"redis": address}, {})
    assert folder.read() is None


def test_a_redis_that_answers_is_one(answering: Any) -> None:
    address = answering(b"+PONG\r\n")
    assert redis.read_address(address) == address
    redis.check(address)
    assert redis.read_address("off") is None
