"""How the verbs come to use a home's services: by themselves, through the variables that their libraries read.

A variable that is set already stays as it is: whoever has set ``MLFLOW_TRACKING_URI`` or ``RAY_ADDRESS`` meant it.
``VESALIUS_SERVICES=off`` leaves the services alone.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vesalius.infra.services.state import TITLES, ServicesFolder, this_boot

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.infra.services.kinds import Services
    from vesalius.infra.services.state import Name, Running, ServicesState

VARIABLE = "VESALIUS_SERVICES"
_NEEDED: tuple[Name, ...] = ("postgres", "mlflow", "ray")
"""Services without which a verb would do its work elsewhere."""

JOB = "VESALIUS_JOB"
"""Set in the environment of a job, to its name."""

JOB_SECONDS, _BETWEEN_SECONDS = 180.0, 1.0
"""How long a job waits for one of them: a supervisor starts it again, and not a job that has ended in words."""


def join(home: Path) -> None:
    """Let this process, and those it starts, track, compute and keep studies with a home's services, where it has any.

    Raises:
        ServiceError: services were started and not stopped, and one of them is gone or does not answer yet.
    """
    services = _services(home)
    if services is None:
        return
    from vesalius.infra.services.kinds import ray_access

    # A job's RAY_ADDRESS and its access are there already: the cluster has set them.
    if "RAY_ADDRESS" not in os.environ:
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{services.settings.ports['ray']}"
        os.environ.update(ray_access(services.folder))
    _track(services)


def join_tracking(home: Path) -> None:
    """Let this process track with a home's services, and compute nowhere.

    For whoever asks other clusters too: Ray sends the token that it finds in the environment to each of them.

    Raises:
        ServiceError: services were started and not stopped, and one of them is gone or does not answer yet.
    """
    services = _services(home)
    if services is not None:
        _track(services)


def _track(services: Services) -> None:
    from vesalius.infra.services import credentials
    from vesalius.infra.services.kinds import login_places
    from vesalius.platform import tracking

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ["MLFLOW_TRACKING_URI"] = services.url("mlflow")
    if services.settings.auth and os.environ["MLFLOW_TRACKING_URI"] == services.url("mlflow"):
        from vesalius.platform.registry.records import current_user

        # Who promotes is who it was before: the login is the services', and everybody's here.
        os.environ.setdefault("VESALIUS_USER", current_user())
        name, password = credentials.tracking_login(services.folder.secrets)
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", name)
        if os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", password) == password:
            # Runs of this home may be tracked elsewhere as well.
            os.environ[tracking.LOGIN_FOR] = login_places(services.settings)


def study_storage(home: Path) -> str | None:
    """Return the address of the storage for studies of a home that has services; it holds no password."""
    services = _services(home)
    if services is None:
        return None
    from vesalius.infra.services.database import STUDIES

    return services.database.schema(STUDIES)


def jobs_access(home: Path, address: str | None) -> tuple[str, dict[str, str]] | None:
    """Return where the services' head takes jobs and the headers that let one in there, or None where it is not meant.

    Args:
        home: of the services.
        address: that was asked for: their token goes to nobody else; None is whatever there is.

    Raises:
        ServiceError: services run, and their head is not among them yet.
        ClusterGoneError: their head has ended without having been stopped.
    """
    folder = ServicesFolder(home)
    state = folder.read()
    if _is_off() or state is None or not state.running or (address is not None and not _is_head(address, state)):
        return None
    from vesalius.infra.services import credentials
    from vesalius.infra.services.kinds import Services
    from vesalius.platform.errors import ClusterGoneError, ServiceError

    # The other services are nothing to a cluster: a job runs on, and is heard of, without them.
    head = state.running.get("ray")
    if head is None:
        raise ServiceError(f"{TITLES['ray']} of {home} is not up: wait where `vesalius up` is at work, else call it")
    if _has_ended(head, state):  # another process may have its port by now, and is not to have the token
        raise ClusterGoneError(
            f"{TITLES['ray']} of {home} ended without `vesalius down`: `vesalius up` starts it again"
        )
    token = credentials.kept_or_made(folder.secrets / "ray_token")
    return address or Services(folder, state.settings).url("ray"), {"Authorization": f"Bearer {token}"}


def _is_head(address: str, state: ServicesState) -> bool:
    from urllib.parse import urlsplit

    from vesalius.infra.services.addresses import clients_host, is_loopback

    asked = urlsplit(address)
    try:
        port = asked.port
    except ValueError:
        return False
    host = asked.hostname or ""
    ours = clients_host(state.settings.host)
    return port == state.settings.ports.get("ray_dashboard") and (host == ours or is_loopback(host))


def _is_off() -> bool:
    return os.environ.get(VARIABLE, "").strip().lower() == "off"


def _services(home: Path) -> Services | None:
    """Return the services that a verb uses, or None where it is to use none.

    Raises:
        ServiceError: one of them is gone or not there yet; a job waits for it first.
    """
    if _is_off():
        return None
    folder = ServicesFolder(home)
    if not (folder.path / "state.json").is_file():  # most homes: nothing is imported for them
        return None
    from vesalius.platform.errors import ServiceError

    deadline = time.monotonic() + (JOB_SECONDS if JOB in os.environ else 0.0)
    while True:
        state = folder.read()
        if state is None or not state.running:
            return None
        from vesalius.infra.services.kinds import Services

        services = Services(folder, state.settings)
        problem = _problem(services, state)
        if problem is None:
            return services
        if time.monotonic() >= deadline:
            raise ServiceError(
                f"{problem}: `vesalius up` starts it again, `vesalius down` goes back to files and this machine's own "
                "cores"
            )
        time.sleep(_BETWEEN_SECONDS)


def _problem(services: Services, state: ServicesState) -> str | None:
    """Return which services that a verb needs are not there, as far as it can be seen on this machine.

    While ``up`` is at work it has noted only what runs, and what it has just started does not answer yet. So what is
    young is asked; a job, which can wait, asks them all.
    """
    from vesalius.infra.services.lifecycle import STARTING_SECONDS

    if _is_elsewhere(state):
        return None
    ended, silent = [], []
    for name in services.names:
        one = state.running.get(name)
        if name not in _NEEDED:
            continue
        if one is None:
            silent.append(TITLES[name])
        elif _has_ended(one, state):
            ended.append(TITLES[name])
        elif (JOB in os.environ or time.time() - one.created < STARTING_SECONDS) and services.problem(name) is not None:
            silent.append(TITLES[name])
    home = services.folder.home
    if ended:
        return f"{' and '.join(ended)} of {home} ended without `vesalius down`"
    if silent:
        return f"{' and '.join(silent)} of {home} does not answer, or not yet (see `vesalius status`)"
    return None


def _is_elsewhere(state: ServicesState) -> bool:
    """Return whether services run on another machine, whose processes cannot be seen from here."""
    return this_boot().partition("/")[0] != state.boot.partition("/")[0]


def _has_ended(one: Running, state: ServicesState) -> bool:
    from vesalius.infra.services import processes

    return not _is_elsewhere(state) and (state.boot != this_boot() or not processes.is_alive(one))
