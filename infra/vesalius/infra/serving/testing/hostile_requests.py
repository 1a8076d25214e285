"""Requests that are odd by their framing, names or parts, each distinct: bytes as they go over the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BOUNDARY = "edge"


def raw(line: str, *headers: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Return a request's bytes; a host and ``Connection: close`` are added."""
    lines = [line, f"Host: {host}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def hostile_requests(good: bytes, port: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and requests, all of which are to be refused.

    Args:
        good: a volume that would be taken.
        port: the server's.
    """
    yield from _framing(good, port)
    yield from _names(good, port)
    yield from _paths(port)
    yield from _parts(good, port)
    yield from _types(good, port)


def _framing(good: bytes, port: int) -> Iterator[tuple[str, bytes]]:
    host = f"127.0.0.1:{port}"
    line, size = "POST /v1/score HTTP/1.1", f"Content-Length: {len(good)}"
    for name, headers in {
        "two lengths": (size, "Content-Length: 5"),
        "a negative length": ("Content-Length: -1",),
        "a length that is no number": ("Content-Length: many",),
        "a length in hexadecimal": ("Content-Length: 0x10",),
        "a length with a sign": ("Content-Length: +5",),
        "a length of 10^30": (f"Content-Length: {10**30}",),
        "a length of 10 GB": (f"Content-Length: {10**10}",),
        "length and chunks": (size, "Transfer-Encoding: chunked"),
        "chunks and length": ("Transfer-Encoding: chunked", size),
        "two transfer encodings": ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        "a transfer encoding that is none": ("Transfer-Encoding: xchunked",),
        "a transfer encoding with a tab": ("Transfer-Encoding:\tchunked", size),
        "a space before the colon": ("Content-Length : 5",),
        "a header without a colon": ("Content-Length 5",),
        "a header without a name": (": 5",),
        "a null byte in a header": ("X-Odd: a\0b",),
        "a folded header": ("X-Odd: a", " b"),
        "a bare carriage return": ("X-Odd: a\rb",),
        "a header of 100 kB": (f"X-Odd: {'a' * 100_000}",),
        "two thousand headers": tuple(f"X-Odd-{number}: {'b' * 40}" for number in range(2000)),
    }.items():
        yield name, raw(line, *headers, body=good, host=host)
    chunked = "Transfer-Encoding: chunked"
    for name, body in {
        "a chunk of a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
        "a chunk whose size is no number": b"zz\r\nhello\r\n0\r\n\r\n",
        "a chunk of 2^64 bytes": b"10000000000000000\r\nhello\r\n0\r\n\r\n",
        "a chunk that is longer than it says": b"2\r\nhello\r\n0\r\n\r\n",
        "chunks of junk": b"5\r\nhello\r\n0\r\n\r\n",
        "no chunk at all": b"0\r\n\r\n",
    }.items():
        yield name, raw(line, chunked, body=body, host=host)
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "no HTTP", b"hello there, how are you?\r\n\r\n"
    yield "HTTP/9.9", raw("GET /v1/model HTTP/9.9", host=host)
    yield "no version", b"GET /v1/model\r\n\r\n"
    yield "a method that is none", raw("SCORE /v1/score HTTP/1.1", host=host)
    yield "a method in small letters", raw("post /v1/score HTTP/1.1", size, body=good, host=host)
    yield "a null byte in the path", raw("GET /v1/\0model HTTP/1.1", host=host)
    yield "SSH", b"SSH-2.0-OpenSSH_9.0\r\n"
    yield "SMTP", b"EHLO example.org\r\nMAIL FROM:<a@b>\r\n\r\n"


def _names(good: bytes, port: int) -> Iterator[tuple[str, bytes]]:
    size = f"Content-Length: {len(good)}"
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "169.254.169.254", "[::2]", "", "a b"):
        yield f"host {host!r}", raw("POST /v1/score HTTP/1.1", size, body=good, host=host)
    yield "two hosts", raw("GET /v1/model HTTP/1.1", "Host: evil.example", host="127.0.0.1")
    yield "no host", b"GET /v1/model HTTP/1.0\r\n\r\n"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[", "https://localhost.evil.example"):
        yield (
            f"origin {origin!r}",
            raw("POST /v1/score HTTP/1.1", size, f"Origin: {origin}", body=good, host=f"127.0.0.1:{port}"),
        )


def _paths(port: int) -> Iterator[tuple[str, bytes]]:
    host = f"127.0.0.1:{port}"
    for path in (
        "/../../../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/v1/results/../../../../etc/passwd",
        "/v1/results/..%2f..%2f..%2fetc%2fpasswd/map.nii.gz",
        "/v1/results/%2e%2e",
        "/v1/results/%00",
        "/v1/results/" + "a" * 22,
        "/v1/results/" + "a" * 22 + "/map.nii.gz",
        "/v1/results/" + "a" * 22 + "/view",
        "/v1/results/" + "a" * 3000,
        "/v1/results/~root/view",
        "/v1/results/*",
        "/v1/results/;ls",
        "/v1/results/☠",
        "/v1/score/",
        "/v1/SCORE",
        "/v1",
        "/.git/config",
        "/.env",
        "/docs",
        "/openapi.json",
        "/api/jobs/",
        "/wp-login.php",
        "/static/..%5c..%5cwindows",
        "/?x=" + "a" * 200_000,
    ):
        yield f"path {path[:60]}", raw(f"GET {path} HTTP/1.1", host=host)
    yield "DELETE of a path", raw("DELETE /v1/results/..%2fuploads HTTP/1.1", host=host)
    yield "DELETE of an id", raw(f"DELETE /v1/results/{'b' * 22} HTTP/1.1", host=host)
    for method, path in (
        ("GET", "/v1/score"),
        ("PUT", "/v1/score"),
        ("DELETE", "/v1/score"),
        ("PATCH", "/v1/model"),
        ("POST", "/v1/model"),
        ("TRACE", "/v1/model"),
        ("OPTIONS", "/v1/score"),
        ("GET", "/v1/reload"),
        ("POST", "/"),
        ("DELETE", "/healthz"),
        ("PROPFIND", "/"),
        ("CONNECT", "evil.example:443"),
    ):
        yield f"{method} {path}", raw(f"{method} {path} HTTP/1.1", "Content-Length: 0", host=host)
    yield (
        "a websocket",
        raw(
            "GET /v1/score HTTP/1.1",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            host=host,
        ).replace(b"Connection: close\r\n", b""),
    )


def _part(disposition: str, content: bytes) -> bytes:
    return f"--{_BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


def _parts(good: bytes, port: int) -> Iterator[tuple[str, bytes]]:
    host = f"127.0.0.1:{port}"
    end = f"--{_BOUNDARY}--\r\n".encode()
    image, mask = 'form-data; name="T1w"; filename="a"', 'form-data; name="brain_mask"; filename="m"'
    whole = f"multipart/form-data; boundary={_BOUNDARY}"
    bodies: dict[str, tuple[str, bytes]] = {
        "no boundary": ("multipart/form-data", _part(image, good) + end),
        "an empty boundary": ("multipart/form-data; boundary=", _part(image, good) + end),
        "another boundary": ("multipart/form-data; boundary=other", _part(image, good) + end),
        "a boundary of 10 kB": (f"multipart/form-data; boundary={'e' * 10_000}", _part(image, good) + end),
        "no part": (whole, end),
        "nothing": (whole, b""),
        "junk": (whole, b"junk" * 100),
        "a text field": (whole, _part('form-data; name="T1w"', b"hello") + end),
        "a part of another name": (whole, _part('form-data; name="T2w"; filename="a"', good) + end),
        "a part of a name with a path": (whole, _part('form-data; name="../T1w"; filename="a"', good) + end),
        "a part of a null name": (whole, _part('form-data; name="T1w\0"; filename="a"', good) + end),
        "a part without a name": (whole, _part('form-data; filename="a"', good) + end),
        "a part without a disposition": (whole, f"--{_BOUNDARY}\r\n\r\n".encode() + good + b"\r\n" + end),
        "a part twice": (whole, 2 * _part(image, good) + end),
        "a part too many": (whole, 5 * _part(image, good) + end),
        "a thousand fields": (whole, b"".join(_part(f'form-data; name="f{i}"', b"x") for i in range(1000)) + end),
        "an empty file": (whole, _part(image, b"") + end),
        "a mask alone": (whole, _part(mask, good) + end),
        "a mask that is none": (whole, _part(image, good) + _part(mask, b"no mask") + end),
        "a mask that is a zip": (whole, _part(image, good) + _part(mask, b"PK\3\4" + bytes(60)) + end),
        "a mask of other values": (whole, _part(image, good) + _part(mask, good) + end),
        "a file with the name of another": (
            whole,
            _part('form-data; name="T1w"; filename="/etc/passwd"', b"root:x:0:0") + end,
        ),
        "a file with a shell in its name": (
            whole,
            _part('form-data; name="T1w"; filename="$(touch owned).nii"', b"junk") + end,
        ),
        "a part header of 100 kB": (whole, _part(f'form-data; name="{"a" * 100_000}"; filename="a"', good) + end),
        "a part that does not end": (whole, _part(image, good[:-10])[:-2]),
        "an unknown charset": (f"{whole}; charset=evil", _part('form-data; name="\xff"; filename="a"', good) + end),
    }
    for name, (kind, body) in bodies.items():
        yield (
            f"multipart with {name}",
            raw(
                "POST /v1/score HTTP/1.1",
                f"Content-Type: {kind}",
                f"Content-Length: {len(body)}",
                body=body,
                host=host,
            ),
        )


def _types(good: bytes, port: int) -> Iterator[tuple[str, bytes]]:
    host, size = f"127.0.0.1:{port}", f"Content-Length: {len(good)}"
    line = "POST /v1/score HTTP/1.1"
    for kind in (
        "text/plain",
        "text/html",
        "application/json",
        "application/x-ndjson",
        "application/xml",
        "application/dicom",
        "application/x-python-pickle",
        "image/png",
        "multipart/mixed; boundary=edge",
        "message/http",
        "☠",
        "a" * 5000,
    ):
        yield f"type {kind[:40]}", raw(line, size, f"Content-Type: {kind}", body=good, host=host)
    for encoding in ("br", "deflate", "zstd", "gzip, gzip", "compress", "evil"):
        yield f"content-encoding {encoding}", raw(line, size, f"Content-Encoding: {encoding}", body=good, host=host)
    for query in ("answer=xml", "answer=", "answer=../map", "answer=json%00"):
        yield f"query {query}", raw(f"POST /v1/score?{query} HTTP/1.1", size, body=good, host=host)
