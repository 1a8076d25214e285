"""Serving from the command line: a Ray runtime of our own or a cluster's, Serve on one address, until told to end."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.infra.services.addresses import is_loopback
from vesalius.infra.services.asking import asked, why_not
from vesalius.platform.cluster import available_cores, joins_another, session
from vesalius.platform.errors import RunError, SettingError
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.infra.serving.settings import ServingSettings
    from vesalius.platform.progress import Progress

_START_SECONDS = 300.0
_READY_SECONDS = 300.0
_ASKING_SECONDS = 10.0
_LOOK_SECONDS = 5.0
_LOST_SECONDS = 120.0
"""A process of the server's that died is started again; that takes less."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers.

    Attributes:
        address: ``http://HOST:PORT``, as it is bound.
        nearby: its address for this machine.
        model: what ``/readyz`` said of the version.
    """

    address: str
    nearby: str
    model: dict[str, Any]


def with_hosts(settings: ServingSettings, host: str, *, allowed: tuple[str, ...]) -> ServingSettings:
    """Return settings with the names that the server may be called by, and nothing without a token where others reach.

    Args:
        settings: as given.
        host: address that is bound.
        allowed: further names.

    Raises:
        SettingError: others can reach the address and there is no token.
    """
    if is_loopback(host):
        return settings.model_copy(update={"hosts": tuple(dict.fromkeys((*_LOOPBACK, host, *allowed)))})
    if settings.without_token or settings.token_sha256 is None:
        raise SettingError(
            f"--host {host} can be reached from other machines, and there is no token: make one with "
            "`openssl rand -hex 32 > token && chmod 600 token` and give it with --token-file token"
        )
    return settings.model_copy(update={"hosts": allowed})


@contextlib.contextmanager
def serving(
    settings: ServingSettings, host: str, port: int, *, cpus: float | None = None, progress: Progress = silent
) -> Iterator[Running]:
    """Serve for the while; at its end what is under way is answered first.

    Args:
        settings: see :func:`with_hosts`.
        host: address to bind.
        port: to bind; 0 takes a free one.
        cpus: for each scorer, in place of the settings'; None takes what there is and shares it out.
        progress: called while it starts.

    Raises:
        SettingError: the port is in use.
        RunError: it did not come up, or the cluster serves something already.
    """
    joined = joins_another()
    if not joined:  # before a runtime is begun for nothing
        port = _usable(host, port)
    cores = available_cores()
    own = cpus or max(1.0, cores // settings.replicas)
    # Ours is a runtime of one application: a core more is for what asks for a share of one.
    with _metrics_collected(), session(max(cores, math.ceil(settings.replicas * own)) + 1):
        from vesalius.infra.serving import deploying

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if joined:
            deploying.refuse_second()
            port = _usable(host, port)
            own = cpus or deploying.scorer_cpus(settings.replicas, settings.gpus)
        settings = settings.model_copy(update={"cpus": own})
        deploying.check_room(settings)
        progress(0, 3, "starting Ray Serve")
        try:
            deploying.start(host, port)
            progress(1, 3, "starting the model's processes")
            deploying.deploy(settings, _START_SECONDS)
            progress(2, 3, "loading the model")
            nearby = _url("127.0.0.1" if host in ("0.0.0.0", "::") else host, port)
            model = _when_ready(nearby)
            progress(3, 3, "ready")
            yield Running(address=_url(host, port), nearby=nearby, model=model)
            deploying.drain(settings.limits.score_seconds)
        finally:
            deploying.take_down()


def until_told(server: Running) -> None:
    """Wait for Ctrl-C or SIGTERM.

    Raises:
        RunError: the server has not answered for minutes.
    """
    ended = threading.Event()
    earlier = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    answered = time.monotonic()
    try:
        while not ended.wait(_LOOK_SECONDS):
            try:
                asked(f"{server.nearby}/healthz", _ASKING_SECONDS)
                answered = time.monotonic()
            except (OSError, ValueError) as error:
                if time.monotonic() - answered > _LOST_SECONDS:
                    raise RunError(
                        f"the server at {server.address} is gone ({why_not(error)}): its application was taken from "
                        "Ray Serve, or the cluster is away; serve the model again"
                    ) from None
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _metrics_collected() -> Iterator[None]:
    """Have a runtime of our own collect metrics, which one that ends with a verb does not: here they are read."""
    if not joins_another():
        for name in ("RAY_enable_metrics_collection", "RAY_event_stats"):
            os.environ.setdefault(name, "1")
    yield


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _usable(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise SettingError(f"{host}:{port} cannot be bound ({said}): give another --host or --port") from None
        return int(probe.getsockname()[1])


def _when_ready(address: str) -> dict[str, Any]:
    """Wait until the model is loaded and return what is said of it.

    Raises:
        RunError: it is not, in time, or cannot be: the message says why.
    """
    deadline = time.monotonic() + _READY_SECONDS
    said = "it does not answer"
    while time.monotonic() < deadline:
        try:
            model: dict[str, Any] = json.loads(asked(f"{address}/readyz", _ASKING_SECONDS))["model"]
            return model
        except (OSError, ValueError) as error:
            said = why_not(error)
        if "(it is being loaded)" not in said and "no model is loaded yet (" in said:
            break
        time.sleep(0.2)
    raise RunError(f"the server did not come up: {said}")
