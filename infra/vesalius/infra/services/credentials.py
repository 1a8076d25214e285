"""Passwords and tokens: made at random, each in a file that its owner alone can read, and never shown."""

from __future__ import annotations

import configparser
import io
import os
import secrets
from typing import TYPE_CHECKING

from vesalius.platform.errors import ServiceError

if TYPE_CHECKING:
    from pathlib import Path

ADMINISTRATOR = "admin"


def keep(path: Path, text: str) -> Path:
    """Write a file of mode 0600, whole or not at all.

    Raises:
        DiskSpaceError: there is no room for it.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        from vesalius.platform.store.space import space_errors  # slow to import, and verbs that only ask come by here

        with space_errors(path):
            raise
    return path


def kept_or_made(path: Path) -> str:
    """Return the secret in a file, which is made at random where it is not there.

    Raises:
        ServiceError: others may read the file, or it is empty.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text().strip()
    except FileNotFoundError:
        text = secrets.token_urlsafe(32)
        keep(path, text)
        return text
    if mode & 0o077:
        raise ServiceError(
            f"{path} holds a secret and others may read it: chmod 600 {path}, or remove it for a new one"
        )
    if not text:
        raise ServiceError(f"{path} is empty: remove it for a new secret")
    return text


def passfile_line(host: str, port: int, user: str, password: str) -> str:
    """Return a line of PostgreSQL's password file, for any database of a server."""
    host, user, password = (part.replace("\\", r"\\").replace(":", r"\:") for part in (host, user, password))
    return f"{host}:{port}:*:{user}:{password}\n"


def tracking_login(folder: Path) -> tuple[str, str]:
    """Return the name and the password of MLflow's administrator."""
    return ADMINISTRATOR, kept_or_made(folder / "mlflow_password")


def login_settings(folder: Path, database: str) -> Path:
    """Write what MLflow's login reads, without a password, and return the file.

    Args:
        folder: of the secrets.
        database: address of where accounts are kept.
    """
    # Interpolation would read the percent signs of an address.
    file = configparser.RawConfigParser()
    file["mlflow"] = {
        "default_permission": "READ",
        "database_uri": database,
        "admin_username": ADMINISTRATOR,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    text = io.StringIO()
    file.write(text)
    # MLflow reads it with interpolation.
    return keep(folder / "mlflow_login.ini", text.getvalue().replace("%", "%%"))
