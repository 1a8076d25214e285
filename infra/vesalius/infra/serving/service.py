"""From a request's upload to its answer: admitted, written, checked, prepared, scored. Knows nothing of routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vesalius.infra.application import Answer, describe_answer, prepare_files
from vesalius.infra.serving.checking import checked
from vesalius.infra.serving.draining import Requests
from vesalius.infra.serving.following import Follower
from vesalius.infra.serving.jobs import Job, Pinned
from vesalius.infra.serving.refusals import Gone, Refusal, refusal_of, refusal_of_disk
from vesalius.infra.serving.results import Results
from vesalius.infra.serving.scratch import Scratch
from vesalius.infra.serving.uploads import own_folder, receive_upload
from vesalius.platform.cluster.metrics import SCORING_ERRORS, SERVING_QUEUE, count, gauge
from vesalius.platform.contracts import Score
from vesalius.platform.errors import DiskSpaceError, VesaliusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeVar

    from starlette.datastructures import Headers
    from starlette.types import Receive

    from vesalius.infra.serving.jobs import Scored
    from vesalius.infra.serving.settings import ServingSettings
    from vesalius.infra.serving.uploads import Upload
    from vesalius.infra.serving.versions import ServedVersion
    from vesalius.platform.store import SubjectArrays, SubjectRecord

    T = TypeVar("T")

_SCORER_TRIES = 3
_LOAD_SECONDS = 900.0
_SWEEP_SECONDS = 10.0
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A scored upload.

    Attributes:
        answer: as from ``vesalius score``.
        version: that computed it.
        document: its JSON.
    """

    answer: Answer
    version: ServedVersion
    document: dict[str, Any]


