"""``vesalius status``: how the services of a home are."""

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, home_folder
from vesalius.infra.console import Terminal


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say of each service whether it runs and answers, found out by a request to it.

    The exit code is 1 where one of them ended without `vesalius down`, or does not answer.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.infra.services import inspection

        document = inspection.describe(home_folder(home, join=False))
        terminal.result(document, tables.services(document), *tables.services_notes(document))
        if not document["healthy"]:
            raise typer.Exit(1)
