"""The way to the tracking store: its address, a client, and every failure in one sentence."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import RunError, UnansweredError, VesaliusError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SQLITE = "sqlite:///"
_DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
_PROBE_SECONDS = 5.0
_OFF = "off"
LOGIN_FOR = "VESALIUS_LOGIN_FOR"
"""Names whom the login in the environment is for, HOST or HOST:PORT; MLflow itself sends it to every server it asks."""
_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_login: dict[str, str] = {}
"""The login, while it is not in the environment."""
_ready: set[tuple[int, str]] = set()
_lock = threading.Lock()


def is_tracking_off() -> bool:
    """Return whether ``MLFLOW_TRACKING_URI`` says ``off``: runs are then kept in their folders alone."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip().lower() == _OFF


def tracking_uri(home: Path) -> str:
    """Return where runs are tracked: ``MLFLOW_TRACKING_URI``, else an SQLite file in ``home``.

    A relative SQLite path is made absolute: workers of a cluster stand in folders of their own, and would each
    begin an empty store there.

    Raises:
        RunError: ``MLFLOW_TRACKING_URI`` is neither a server nor a database, or tracking is off.
    """
    if is_tracking_off():
        raise RunError(
            "MLFLOW_TRACKING_URI is 'off': the registry lies where runs are tracked, so unset it for this, or "
            "give a server or sqlite:///FILE"
        )
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"{_SQLITE}{home.expanduser().absolute() / 'mlflow.db'}"
    scheme = given.partition(":")[0].partition("+")[0]
    if scheme not in (*_DATABASES, "http", "https"):
        raise RunError(
            f"MLFLOW_TRACKING_URI is '{shown(given)}': expected a server (http://...) or a database "
            "(sqlite:///..., postgresql://...), 'off', or leave it unset"
        )
    database = sqlite_file(given)
    return given if database is None else f"{_SQLITE}{database}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite address, or None where it is something else."""
    return Path(uri.removeprefix(_SQLITE)).absolute() if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> str | None:
    """Return where a new experiment's files go: beside an SQLite file; None leaves it to the server."""
    database = sqlite_file(uri)
    if database is not None:
        return (database.parent / "mlartifacts").as_uri()
    if uri.partition(":")[0].partition("+")[0] in _DATABASES:
        # MLflow would put them in whatever folder the process happens to stand in.
        folder = Path(os.environ.get("VESALIUS_HOME") or Path.home() / ".vesalius").expanduser().absolute()
        return (folder / "mlartifacts").as_uri()
    return None


def client(uri: str) -> Any:
    """Return an ``MlflowClient`` for ``uri``, which is reached (and an SQLite file made) before it is returned.

    MLflow reads its login anew for each request: of several servers, ask for a client of the one that is asked next.

    Raises:
        UnansweredError: nothing answers there.
    """
    with answering(uri, "use it"):
        _import_quietly()
        _offer_login(uri)
        _probe(uri)
        from mlflow import MlflowClient

        key = (os.getpid(), uri)
        with _lock:
            if key not in _ready:
                with _alone(uri), warnings.catch_warnings():
                    # MLflow's own use of what SQLAlchemy deprecates; it is said once, when the tables are first mapped.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    first = MlflowClient(tracking_uri=uri, registry_uri=uri)
                    first.search_experiments(max_results=1)
                    first.search_registered_models(max_results=1)
                _ready.add(key)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def answering(uri: str, purpose: str, error: type[VesaliusError] = UnansweredError) -> Iterator[None]:
    """Turn whatever MLflow, its database or the network raise into one sentence.

    Args:
        uri: the tracking store, for the message; a password in it is not shown.
        purpose: what was being done, as in "cannot <purpose>".
        error: raised.
    """
    try:
        yield
    except VesaliusError:
        raise
    except Exception as cause:  # what is not MLflow's or the network's goes on
        if not _foreign(cause):
            raise
        raise error(f"cannot {purpose} at {shown(uri)}: {_gist(cause, uri)}") from cause


