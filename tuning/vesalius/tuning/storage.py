"""Where Optuna keeps a study: SQLite beside it, or a database that a team shares; and patience where it is down."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_fixed,
)

from vesalius.platform.errors import SettingError, StudyError
from vesalius.platform.tracking import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.storages import RDBStorage
    from tenacity import RetryCallState

P = ParamSpec("P")
T = TypeVar("T")


class Calls(Protocol):
    """Calls a function of a storage, once or as often as need be."""

    def __call__(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Return ``function(...)``."""
        ...


VARIABLE = "VESALIUS_STUDY_STORAGE"
"""Environment variable that holds the whole address of a storage whose password is kept nowhere."""

PATIENCE_SECONDS = 300.0
_PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}
_PASSWORD_KEYS = ("password", "passwd", "pwd")
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_MAKING_TRIES = 8
_SQLITE_TIMEOUT = 60.0
_SQLITE_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_IOERR", "SQLITE_CANTOPEN")


def check_address(address: str) -> str:
    """Check that a storage's address is one, and return it as it is kept: without its password, its file absolute.

    Raises:
        SettingError: it is neither SQLite's nor PostgreSQL's, is nowhere but in memory, holds a password where it
            cannot be hidden, or the package for it is missing.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(address)
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise ArgumentError
        dialect = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        # What is no address may hold a password anywhere.
        raise SettingError(
            f"--storage is '{re.sub(r':.*@', ':***@', shown(address))}': expected sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if any(name.lower().endswith(_PASSWORD_KEYS) for name in url.query):
        raise SettingError(
            f"--storage {shown(address)} has its password in the query: give it before the @, as in "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise SettingError(
                f"--storage {address} is in memory, where no other process finds it: give a file, as in sqlite:///FILE"
            )
        if not str(url.database).startswith("file:"):
            url = url.set(database=str(Path(str(url.database)).absolute()))
    kept = url.render_as_string(hide_password=True)
    try:
        dialect.import_dbapi()
    except ImportError as error:
        name = str(error.name)
        raise SettingError(
            f"--storage {kept} needs the package {name}: pip install {_PACKAGES.get(name, name)}"
        ) from None
    return kept


def whole_address(kept: str) -> str:
    """Return a storage's whole address: what is kept, or the environment's where the password was left out.

    Raises:
        StudyError: it has a password, which the environment does not hold.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if ":***@" not in kept:
        return kept
    given = os.environ.get(VARIABLE, "").strip()
    try:
        fits = make_url(given).render_as_string(hide_password=True) == kept
    except (ArgumentError, ValueError):
        fits = False
    if not fits:
        raise StudyError(
            f"the study is kept at {kept} and its password nowhere: set {VARIABLE} to the whole address, so that "
            "whoever goes on with the study can give it too"
        )
    return given


class Patience:
    """Calls a storage again while it is down.

    Attributes:
        seconds: how long in all, a call.
        waiting: told that the storage is down, at each further try.
    """

    def __init__(
        self, address: str, seconds: float = PATIENCE_SECONDS, waiting: Callable[[str], None] | None = None
    ) -> None:
        self._address = shown(address)
        self.seconds = seconds
        self.waiting = waiting

    def __call__(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Return ``function(...)``, tried again while the database does not answer.

        Raises:
            StudyError: it did not answer for all that time, or it answered that it will not do it.
        """
        waits = Retrying(
            retry=retry_if_exception(_is_down),
            stop=stop_after_delay(self.seconds),
            wait=wait_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
            before_sleep=self._tell,
            reraise=True,
        )
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return waits(function, *arguments, **options)
        except (StorageInternalError, SQLAlchemyError) as error:
            said = _gist(error)
            if not _may_pass(error):
                raise StudyError(
                    f"the study's storage at {self._address} answers that it will not ({said}): mend that, nothing "
                    "is lost; then go on with `vesalius tune --resume`"
                ) from error
            raise StudyError(
                f"the study's storage at {self._address} has not answered for {self.seconds:.0f} s ({said}): "
                "nothing is lost; when it is back, go on with `vesalius tune --resume`"
            ) from error

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if self.waiting is not None and error is not None:
            self.waiting(f"storage does not answer, waiting ({_gist(error)})")


def try_storage(address: str) -> None:
    """Open a storage once, as a study does that begins: one that was never there is not to be waited for.

    Args:
        address: whole, with its password.

    Raises:
        SettingError: it cannot be opened.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _silent():
            _make_tables(address)
    except (StorageInternalError, SQLAlchemyError) as error:
        said = _gist(error)
        raise SettingError(
            f"--storage {shown(address)} cannot be opened ({said}): check its path or its user, password, host and "
            "database"
        ) from None


def _make_tables(address: str) -> None:
    """Open a storage and let go of it; of several that make its tables at once all but one find them made at last."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    def made() -> None:
        # Without a pool nothing stays open where this fails.
        RDBStorage(address, engine_kwargs={"poolclass": NullPool, **_connecting(address)}).remove_session()

    Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, DBAPIError) and "already exists" in str(error)),
        stop=stop_after_attempt(_MAKING_TRIES),
        wait=wait_fixed(_FIRST_WAIT),
        reraise=True,
    )(made)


def _is_down(error: BaseException) -> bool:
    """Say whether an error of Optuna's or its database's may pass; one of anything else is not to be waited for."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, StorageInternalError | SQLAlchemyError) and _may_pass(error)


def _may_pass(error: BaseException) -> bool:
    """Say whether an error is one of the connection, or of a file that is busy: the same call may do better later."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy import exc

    if isinstance(error, StorageInternalError):  # Optuna's, around what has happened
        return error.__cause__ is not None and _may_pass(error.__cause__)
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    of_sqlite = getattr(getattr(error, "orig", None), "sqlite_errorname", None)
    if of_sqlite is not None:
        return str(of_sqlite).startswith(_SQLITE_PASSING)
    kinds = exc.OperationalError, exc.InterfaceError, exc.PendingRollbackError, exc.TimeoutError, ConnectionError
    return isinstance(error, kinds)


def _gist(error: BaseException) -> str:
    return shown(" ".join(str(error.__cause__ or error).split("\n")[0].split()))[:200]


def open_storage(address: str, patience: Calls) -> RDBStorage:
    """Open a storage, which is made where it does not exist.

    Raises:
        StudyError: nothing answers there.
    """
    from optuna.storages import RDBStorage

    # A server that was restarted leaves dead connections behind.
    options = {"pool_pre_ping": True, **_connecting(address)}
    with _silent():
        return patience(RDBStorage, address, engine_kwargs=options)


def _connecting(address: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": _SQLITE_TIMEOUT}} if address.startswith("sqlite") else {}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what Optuna and its migrations say to themselves."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def close_storage(storage: RDBStorage) -> None:
    """End a storage's connections, which a database server counts."""
    storage.remove_session()
    storage.engine.dispose()
