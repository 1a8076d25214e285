"""PostgreSQL: our own server below a home, or one that is there already; and the addresses of what is kept in it.

MLflow's tables lie in the schema ``public``, accounts of its login in ``mlflow_login``, Optuna's in ``studies``: both
libraries keep a table of the same name for their migrations. No address holds a password, it names a password file.
"""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.infra.services.credentials import keep, kept_or_made, passfile_line
from vesalius.platform.errors import ServiceError, SettingError
from vesalius.platform.tracking import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.infra.services.state import ServicesFolder

USER = "vesalius"
DATABASE = "vesalius"
STUDIES, LOGIN = "studies", "mlflow_login"
_PROGRAM_SECONDS = 180
_PASSWORD_KEYS = ("password", "passwd", "pwd")


@dataclass(frozen=True)
class Database:
    """Where a PostgreSQL database is reached.

    Attributes:
        url: SQLAlchemy's address, without a password.
    """

    url: str

    def schema(self, name: str) -> str:
        """Return the address of a schema of its own in the database."""
        from sqlalchemy.engine import make_url

        url = make_url(self.url)
        before = f"{url.query.get('options', '')} " if url.query.get("options") else ""
        return url.update_query_dict({"options": f"{before}-csearch_path={name}"}).render_as_string(hide_password=False)

    def connect(self, database: str | None = None) -> Any:
        """Return a psycopg connection that commits by itself.

        Raises:
            ServiceError: psycopg is not installed.
        """
        psycopg = _psycopg()
        from sqlalchemy.engine import make_url

        url = make_url(self.url)
        query: dict[str, Any] = dict(url.query)
        options = {
            "host": url.host,
            "port": url.port,
            "user": url.username,
            "dbname": database or url.database,
            "connect_timeout": 5,
            **query,
        }
        return psycopg.connect(autocommit=True, **{key: value for key, value in options.items() if value is not None})

    def problem(self, *, only_server: bool = False) -> str | None:
        """Return why it does not answer a query, or None where it does."""
        psycopg = _psycopg()
        try:
            with self.connect("postgres" if only_server else None) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            return " ".join(str(error).split())[:200]
        return None

    def prepare(self, *, own: bool) -> None:
        """Make database and schemas that are not there.

        Args:
            own: whether the server is ours, where we make the database too.

        Raises:
            ServiceError: the server will not.
        """
        psycopg = _psycopg()
        try:
            if own:
                with self.connect("postgres") as connection:
                    there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                    if there is None:
                        connection.execute(f"CREATE DATABASE {DATABASE}")
            with self.connect() as connection:
                for schema in (STUDIES, LOGIN):
                    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        except psycopg.Error as error:
            said = " ".join(str(error).split())[:200]
            raise ServiceError(
                f"the database at {shown(self.url)} cannot be used ({said}): its user must be able to connect and to "
                "make schemas there"
            ) from None


def make_study_tables(where: Database) -> None:
    """Make Optuna's tables where they are not there: its dashboard opens a storage and makes none.

    Raises:
        ServiceError: the server will not.
    """
    with where.connect() as connection:
        # Optuna's last step is to note the version of its tables.
        noted = connection.execute(f"SELECT to_regclass('{STUDIES}.alembic_version')").fetchone()
        if noted[0] is not None and connection.execute(f"SELECT 1 FROM {STUDIES}.alembic_version").fetchone():
            return
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its migrations
            RDBStorage(where.schema(STUDIES), engine_kwargs={"poolclass": NullPool}).remove_session()
    except SQLAlchemyError as error:
        said = " ".join(str(error).split())[:200]
        raise ServiceError(f"the tables of studies could not be made at {shown(where.url)}: {said}") from None


def own_database(folder: ServicesFolder, port: int) -> Database:
    """Return our own server's database; its password is made where there is none yet."""
    password = kept_or_made(folder.secrets / "postgres_password")
    passfile = folder.secrets / "pgpass"
    line = passfile_line("127.0.0.1", port, USER, password)
    if not passfile.exists() or passfile.read_text() != line:
        keep(passfile, line)
    return Database(_address(USER, "127.0.0.1", port, DATABASE, {"passfile": str(passfile)}))


