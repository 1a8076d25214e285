"""The Redis that a Ray head may keep what it knows in: its address, and whether it is one."""

from __future__ import annotations

import re
import socket

from vesalius.platform.errors import ServiceError, SettingError

OFF = "off"
_SECONDS = 5.0
_ADDRESS = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}")
_WHY_NO_PASSWORD = (
    "Ray hands a password to its gcs_server among the arguments, which every user of this machine can read: give a "
    "Redis that asks for none and that only the cluster's machines reach"
)


def read_address(given: str) -> str | None:
    """Return HOST:PORT as it was given, or None for ``off``.

    Raises:
        SettingError: it is no address, or has a password.
    """
    if given == OFF:
        return None
    if "@" in given:
        raise SettingError(f"--redis has a password, and {_WHY_NO_PASSWORD}")
    if not _ADDRESS.fullmatch(given) or not 0 < int(given.rpartition(":")[2]) < 2**16:
        raise SettingError(f"--redis is '{given}': expected HOST:PORT of a Redis, such as 127.0.0.1:6380, or {OFF}")
    return given


def check(address: str) -> None:
    """Ask a Redis whether it answers.

    Raises:
        ServiceError: it does not, or asks for a password.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            said = connection.recv(200).decode(errors="replace").partition("\r\n")[0]
    except OSError as error:
        said = error.strerror or str(error)
    if said == "+PONG":
        return
    if said.startswith("-NOAUTH"):
        raise ServiceError(f"the Redis at {address} (--redis) asks for a password, and {_WHY_NO_PASSWORD}")
    raise ServiceError(
        f"no Redis answers a PING at {address} ({said or 'no word'}), where the Ray head is to keep what it knows: "
        f"start one there, name another with --redis HOST:PORT, or do without with --redis {OFF}"
    )
