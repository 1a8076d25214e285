"""``vesalius promote``: register a run's model, and make it the champion if it earns it."""

from typing import Annotated

import typer

from vesalius.infra.cli.options import DeviceOption, HomeOption, JsonOption, home_folder, place
from vesalius.infra.console import Terminal


def promote(
    name: Annotated[str, typer.Option("--name", help="The registered model, such as brain.")],
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A finished run.", show_default=False)] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Without RUN: make the previous champion the champion again.")
    ] = False,
    store: Annotated[str | None, typer.Option(help="The store of the gate split (default: the run's own)")] = None,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register RUN's model and move the alias `champion` of NAME to it if it beats the champion.

    Both score the same gate split, which neither learnt from or was tuned on; the paired bootstrap over its subjects
    decides. Otherwise the exit code is 1 and the message says by how much it fell short.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.platform.errors import NotPromotedError, SettingError

        if rollback == (run is not None):
            raise SettingError("name a run to promote, or give --rollback without one")
        if rollback and store:
            raise SettingError("--store goes with a run to promote: going back asks no gate; leave it out")
        folder = home_folder(home)
        if run is None:
            from vesalius.platform import registry

            back = registry.rollback(name, home=folder)
            terminal.result(back.model_dump(mode="json"), back.sentence)
            return
        from vesalius.infra import pipeline
        from vesalius.platform.runs import find_run

        found = find_run(folder, run)
        with terminal.progress("gate") as progress:
            promotion = pipeline.promote_run(
                found,
                name,
                home=folder,
                store=place(store) if store else None,
                device=pipeline.device_name(device),
                progress=progress,
            )
        terminal.result(promotion.model_dump(mode="json"), tables.promotion(promotion.model_dump(mode="json")))
        if not promotion.promoted:
            raise NotPromotedError(promotion.sentence)
        terminal.say(promotion.sentence)
