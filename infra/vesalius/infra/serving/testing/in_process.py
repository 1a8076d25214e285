"""A server without Ray: an application in this process, and scorers that play a part."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from vesalius.infra.serving.jobs import Scored
from vesalius.infra.serving.service import Service
from vesalius.infra.serving.settings import Limits, ServingSettings
from vesalius.infra.serving.testing.hostile_volumes import good
from vesalius.infra.serving.testing.server import AFFINE, head
from vesalius.infra.serving.web import create_app
from vesalius.methods import METHODS
from vesalius.platform.models import load_model
from vesalius.platform.scoring import score_volumes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from vesalius.infra.serving.jobs import Job
    from vesalius.platform.errors import VesaliusError

BODY = good(head(0), AFFINE)
"""A volume as it is sent."""


class Reply:
    """What a Serve handle returns: it is awaited, or cancelled."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._task = asyncio.ensure_future(work)
        self.cancelled = False

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        """Give it up."""
        self.cancelled = True
        self._task.cancel()


class Call:
    """A method of a Serve handle."""

    def __init__(self, work: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._work = work

    def remote(self, *arguments: Any) -> Reply:
        """Begin it."""
        return Reply(self._work(*arguments))


class FakeScorer:
    """Scores by the model itself; ``acts`` say what happens instead, one a call.

    Attributes:
        calls: of ``score``: whether each was alone.
        others: what each scorer says when all are to load a version.
    """

    def __init__(self, model: Path, acts: Sequence[Any] = ()) -> None:
        self._method, _ = load_model(model, METHODS)
        self.others: list[VesaliusError | None] = [None]
        self._acts = list(acts)
        self.calls: list[bool] = []
        self.load, self.score = Call(self._load), Call(self._score)

    async def _load(self, pinned: Any) -> VesaliusError | None:
        return None

    def broadcast(self, name: str, pinned: Any) -> Any:
        """Answer as several scorers do, each by what ``others`` says of it."""
        assert name == "load"
        others = list(self.others)

        class Answers:
            async def results_async(self, *, timeout_s: float) -> list[VesaliusError | None]:
                return others

        return Answers()

    async def _score(self, job: Job, alone: bool) -> Scored:
        self.calls.append(alone)
        act = self._acts.pop(0) if self._acts else None
        if isinstance(act, float):
            await asyncio.sleep(act)
        elif isinstance(act, Scored):
            return act
        elif act is not None:
            raise act
        scores, seconds = score_volumes(self._method, [job.volume()])
        return Scored(map=scores[0].map.numpy(), image_score=scores[0].image_score, seconds=seconds)


async def ask(
    app: Any, path: str, body: bytes = b"", /, *, method: str = "POST", pieces: Sequence[Any] = (), **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request to an ASGI application; ``pieces`` are messages, or seconds to wait, in the body's place."""
    named = {"host": "127.0.0.1:8000", "content-type": "application/octet-stream", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path.partition("?")[0],
        "raw_path": path.encode(),
        "query_string": path.partition("?")[2].encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in named.items()],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
    }
    left = list(pieces) or [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        while left:
            piece = left.pop(0)
            if not isinstance(piece, float):
                return piece
            await asyncio.sleep(piece)
        await asyncio.sleep(3600)
        raise AssertionError("nothing more comes")

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, content


def serve(
    model: Path,
    talk: Callable[[Any, Service], Coroutine[Any, Any, Any]],
    *acts: Any,
    token: str | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> FakeScorer:
    """Run a talk with a server in an event loop of its own; afterwards nothing of it is left on the disk."""

    async def run() -> FakeScorer:
        scorer = FakeScorer(model, acts)
        told = ServingSettings(
            model=str(model), without_token=token is None, token_sha256=token, limits=limits or Limits(), **settings
        )
        service = Service(told, scorer)
        try:
            await service.follower.look()
            await talk(create_app(service, token), service)
            assert list((service.scratch.path / "uploads").iterdir()) == []
        finally:
            await service.close()
        assert not service.scratch.path.exists()
        return scorer

    return asyncio.run(run())


def sentence(content: bytes) -> str:
    """Return what an answer says is wrong."""
    document = json.loads(content)
    assert set(document) == {"error"}
    return str(document["error"])
