"""Rows of a table at once, each in a process of its own: small networks leave most of a large device idle."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, cast

from vesalius.infra.console import Terminal
from vesalius.infra.reproduce.running import Judged, Outcome, may_be_one_run, run_row, slug
from vesalius.platform.errors import DiskSpaceError
from vesalius.platform.loading import memory_shared_by

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from vesalius.infra.reproduce.protocol import Row
    from vesalius.infra.reproduce.running import Conditions

_SECONDS_TO_END = 5.0
"""For the rows' processes after Ctrl-C, which has reached them too: each has an end to write."""


def run_rows(terminal: Terminal, rows: Sequence[Row], conditions: Conditions) -> Iterator[Judged]:
    """Yield the rows as they are done; what each says on the way goes to ``OUT/logs/ROW.log``.

    A row that fails, or whose process dies, is told as failed, and the others go on. Where this process is killed, the
    rows' end too. Rows that may turn out to be one run are not at work together: the later one takes up what it finds.

    Args:
        terminal: where progress is shown.
        rows: to be run, in this order as far as they may.
        conditions: of all of them; ``threads`` is a row's, and ``at_once`` says how many run side by side.

    Raises:
        DiskSpaceError: there is no room, for any row.
        KeyboardInterrupt: what is done is kept; the same call goes on.
    """
    logs, at_once = conditions.out / "logs", conditions.at_once
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(rows)
    running: dict[Connection, tuple[Row, Path, BaseProcess]] = {}
    try:
        with terminal.progress(f"{at_once} rows at once") as progress:
            progress(0, len(rows), f"what they say is in {logs}")
            while waiting or running:
                while len(running) < at_once and (row := _next(waiting, running.values(), conditions)) is not None:
                    waiting.remove(row)
                    log = logs / f"{slug(row.label)}.log"
                    answer, process = _start(row, conditions, log)
                    running[answer] = (row, log, process)
                for ready in wait(list(running)):
                    answer = cast("Connection", ready)  # wait() knows sockets, too
                    row, log, process = running.pop(answer)
                    judged = _received(answer, row, log)
                    process.join()
                    if judged.outcome.error is not None:
                        terminal.warn(f"{row.label}: {judged.outcome.error}")
                    progress(len(rows) - len(waiting) - len(running), len(rows), row.label)
                    yield judged
    except KeyboardInterrupt:
        until = time.monotonic() + _SECONDS_TO_END
        for *_, process in running.values():
            process.join(max(0.0, until - time.monotonic()))
        raise
    finally:
        # Interrupted, or given up by the caller: checkpoints are whole whenever a process is ended.
        for *_, process in running.values():
            process.terminate()
        for *_, process in running.values():
            process.join()


def _next(
    waiting: Sequence[Row], running: Collection[tuple[Row, Path, BaseProcess]], conditions: Conditions
) -> Row | None:
    """Return the first row that shares its run with none at work, or None where there is no such row."""
    busy = [row for row, *_ in running]
    return next((row for row in waiting if not any(may_be_one_run(row, one, conditions) for one in busy)), None)


def _start(row: Row, conditions: Conditions, log: Path) -> tuple[Connection, BaseProcess]:
    # A process a row: what one leaves in a device's memory would stand in the next one's way. A forked process could
    # use neither CUDA nor the threads that a library has started here.
    context = multiprocessing.get_context("spawn")
    answer, told = context.Pipe(duplex=False)
    # No daemon: those may have no processes of their own, and memory is measured in one. Whoever waits ends it.
    process = context.Process(target=_run_alone, args=(row, conditions, log, told))
    process.start()
    told.close()  # the child's end: closed here, its death is an end of file there
    return answer, process


def _received(answer: Connection, row: Row, log: Path) -> Judged:
    """Return what a row's process sent, or that it ended early.

    Raises:
        DiskSpaceError: that is what it sent.
    """
    with answer:
        try:
            said = answer.recv()
        except (EOFError, OSError):  # nothing, or a part of the message
            return Judged(
                row=row, outcome=Outcome(error=f"its process ended early, for want of memory or by a defect: see {log}")
            )
    if isinstance(said, DiskSpaceError):
        raise said
    assert isinstance(said, Judged)
    return said


def _run_alone(row: Row, conditions: Conditions, log: Path, told: Connection) -> None:
    """Run a row in this process, all that it says going to its log, and tell what became of it."""
    _end_with_parent()
    with (
        log.open("a", encoding="utf-8") as file,
        _all_output_to(file.fileno()),
        memory_shared_by(conditions.at_once),
    ):
        try:
            told.send(run_row(Terminal(as_json=False), row, conditions))
        except DiskSpaceError as error:
            told.send(error)
        except KeyboardInterrupt:
            sys.exit(1)  # the whole group was interrupted, and the parent says so
        except Exception:
            traceback.print_exc()  # a defect: it belongs to the rest of what this row has said
            sys.exit(1)


def _end_with_parent() -> None:
    """End this process as soon as its parent is no more: killed, it cannot end its children by itself.

    One left behind would hold the device's memory and its run's lock, and the same command could not go on.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # called in the first process of all

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), name="parent", daemon=True).start()


@contextlib.contextmanager
def _all_output_to(descriptor: int) -> Iterator[None]:
    """Turn stdout and stderr, Python's and the libraries', to an open file."""
    kept = [os.dup(1), os.dup(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(kept, start=1):
            os.dup2(saved, number)
            os.close(saved)
