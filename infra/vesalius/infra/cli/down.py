"""``vesalius down``: stop the services of a home."""

from vesalius.infra.cli.options import HomeOption, JsonOption, home_folder
from vesalius.infra.console import Terminal


def down(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop the services that `vesalius up` has started, in the reverse order; jobs that run on them end too.

    What they keep stays: runs, models and studies are there again after the next `vesalius up`. Verbs of this home go
    back to files and to this machine's own cores.
    """
    with Terminal(as_json, resume_hint="vesalius down") as terminal:
        from vesalius.infra.services import lifecycle

        folder = home_folder(home, join=False)
        with terminal.progress("services") as progress:
            stopped = lifecycle.down(folder, progress=progress)
        said = f"stopped: {', '.join(reversed(stopped))}" if stopped else "no service of this home was running"
        terminal.result({"home": str(folder), "stopped": list(reversed(stopped))}, said)
