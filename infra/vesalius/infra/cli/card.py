"""``vesalius card``: what a model is, what it was made from, how good it is, and what it is not for."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, absolute, home_folder
from vesalius.infra.console import Terminal


def card(
    model: Annotated[
        str, typer.Argument(metavar="RUN|models:/NAME@champion", help="A finished run, or a registered model.")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the card as a page: a file, or a folder for it.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the card as this Markdown file.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's card as Markdown, in the sections of Mitchell et al. 2019.

    A run's card is written from what is known of it now: its figures are those that `vesalius evaluate` has kept. A
    registered model's card is the one that was kept when it was promoted or kept back.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra.cards import as_markdown, card_of
        from vesalius.infra.pages import CARD, page_path, write_card_page
        from vesalius.infra.tables import plain_text
        from vesalius.platform.errors import SettingError
        from vesalius.platform.store import require_space, space_errors
        from vesalius.platform.store.files import write_file

        page = None if html is None else page_path(absolute(html), CARD)
        text_file = None if markdown is None else absolute(markdown)
        if text_file is not None and text_file.is_dir():
            raise SettingError(f"{text_file} is a folder: give a file for --markdown, such as card.md")
        found = card_of(model, home_folder(home))
        text = as_markdown(found)
        written: dict[str, Any] = {}
        if page is not None:
            num_bytes = write_card_page(page, found)
            written["html"] = str(page)
            terminal.say(f"wrote {page} ({num_bytes / 1e3:.0f} kB)")
        if text_file is not None:
            require_space(text_file.parent, len(text))
            with space_errors(text_file):
                text_file.parent.mkdir(parents=True, exist_ok=True)
                write_file(text_file, text.encode(), text_file.parent)
            written["markdown"] = str(text_file)
            terminal.say(f"wrote {text_file}")
        terminal.result({**found.model_dump(mode="json"), **written}, *([] if written else [plain_text(text)]))
