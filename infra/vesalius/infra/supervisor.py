"""The supervisor: brings services back that have ended, submits jobs again that went with them, tells what waits.

A service among those of ``vesalius up``; ``python -m vesalius.infra.supervisor --home HOME``.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.infra.jobs.records import JobBook, restarts_left, was_lost
from vesalius.infra.services import inspection, join_tracking
from vesalius.infra.services.state import TITLES, ServicesFolder
from vesalius.platform.errors import VesaliusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vesalius.infra.jobs.records import JobRecord

_BETWEEN_SECONDS = 3.0
_MENDING_SECONDS = 600.0
_PATIENCE = 20
"""Rounds in a row in which a service may not answer: to start one anew that is only busy would end what it does."""


class Supervisor:
    """Watches over one home. One process at a time, as services are."""

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        """Store what to watch.

        Args:
            home: of services, jobs and runs.
            say: told what is found and done.
        """
        self._home = home
        self._say = say
        self._folder = ServicesFolder(home)
        self._silent: dict[str, int] = {}
        self._said: set[str] = set()
        # What was lost while nobody watched, perhaps weeks ago, is its owner's to go on with. Which of these that is,
        # their clusters have yet to say.
        self._of_before = {record.last.submission for record in JobBook(home).read_all()[0]}
        self._left_alone: set[str] = set()

    def look(self) -> None:
        """Look once at services, jobs and runs, and do what is to be done. Raises nothing on purpose."""
        self._folder.beat.touch()
        for part in (self._mend, self._resubmit, self._tell):
            try:
                part()
            except VesaliusError as error:
                self._say_once(str(error))

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
        self._say("services are up again" if done.returncode == 0 else done.stderr.strip()[-2000:])

    def _resubmit(self) -> None:
        from vesalius.infra.jobs import submission

        records, _ = submission.refresh(self._home)
        for record in records:
            if self._is_to_go_on(record):
                left = restarts_left(record) - 1
                self._say(f"job '{record.job}' was lost: submitting it again, {left} more such times are left")
                submission.retry(
                    record.job, home=self._home, address=None, rebuild=False, say=self._say, only_lost=True
                )

    def _is_to_go_on(self, record: JobRecord) -> bool:
        """Return whether a job is to be submitted again: it was lost while this process watched."""
        last = record.last
        if last.submission in self._of_before and last.status != "UNKNOWN":  # the first that its cluster says of it
            self._of_before.remove(last.submission)
            if was_lost(last):
                self._left_alone.add(last.submission)
        return was_lost(last) and last.submission not in self._left_alone and restarts_left(record) > 0

    def _tell(self) -> None:
        from vesalius.infra.pipeline.tracked import outbox_of
        from vesalius.platform.runs import RunFolder
        from vesalius.platform.store.lock import is_held

        for path in sorted(self._home.glob("runs/*/untold.json")):
            run = RunFolder(path.parent)
            if not path.stat().st_size or is_held(run.lock):
                continue
            with contextlib.suppress(VesaliusError):  # its server is still away, and it goes on waiting
                outbox = outbox_of(run)
                if outbox is not None:
                    outbox.deliver()
                    self._say(f"told where it is tracked what run '{run.run_id}' had kept for it")

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


def main() -> None:
    """Watch until told to end."""
    parser = argparse.ArgumentParser(description="Watch over the services, jobs and runs of a home.")
    parser.add_argument("--home", type=Path, required=True)
    home = parser.parse_args().home
    supervisor = Supervisor(home, lambda sentence: print(sentence, flush=True))
    while True:
        with contextlib.suppress(VesaliusError):  # a service that is gone is started again below
            join_tracking(home)
        supervisor.look()
        time.sleep(_BETWEEN_SECONDS)


if __name__ == "__main__":
    main()
