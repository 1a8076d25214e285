"""Going back along the line of champions, and keeping those who share a home apart."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from typing import TYPE_CHECKING

from vesalius.platform.config import Settings, digest
from vesalius.platform.errors import ModelError
from vesalius.platform.progress import silent
from vesalius.platform.registry.log import append
from vesalius.platform.registry.records import LONGEST_REASON, PromotionRecord, current_user, one_line
from vesalius.platform.registry.settling import settle
from vesalius.platform.registry.versions import PREFIX, check_name
from vesalius.platform.store.space import space_errors
from vesalius.platform.tracking import answering, client, tracking_uri
from vesalius.platform.tracking.connection import missing, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.progress import Progress

_LONGEST_TOKEN = 16


class Rollback(Settings):
    """A champion that gave way to the one before it.

    Attributes:
        name: of the registered model.
        version: champion again.
        from_version: champion until now.
        record: number of its entry in the log of promotions.
        sentence: for the person who asked.
    """

    name: str
    version: str
    from_version: str
    record: int
    sentence: str


def rollback(
    name: str,
    *,
    home: Path,
    uri: str | None = None,
    why: str = "",
    by: str | None = None,
    progress: Progress = silent,
) -> Rollback:
    """Make the champion before the present one the champion again; may be repeated back to the first.

    Args:
        name: of the registered model.
        home: decides the tracking store where ``uri`` does not.
        uri: the tracking store.
        why: for the record.
        by: who asks; None asks the environment.
        progress: told when another promotion must end first.

    Raises:
        ModelError: there is no champion, or none before it, or that version has been deleted, or somebody elsewhere
            has changed the champion at the same time.
        RunError: nothing answers at ``uri``.
    """
    check_name(name)
    uri = uri or tracking_uri(home)
    mlflow = client(uri)
    with alone(home, name, progress) as home_id:
        standing = settle(mlflow, uri, name, home_id)
        line = standing.champions
        if not line:
            raise ModelError(f"'{name}' has no champion at {shown(uri)}: promote a run with --name {name}")
        if len(line) == 1:
            raise ModelError(f"version {line[0]} is the first champion of '{name}': there is none before it")
        present, before = line[-1], line[-2]
        with answering(uri, f"roll '{name}' back", ModelError):
            try:
                found = mlflow.get_model_version(name, before)
            except Exception as cause:  # MlflowException, imported only where MLflow is used
                if not missing(cause):
                    raise
                raise ModelError(
                    f"version {before} of '{name}', the champion before version {present}, has been deleted: "
                    "promote the run you want instead"
                ) from None
        sentence = f"version {before} is the champion of '{name}' again; version {present} steps back"
        record = PromotionRecord(
            kind="rolled back",
            name=name,
            version=before,
            champion_version=present,
            follows=standing.head,
            life=standing.life,
            by=by or current_user(),
            why=one_line(why, LONGEST_REASON),
            sentence=sentence,
            model_digest=found.tags.get(f"{PREFIX}digest", ""),
        )
        append(mlflow, uri, record)
        after = settle(mlflow, uri, name, home_id)
        entry = after.entry_of(record.token)
        if entry is None or entry.overtaken:
            raise ModelError(
                f"the champion of '{name}' changed meanwhile: it is version {after.champion or 'none'} now; look at "
                f"`vesalius registry {name}`, and roll back again if that is still wanted"
            )
    return Rollback(name=name, version=before, from_version=present, record=entry.number, sentence=sentence)


@contextlib.contextmanager
def alone(home: Path, name: str, progress: Progress = silent) -> Iterator[str]:
    """Wait until no other promotion or rollback of ``name`` from ``home`` is under way, and keep others out.

    It saves work: whoever would be compared with a champion that is about to go waits for the new one. What keeps two
    promotions apart, wherever they run, is the log (see :mod:`vesalius.platform.registry.log`). The lock is a file in
    ``home`` and ends with the process that holds it: so whoever holds it knows that what was begun from this home, and
    was not ended, was begun by a process that is no more.

    Yields:
        By which the home is known among others; a copy of it is another one.

    Raises:
        DiskSpaceError: there is no room for what it is known by.
    """
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"promote-{name}.lock"
    with lock.open("a+") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(0, 0, f"waiting for another promotion of '{name}' to end")
            fcntl.flock(held, fcntl.LOCK_EX)
        held.seek(0)
        token = held.read(_LONGEST_TOKEN)
        if not token:
            token = secrets.token_hex(_LONGEST_TOKEN // 2)
            with space_errors(lock):
                lock.write_text(token)
        yield digest([token, os.fstat(held.fileno()).st_ino])[:16]
