"""Following an alias: the new version is loaded beside the old one, and then takes over between two requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.infra.serving.refusals import Refusal
from vesalius.infra.serving.versions import ServedVersion, find_version
from vesalius.platform import registry
from vesalius.platform.cluster.metrics import SERVING_SWAPS, SERVING_VERSION, count, gauge
from vesalius.platform.errors import UnansweredError, VesaliusError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger("ray.serve")


class Follower:
    """Knows the version that answers now.

    Attributes:
        switched: how often another version has taken over.
        problem: why the last look at the name came to nothing; empty where it went well.
    """

    def __init__(
        self,
        reference: str,
        home: Path,
        load: Callable[[ServedVersion], Awaitable[VesaliusError | None]],
        poll_seconds: float,
    ) -> None:
        self.switched = 0
        self.problem = ""
        self._reference = reference
        self._home = home
        self._load = load
        self._poll_seconds = poll_seconds
        self._present: ServedVersion | None = None
        self._one_at_a_time = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @property
    def present(self) -> ServedVersion:
        """The version that answers now; whoever takes it keeps it to the end of its request.

        Raises:
            Refusal: none is loaded.
        """
        if self._present is None:
            raise Refusal(503, f"no model is loaded yet ({self.problem or 'it is being loaded'})", retry_seconds=5)
        return self._present

    @property
    def shown(self) -> str:
        """The name that is followed; of a folder, where it lies is not told."""
        return self._reference if self._reference.startswith("models:") else self.present.name

    @property
    def label(self) -> str:
        """What metrics call that which is followed; of a folder, where it lies is not told."""
        return self._reference if self._reference.startswith("models:") else Path(self._reference).name

    def begin(self) -> None:
        """Look at the name from now on; a run or a folder stays what it is, and is looked at until it is loaded."""
        self._watch = asyncio.get_running_loop().create_task(self._keep_looking())

    async def end(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    async def look(self) -> dict[str, Any]:
        """See what the name means now and switch to it; what serves goes on serving where that fails.

        Returns:
            ``switched``, ``model`` and ``problem``.
        """
        async with self._one_at_a_time:
            before = self._present
            try:
                found = await asyncio.to_thread(find_version, self._reference, self._home)
                if before is None or (found.folder, found.card) != (before.folder, before.card):
                    problem = await self._load(found)
                    if problem is not None:
                        raise problem
                    self._take(found)
                self.problem = ""
            except UnansweredError as error:  # says nothing of a version: there may be no other one at all
                self._note(" ".join(str(error).split()), failed=False)
            except VesaliusError as error:
                self._note(" ".join(str(error).split()))
            except Exception as error:  # a scorer that died while it loaded, say: the next look tries again
                _log.exception("the model could not be looked at")
                self._note(f"{type(error).__name__} while the model was loaded")
            present = self._present
            return {
                "switched": present is not before,
                "model": None if present is None else present.describe(),
                "problem": self.problem or None,
            }

    def _take(self, found: ServedVersion) -> None:
        if self._present is not None:
            self.switched += 1
            count(SERVING_SWAPS, model=self.label, outcome="switched")
        _log.info("version %s of %s answers from now on", found.label, found.name)
        self._present = found
        if found.version:
            gauge(SERVING_VERSION, float(found.version), model=self.label)

    def _note(self, problem: str, *, failed: bool = True) -> None:
        if problem != self.problem:
            _log.warning("%s: %s", self._reference, problem)
            if failed:
                count(SERVING_SWAPS, model=self.label, outcome="failed")
        self.problem = problem

    async def _keep_looking(self) -> None:
        while self._present is None or registry.follows_alias(self._reference):
            await self.look()
            await asyncio.sleep(self._poll_seconds if self._present is not None else min(2.0, self._poll_seconds))
