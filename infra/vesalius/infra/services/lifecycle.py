"""Start services and stop them."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vesalius.infra.services import credentials, database, ports, processes, redis
from vesalius.infra.services.addresses import is_loopback
from vesalius.infra.services.asking import asked
from vesalius.infra.services.kinds import STOP_SECONDS, Services
from vesalius.infra.services.state import NAMES, PROBE, TITLES, ServicesFolder, ServicesState, present, this_boot
from vesalius.platform.errors import ServiceError, SettingError
from vesalius.platform.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.infra.services.state import Name, Running, ServiceSettings
    from vesalius.platform.progress import Progress

STARTING_SECONDS = 240.0
_BETWEEN_SECONDS = 0.2
_ASKS, _BETWEEN_ASKS_SECONDS = 4, 3.0
_JOB_LOG = "job-driver-"
_JOB_LOGS, _JOB_LOG_BYTES = 100, 5 * 2**20
"""How many logs of earlier heads' jobs are kept, and how much of each."""


def up(home: Path, asked: Mapping[str, Any], asked_ports: Mapping[str, int], *, progress: Progress = silent) -> None:
    """Start the services of a home that do not run well; leave alone those that do.

    Args:
        home: of runs and models.
        asked: of :class:`ServiceSettings`, what was asked for in so many words; ``database`` may hold a password.
        asked_ports: likewise, by port's name.
        progress: called with services that are well, and how many there are.

    Raises:
        ServiceError: a service does not start, a port is taken, or what is asked for differs from what runs.
        SettingError: a setting does not fit, or would open a service to others without a login.
    """
    folder = ServicesFolder(home)
    folder.make()
    with folder.alone():
        state = present(folder.read() or ServicesState())
        before = state.settings
        changes, password = dict(asked), ""
        if "database" in changes:
            changes["database"], password = database.given_database(folder, changes["database"])
        if "redis" in changes:
            changes["redis"] = redis.read_address(changes["redis"])
        alive = {name: one for name, one in state.running.items() if processes.is_alive(one)}
        settings = _settings(state.settings, changes, asked_ports, alive)
        if settings.redis is not None and "ray" not in alive:
            redis.check(settings.redis)
        database.keep_password(folder, password)
        for name, one in state.running.items():
            if name not in alive:
                _stop(name, one)  # what it has started may have outlived it, and holds its port
        services = Services(folder, settings)
        with ThreadPoolExecutor(len(NAMES)) as threads:
            answers = list(threads.map(lambda name: _is_well(services, name, alive), services.names))
        well = [name for name, is_well in zip(services.names, answers, strict=True) if is_well]
        for name in alive:
            if name not in well:
                _stop(name, alive[name])
        fresh = settings.model_copy(update={"ports": _ports(settings, asked_ports, state.settings.ports, well)})
        services = Services(folder, fresh)
        state = ServicesState(settings=fresh, boot=this_boot(), running={name: alive[name] for name in well})
        folder.write(state)
        progress(len(well), len(services.names), "")
        try:
            _start(services, state, progress)
        except BaseException:
            if not well:  # ports that nobody has got to know are no ones to hold on to
                now = folder.read() or state
                kept = fresh.model_copy(update={"ports": {**before.ports, **asked_ports}})
                folder.write(now.model_copy(update={"settings": kept}))
            raise


def down(home: Path, *, progress: Progress = silent) -> list[Name]:
    """Stop a home's services in the reverse order, with all they have started, and return those that ran.

    Raises:
        ServiceError: another process starts or stops them.
    """
    folder = ServicesFolder(home)
    known = folder.read()
    if known is None:
        return []
    watching = present(known).running.get("supervisor")
    if watching is not None:
        processes.stop(watching)  # first of all: it may be starting what is to be stopped, and holds the lock then
    with folder.alone():
        state = present(folder.read() or ServicesState())
        stopped = [name for name in NAMES if name in state.running]
        for done, name in enumerate(reversed(stopped)):
            progress(done, len(stopped), f"stopping {TITLES[name]}")
            _stop(name, state.running[name])
            state = state.model_copy(
                update={"running": {key: one for key, one in state.running.items() if key != name}}
            )
            folder.write(state)
        progress(len(stopped), len(stopped), "")
    return stopped


def _settings(
    kept: ServiceSettings, changes: Mapping[str, Any], asked_ports: Mapping[str, int], alive: Mapping[Name, Running]
) -> ServiceSettings:
    """Return the settings that were kept with what is asked for, unless something runs that was started otherwise."""
    new = kept.model_copy(update=dict(changes))
    if not is_loopback(new.host) and not new.auth:
        raise SettingError(
            f"--host {new.host} opens MLflow and Ray to other machines, and Ray's Jobs API runs whatever it is sent: "
            "add --auth, which asks for a login and a token"
        )
    moved = [f"--{key.replace('_', '-')}" for key in changes if getattr(new, key) != getattr(kept, key)]
    moved += [f"--{name.replace('_', '-')}-port" for name, port in asked_ports.items() if kept.ports.get(name) != port]
    if moved and alive:
        raise ServiceError(
            f"services of this home run with other settings than {', '.join(moved)}: leave that out, or call "
            "`vesalius down` first"
        )
    return new


