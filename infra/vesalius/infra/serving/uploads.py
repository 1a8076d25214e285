"""From a request's body to files in a folder of ours: counted and timed while it is read, and named by us alone.

What a client calls its files is never looked at. Each request has a folder that only this user may enter; it is gone
when the request is answered, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.infra.serving.refusals import Gone, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

    from starlette.datastructures import Headers
    from starlette.types import Message, Receive

    from vesalius.infra.serving.settings import Limits

BRAIN_MASK = "brain_mask"
IMAGE = "image"
_RAW_TYPES = (
    "application/octet-stream",
    "application/x-nifti",
    "application/nifti",
    "application/vnd.nifti",
    "application/gzip",
    "application/x-gzip",
    "application/zip",
    "application/x-zip-compressed",
    "application/dicom+zip",
    "image/x.nifti",
    # What curl --data-binary calls any file.
    "application/x-www-form-urlencoded",
)
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a request brought.

    Attributes:
        images: one a channel, in the model's order.
        brain_mask: on the first image's grid, where one was sent.
        names: what each path is called in a sentence.
    """

    images: tuple[Path, ...]
    brain_mask: Path | None
    names: Mapping[Path, str]

    def retold(self, sentence: str) -> str:
        """Return a sentence with our paths replaced by what the client sent: where we keep things is our own affair."""
        for path, name in self.names.items():
            sentence = sentence.replace(str(path), name)
        return sentence


@contextlib.contextmanager
def own_folder(root: Path) -> Iterator[Path]:
    """Give a folder for one request, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="upload-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def receive_upload(
    headers: Headers, receive: Receive, channels: Sequence[str], folder: Path, limits: Limits
) -> Upload:
    """Write a request's body to ``folder``.

    Args:
        headers: of the request.
        receive: gives its body.
        channels: of the model: the names of the parts of a multipart body.
        folder: of this request.
        limits: of one request.

    Raises:
        Refusal: it is too large or too slow, of another type than is read here, or its parts are not the model's.
        Gone: the client has hung up.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if headers.get("content-encoding", "identity").lower() not in ("identity", "gzip"):
        raise Refusal(415, "the body's content-encoding is not read here: send the .nii.gz or the .zip as it is")
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.upload_bytes:
        raise Refusal(413, f"the body has {int(length):,} bytes: expected {limits.upload_bytes:,} at most")
    if kind == "multipart/form-data":
        return await _parts(headers, receive, channels, folder, limits)
    if kind and kind not in _RAW_TYPES:
        raise Refusal(
            415,
            f"the body is of type {kind[:80]!r}: expected application/octet-stream (a .nii, .nii.gz, or a .zip of a "
            "DICOM series) or multipart/form-data",
        )
    if len(channels) != 1:
        raise Refusal(
            422,
            f"the model takes {len(channels)} images ({', '.join(channels)}): send multipart/form-data with one file "
            "under each of these names",
        )
    path = folder / "image-0"
    with path.open("xb") as target:
        async for chunk in body_of(receive, limits):
            target.write(chunk)
    if not path.stat().st_size:
        raise Refusal(400, "the body is empty: send a .nii, a .nii.gz, or a .zip of a DICOM series")
    return Upload(images=(path,), brain_mask=None, names={path: "the image"})


async def body_of(receive: Receive, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield a body's chunks, within its limits.

    Raises:
        Refusal: it is too large or too slow.
        Gone: the client has hung up.
    """
    deadline = time.monotonic() + limits.upload_seconds
    size = 0
    while True:
        wait = min(limits.idle_seconds, deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(receive(), max(0.0, wait))
        except TimeoutError:
            raise Refusal(
                408,
                f"the body came too slowly: expected some of it every {limits.idle_seconds:g} s and all of it within "
                f"{limits.upload_seconds:g} s",
            ) from None
        if message["type"] != "http.request":
            raise Gone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limits.upload_bytes:
            raise Refusal(413, f"the body is too large: expected {limits.upload_bytes:,} bytes at most")
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


class Body:
    """A request's ``receive`` that knows whether all of the body has come.

    Attributes:
        ended: it has, or the client has hung up.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __call__(self) -> Message:
        """Return the next message."""
        message = await self._receive()
        self.ended = self.ended or message["type"] != "http.request" or not message.get("more_body", False)
        return message


async def swallow(receive: Body) -> None:
    """Read on for a moment what follows a refusal: who still writes would see a broken line and not the answer."""
    deadline = time.monotonic() + _LINGER_SECONDS
    size = 0
    with contextlib.suppress(TimeoutError, RuntimeError):
        while size < _LINGER_BYTES and not receive.ended:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            size += len(message.get("body", b""))


async def _parts(headers: Headers, receive: Receive, channels: Sequence[str], folder: Path, limits: Limits) -> Upload:
    from python_multipart.exceptions import FormParserError
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    # What the parser spools has no name on the disk: it goes when it is closed, and when this process dies.
    parser = MultiPartParser(headers, body_of(receive, limits), max_files=len(channels) + 1, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many fields" in error.message:
            raise Refusal(400, _no_field(channels)) from None
        raise Refusal(400, f"the multipart body cannot be read ({error.message[:120].rstrip('.')})") from None
    except (FormParserError, ValueError, KeyError, AttributeError, TypeError, UnicodeError) as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise Refusal(400, f"the multipart body cannot be read ({said})") from None
    try:
        given: dict[str, UploadFile] = {}
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise Refusal(400, _no_field(channels))
            given[_part_name(name, given, channels)] = value
        missing = [name for name in channels if name not in given]
        if missing:
            raise Refusal(422, f"the part '{missing[0]}' is missing: the model takes {', '.join(channels)}")
        paths: dict[str, Path] = {}
        for number, name in enumerate((*channels, BRAIN_MASK)):
            if name in given:
                paths[name] = folder / (BRAIN_MASK if name == BRAIN_MASK else f"image-{number}")
                await asyncio.to_thread(_copy, given[name].file, paths[name], name)
    finally:
        await form.close()
    return Upload(
        images=tuple(paths[name] for name in channels),
        brain_mask=paths.get(BRAIN_MASK),
        names={path: name for name, path in paths.items()},
    )


def _part_name(name: str, given: Mapping[str, Any], channels: Sequence[str]) -> str:
    import difflib

    if name == IMAGE and len(channels) == 1:
        name = channels[0]
    known = [*channels, BRAIN_MASK]
    if name in given:
        raise Refusal(422, f"the part '{name}' was sent twice: send it once")
    if name not in known:
        near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"the model takes {', '.join(known)}"
        raise Refusal(422, f"there is no part {name[:80]!r}: {hint}")
    return name


def _no_field(channels: Sequence[str]) -> str:
    return f"a part was sent as a text: send files, under the name(s) {', '.join(channels)}"


def _copy(source: Any, path: Path, name: str) -> None:
    source.seek(0)
    with path.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if not path.stat().st_size:
        raise Refusal(400, f"the part '{name}' is empty: send a .nii, a .nii.gz, or a .zip of a DICOM series")
