"""What every request passes: names, token, odd framing; and what every answer bears, a defect's too."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from vesalius.infra.serving.tokens import bears
from vesalius.infra.serving.uploads import Body, swallow
from vesalius.platform.cluster.metrics import SERVING_REQUESTS, SERVING_SECONDS, count, observe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vesalius.infra.serving.draining import Requests

OPEN = frozenset({"/", "/healthz", "/readyz"})
"""What says nothing of anybody: answered without a token."""
_PROBES = frozenset({"/healthz", "/readyz"})
"""Asked by whatever name: a load balancer, and the verb that has started the server, know its address alone."""
_ROUTES = ("/v1/results/{name}/map.nii.gz", "/v1/results/{name}/view", "/v1/results/{name}")
_KNOWN = OPEN | {"/metrics", "/v1/score", "/v1/model", "/v1/reload"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NO_POLICY = "default-src 'none'; frame-ancestors 'none'"
_log = logging.getLogger("ray.serve")


class Guard:
    """An ASGI application around another; within Starlette's own answer to a defect, which is no JSON."""

    def __init__(self, app: ASGIApp, *, token_sha256: str | None, hosts: Sequence[str], requests: Requests) -> None:
        """Guard an application.

        Args:
            app: what is guarded.
            token_sha256: of the token; None asks for none.
            hosts: names the server may be called by; any where empty. Without a token they are what keeps a page from
                elsewhere, whose name was made to point here, from asking in its reader's place.
            requests: those under way.
        """
        self._app = app
        self._token_sha256 = token_sha256
        self._hosts = frozenset(name.lower() for name in hosts)
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, state = time.perf_counter(), {"status": 0}

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", _NO_POLICY)
            await send(message)

        try:
            problem = self._problem(Headers(scope=scope), str(scope["path"]))
            if problem is None:
                with self._requests.under_way():
                    await self._app(scope, receive, dressed)
            else:
                if scope["method"] in ("POST", "PUT", "PATCH"):
                    await swallow(Body(receive))
                await _say(dressed, *problem)
        except Exception:  # a defect: its traceback goes to the log and no further
            _log.exception("a request failed")
            if state["status"]:
                raise
            await _say(dressed, 500, "the server failed at this request: its log says more")
        finally:
            route = route_of(str(scope["path"]))
            count(SERVING_REQUESTS, route=route, status=str(state["status"]))
            observe(SERVING_SECONDS, time.perf_counter() - begun, route=route)

    def _problem(self, headers: Headers, path: str) -> tuple[int, str] | None:
        if len(headers.getlist("content-length")) + len(headers.getlist("transfer-encoding")) > 1:
            # Two servers that read such a request differently take its end for another request's begin.
            return 400, "the request says its length in two ways: send content-length or transfer-encoding, once"
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            return 400, "the request names two hosts: send one host header"
        if self._hosts and path not in _PROBES and _name(hosts[0] if hosts else "") not in self._hosts:
            return 421, "the server is not called by this name: allow it with --allowed-host"
        origin = headers.get("origin")
        if origin is not None and (not hosts or _place(origin) != hosts[0].lower()):
            return 403, "the request comes from a page of another server: only this server's own page may ask"
        if path not in OPEN and not bears(headers.get("authorization"), self._token_sha256):
            return 401, "the request bears no valid token: send `Authorization: Bearer TOKEN`"
        if self._requests.ending and path != "/healthz":
            return 503, "the server is ending: ask another one, or this one when it is back"
        return None


def route_of(path: str) -> str:
    """Return what a path is counted under: one of few names, whatever is asked for."""
    if path in _KNOWN:
        return path
    if path.startswith("/v1/results/"):
        parts = path.removeprefix("/v1/results/").split("/")
        for route in _ROUTES:
            rest = route.removeprefix("/v1/results/{name}").strip("/")
            if "/".join(parts[1:]) == rest:
                return route
    return "other"


def _place(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Return a ``Host`` header's name without its port."""
    name = host.lower()
    if name.startswith("["):
        return name.partition("]")[0].removeprefix("[")
    return name.rpartition(":")[0] if ":" in name else name


async def _say(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", b"60"))
    if status in (400, 401, 403, 421, 503):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
