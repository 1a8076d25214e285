"""``vesalius study``: what a study has found, while it runs or afterwards."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, home_folder
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from vesalius.tuning import StudyFolder


def study(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Its name.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a study's trials, the best or the front of several objectives, and which settings matter.

    The trial marked `start` has the settings that the study started from. The best of many noisy trials is not the
    best: train it again over several seeds before it is believed.
    """
    with Terminal(as_json) as terminal:
        from vesalius.tuning import find_study

        show_study(terminal, find_study(home_folder(home), name))


def show_study(terminal: Terminal, found: "StudyFolder", **more: Any) -> None:
    """Write a study as it stands; ``more`` joins the JSON document."""
    from vesalius.infra import tables
    from vesalius.tuning import analyse

    document = {**analyse(found).model_dump(mode="json"), "folder": str(found.path), **more}
    shown: list[Any] = [tables.trials(document)]
    if any(document["importance"].values()):
        shown.append(tables.importance(document))
    best = document["best"]
    if best is not None:
        shown.append(_beside_the_start(document))
    terminal.result(document, *shown)


def _beside_the_start(document: dict[str, Any]) -> str:
    (name,) = document["objectives"]
    rows = {row["number"]: row for row in document["trials"]}
    best = rows[document["best"]]
    said = f"best: trial {best['number']}, {name} {best['figures'][name]:.4g} (run {best['run']})"
    if document["start"] is None:
        return said
    return f"{said}; the settings it started from: {rows[document['start']]['figures'][name]:.4g}"
