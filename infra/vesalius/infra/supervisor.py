"""The supervisor: brings services back that have ended, submits jobs again that went with them, tells what waits.

A service among those of ``vesalius up``; ``python -m vesalius.infra.supervisor --home HOME``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.infra.jobs.records import JobBook, restarts_left, was_lost
from vesalius.infra.services import inspection, join_tracking
from vesalius.infra.services.state import TITLES, ServicesFolder
from vesalius.platform.errors import ServiceError, UnansweredError, VesaliusError
from vesalius.platform.tracking import outboxes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vesalius.infra.jobs.records import JobRecord

_BETWEEN_SECONDS = 3.0
_MENDING_SECONDS = 600.0
_FIRST_WAIT_SECONDS = 6.0
_LONGEST_WAIT_SECONDS = 60.0
_PATIENCE = 20
"""Rounds in a row in which a service may not answer: to start one anew that is only busy would end what it does."""


class Supervisor:
    """Watches over one home. One process at a time, as services are."""

    def __init__(self, home: Path, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Store what to watch.

        Args:
            home: of services, jobs and runs.
            say: told what is found and done.
            clock: gives seconds.
        """
        self._home = home
        self._write = say
        self._folder = ServicesFolder(home)
        self._silent: dict[str, int] = {}
        self._backoff = Backoff(clock)
        self._said: dict[str, str] = {}
        self._problems: set[str] = set()
        # What was lost while nobody watched, perhaps weeks ago, is its owner's to go on with. Which of these that is,
        # their clusters have yet to say.
        self._of_before = {record.last.submission for record in JobBook(home).read_all()[0]}
        self._left_alone: set[str] = set()

    def look(self) -> None:
        """Look once at services, jobs and runs, and do what is to be done. Raises nothing: it has to go on."""
        self._step("services", self._mend)
        self._step("jobs", self._resubmit)
        self._step("what runs have to tell", self._tell)

    def _step(self, what: str, do: Callable[[], object], *, expected: tuple[type[Exception], ...] = ()) -> None:
        """Give a sign of life and do something; each such step has its own limits of time, and a look many steps."""
        self._try("the sign of life", self._folder.beat.touch)
        self._try(what, do, expected=expected)

    def _try(self, what: str, do: Callable[[], object], *, expected: tuple[type[Exception], ...] = ()) -> None:
        """Do something whose failure is told once, and keeps neither the rest nor itself from being done later.

        Args:
            what: is done.
            do: does it.
            expected: errors that are not worth a line.
        """
        if not self._backoff.is_due(what):
            return
        try:
            do()
        except Exception as error:  # a full disk or a defect: none of them may end the watching
            said = str(error) if isinstance(error, VesaliusError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, expected):
                self._say_once(what, f"{what}: {said}")
            self._backoff.has_failed(what)
        else:
            self._said.pop(what, None)
            self._backoff.has_done(what)

    def _mend(self) -> None:
        ended = []
        for row in inspection.status(self._home):
            name = row["service"]
            self._silent[name] = self._silent.get(name, 0) + 1 if row["state"] == "not answering" else 0
            if name != "supervisor" and (row["state"] == "dead" or self._silent[name] > _PATIENCE):
                ended.append(f"{TITLES[name]} ({row['problem']})")
        if not ended:
            return
        self._say(f"{' and '.join(ended)}: starting again")
        # Not in this process: what it started would be its child, and end with it.
        command = [sys.executable, "-c", "from vesalius.infra.cli import main; main()", "up", "--json"]
        done = subprocess.run(
            [*command, "--home", str(self._home)],
            capture_output=True,
            text=True,
            timeout=_MENDING_SECONDS,
            check=False,
        )
        if done.returncode:
            raise ServiceError(done.stderr.strip()[-2000:])
        self._say("services are up again")

    def _resubmit(self) -> None:
        from vesalius.infra.jobs import submission

        records, problems = submission.refresh(self._home)
        for gone in self._problems.difference(problems):
            self._said.pop(gone, None)  # where it comes again it is news
        self._problems = set(problems)
        for sentence in problems:
            self._say_once(sentence, sentence)
        for record in records:
            if self._is_to_go_on(record):
                self._step(f"job '{record.job}'", functools.partial(self._submit, record))

    def _submit(self, record: JobRecord) -> None:
        from vesalius.infra.jobs import submission

        left = restarts_left(record) - 1
        self._say_once(
            f"attempt of {record.job}",
            f"job '{record.job}' was lost: submitting it again, {left} more such times are left",
        )
        submission.retry(record.job, home=self._home, address=None, rebuild=False, say=self._say, only_lost=True)

    def _is_to_go_on(self, record: JobRecord) -> bool:
        """Return whether a job is to be submitted again: it was lost while this process watched."""
        last = record.last
        if last.submission in self._of_before and last.status != "UNKNOWN":  # the first that its cluster says of it
            self._of_before.remove(last.submission)
            if was_lost(last):
                self._left_alone.add(last.submission)
        return was_lost(last) and last.submission not in self._left_alone and restarts_left(record) > 0

    def _tell(self) -> None:
        away: set[str] = set()
        for path in outboxes(self._home):
            # Where its server is still away, it goes on waiting.
            self._step(f"run '{path.name}'", functools.partial(self._deliver, path, away), expected=(UnansweredError,))

    def _deliver(self, path: Path, away: set[str]) -> None:
        """Tell what a run has kept.

        Raises:
            UnansweredError: its server is away, or among those that are: each is waited for once a look.
        """
        from vesalius.infra.pipeline.tracked import outbox_of
        from vesalius.platform.runs import RunFolder
        from vesalius.platform.store.lock import is_held

        run = RunFolder(path)
        if is_held(run.lock):
            return
        outbox = outbox_of(run)
        if outbox is None:
            return
        if outbox.uri in away:  # a failure for this run too, or it would be asked for at the next look
            raise UnansweredError("its tracking server has just not answered")
        try:
            outbox.deliver()
        except UnansweredError:
            away.add(outbox.uri)
            raise
        self._say(f"told where it is tracked what run '{run.run_id}' had kept for it")

    def _say_once(self, what: str, sentence: str) -> None:
        """Say a sentence about something, unless it is what was said of it last."""
        if self._said.get(what) != sentence and self._is_said(sentence):
            self._said[what] = sentence

    def _say(self, sentence: str) -> None:
        self._is_said(sentence)

    def _is_said(self, sentence: str) -> bool:
        """Say a sentence and return whether that could be done: its log lies on a disk that may be full."""
        try:
            self._write(sentence)
        except OSError:
            return False
        return True


class Backoff:
    """When that which has failed may be tried again: each time after twice as long."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waits: dict[str, tuple[float, float]] = {}

    def is_due(self, what: str) -> bool:
        """Return whether something may be tried now."""
        return self._clock() >= self._waits.get(what, (0.0, 0.0))[0]

    def has_failed(self, what: str) -> None:
        """Note that something was tried and has failed."""
        seconds = min(2 * self._waits.get(what, (0.0, _FIRST_WAIT_SECONDS / 2))[1], _LONGEST_WAIT_SECONDS)
        self._waits[what] = (self._clock() + seconds, seconds)

    def has_done(self, what: str) -> None:
        """Note that something was tried and went well."""
        self._waits.pop(what, None)


def main() -> None:
    """Watch until told to end."""
    parser = argparse.ArgumentParser(description="Watch over the services, jobs and runs of a home.")
    parser.add_argument("--home", type=Path, required=True)
    home = parser.parse_args().home
    supervisor = Supervisor(home, lambda sentence: print(sentence, flush=True))
    while True:
        with contextlib.suppress(VesaliusError, OSError):  # a service that is gone is started again below
            join_tracking(home)
        supervisor.look()
        time.sleep(_BETWEEN_SECONDS)


if __name__ == "__main__":
    main()
