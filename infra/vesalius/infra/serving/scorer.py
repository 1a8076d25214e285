"""The process that holds the models and scores what has come together meanwhile in one call of the method."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ray import serve

from vesalius.infra.pipeline import device_name
from vesalius.infra.serving.jobs import Scored
from vesalius.infra.serving.settings import ServingSettings
from vesalius.infra.serving.versions import folder_of
from vesalius.methods import METHODS
from vesalius.platform.cluster.metrics import SCORING_ERRORS, SCORING_SECONDS, VOLUMES_SCORED, count, observe
from vesalius.platform.errors import ModelError, VesaliusError
from vesalius.platform.models import load_model
from vesalius.platform.scoring import score_volumes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.infra.serving.jobs import Job, Pinned
    from vesalius.platform.contracts import Method, Score

_MODELS = 2
"""The present version and the one before it (or after it): what is under way during a switch needs both."""

_log = logging.getLogger("ray.serve")


class Scorer:
    """A Serve deployment; one call of a method at a time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = ServingSettings.model_validate(settings)
        self._device = device_name(self._settings.device)
        self._models: OrderedDict[str, Method] = OrderedDict()
        self._names: dict[type[Method], str] = {}
        # One thread, and not a lock: a call that is cancelled cannot be stopped, and the next one waits for its end.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._held = threading.Lock()
        self._loading = threading.Lock()
        # Made here and not by the decorator: what waits belongs to this scorer, and not to every one of its process.
        gather = serve.batch(
            max_batch_size=self._settings.batch_on(self._device), batch_wait_timeout_s=self._settings.batch_seconds
        )
        self._together = gather(self._score_together)

    async def load(self, pinned: Pinned) -> VesaliusError | None:
        """Load a version beside what is loaded; return why it cannot be, None where it is."""
        try:
            await asyncio.to_thread(self._model, pinned)
        except VesaliusError as error:
            return error
        return None

    async def score(self, job: Job, alone: bool = False) -> Scored:
        """Score a volume with others that wait, or ``alone`` where one of those may have ended a process."""
        if alone:
            return (await self._score([job]))[0]
        answer: Scored = await self._together(job)
        return answer

    async def _score_together(self, jobs: list[Job]) -> list[Scored]:
        answers: dict[int, Scored] = {}
        versions: dict[str, list[int]] = {}
        for place, job in enumerate(jobs):
            versions.setdefault(job.pinned.digest, []).append(place)
        for places in versions.values():
            scored = await self._score([jobs[place] for place in places])
            answers.update(zip(places, scored, strict=True))
        return [answers[place] for place in range(len(jobs))]

    async def _score(self, jobs: Sequence[Job]) -> list[Scored]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score_now, jobs)

    def _score_now(self, jobs: Sequence[Job]) -> list[Scored]:
        """Score volumes for one version; where that fails, each by itself, so that none pays for another."""
        try:
            method = self._model(jobs[0].pinned)
        except VesaliusError as error:
            return [Scored(error=error) for _ in jobs]
        capacity = method.capacity() or len(jobs)
        answers: list[Scored] = []
        for first in range(0, len(jobs), capacity):
            group = jobs[first : first + capacity]
            try:
                answers += self._call(method, group)
            except Exception:  # each by itself says whose it is
                answers += [self._by_itself(method, job) for job in group]
        return answers

    def _by_itself(self, method: Method, job: Job) -> Scored:
        try:
            return self._call(method, [job])[0]
        except VesaliusError as error:
            count(SCORING_ERRORS, source="serving", kind=type(error).__name__)
            return Scored(error=error)
        except Exception as error:  # a defect, or no memory: it is logged here and named there
            _log.exception("a volume could not be scored")
            count(SCORING_ERRORS, source="serving", kind=type(error).__name__)
            return Scored(error=type(error).__name__)

    def _call(self, method: Method, jobs: Sequence[Job]) -> list[Scored]:
        scores, seconds = score_volumes(method, [job.volume() for job in jobs], self._device)
        name = self._names[type(method)]
        count(VOLUMES_SCORED, len(jobs), method=name, source="serving")
        for _ in jobs:
            observe(SCORING_SECONDS, seconds, method=name, source="serving")
        return [_scored(score, seconds, len(jobs)) for score in scores]

    def _model(self, pinned: Pinned) -> Method:
        """Return a version's method; it is loaded beside the others where it is not held, and scoring goes on."""
        found = self._kept(pinned.digest)
        if found is not None:
            return found
        with self._loading:  # by one thread; another that wants the same takes what it finds then
            found = self._kept(pinned.digest)
            if found is not None:
                return found
            folder = folder_of(pinned.reference, pinned.folder, self._settings.home_folder)
            method, card = load_model(folder, METHODS, self._device)
            if card.digest != pinned.digest:
                raise ModelError(f"{pinned.reference} is another model now than when it was named: ask for a reload")
            with self._held:
                self._models[pinned.digest] = method
                self._names[type(method)] = card.method
                while len(self._models) > _MODELS:
                    self._models.popitem(last=False)
            return method

    def _kept(self, digest: str) -> Method | None:
        with self._held:
            found = self._models.get(digest)
            if found is not None:
                self._models.move_to_end(digest)
            return found


def _scored(score: Score, seconds: float, together: int) -> Scored:
    return Scored(map=score.map.numpy(), image_score=score.image_score, seconds=seconds, together=together)
