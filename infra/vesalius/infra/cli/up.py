"""``vesalius up``: start PostgreSQL, MLflow, a Ray head and optuna-dashboard on this machine."""

import os
from typing import Annotated, Any

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, home_folder
from vesalius.infra.console import Terminal

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of its own (default: the first free one).")]


def up(
    host: Annotated[
        str | None,
        typer.Option(help="Address that MLflow and Ray's dashboard listen at; any but loopback needs --auth."),
    ] = None,
    auth: Annotated[
        bool, typer.Option("--auth", help="Ask for a login at MLflow too; its password is made and kept in a file.")
    ] = False,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Further name that others call MLflow by (repeatable)."),
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            help="Use this PostgreSQL instead of one of our own: postgresql://USER@HOST/DATABASE. The variable "
            "VESALIUS_DATABASE_URL holds it where it has a password."
        ),
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores that the cluster offers (default: all)")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that it offers (default: all)")] = None,
    object_store_mib: Annotated[
        int | None, typer.Option(min=80, help="Shared memory of Ray, in MiB (default: 512)")
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Redis without a password that the Ray head keeps what it knows in, so that other machines of the "
            "cluster outlive it; off goes back to its memory (default: off)",
        ),
    ] = None,
    supervisor: Annotated[
        bool | None,
        typer.Option(
            "--supervisor/--no-supervisor",
            help="Start again what ends by itself, and submit jobs again that went with it (default: yes)",
        ),
    ] = None,
    mlflow_port: Port = None,
    postgres_port: Port = None,
    studies_port: Port = None,
    ray_port: Port = None,
    ray_dashboard_port: Port = None,
    ray_agent_port: Port = None,
    ray_metrics_port: Port = None,
    ray_client_port: Port = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the services of a home: PostgreSQL, MLflow on it, a Ray head, and optuna-dashboard.

    From then on the other verbs track, compute and keep studies there by themselves, until `vesalius down`. Called
    again it starts only what has ended meanwhile, with the settings of the last time. A supervisor does so by itself,
    and submits jobs again that were lost. Everything listens on loopback but for the ports that Ray itself opens on
    every interface, which is why its token is always on.
    """
    with Terminal(as_json, resume_hint="vesalius up") as terminal:
        from vesalius.infra import tables
        from vesalius.infra.services import inspection, lifecycle
        from vesalius.platform.errors import SettingError

        folder = home_folder(home, join=False)
        if database_url is not None and os.environ.get("VESALIUS_DATABASE_URL"):
            raise SettingError("--database-url and VESALIUS_DATABASE_URL both name a database: give it once")
        _refuse_password(database_url)
        given: dict[str, Any] = {
            "host": host,
            "auth": auth or None,
            "allowed_hosts": tuple(allowed_hosts) if allowed_hosts else None,
            "database": database_url or os.environ.get("VESALIUS_DATABASE_URL") or None,
            "cpus": cpus,
            "gpus": gpus,
            "object_store_mib": object_store_mib,
            "redis": redis,
            "supervised": supervisor,
        }
        ports = {
            "postgres": postgres_port,
            "mlflow": mlflow_port,
            "studies": studies_port,
            "ray": ray_port,
            "ray_dashboard": ray_dashboard_port,
            "ray_agent": ray_agent_port,
            "ray_metrics": ray_metrics_port,
            "ray_client": ray_client_port,
        }
        with terminal.progress("services") as progress:
            lifecycle.up(
                folder,
                {key: value for key, value in given.items() if value is not None},
                {name: port for name, port in ports.items() if port is not None},
                progress=progress,
            )
        document = inspection.describe(folder)
        terminal.result(document, tables.services(document), *tables.services_notes(document))


def _refuse_password(url: str | None) -> None:
    """Refuse a password among a process's arguments, which every user of the machine can read."""
    from vesalius.platform.errors import SettingError
    from vesalius.platform.tracking import shown

    if url is not None and shown(url) != url:
        raise SettingError(
            f"--database-url {shown(url)} has a password, which every user of this machine can read there: set the "
            "variable VESALIUS_DATABASE_URL to the whole address instead"
        )
