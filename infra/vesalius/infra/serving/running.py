"""Serving from the command line: a Ray runtime of our own or a cluster's, Serve on one address, until told to end."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.cluster import available_cores, joins_another, session
from vesalius.platform.errors import RunError, SettingError
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.infra.serving.settings import ServingSettings
    from vesalius.platform.progress import Progress

NAME = "vesalius"
_READY_SECONDS = 300.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers.

    Attributes:
        address: ``http://HOST:PORT``.
        model: what ``/readyz`` said of the version.
    """

    address: str
    model: dict[str, Any]


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
def serving(settings: ServingSettings, host: str, port: int, *, progress: Progress = silent) -> Iterator[Running]:
    """Serve for the while.

    Args:
        settings: see :func:`with_hosts`.
        host: address to bind.
        port: to bind; 0 takes a free one.
        progress: called while it starts.

    Raises:
        SettingError: the port is in use.
        RunError: it did not come up.
    """
    port = _usable(host, port)
    cores = available_cores()
    # Ours is a runtime of one application: its cores are counted, and Serve's own actors ask for none.
    with _metrics_collected(), session(max(cores, int(settings.replicas * max(1.0, settings.cpus)) + 1)):
        from ray import serve

        from vesalius.infra.serving.application import build

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        progress(0, 3, "starting Ray Serve")
        options = {"host": host, "port": port, "keep_alive_timeout_s": 30}
        serve.start(http_options=options, logging_config={"log_level": "WARNING", "enable_access_log": False})
        try:
            progress(1, 3, "starting the model's processes")
            serve.run(
                build(settings.model_dump(mode="json")),
                name=NAME,
                route_prefix="/",
                blocking=False,
            )
            progress(2, 3, "loading the model")
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
            model = _when_ready(address)
            progress(3, 3, "ready")
            bound = f"[{host}]" if ":" in host else host
            yield Running(address=f"http://{bound}:{port}", model=model)
        finally:
            serve.shutdown()


def until_told() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    told = threading.Event()
    earlier = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not told.wait(1.0):
            pass
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
            with urllib.request.urlopen(f"{address}/readyz", timeout=10) as answer:
                model: dict[str, Any] = json.load(answer)["model"]
                return model
        except urllib.error.HTTPError as error:
            said = _sentence(error)
        except (OSError, ValueError) as error:
            said = str(error)
        if "(it is being loaded)" not in said and "no model is loaded yet (" in said:
            break
        time.sleep(0.2)
    raise RunError(f"the server did not come up: {said}")


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"it answers {error.code}"
