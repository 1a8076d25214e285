"""Options that several verbs share, each declared once so that it reads the same everywhere."""

# Typer reads annotations while the program runs, so this folder does without postponed annotations.

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from vesalius.platform.store import Place

JsonOption = Annotated[bool, typer.Option("--json", help="Write the result alone to stdout, as one JSON document.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be given several times."),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of runs and models (default: $VESALIUS_HOME, else ~/.vesalius)"),
]
StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="A cohort store: a folder or a URL.", show_default=False)
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, or auto: cuda where there is one.", metavar="DEVICE")
]
VoxelsOption = Annotated[
    Literal["all", "brain", "both"],
    typer.Option("--voxels", help="Voxels that count: the whole grid, the brain, or both."),
]


def home_folder(home: Path | None, *, join: bool = True) -> Path:
    """Return the absolute folder of runs and models, and use its services where `vesalius up` has started them.

    Args:
        home: as given.
        join: False leaves services alone, as those do that start and stop them.

    Raises:
        ServiceError: its services were started, and one of them is gone.
    """
    from vesalius.platform import home as homes

    folder = homes.home(None if home is None else absolute(home))
    if join:
        from vesalius.infra import services

        services.join(folder)
    return folder


def absolute(path: Path) -> Path:
    """Return ``path`` resolved from the folder the command was typed in; ``~`` is the user's home.

    Raises:
        SettingError: it is a URL.
    """
    was_a_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]", str(path))
    if was_a_url and not path.exists():
        # A folder of that name would be made, and whoever gave it would look for the files elsewhere.
        scheme = str(path).partition(":")[0]
        raise SettingError(f"{scheme}://... is a URL, and only stores lie at URLs: give a file or folder here")
    return Path(os.path.abspath(path.expanduser()))


def place(store: str) -> "Place":
    """Return where a store lies: a URL as it is, a folder resolved from where the command was typed in.

    Raises:
        StoreError: a URL that cannot name a store.
    """
    from vesalius.platform.store import place_of

    found = place_of(store)
    return absolute(found) if isinstance(found, Path) else found


def changes(assignments: list[str] | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Return what ``--set`` and a verb's own flags (by the setting they stand for, None where not given) change.

    Raises:
        SettingError: a text is no assignment, or a setting is given both ways.
    """
    from vesalius.platform.config import parse_assignments

    values: dict[str, Any] = dict(parse_assignments(assignments or []))
    for key, value in flags.items():
        if value is None:
            continue
        if key in values:
            raise SettingError(f"'{key}' is set twice, by --set and by --{key.rpartition('.')[2]}: give it once")
        values[key] = value
    return values


def one_of(value: str, known: list[str], kind: str) -> str:
    """Return ``value`` when it is known.

    Raises:
        SettingError: it is not; the message names the nearest one.
    """
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"the known ones are {', '.join(known)}"
    raise SettingError(f"unknown {kind} '{value}': {hint}")
