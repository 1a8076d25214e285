"""Ports: those that services like, those that are free, and who holds one that is not."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from typing import TYPE_CHECKING

from vesalius.platform.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

PORTS: Mapping[str, int] = {
    "postgres": 5433,
    "mlflow": 5000,
    "ray": 6379,
    "ray_dashboard": 8265,
    "ray_agent": 8275,
    "ray_metrics": 8090,
    "ray_client": 10001,
    "studies": 8080,
}
"""Names and defaults. ``ray`` is the cluster's own (GCS), which Ray opens on every interface."""

_NOBODY_KNOWS = ("ray_agent", "ray_client")
"""Ports that no run, study, job or person has written down: they may be others the next time."""

WORKERS = range(10002, 20000)
"""Ports of Ray's workers: the head refuses to start where one of its own lies among them."""

_TRIES = 200
_CLOSING_SECONDS = 10.0
_BIND_EVERYWHERE = ("ray", "ray_agent", "ray_metrics", "ray_client")


def choose_ports(
    asked: Mapping[str, int], kept: Mapping[str, int], host: str, *, held: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return a port for every name: the one asked for, the one it had before, or the first that is free.

    Args:
        asked: by name, those that were asked for.
        kept: those that services of this home had: runs and studies know them by these.
        host: that services listen at.
        held: by name, those of services that run already: they are left out of the answer and given to nobody else.

    Raises:
        ServiceError: one that was asked for or had before is taken; says by whom where the system tells.
    """
    chosen: dict[str, int] = {}
    held = held or {}
    for name, default in PORTS.items():
        if name in held:
            continue
        wanted = asked.get(name, kept.get(name))
        if name not in asked and name in _NOBODY_KNOWS and wanted is not None and not is_free(wanted, "0.0.0.0"):
            wanted = None
        where = _interface(name, host)
        if wanted is None:
            chosen[name] = _first_free(
                default, where, {*chosen.values(), *asked.values(), *kept.values(), *held.values()}
            )
            continue
        flag = f"--{name.replace('_', '-')}-port"
        if wanted in WORKERS and name.startswith("ray"):
            raise ServiceError(
                f"port {wanted} ({flag}) lies among those of Ray's workers: give one outside 10002-19999"
            )
        if wanted in (*chosen.values(), *held.values()):
            raise ServiceError(f"port {wanted} is given to two services: give each one of its own")
        if not (is_free(wanted, where) or (name not in asked and _becomes_free(wanted, where))):
            why = "" if name in asked else ", and this home's runs, studies and jobs know the service by it"
            raise ServiceError(
                f"port {wanted} ({flag}) is held by {holder(wanted)}{why}: end that, or give another port with {flag}"
            )
        chosen[name] = wanted
    return chosen


def is_free(port: int, host: str) -> bool:
    """Return whether somebody could listen at a port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just been closed is free
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True


def _becomes_free(port: int, host: str) -> bool:
    """Return whether a port comes free soon: the kernel may hold one a moment longer than whoever was ended."""
    until = time.monotonic() + _CLOSING_SECONDS
    while not is_free(port, host):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def holder(port: int) -> str:
    """Return who listens at a port, in words."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections(kind="tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return f"process {one.pid} ({psutil.Process(one.pid).name()})"
    return "another process"


def _interface(name: str, host: str) -> str:
    if name in _BIND_EVERYWHERE:
        return "0.0.0.0"
    return "127.0.0.1" if name in ("postgres", "studies") else host


def _first_free(default: int, host: str, taken: set[int]) -> int:
    # Ten thousand more, where those of Ray's workers come next.
    for port in itertools.chain(range(default, default + _TRIES), range(default + 10_000, default + 10_000 + _TRIES)):
        if port not in taken and port not in WORKERS and is_free(port, host):
            return port
    raise ServiceError(f"no port from {default} to {default + _TRIES - 1} is free: name one by its --...-port option")
