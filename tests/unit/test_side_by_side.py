"""Rows in processes of their own: one that dies is told, a killed parent leaves none behind, memory is shared out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from vesalius.infra.console import Terminal
from vesalius.infra.reproduce import load_protocol, side_by_side
from vesalius.infra.reproduce.cohort import Cohorts
from vesalius.infra.reproduce.protocol import BASELINES, Row
from vesalius.infra.reproduce.running import Conditions, Judged, Outcome
from vesalius.platform.loading import budget, budget_bytes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from vesalius.platform.store import CohortStore

ROWS = [BASELINES[1].model_copy(update={"label": label}) for label in ("killed", "half", "whole")]


def conditions(store: CohortStore, out: Path, at_once: int) -> Conditions:
    return Conditions(
        protocol=load_protocol("implicit_field_2021"),
        cohorts=Cohorts(reference=store, finer=None, level=None, said="toy"),
        home=out / "home",
        out=out,
        budget_seconds=None,
        num_workers=0,
        device="cpu",
        threads=1,
        small="tiny",
        at_once=at_once,
    )


# ---- what stands for a row in its process


def dies_by_its_label(row: Row, given: Conditions, log: Path, told: Connection) -> None:
    log.write_text("at work")
    if row.label == "half":
        os.write(told.fileno(), b"\x00\x01\x00\x00half of it")  # a message of 65,536 bytes is announced
    if row.label in ("killed", "half"):
        os.kill(os.getpid(), signal.SIGKILL)
    told.send(Judged(row=row, outcome=Outcome(run="done")))


def waits_for_the_other(row: Row, given: Conditions, log: Path, told: Connection) -> None:
    """Note what lies there at the start; the first row ends when the other one has begun."""
    there = sorted(path.stem for path in given.out.glob("*.ended"))
    (given.out / f"{row.label}.begun").touch()
    until = time.monotonic() + 60
    while row.label == "first" and not (given.out / "other.begun").exists() and time.monotonic() < until:
        time.sleep(0.01)
    (given.out / f"{row.label}.ended").touch()
    told.send(Judged(row=row, outcome=Outcome(run=" ".join(there))))


def ends_when_it_is_ready(row: Row, given: Conditions, log: Path, told: Connection) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it from the start
    try:
        signal.raise_signal(signal.SIGINT)  # as Ctrl-C does, which reaches the whole group
    except KeyboardInterrupt:
        log.write_text("interrupted")
        time.sleep(1)
        log.write_text("and all of it written")


def test_a_row_whose_process_dies_is_told_and_the_others_go_on(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_run_alone", dies_by_its_label)
    with Terminal(False) as terminal:
        found = list(side_by_side.run_rows(terminal, ROWS, conditions(toy_store, tmp_path, 2)))
    outcomes = {one.row.label: one.outcome for one in found}
    assert outcomes.keys() == {"killed", "half", "whole"}
    assert outcomes["whole"] == Outcome(run="done")
    for label in ("killed", "half"):
        log = tmp_path / "logs" / f"{label}.log"
        said = f"its process ended early, for want of memory or by a defect: see {log}"
        assert outcomes[label] == Outcome(error=said)
        # It has died at its work, and not before it.
        assert log.read_text() == "at work"


def test_the_next_row_is_the_first_that_waits_for_none_at_work(toy_store: CohortStore, tmp_path: Path) -> None:
    first, twin = (ROWS[0].model_copy(update={"label": label}) for label in ("first", "twin"))
    other = BASELINES[0].model_copy(update={"label": "other"})
    given = conditions(toy_store, tmp_path, 2)
    running: Any = [(first, tmp_path, None)]
    assert side_by_side._next([twin, other], running, given) is other
    assert side_by_side._next([twin], running, given) is None
    assert side_by_side._next([twin, other], [], given) is twin


@pytest.mark.long
def test_rows_that_may_be_one_run_are_at_work_one_after_the_other(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_run_alone", waits_for_the_other)
    rows = [ROWS[0].model_copy(update={"label": label}) for label in ("first", "twin")]
    rows.append(BASELINES[0].model_copy(update={"label": "other"}))
    rows.append(ROWS[0].model_copy(update={"label": "unknown", "method": "no_such_method"}))
    with Terminal(False) as terminal:
        found = list(side_by_side.run_rows(terminal, rows, conditions(toy_store, tmp_path, 2)))
    ended = {one.row.label: (one.outcome.run or "").split() for one in found}
    assert ended.keys() == {"first", "twin", "other", "unknown"}
    assert "first" in ended["twin"]
    # The row behind them does not wait for what it does not share.
    assert "first" not in ended["other"]


def test_interrupted_rows_are_given_the_time_to_write_their_end(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "logs" / "killed.log"

    def interrupted(*_: object) -> Any:
        until = time.monotonic() + 60
        while not log.exists() and time.monotonic() < until:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "_run_alone", ends_when_it_is_ready)
    monkeypatch.setattr(side_by_side, "wait", interrupted)
    rows = side_by_side.run_rows(Terminal(False), ROWS[:1], conditions(toy_store, tmp_path, 2))
    with pytest.raises(KeyboardInterrupt):
        next(rows)
    assert log.read_text() == "and all of it written"


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_PARENT = """
import multiprocessing, sys, time
from pathlib import Path
from vesalius.infra.reproduce import side_by_side

def child(ready):
    side_by_side._end_with_parent()
    ready.touch()
    time.sleep(120)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready = Path(sys.argv[1])
    process = context.Process(target=child, args=(ready,), daemon=True)
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    print(process.pid, flush=True)
    time.sleep(120)
"""


def test_a_killed_parent_leaves_no_row_behind(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    with subprocess.Popen([sys.executable, script, tmp_path / "ready"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.terminate()
        parent.wait()
        until = time.monotonic() + 5
        try:
            # Without anybody to bury it, as in some containers, it stays a zombie.
            while is_alive(child) and time.monotonic() < until:
                time.sleep(0.05)
            assert not is_alive(child)
        finally:
            if child.is_running():
                child.kill()


def test_a_row_takes_its_share_of_the_free_memory(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_bytes", lambda: 2**30)
    taken: list[int] = []

    def noted(terminal: Terminal, row: Row, given: Conditions) -> Judged:
        taken.append(budget_bytes(None, 1))
        return Judged(row=row, outcome=Outcome())

    monkeypatch.setattr(side_by_side, "run_row", noted)
    for at_once in (1, 4):
        answer, told = multiprocessing.Pipe(duplex=False)
        side_by_side._run_alone(ROWS[0], conditions(toy_store, tmp_path, at_once), tmp_path / "row.log", told)
        assert answer.recv().row == ROWS[0]
    assert taken == [2**29, 2**27]
    assert budget_bytes(None, 1) == 2**29
    # What is stated is taken as it stands.
    assert budget_bytes(3, 1) == 3 * 2**20