def _ports(
    settings: ServiceSettings, asked: Mapping[str, int], kept: Mapping[str, int], well: list[Name]
) -> dict[str, int]:
    """Return all ports: those of services that run as they are, the others checked."""
    held = {
        name: port
        for name, port in kept.items()
        if any(name == one or (one == "ray" and name.startswith("ray")) for one in well)
    }
    if settings.database is not None and "postgres" in kept:
        held["postgres"] = kept["postgres"]  # nobody listens there
    left = {name: port for name, port in kept.items() if name not in held}
    chosen = ports.choose_ports(
        {name: port for name, port in asked.items() if name not in held}, left, settings.host, held=held
    )
    return {**chosen, **held}


def _start(services: Services, state: ServicesState, progress: Progress) -> None:
    """Start what does not run. What this call has started is stopped again where one of them fails."""
    missing = [name for name in services.names if name not in state.running]
    started: dict[Name, Running] = {}
    try:
        if "postgres" in missing:
            progress(len(state.running), len(services.names), f"starting {TITLES['postgres']}")
            state = _spawn(services, "postgres", state, started)
            _await(services, {"postgres": started["postgres"]}, lambda name: None)
        database.Database(services.database.url).prepare(own=services.settings.database is None)
        others = [name for name in missing if name != "postgres"]
        for name in others:
            if name == "studies":
                database.make_study_tables(services.database)
            state = _spawn(services, name, state, started)
        done = len(services.names) - len(others)

        def tell(name: Name) -> None:
            nonlocal done
            done += 1
            progress(done, len(services.names), f"{TITLES[name]} is up")

        _await(services, {name: started[name] for name in others}, tell)
    except BaseException:  # Ctrl-C too
        for one, running in reversed(list(started.items())):
            _stop(one, running)
        left = {key: running for key, running in state.running.items() if key not in started}
        services.folder.write(state.model_copy(update={"running": left}))
        raise
    _link_logs(services)


def _spawn(services: Services, name: Name, state: ServicesState, started: dict[Name, Running]) -> ServicesState:
    plan = services.plan(name)
    running = processes.start(plan.command, plan.environment, services.folder.log(name), url=plan.url, user=plan.user)
    started[name] = running
    state = state.model_copy(update={"running": {**state.running, name: running}})
    services.folder.write(state)
    return state


def _await(services: Services, waited: Mapping[Name, Running], tell: Any) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    left = dict(waited)
    while left:
        for name, running in list(left.items()):
            problem = services.problem(name)
            if not processes.is_alive(running):
                raise ServiceError(
                    f"{TITLES[name]} ended while it was starting ({_last_line(services.folder.log(name))}): see "
                    f"{services.folder.log(name)}"
                )
            if problem is None:
                del left[name]
                tell(name)
            elif time.monotonic() > deadline:
                raise ServiceError(
                    f"{TITLES[name]} has not answered for {STARTING_SECONDS:.0f} s ({problem}): see "
                    f"{services.folder.log(name)}"
                )
        time.sleep(_BETWEEN_SECONDS)


def _is_well(services: Services, name: Name, alive: Mapping[Name, Running]) -> bool:
    """Ask a service several times: to end a busy one, and the jobs on it, would be worse than to wait."""
    for left in reversed(range(_ASKS)):
        if name not in alive or not processes.is_alive(alive[name]):
            return False
        if services.problem(name) is None:
            return True
        if left:
            time.sleep(_BETWEEN_ASKS_SECONDS)
    return False


def _stop(name: Name, running: Running) -> None:
    # PostgreSQL waits for its clients on SIGTERM, and ends their sessions on SIGINT.
    how = signal.SIGINT if name == "postgres" else signal.SIGTERM
    processes.stop(running, how=how, wait_seconds=STOP_SECONDS)


def _link_logs(services: Services) -> None:
    """Let ``logs/ray`` lead to the head's own logs, among them those of jobs; older sessions go, but for those."""
    link = services.folder.logs / "ray"
    token = credentials.kept_or_made(services.folder.secrets / "ray_token")
    request = urllib.request.Request(f"{services.url('ray')}/api/version", headers={"Authorization": f"Bearer {token}"})
    with contextlib.suppress(OSError, ValueError, KeyError):
        session = json.loads(asked(request, 10))["session_name"]
        sessions = services.session_folder()
        for old in sessions.glob("session_*"):
            if old.is_dir() and not old.is_symlink() and old.name != session:
                _keep_job_logs(services.folder, old / "logs")
                shutil.rmtree(old, ignore_errors=True)
        link.unlink(missing_ok=True)
        link.symlink_to(sessions / session / "logs")


def _keep_job_logs(folder: ServicesFolder, logs: Path) -> None:
    """Keep what jobs of an earlier head have written last: why one was lost stands there alone."""
    for log in logs.glob(f"{_JOB_LOG}*.log"):
        if log.name.startswith(f"{_JOB_LOG}{PROBE}-"):
            continue
        kept = folder.job_log(log.stem.removeprefix(_JOB_LOG))
        with contextlib.suppress(OSError):
            kept.parent.mkdir(exist_ok=True)
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - _JOB_LOG_BYTES))
                kept.write_bytes(file.read())
            shutil.copystat(log, kept)
    by_age = sorted((folder.logs / "jobs").glob("*.log"), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-_JOB_LOGS]:
        old.unlink(missing_ok=True)


def _last_line(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no word"
    return lines[-1][:300] if lines else "no word"
