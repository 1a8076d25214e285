"""How services are: found out by a request to each, and told without anything secret."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vesalius.infra.services import credentials, processes
from vesalius.infra.services.addresses import clients_host
from vesalius.infra.services.kinds import Services
from vesalius.infra.services.state import NAMES, ServicesFolder, present

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.infra.services.state import Name, Running

_BROKEN = ("dead", "not answering")


def status(home: Path) -> list[dict[str, Any]]:
    """Return each service's state, found out by a request to it.

    ``state`` is ``up``, ``not answering`` (its process runs), ``dead`` (it does not and nobody stopped it) or ``down``.
    """
    folder = ServicesFolder(home)
    state = folder.read()
    if state is None:
        return [_row(name, "down", None, None) for name in NAMES]
    here = present(state)
    services = Services(folder, state.settings)

    def look(name: Name) -> dict[str, Any]:
        one = here.running.get(name)
        if one is None and name in state.running:
            return _row(name, "dead", state.running[name], "this machine was started anew since")
        if one is None:
            other = name == "postgres" and state.settings.database is not None
            return _row(name, "down", None, "a database of somebody else's is used" if other else None)
        if not processes.is_alive(one):
            return _row(name, "dead", one, f"its process is gone; see {folder.log(name)}")
        problem = services.problem(name)
        return _row(name, "up" if problem is None else "not answering", one, problem)

    with ThreadPoolExecutor(len(NAMES)) as threads:
        return list(threads.map(look, NAMES))


def describe(home: Path) -> dict[str, Any]:
    """Return what ``vesalius status`` says; nothing in it is secret."""
    folder = ServicesFolder(home)
    rows = status(home)
    state = folder.read()
    settings = None if state is None else state.settings
    document: dict[str, Any] = {
        "home": str(home),
        "running": any(row["state"] != "down" for row in rows),
        "healthy": all(row["state"] not in _BROKEN for row in rows),
        "services": rows,
        "logs": str(folder.logs),
        "host": None if settings is None else settings.host,
        "login": None if settings is None else settings.auth,
    }
    if settings is not None and document["running"]:
        document["cluster_address"] = f"{clients_host(settings.host)}:{settings.ports['ray']}"
        document["redis"] = settings.redis
        document["metrics"] = f"http://127.0.0.1:{settings.ports['ray_metrics']}/metrics"
        document["ray_token_file"] = str(folder.secrets / "ray_token")
        if settings.auth:
            document["mlflow_user"] = credentials.ADMINISTRATOR
            document["mlflow_password_file"] = str(folder.secrets / "mlflow_password")
    return document


def _row(name: Name, state: str, running: Running | None, problem: str | None) -> dict[str, Any]:
    return {
        "service": name,
        "state": state,
        "pid": None if running is None else running.pid,
        "url": None if running is None else running.url,
        "since": None if running is None else running.since,
        "problem": problem,
    }
