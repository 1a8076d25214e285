"""Asking servers of this machine or its cluster over HTTP: never by way of a proxy, which may not know them."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def asked(request: str | urllib.request.Request, seconds: float) -> bytes:
    """Return the body of an answer.

    Args:
        request: an address, or one with headers.
        seconds: that a server may be silent.

    Raises:
        HTTPError: it answers with an error.
        OSError: it does not answer.
        ValueError: the address is none.
    """
    try:
        with _OPENER.open(request, timeout=seconds) as answer:
            body: bytes = answer.read()
            return body
    except http.client.HTTPException as error:
        raise OSError(f"it does not answer in HTTP ({type(error).__name__})") from None


def why_not(error: OSError | ValueError) -> str:
    """Return why :func:`asked` came to nothing; where a server says so itself, in its own words."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            return str(json.load(error)["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"it answers {error.code}"
    return str(getattr(error, "reason", error))[:200] or type(error).__name__