class Service:
    """One ingress's state. Lives in one event loop."""

    def __init__(self, settings: ServingSettings, scorer: Any) -> None:
        self.settings = settings
        self.scratch = Scratch()
        self.results = Results(self.scratch.path / "results", keep_seconds=settings.keep_seconds, keep=settings.keep)
        self.requests = Requests()
        self.follower = Follower(settings.model, settings.home_folder, self._load, settings.poll_seconds)
        self._uploads = self.scratch.path / "uploads"
        self._uploads.mkdir(mode=0o700)
        self._scorer = scorer
        # A thread cannot be stopped: one that outlives its request keeps its place here, and no more pile up than so.
        self._threads = ThreadPoolExecutor(settings.preparations, thread_name_prefix="prepare")
        self._sweeping: asyncio.Task[None] | None = None
        self._waiting = 0
        self._seconds = 1.0

    def begin(self) -> None:
        """Follow the alias and give up answers in time, from now on."""
        self.follower.begin()
        self._sweeping = asyncio.get_running_loop().create_task(self._keep_sweeping())

    async def close(self) -> None:
        """Stop following the alias and remove everything written."""
        await self.follower.end()
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.scratch.close()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place among the requests that are under way.

        Raises:
            Refusal: there is none left.
        """
        if self._waiting >= self.settings.limits.queue:
            wait = math.ceil(self._seconds * self._waiting / self.settings.replicas)
            raise Refusal(
                503, f"{self._waiting} requests are under way: try again later", retry_seconds=max(1, min(60, wait))
            )
        self._count_waiting(1)
        try:
            yield
        finally:
            self._count_waiting(-1)

    async def score(self, headers: Headers, receive: Receive) -> Answered:
        """Score what a request brings.

        Raises:
            Refusal: it cannot be answered; says why.
            Gone: whoever asked has hung up.
        """
        version = self.follower.present
        with self.admitted(), own_folder(self._uploads) as folder:
            limits = self.settings.limits
            upload = await receive_upload(headers, receive, version.card.cohort.channels, folder, limits)
            # What has come in while the alias moved is the new version's: its channels may be others, though.
            if self.follower.present.card.cohort.channels == version.card.cohort.channels:
                version = self.follower.present
            begun = time.monotonic()
            try:
                async with asyncio.timeout(limits.score_seconds):
                    answered = await self._answer(upload, version, folder)
            except TimeoutError:
                raise Refusal(
                    504, f"the volume was not scored within {limits.score_seconds:g} s: try again, or a smaller one"
                ) from None
            self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)
            return answered

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do work of the processor's in one of the threads of preparation."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _answer(self, upload: Upload, version: ServedVersion, folder: Path) -> Answered:
        work = self._threads.submit(_prepare, upload, version, self.settings)
        try:
            record, arrays = await asyncio.shield(asyncio.wrap_future(work))
        finally:
            if not work.done() and not work.cancel():
                # Its thread may still write: what it leaves is removed when it ends.
                work.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        job = Job(
            pinned=_pinned(version),
            image=np.ascontiguousarray(arrays.image, dtype=np.float32),
            brain=np.ascontiguousarray(arrays.brain),
            head=None if arrays.head is None else np.ascontiguousarray(arrays.head),
            spacing_mm=record.spacing_mm,
            affine=record.affine,
        )
        scored = await self._score(job)
        answer = Answer(
            record=record,
            arrays=arrays,
            score=Score(map=torch.from_numpy(np.array(scored.map)), image_score=scored.image_score),
            seconds=scored.seconds,
            card=version.card,
        )
        document = {
            "model": version.describe(),
            **describe_answer(answer),
            "together": scored.together,
            "warnings": [upload.retold(sentence) for sentence in record.notes.get("warnings", [])],
        }
        return Answered(answer=answer, version=version, document=document)

    async def _score(self, job: Job) -> Scored:
        """Have a volume scored; where the scorer's process ends over it, once more by itself, and then no more."""
        from ray.exceptions import RayActorError

        for attempt in range(1, _SCORER_TRIES + 1):
            response = self._scorer.score.remote(job, attempt > 1)
            try:
                scored: Scored = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except RayActorError:
                _log.warning("a scorer ended while it scored (attempt %d)", attempt)
                await asyncio.sleep(0.2 * attempt)
                continue
            except Exception:  # Serve's and Ray's own: a scorer that cannot be reached, or a defect in it
                _log.exception("a scorer failed")
                raise Refusal(503, "the scorer failed: try again later", retry_seconds=10) from None
            if isinstance(scored.error, VesaliusError):
                raise refusal_of(scored.error)
            if scored.error is not None:
                raise Refusal(500, f"the method failed at this volume ({scored.error}): the server's log says more")
            return scored
        raise Refusal(503, f"the scorer ended each of {_SCORER_TRIES} times it was given this volume", retry_seconds=30)

    async def _load(self, version: ServedVersion) -> VesaliusError | None:
        """Have a version loaded by every scorer: by one first, so that what cannot be loaded is tried once."""
        pinned = _pinned(version)
        first: VesaliusError | None = await asyncio.wait_for(self._scorer.load.remote(pinned), _LOAD_SECONDS)
        if first is not None:
            return first
        errors: list[VesaliusError | None] = await self._scorer.broadcast("load", pinned).results_async(
            timeout_s=_LOAD_SECONDS
        )
        return next((error for error in errors if error is not None), None)

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_SECONDS, self.settings.keep_seconds / 2))
            await asyncio.to_thread(self.results.sweep)

    def _count_waiting(self, step: int) -> None:
        self._waiting += step
        gauge(SERVING_QUEUE, self._waiting, model=self.follower.label)


def _pinned(version: ServedVersion) -> Pinned:
    return Pinned(reference=version.reference, folder=str(version.folder), digest=version.digest)


def _prepare(upload: Upload, version: ServedVersion, settings: ServingSettings) -> tuple[SubjectRecord, SubjectArrays]:
    """Check an upload and bring it through the model's recipe; whatever is wrong with it is a refusal."""
    try:
        upload, images, mask = checked(upload, version.card.recipe, settings.limits)
        return prepare_files(version.card, images, any_grid=version.any_grid, brain_mask=mask)
    except DiskSpaceError:
        raise Refusal(503, "the server's disk is full: try again later", retry_seconds=60) from None
    except VesaliusError as error:
        count(SCORING_ERRORS, source="serving", kind=type(error).__name__)
        refusal = refusal_of(error)
        raise Refusal(refusal.status, upload.retold(refusal.sentence), retry_seconds=refusal.retry_seconds) from None
    except MemoryError:
        raise Refusal(413, "there is no memory for this volume: crop or resample it first") from None
    except OSError as error:
        if not upload.images[0].parent.exists():  # its request was not answered in time, and took its folder along
            raise Gone from None
        _log.exception("an upload could not be read or written")
        raise refusal_of_disk(error) from None
