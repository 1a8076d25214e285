"""``vesalius promote``: register a run's model, and make it the champion if it earns it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.options import DeviceOption, HomeOption, JsonOption, absolute, home_folder, place
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from vesalius.platform.registry import Promotion


def promote(
    name: Annotated[str, typer.Option("--name", help="The registered model, such as brain.")],
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A finished run.", show_default=False)] = None,
    gates: Annotated[
        Path | None,
        typer.Option(help="A gate file, YAML or JSON (default: what `vesalius registry --gates` prints)"),
    ] = None,
    why: Annotated[str, typer.Option(help="The reason, for the record.", show_default=False)] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask all gates and write nothing to the registry.")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Without RUN: make the previous champion the champion again.")
    ] = False,
    store: Annotated[str | None, typer.Option(help="The store of the gate split (default: the run's own)")] = None,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register RUN's model and move the alias `champion` of NAME to it if every gate lets it through.

    By default it must beat the champion: both score the same gate split, which neither learnt from or was tuned on, and
    the paired bootstrap over its subjects decides. A gate file asks for more: few false positives on healthy subjects,
    no subgroup worse, seconds per volume, lineage. Where a gate says no, the exit code is 1 and the message says by how
    much. Every decision is recorded with who (VESALIUS_USER, or the system's user), when and why, its figures and the
    model card; see `vesalius registry NAME`.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.platform import registry
        from vesalius.platform.errors import NotPromotedError, SettingError

        if rollback == (run is not None):
            raise SettingError("name a run to promote, or give --rollback without one")
        folder = home_folder(home)
        if run is None:
            for given, option in ((store, "--store"), (gates, "--gates"), (dry_run, "--dry-run")):
                if given:
                    raise SettingError(f"{option} goes with a run to promote: going back asks no gate; leave it out")
            back = registry.rollback(name, home=folder, why=why)
            terminal.result(back.model_dump(mode="json"), back.sentence)
            return
        asked = None if gates is None else registry.read_gates(absolute(gates))
        from vesalius.infra import pipeline
        from vesalius.platform.runs import find_run

        found = find_run(folder, run)
        with terminal.progress("gate") as progress:
            promotion = pipeline.promote_run(
                found,
                name,
                home=folder,
                store=place(store) if store else None,
                gates=asked,
                why=why,
                dry_run=dry_run,
                device=pipeline.device_name(device),
                progress=progress,
            )
        document = promotion.model_dump(mode="json")
        shown: list[Any] = [tables.promotion(document)]
        if document["verdicts"]:
            shown.append(tables.verdicts(document["verdicts"]))
        terminal.result(document, *shown)
        if not promotion.passed:
            raise NotPromotedError(promotion.sentence)
        terminal.say(_told(promotion))


def _told(promotion: "Promotion") -> str:
    return f"{promotion.sentence}; nothing was written" if promotion.dry_run else promotion.sentence