def missing(cause: BaseException) -> bool:
    """Say whether MLflow means that the thing asked for is not there."""
    return getattr(cause, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")


def existing_run(mlflow: Any, uri: str, run_id: str) -> Any:
    """Return a tracked run.

    Raises:
        RunError: there is none of that id, it has been deleted, or nothing answers at ``uri``.
    """
    with answering(uri, f"find tracked run {run_id}"):
        try:
            run = mlflow.get_run(run_id)
        except Exception as cause:  # what is not MLflow's or the network's goes on
            if not missing(cause):
                raise
            raise RunError(f"there is no tracked run '{run_id}' at {shown(uri)}: check MLFLOW_TRACKING_URI") from None
    if run.info.lifecycle_stage != "active":
        raise RunError(f"tracked run '{run_id}' has been deleted at {shown(uri)}: restore it there or start a new run")
    return run


_PASSWORDS = (
    (re.compile(r"(://[^/@:\s]*):[^/\s]*@"), r"\1:***@"),
    # A database's may hold a slash; of a server's address what comes after the first one is a path.
    (re.compile(r"\b((?!https?:)[a-z][a-z0-9+.-]*://[^/@:\s]*):\S*@"), r"\1:***@"),
    (re.compile(r"([?&]\w*(?:password|passwd|pwd)=)[^&#\s]+", re.IGNORECASE), r"\1***"),
)


def shown(uri: str) -> str:
    """Return an address without its password; so it is shown, and so it is kept with a run."""
    for pattern, hidden in _PASSWORDS:
        uri = pattern.sub(hidden, uri)
    return uri


def with_password(kept: str) -> str:
    """Return the whole address of a store that is kept without its password, which the environment holds.

    Raises:
        RunError: ``MLFLOW_TRACKING_URI`` is not that store's.
    """
    if shown(kept) != kept or "***" not in kept:
        return kept  # it never had a password, or an earlier version kept it whole
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if shown(given) != kept:
        raise RunError(
            f"the run is tracked at {kept} and its password is kept nowhere: "
            "set MLFLOW_TRACKING_URI to the whole address"
        )
    return given


def _foreign(cause: Exception) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(cause).__mro__}
    return bool(modules & {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "alembic"}) or isinstance(
        cause, OSError
    )


def _gist(cause: Exception, uri: str) -> str:
    if "sqlalchemy" in type(cause).__module__ or "sqlalchemy" in str(cause):
        hint = "check that the file is an MLflow database and can be written" if sqlite_file(uri) else "is it up?"
    else:
        hint = "check MLFLOW_TRACKING_URI and that the server is up" if uri.startswith("http") else ""
    lines = [line.strip() for line in shown(str(cause)).splitlines() if line.strip()]
    said = (lines[0] if lines else type(cause).__name__)[:300].rstrip(".:")
    return f"{said}; {hint}" if hint else said


def _import_quietly() -> None:
    # Said before MLflow is imported, which reads them then: no usage reports, no git in a folder that has none, no
    # bar of its own for every file.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Seven tries, MLflow's own number, are four minutes of a server whose database is down; who needs more tries again.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    import mlflow  # noqa: F401 - imported for what it sets up

    # The first use of a database logs a line for each of its migrations; a new version, that it is waited for.
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _offer_login(uri: str) -> None:
    """Have the login in the environment where it is this server's, and nowhere where it is another's."""
    owners = os.environ.get(LOGIN_FOR, "").lower().split()
    if not owners or not uri.startswith("http"):
        return
    place = urllib.parse.urlsplit(uri).netloc.rpartition("@")[2].lower()
    with _lock:
        if place in owners or re.sub(r":\d+$", "", place) in owners:
            os.environ.update(_login)
            _login.clear()
        else:
            _login.update({name: os.environ.pop(name) for name in _LOGIN if name in os.environ})


def _probe(uri: str) -> None:
    """Fail within seconds where nothing listens: MLflow itself tries for minutes before it says so."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
    except (OSError, ValueError) as cause:
        raise UnansweredError(
            f"no tracking server answers at {shown(uri)} ({cause}): start it, or unset MLFLOW_TRACKING_URI to track "
            "in a local file"
        ) from None


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock beside an SQLite file: two processes that both create its tables spoil it for both."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
