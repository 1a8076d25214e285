"""Processes that outlive the command that starts them, and are found again by more than a number.

A service is a session of its own. Its leader is known by pid and start time and by a random mark in its environment;
what it has started is found by descent, by session and by the mark. A program that writes its own title over its
environment (Ray, PostgreSQL) is still found by one of the others.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import psutil

from vesalius.infra.services.state import Running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MARK = "VESALIUS_SERVICE_MARK"
_SAME_START_SECONDS = 2.0
_LARGE_LOG_BYTES = 20 * 2**20
_children: dict[int, subprocess.Popen[bytes]] = {}


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, url: str, user: str | None = None
) -> Running:
    """Start a process in a session of its own and return how it is known.

    Args:
        command: program and arguments; nothing secret, since every user of the machine can read it.
        environment: complete.
        log: what it writes is appended there; one that has grown large is put aside first.
        url: where it will answer.
        user: to run as, or None for the caller's.
    """
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LARGE_LOG_BYTES:
            log.replace(log.with_suffix(".log.old"))
    mark = secrets.token_hex(16)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with log.open("ab") as out:
        out.write(f"--- {now} {' '.join(command)}\n".encode())
        out.flush()
        process = subprocess.Popen(
            list(command),
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            user=user,
            extra_groups=None if user is None else [],
        )
    _children[process.pid] = process  # a child of ours that ends is reaped by asking it
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.Error:
        created = time.time()
    return Running(pid=process.pid, created=created, mark=mark, url=url, since=now)


def is_alive(running: Running) -> bool:
    """Return whether the very process runs: not another one that was given its number since."""
    return _leader(running) is not None


def stop(running: Running, *, how: signal.Signals = signal.SIGTERM, wait_seconds: float = 20.0) -> None:
    """End a service and all it has started: politely, then after ``wait_seconds`` by force. Ends nothing else."""
    leader = _leader(running)
    members = _members(running)
    if leader is not None:
        with contextlib.suppress(psutil.Error):
            leader.send_signal(how)
        _wait([leader], wait_seconds)
    # Whoever was started meanwhile, and whoever did not end with the leader.
    left = {one.pid: one for one in [*members, *_members(running)]}
    rest = [one for one in ([leader] if leader else []) + list(left.values()) if _runs(one)]
    _signal(rest, signal.SIGTERM)
    _wait(rest, 5.0)
    _signal(rest, signal.SIGKILL)
    _wait(rest, 5.0)


def leftovers(running: Running) -> list[int]:
    """Return the pids of what a service has started and still runs, its leader aside."""
    return [one.pid for one in _members(running)]


def _leader(running: Running) -> psutil.Process | None:
    child = _children.get(running.pid)
    if child is not None and child.poll() is not None:
        return None
    try:
        process = psutil.Process(running.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # The mark is beyond doubt; a start time is computed from the clock, which may have been set since.
        if _mark(process) == running.mark or abs(process.create_time() - running.created) < _SAME_START_SECONDS:
            return process
    except psutil.Error:
        pass
    return None


def _members(running: Running) -> list[psutil.Process]:
    leader = _leader(running)
    reused = leader is None and _is_anothers(running)  # the number is another's: so is a session of it
    found: dict[int, psutil.Process] = {}
    if leader is not None:
        with contextlib.suppress(psutil.Error):
            found = {one.pid: one for one in leader.children(recursive=True)}
    for process in psutil.process_iter():
        if process.pid in (running.pid, os.getpid()):
            continue
        ours = _mark(process) == running.mark
        if not ours and not reused:
            with contextlib.suppress(OSError):
                ours = os.getsid(process.pid) == running.pid
        if ours:
            found[process.pid] = process
    return [one for one in found.values() if _runs(one)]


def _is_anothers(running: Running) -> bool:
    """Return whether the number of a leader that has ended is another process's; nobody may have buried it yet."""
    try:
        return abs(psutil.Process(running.pid).create_time() - running.created) >= _SAME_START_SECONDS
    except psutil.Error:
        return False


def _mark(process: psutil.Process) -> str | None:
    try:
        value: str | None = process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
    return value


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _signal(processes: Sequence[psutil.Process], how: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it makes sure that the pid is still the same process
            process.send_signal(how)


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_runs(one) for one in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
        for child in list(_children.values()):
            child.poll()