def given_database(folder: ServicesFolder, given: str) -> tuple[str, str]:
    """Return somebody's database address without its password, and what :func:`keep_password` keeps of that.

    Nothing is written: a server may run that was given another password.

    Raises:
        SettingError: it is no PostgreSQL address.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise SettingError("--database-url is no address: expected postgresql://USER:PASSWORD@HOST/DATABASE") from None
    if url.get_backend_name() != "postgresql" or not url.host or not url.database or not url.username:
        raise SettingError(f"--database-url is '{shown(given)}': expected postgresql://USER:PASSWORD@HOST/DATABASE")
    if any(name.lower().endswith(_PASSWORD_KEYS) for name in url.query):
        raise SettingError("--database-url has its password in the query: give it before the @")
    query: dict[str, Any] = dict(url.query)
    line = ""
    if url.password is not None:
        line = passfile_line(url.host, url.port or 5432, url.username, str(url.password))
        query["passfile"] = str(_given_passfile(folder))
    return _address(url.username, url.host, url.port or 5432, url.database, query), line


def keep_password(folder: ServicesFolder, line: str) -> None:
    """Write the password of a database that was given, where it has one."""
    if line:
        keep(_given_passfile(folder), line)


def _given_passfile(folder: ServicesFolder) -> Path:
    return folder.secrets / "pgpass_given"


def server_command(folder: ServicesFolder, port: int) -> list[str]:
    """Return what runs our own server, on loopback alone and without a socket that others might find."""
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "logging_collector": "off",
    }
    command = [program("postgres"), "-D", str(folder.path / "postgres")]
    return command + [part for key, value in options.items() for part in ("-c", f"{key}={value}")]


def make_cluster(folder: ServicesFolder) -> str | None:
    """Make our own server's data folder where it is not there, and return the user it runs as (None: ourselves).

    Raises:
        ServiceError: PostgreSQL is not installed, or cannot be run here, or cannot reach the folder.
    """
    program("initdb"), program("postgres")
    _psycopg()
    data = folder.path / "postgres"
    user = _user()
    if (data / "PG_VERSION").is_file():
        return user
    if data.is_dir() and any(data.iterdir()):
        shutil.rmtree(data)  # an initdb that was broken off: its version file would be there otherwise
    data.mkdir(mode=0o700, exist_ok=True)
    password = folder.path / ".postgres_password"
    keep(password, kept_or_made(folder.secrets / "postgres_password"))
    try:
        if user is not None:
            shutil.chown(data, user)
            shutil.chown(password, user)
            _check_reach(data, user, folder.home)
        command = [program("initdb"), "-D", str(data), "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}"]
        command += ["-E", "UTF8", "--no-locale"]
        done = subprocess.run(
            command, user=user, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, cwd="/", check=False
        )
    finally:
        password.unlink(missing_ok=True)
    if done.returncode:
        shutil.rmtree(data, ignore_errors=True)
        said = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
        raise ServiceError(f"PostgreSQL could not make its folder {data}: {said}")
    return user


def program(name: str) -> str:
    """Return a PostgreSQL program's path; distributions keep them off the path.

    Raises:
        ServiceError: it is not installed.
    """
    found = shutil.which(name)
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: _version(path.parts[-3]))
    if found is None and versions:
        found = str(versions[-1])
    if found is None:
        raise ServiceError(
            f"PostgreSQL is not installed here ({name} is missing): install it (Debian: apt-get install postgresql), "
            "or give a server's address with --database-url"
        )
    return str(Path(found).resolve())


def _version(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError:
        raise ServiceError("services need the package psycopg: pip install 'vesalius[services]'") from None
    return psycopg


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise ServiceError(
            "PostgreSQL refuses to run as root and there is no user 'postgres': call `vesalius up` as another user, or "
            "give a server's address with --database-url"
        ) from None


def _check_reach(data: Path, user: str, home: Path) -> None:
    command = ["test", "-w", str(data)]
    if subprocess.run(command, user=user, extra_groups=[], cwd="/", check=False).returncode:
        raise ServiceError(
            f"PostgreSQL runs as user '{user}', who cannot reach {data}: give a --home whose folders others may enter "
            f"(chmod o+x), such as /var/lib/vesalius instead of {home}, or call `vesalius up` as another user than root"
        )


def _address(user: str, host: str, port: int, database: str, query: Mapping[str, Any]) -> str:
    from sqlalchemy.engine import URL

    url = URL.create("postgresql+psycopg", username=user, host=host, port=port, database=database, query=query)
    return url.render_as_string(hide_password=False)
