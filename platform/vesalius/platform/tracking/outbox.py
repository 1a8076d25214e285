"""What a run has to tell its tracking server once its training is over, kept in its folder until it has been told."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import time
from typing import TYPE_CHECKING, Any, get_args

from vesalius.platform.errors import UnansweredError
from vesalius.platform.store.files import write_file
from vesalius.platform.store.space import space_errors
from vesalius.platform.tracking.logger import RunLogger
from vesalius.platform.tracking.runs import RunStatus, end_run, log_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_BEING_TRAINED = "unsent_metrics.jsonl"
_OUTBOX = "untold.jsonl"


def training_journal(folder: Path) -> Path:
    """Return the file in a run's folder in which its training's metrics wait (see :class:`RunLogger`)."""
    return folder / _BEING_TRAINED


def outboxes(home: Path) -> list[Path]:
    """Return the folders of the runs of a home that have something to tell, by name."""
    return sorted(path.parent for path in home.glob(f"runs/*/{_OUTBOX}") if path.stat().st_size)


class Outbox:
    """Messages of one run to its tracking server: figures, and how it ended. Sent in order, each of them once.

    What is said is first written into the run's folder. A server that is away costs nothing: whoever has something to
    say of the run next, or asks for it with :meth:`deliver`, sends what has waited. Several processes may share one.
    """

    def __init__(self, folder: Path, uri: str, run_id: str) -> None:
        """Store where.

        Args:
            folder: of the run.
            uri: the tracking store.
            run_id: the run's id in MLflow.
        """
        self.uri = uri
        self._folder = folder
        self._path = folder / _OUTBOX
        self._run_id = run_id

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Tell a handful of figures at once, as :func:`log_metrics` does where its server is not away.

        Raises:
            RunError: there is no such run.
            DiskSpaceError: there is no room to keep them.
        """
        self._tell({"metrics": {key: float(value) for key, value in metrics.items() if value is not None}})

    def ended(self, status: RunStatus) -> None:
        """Tell how the run ended, and that it was now.

        Raises:
            RunError: there is no such run.
            DiskSpaceError: there is no room to keep it.
        """
        self._tell({"status": status})

    @property
    def waits(self) -> bool:
        """Whether there is anything that the server has not been told."""
        return any(path.is_file() and path.stat().st_size for path in (self._path, training_journal(self._folder)))

    def deliver(self) -> None:
        """Send what waits, the training's metrics first. Its training must be over.

        Raises:
            RunError: there is no such run.
            UnansweredError: the server is away; what it was not told is kept.
        """
        if not self.waits:
            return
        with self._alone():
            journal = training_journal(self._folder)
            if journal.is_file() and journal.stat().st_size:
                with RunLogger(self.uri, self._run_id, unsent=journal) as logger:
                    logger.flush()
            messages = self._read()
            while messages:
                self._send(messages[0])
                messages = messages[1:]
                self._write(messages)

    def attempt(self) -> None:
        """Send what waits where the server is there; where it is away, a warning says that it goes on waiting.

        Raises:
            RunError: there is no such run.
        """
        try:
            self.deliver()
        except UnansweredError as error:
            _LOG.warning("%s (what it was to be told is kept in %s and sent later)", error, self._folder)

    def _tell(self, message: dict[str, Any]) -> None:
        with self._alone():
            self._write([*self._read(), {**message, "timestamp": int(time.time() * 1000)}])
        self.attempt()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with space_errors(self._folder):
                held = stack.enter_context(self._path.with_name(f".{_OUTBOX}.lock").open("a"))
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def _write(self, messages: list[dict[str, Any]]) -> None:
        with space_errors(self._folder):
            text = "".join(json.dumps(message) + "\n" for message in messages)
            write_file(self._path, text.encode(), self._folder)

    def _send(self, message: dict[str, Any]) -> None:
        # With the time at which it was said: sent twice, where an answer was lost, it is one value all the same.
        if "metrics" in message:
            log_metrics(self.uri, self._run_id, message["metrics"], timestamp=message["timestamp"])
        if message.get("status") in get_args(RunStatus):
            end_run(self.uri, self._run_id, message["status"], timestamp=message["timestamp"])
