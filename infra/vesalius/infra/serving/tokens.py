"""The token that a request bears: read from a file or the environment, kept and compared as its SHA-256 alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.infra.serving.settings import TOKEN_VARIABLE
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from vesalius.infra.serving.settings import ServingSettings

_FEWEST_CHARACTERS = 16
_MOST_BYTES = 4096
_ADVICE = "make one with `openssl rand -hex 32 > token && chmod 600 token`"


def token_digest(file: Path | None) -> str | None:
    """Return the SHA-256 of the token in a file, else of the one in the environment, else None.

    Raises:
        SettingError: the file cannot be read or others may read it, or the token is too short to be one.
    """
    if file is None:
        text, where = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not text.strip():
            return None
    else:
        text, where = _text(file), str(file)
    token = text.strip()
    if len(token) < _FEWEST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingError(
            f"{where} holds no token: expected {_FEWEST_CHARACTERS} or more printable ASCII characters without "
            f"spaces; {_ADVICE}"
        )
    return hashlib.sha256(token.encode()).hexdigest()


def expected_digest(settings: ServingSettings) -> str | None:
    """Return the digest that requests are held to, None where whoever asks is served.

    Raises:
        SettingError: neither a token nor ``without_token`` is given.
    """
    if settings.without_token:
        return None
    found = settings.token_sha256 or token_digest(None if settings.token_file is None else Path(settings.token_file))
    if found is None:
        raise SettingError(
            f"the server has no token: set token_file or {TOKEN_VARIABLE} ({_ADVICE}), or without_token where "
            "something before it checks who asks"
        )
    return found


def bears(authorization: str | None, expected: str | None) -> bool:
    """Say whether an ``Authorization`` header bears the token of this digest."""
    if expected is None:
        return True
    scheme, _, token = (authorization or "").partition(" ")
    given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(given, expected)


def _text(file: Path) -> str:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise SettingError(f"{file} is no file of a token: {_ADVICE}")
        if status.st_mode & 0o007:
            raise SettingError(f"{file} may be read by everyone on this machine: `chmod 600` it")
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise SettingError(f"{file} cannot be read ({error.strerror}): {_ADVICE}") from None
    except UnicodeDecodeError:
        raise SettingError(f"{file} holds no token: {_ADVICE}") from None
