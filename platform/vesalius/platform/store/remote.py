"""A place on a file system of fsspec's: as much of ``pathlib.Path`` as the store needs, every call bounded in time.

What is missing raises ``FileNotFoundError``, what may not be replaced ``FileExistsError`` or :class:`Conflict`; all
else that goes wrong (no package, no credentials, no bucket, no answer, no permission) is one sentence in an
:class:`~vesalius.platform.errors.UnreachableError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import StoreError
from vesalius.platform.store import connection
from vesalius.platform.store.connection import (
    EXCLUSIVE,
    S3,
    SECONDS,
    SECONDS_OF_DATA,
    Conflict,
    explanation,
    time_limit,
    version_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SETTLE_SECONDS = 1.0
_ONE_PUT_BYTES = 2**31
_NO_VERSION = f'"{"0" * 32}"'


@dataclass(frozen=True)
class RemotePath:
    """A place by URL. Hashable, comparable, and safe to send to another process, which connects by itself.

    Attributes:
        protocol: such as ``s3``.
        key: bucket and path, without slashes around.
    """

    protocol: str
    key: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.key}"

    def __truediv__(self, name: str) -> RemotePath:
        return self if name == "." else RemotePath(self.protocol, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """All but the last part."""
        return RemotePath(self.protocol, self.key.rpartition("/")[0])

    def resolve(self) -> RemotePath:
        """Return the same place: a URL is resolved."""
        return self

    def absolute(self) -> RemotePath:
        """Return the same place: a URL is absolute."""
        return self

    # ---- looking

    def exists(self) -> bool:
        """Say whether there is an object here, or anything below."""
        return self._info() is not None

    def facts(self) -> dict[str, Any]:
        """Return what the file system says of an object: ``size`` and ``type``, and more of its own.

        Raises:
            FileNotFoundError: there is none.
        """
        info = self._info()
        if info is None:
            raise FileNotFoundError(str(self))
        return info

    def is_file(self) -> bool:
        """Say whether there is an object here."""
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        """Say whether there is anything below."""
        return any(True for _ in self.iterdir())

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what lies directly below, in order; nothing where there is nothing."""
        own = self._stripped()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(str(found).rstrip("/") for found in self._call("ls", detail=False)):
                if path != own:
                    yield self / path.rpartition("/")[2]

    def names(self, beginning: str) -> list[str]:
        """Return the names directly below that begin with a text, sorted, without listing the others on S3."""
        if self.protocol not in S3:
            return [entry.name for entry in self.iterdir() if entry.name.startswith(beginning)]
        own = self._stripped() + "/"
        with contextlib.suppress(FileNotFoundError):
            found = self._call("find", prefix=beginning, maxdepth=1, withdirs=True)
            return sorted(str(path).rstrip("/").removeprefix(own) for path in found)
        return []

    def files(self) -> list[str]:
        """Return the paths, relative to here, of all objects below, sorted."""
        own = self._stripped() + "/"
        with contextlib.suppress(FileNotFoundError):
            found = (str(path) for path in self._call("find"))
            return sorted(path.removeprefix(own) for path in found if path.startswith(own) and not path.endswith("/"))
        return []

    # ---- reading

    def read_bytes(self) -> bytes:
        """Return an object's bytes."""
        content: bytes = self._call("cat_file", seconds=SECONDS_OF_DATA)
        return content

    def read_small(self) -> bytes:
        """Return the bytes of an object of metadata, or say soon that nothing answers."""
        content: bytes = self._call("cat_file")
        return content

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of several objects below, by name, fetched side by side where the file system can."""
        if not names:
            return {}
        own = self._stripped() + "/"
        with self._explained(SECONDS_OF_DATA):
            system = connection.file_system(self)
            limit = time_limit(system, SECONDS_OF_DATA)
            found: Mapping[str, bytes] = system.cat([own + name for name in names], **limit)
        return {path.removeprefix(own): content for path, content in found.items()}

    def read_versioned(self) -> tuple[bytes, str]:
        """Return an object's bytes and what :meth:`replace` needs to replace just them.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.protocol not in S3:
            content = self.read_small()
            return content, hashlib.sha256(content).hexdigest()
        for _ in range(5):
            before = self._etag()
            content = self.read_small()
            if self._etag() == before:
                return content, before
        raise StoreError(f"{self} changes faster than it can be read: wait for the other writers to end")

    # ---- writing

    def write_bytes(self, content: bytes) -> int:
        """Write an object, whole or not at all; one that is there is replaced."""
        self._call("pipe_file", content, seconds=SECONDS_OF_DATA)
        return len(content)

    def write_text(self, text: str) -> int:
        """Write an object of text."""
        return self.write_bytes(text.encode())

    def create(self, content: bytes) -> str:
        """Write an object that must not be there yet and return its version; see :meth:`replace`.

        Raises:
            FileExistsError: it is there, and holds something else.
        """
        try:
            answer = self._create(content)
        except FileExistsError:
            found, version = self.read_versioned()
            if found != content:
                raise
            return version  # a request that was repeated after its answer was lost
        if self.protocol in EXCLUSIVE:
            return version_in(answer) or self.read_versioned()[1]
        time.sleep(_SETTLE_SECONDS)  # whoever looked at the same moment has written by then, and the last one stays
        found, version = self.read_versioned()
        if found != content:
            raise FileExistsError(str(self))
        return version

    def replace(self, content: bytes, version: str) -> str:
        """Replace an object if it is still of ``version``, and return the new version.

        One step on S3 (``If-Match``) and in memory; elsewhere the object is read again just before it is written,
        which leaves a moment: there the lock alone keeps writers apart.

        Raises:
            Conflict: it is another by now, or gone.
        """
        if self.protocol in S3:
            return self._replace_on_s3(content, version)
        with _memory if self.protocol == "memory" else contextlib.nullcontext():
            try:
                found = self.read_small()
            except FileNotFoundError:
                raise Conflict(str(self)) from None
            if hashlib.sha256(found).hexdigest() != version:
                raise Conflict(str(self))
            self._call("pipe_file", content)
        return hashlib.sha256(content).hexdigest()

    def honours_conditions(self, content: bytes) -> bool:
        """Say whether the server refuses to create an object that holds ``content`` already, and to replace another.

        Where it does not, the object holds the same afterwards.
        """
        if self.protocol not in S3:
            return True
        try:
            self._create(content)
        except FileExistsError:
            pass
        else:
            return False
        try:
            self._put_if(content, _NO_VERSION)
        except Conflict:
            return True
        return False

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object."""
        try:
            self._call("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_all(self) -> None:
        """Remove all objects below, the group's metadata first, so that what is left over shows as unfinished."""
        names = self.files()
        for name in sorted(names, key=lambda name: (name.count("/"), name != "zarr.json", name)):
            (self / name).unlink(missing_ok=True)

    # ---- inside

    def _create(self, content: bytes) -> Any:
        if self.protocol in S3:
            return self._call("pipe_file", content, mode="create", chunksize=_ONE_PUT_BYTES)
        with _memory if self.protocol == "memory" else contextlib.nullcontext():
            return self._call("pipe_file", content, mode="create")

    def _replace_on_s3(self, content: bytes, version: str) -> str:
        try:
            answer = self._put_if(content, version)
        except (Conflict, FileNotFoundError):
            try:
                found, now = self.read_versioned()
            except FileNotFoundError:
                raise Conflict(str(self)) from None
            if found != content:
                raise Conflict(str(self)) from None
            return now  # a request that was repeated after its answer was lost
        return version_in(answer) or self.read_versioned()[1]

    def _put_if(self, content: bytes, version: str) -> Any:
        return self._call("pipe_file", content, IfMatch=version, chunksize=_ONE_PUT_BYTES)

    def _etag(self) -> str:
        facts = self.facts()
        if "ETag" not in facts:
            raise FileNotFoundError(str(self))
        return str(facts["ETag"])

    def _info(self) -> dict[str, Any] | None:
        try:
            info: dict[str, Any] = self._call("info")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return info

    def _stripped(self) -> str:
        with self._explained(SECONDS):
            return str(
                connection.file_system(self)._strip_protocol(str(self))
            )  # the one way to a file system's own names

    def _call(self, method: str, *args: Any, seconds: int = SECONDS, **kwargs: Any) -> Any:
        with self._explained(seconds):
            system = connection.file_system(self)
            if method in ("ls", "find", "info"):
                system.invalidate_cache()  # what others write must show
            return getattr(system, method)(str(self), *args, **time_limit(system, seconds), **kwargs)

    @contextlib.contextmanager
    def _explained(self, seconds: int) -> Iterator[None]:
        try:
            yield
        except (StoreError, MemoryError):
            raise
        except Exception as error:  # file systems have no common errors
            raise explanation(self, error, seconds) from error


_memory = threading.RLock()
