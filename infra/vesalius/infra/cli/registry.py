"""``vesalius registry``: registered models, their versions, and who promoted which, when and why."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, home_folder
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from pathlib import Path


def registry(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A registered model.", show_default=False)
    ] = None,
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="Its version, or champion or challenger.", show_default=False),
    ] = None,
    gates: Annotated[
        bool, typer.Option("--gates", help="Print the gate file that is asked by default, to start your own from.")
    ] = False,
    settle: Annotated[
        bool,
        typer.Option("--settle", help="Bring aliases and tags to what the log says, where a promotion was killed."),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List registered models; with NAME its versions and every decision on them; with VERSION the record and the card.

    A decision stands in the log from the moment that it is made. Where the process was killed before the alias
    followed, the next promotion brings it there, or --settle does.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.platform import registry as models
        from vesalius.platform.errors import SettingError

        if gates:
            if name is not None or settle:
                raise SettingError("--gates prints a file and takes nothing else: leave NAME and --settle out")
            text = models.default_gates_text()
            terminal.result({"gates": models.Gates().model_dump(mode="json")}, tables.plain_text(text.rstrip()))
            return
        if settle and (name is None or version is not None):
            raise SettingError("--settle goes with NAME alone, as in `vesalius registry brain --settle`")
        folder = home_folder(home)
        if name is None:
            rows = [_in_short(one, folder) for one in models.list_names(home=folder)]
            terminal.result({"models": rows}, tables.registered(rows) if rows else "no model is registered")
            return
        if version is not None:
            _show_version(terminal, name, version, folder)
            return
        standing = models.settle_aliases(name, home=folder) if settle else models.standing_of(name, home=folder)
        document = describe(name, folder)
        if standing.unsettled:
            terminal.warn(
                f"the aliases of '{name}' may lag behind the log (a promotion is under way, or was killed): "
                f"`vesalius registry {name} --settle` brings them there"
            )
        elif standing.moved:
            terminal.warn(f"the champion's alias was moved to {standing.alias or 'nothing'} without a promotion")
        terminal.result(document, tables.versions(document), tables.decisions(document))


def describe(name: str, home: "Path") -> dict[str, Any]:
    """Return what is known of a registered model: aliases, versions, decisions."""
    from vesalius.platform import registry as models

    standing = models.standing_of(name, home=home)
    versions = models.history(name, home=home)
    return {
        "name": name,
        "champion": standing.champion or None,
        "challenger": standing.challenger or None,
        "champions": list(standing.champions),
        "unsettled": standing.unsettled,
        "versions": [one.model_dump(mode="json") for one in versions],
        "decisions": [
            {"number": entry.number, "overtaken": entry.overtaken, **entry.record.model_dump(mode="json")}
            for entry in standing.entries
        ],
    }


def _in_short(name: str, home: "Path") -> dict[str, Any]:
    from vesalius.platform import registry as models

    standing = models.standing_of(name, home=home)
    last = standing.entries[-1].record if standing.entries else None
    return {
        "name": name,
        "champion": standing.champion or None,
        "challenger": standing.challenger or None,
        "decisions": len(standing.entries),
        "last": None if last is None else {"at": last.at, "by": last.by, "kind": last.kind, "version": last.version},
    }


def _show_version(terminal: Terminal, name: str, version: str, home: "Path") -> None:
    from vesalius.infra import tables
    from vesalius.infra.cards.finding import kept_card
    from vesalius.infra.cards.markdown import as_markdown
    from vesalius.platform import registry as models
    from vesalius.platform.errors import ModelError

    where = f"/{version}" if version.isdecimal() else f"@{version}"
    _, number = models.version_of(f"models:/{name}{where}", home=home)
    document = describe(name, home)
    facts = next(one for one in document["versions"] if one["version"] == number)
    own = [one for one in document["decisions"] if number in (one["version"], one["champion_version"])]
    records = []
    for one in own:
        record = models.PromotionRecord.model_validate(
            {key: value for key, value in one.items() if key not in ("number", "overtaken")}
        )
        text = None
        try:
            text = models.attachment_of(record, "record.json", home=home)
        except ModelError as error:  # its file is gone, or is another one: what the log itself says is shown
            terminal.warn(f"decision {one['number']} is shown without its details: {error}")
        records.append({**one, "full": None if text is None else json.loads(text)})
    card = None
    try:
        card = kept_card(f"models:/{name}/{number}", home)
    except ModelError as error:
        terminal.warn(f"version {number} is shown without its card: {error}")
    shown: list[Any] = [tables.version(facts), tables.decisions({**document, "decisions": own})]
    last = next((one for one in reversed(own) if one["version"] == number and one["promotion"].get("verdicts")), None)
    if last is not None:
        shown.append(tables.verdicts(last["promotion"]["verdicts"]))
    if card is not None:
        shown += ["", tables.plain_text(as_markdown(card))]
    answer = {**facts, "records": records, "card": None if card is None else card.model_dump(mode="json")}
    terminal.result(answer, *shown)
