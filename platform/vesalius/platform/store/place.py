"""Where a store lies: a folder of this machine, or a URL."""

from __future__ import annotations

import re
from pathlib import Path

from vesalius.platform.errors import StoreError
from vesalius.platform.store.remote import RemotePath

Place = Path | RemotePath

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_FLATTENED = re.compile(r"(s3a?|gs|gcs|az|abfss?|memory|https?|ftp|sftp):/[^/]")


def place_of(where: str | Place) -> Place:
    """Return the place that a text names: ``file://`` and plain paths are folders, any other URL is remote.

    Raises:
        StoreError: the URL names no bucket, carries a password, or is of a kind that fsspec does not know.
    """
    if isinstance(where, RemotePath):
        return where
    if isinstance(where, Path):
        if _FLATTENED.match(str(where)):
            raise StoreError(f"{where} was a URL before it was made a path: give the URL as text")
        return where
    found = _URL.fullmatch(where)
    if found is None:
        if "::" in where and "://" in where:
            raise StoreError(f"{_shown(where)}: a chain of file systems holds no store: give a folder or s3://...")
        if _FLATTENED.match(where):
            raise StoreError(f"{_shown(where)}: a URL has two slashes: give PROTOCOL://BUCKET/PATH")
        return Path(where)
    protocol, rest = found[1].lower(), found[2]
    if protocol in ("file", "local"):
        return Path(rest if rest.startswith("/") else f"/{rest}")
    _check(where, protocol, rest)
    return RemotePath(protocol, rest.strip("/"))


def _check(where: str, protocol: str, rest: str) -> None:
    from fsspec.registry import known_implementations, registry

    # Anywhere and not in the host alone: a secret key may hold a slash.
    if ":" in rest.rpartition("@")[0]:
        raise StoreError(
            f"{_shown(where)}: a password in a URL would be written into runs and logs: "
            "give credentials by the environment"
        )
    if any(mark in rest for mark in "?#*["):
        raise StoreError(
            f"{_shown(where)} names no place for a store: expected {protocol}://BUCKET/PATH without any of ? # * ["
        )
    if "::" in where or (protocol not in known_implementations and protocol not in registry):
        raise StoreError(f"{where}: '{protocol}://' is no file system that can hold a store: give a folder or s3://...")
    parts = rest.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise StoreError(f"{where} names no place for a store: expected {protocol}://BUCKET/PATH")


def _shown(where: str) -> str:
    """Return a refused URL without what may be a secret: what stands before the last ``@`` or behind a ``?``."""
    protocol, _, rest = where.partition("?")[0].partition(":")
    host = rest.rpartition("@")
    return f"{protocol}://...@{host[2]}" if host[1] else f"{protocol}:{rest}"
