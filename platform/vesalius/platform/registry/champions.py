"""The line of champions, and the way back along it.

The alias says who is champion; it is what is served and therefore the truth. A tag of the registered model lists
the champions in the order they became it, so that going back is exact however often and in whatever order versions
were promoted. The two cannot be written at once. Promotion writes the line first and the alias second, going back
the alias first and the line second: whatever a killed process leaves, cutting the line after the alias's version
(or adding it, where someone moved the alias by hand) is right.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import Settings
from vesalius.platform.errors import ModelError
from vesalius.platform.progress import silent
from vesalius.platform.registry.versions import CHAMPION, champion_version, check_name, tag_version
from vesalius.platform.tracking import answering, client, tracking_uri
from vesalius.platform.tracking.connection import missing, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.progress import Progress

_LINE = "vesalius.champions"
_LONGEST_LINE = 1000


class Rollback(Settings):
    """A champion that gave way to the one before it.

    Attributes:
        name: of the registered model.
        version: champion again.
        from_version: champion until now.
        sentence: for the person who asked.
    """

    name: str
    version: str
    from_version: str
    sentence: str


def rollback(name: str, *, home: Path, uri: str | None = None, progress: Progress = silent) -> Rollback:
    """Make the champion before the present one the champion again; may be repeated back to the first.

    Raises:
        ModelError: there is no champion, or none before it, or that version has been deleted.
        RunError: nothing answers at ``uri``.
    """
    check_name(name)
    uri = uri or tracking_uri(home)
    with alone(home, name, progress):
        mlflow = client(uri)
        line = champions(mlflow, uri, name)
        if not line:
            raise ModelError(f"'{name}' has no champion at {shown(uri)}: promote a run with --name {name}")
        if len(line) == 1:
            raise ModelError(f"version {line[0]} is the first champion of '{name}': there is none before it")
        present, before = line[-1], line[-2]
        with answering(uri, f"roll '{name}' back", ModelError):
            try:
                mlflow.get_model_version(name, before)
            except Exception as cause:  # MlflowException, imported only where MLflow is used
                if not missing(cause):
                    raise
                raise ModelError(
                    f"version {before} of '{name}', the champion before version {present}, has been deleted: "
                    "promote the run you want instead"
                ) from None
            mlflow.set_registered_model_alias(name, CHAMPION, before)
            mlflow.set_registered_model_tag(name, _LINE, ",".join(line[:-1]))
            tag_version(mlflow, name, present, {"decision": "rolled back"})
    return Rollback(
        name=name,
        version=before,
        from_version=present,
        sentence=f"version {before} is the champion of '{name}' again; version {present} steps back",
    )


def champions(mlflow: Any, uri: str, name: str) -> list[str]:
    """Return the champions of a registered model, oldest first, the present one last; empty where there is none."""
    present = champion_version(mlflow, uri, name)
    if present is None:
        return []
    with answering(uri, f"read the champions of '{name}'", ModelError):
        text = mlflow.get_registered_model(name).tags.get(_LINE, "")
    line = re.findall(r"\d+", text)
    if present not in line:
        return [*line, present]
    while line[-1] != present:
        line.pop()
    return line


def crown(mlflow: Any, uri: str, name: str, version: str) -> None:
    """Make a version the champion; call while :func:`alone`."""
    line = [*champions(mlflow, uri, name), version][-_LONGEST_LINE:]
    mlflow.set_registered_model_tag(name, _LINE, ",".join(line))
    mlflow.set_registered_model_alias(name, CHAMPION, version)


@contextlib.contextmanager
def alone(home: Path, name: str, progress: Progress = silent) -> Iterator[None]:
    """Wait until no other promotion or rollback of ``name`` is under way, and keep others out.

    MLflow moves an alias unconditionally, so two promotions against the same champion could both win. The lock is
    a file in ``home``: it serialises the processes that share it, and ends with the process that holds it.
    """
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"promote-{name}.lock").open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(0, 0, f"waiting for another promotion of '{name}' to end")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
