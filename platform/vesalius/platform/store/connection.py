"""How fsspec's file systems are opened, and what their errors mean in one sentence each."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import UnreachableError

if TYPE_CHECKING:
    from vesalius.platform.store.remote import RemotePath

S3 = frozenset({"s3", "s3a"})
EXCLUSIVE = S3 | {"gs", "gcs", "az", "abfs", "abfss", "adl", "memory"}
"""Protocols on which creating an object that is there already fails, however many try at once."""

SECONDS = 25
"""An object of metadata is read or written in this time, or the file system counts as unreachable."""

SECONDS_OF_DATA = 600
"""The same for an array's object, whose size is not known."""

# Worst case of one request to a host that swallows packets: 3 x 2 attempts of 4 s, less than SECONDS.
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 4,
        "read_timeout": 20,
        "retries": {"mode": "standard", "max_attempts": 3},
        # The store keeps SHA-256 checksums of its own; servers that know no CRC trailers are then served as well.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    },
}
_S3_ATTEMPTS = 2


class Conflict(Exception):
    """An object is not the one that was to be replaced: somebody else was there in between."""


_systems: dict[tuple[Any, ...], Any] = {}
_opening = threading.Lock()


def file_system(path: RemotePath) -> Any:
    """Return the fsspec file system that ``path`` lies on: one a process, made again when its environment changes."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "FSSPEC_"))))
    host = path.key.partition("/")[0] if path.protocol not in S3 else ""
    key = (os.getpid(), path.protocol, host, settings)
    with _opening:
        if key not in _systems:
            import fsspec

            options = _S3_OPTIONS if path.protocol in S3 else {}
            system, _ = fsspec.core.url_to_fs(str(path), skip_instance_cache=True, **options)
            if path.protocol in S3:
                system.retries = _S3_ATTEMPTS
            _systems[key] = system
        return _systems[key]


def time_limit(system: Any, seconds: int) -> dict[str, Any]:
    """Return the argument that bounds a call; none where the call does not run in fsspec's own thread."""
    return {"timeout": seconds} if getattr(system, "async_impl", False) else {}


def version_in(answer: Any) -> str | None:
    """Return the version that a server gave to what it was sent, where it says so."""
    return str(answer["ETag"]) if isinstance(answer, dict) and "ETag" in answer else None


def explanation(path: RemotePath, error: Exception, seconds: int) -> Exception:
    """Return what is raised in place of ``error``: itself, where the caller acts on it, or a sentence."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {type(one).__name__ for one in chain}
    codes = {str(getattr(one, "response", {}).get("Error", {}).get("Code", "")) for one in chain}
    bucket = path.key.partition("/")[0]
    if codes & {"PreconditionFailed", "412", "ConditionalRequestConflict"}:
        return FileExistsError(str(path)) if isinstance(error, FileExistsError) else Conflict(str(path))
    if isinstance(error, FileExistsError):
        return error
    if "NoSuchBucket" in codes:
        return UnreachableError(
            f"{path}: there is no bucket '{bucket}': make it first, or check the name and the endpoint"
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return error
    if isinstance(error, ImportError):
        return UnreachableError(f"{path}: {_package(path.protocol, error)}")
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}:
        return UnreachableError(
            f"{path}: there are no usable credentials for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, here and on every node of the cluster (FSSPEC_S3_ANON=true reads a public bucket)"
        )
    if isinstance(error, PermissionError):
        return UnreachableError(
            f"{path}: access is refused ({_first_line(error)}): check the credentials and what they may read and write"
        )
    unreachable = {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"}
    if isinstance(error, TimeoutError | ConnectionError) or kinds & unreachable:
        return UnreachableError(
            f"{path}: nothing answers within {seconds} seconds ({_first_line(error) or type(error).__name__}): check "
            "the network and the endpoint (AWS_ENDPOINT_URL)"
        )
    if "ParamValidationError" in kinds or "InvalidBucketName" in codes:
        return UnreachableError(f"{path}: '{bucket}' cannot name a bucket: give PROTOCOL://BUCKET/PATH")
    return UnreachableError(f"{path} cannot be used ({type(error).__name__}: {_first_line(error)[:200]})")


def _package(protocol: str, error: ImportError) -> str:
    if protocol in S3:
        return "the package s3fs is not installed: install it with pip install 'vesalius[s3]'"
    return f"the package for {protocol}:// is not installed ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")
