"""The log of promotions, kept by the server in an order that all agree on.

MLflow moves an alias unconditionally: of two promotions that looked at the same champion, the later one wins, whatever
it was compared with. What MLflow does give out one by one are the numbers of versions: two that are made at once get
two numbers, and a number is never given again. So each decision is made a version of a second registered model,
``NAME.promotions``. It says which entry it follows, and counts only if that is the last one that crowned a champion.
Whoever reads the log, wherever, comes to the same champion; the alias is then moved to say the same (``settling``).
No clock is compared and nothing has to be released, so nothing can be left held.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vesalius.platform.errors import ModelError
from vesalius.platform.registry.collisions import retried
from vesalius.platform.registry.line import fold, moved_line
from vesalius.platform.registry.records import FORMAT, Entry, PromotionRecord
from vesalius.platform.registry.versions import CHALLENGER, CHAMPION, LOG_SUFFIX, PREFIX, all_versions
from vesalius.platform.tracking import answering
from vesalius.platform.tracking.connection import missing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LINE = f"{PREFIX}champions"
"""Tag in which champions were listed before there was a log."""
_RECORD = f"{PREFIX}record"
_SETTLED = f"{PREFIX}settled"
_SETTLING = f"{PREFIX}settling."
_NOBODY = "none"
_LONGEST_RECORD = 90_000


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A registered model as its log and its aliases say.

    Attributes:
        name: of it.
        exists: whether there is such a registered model.
        life: when it was made.
        entries: of the log, oldest first; those of an earlier life left out.
        head: number of the entry that made the present champion; 0 where there is none.
        line: the champions in the order they became it, the present one last; going back cuts it.
        archived: versions that were champion and are no more, and the entry that ended it.
        latest: number of the last entry, of whatever life.
        settled: number of the last entry that aliases and tags are known to say.
        settling: marks of processes that are moving the champion's alias, or were killed doing so, and the versions
            that each has pointed it at, or is about to; see :func:`begin_settling`.
        aliases: of the registered model.
        tags: of the registered model.
    """

    name: str
    exists: bool = False
    life: int = 0
    entries: tuple[Entry, ...] = ()
    head: int = 0
    line: tuple[str, ...] = ()
    archived: Mapping[str, Entry] = field(default_factory=dict)
    latest: int = 0
    settled: int = 0
    settling: Mapping[str, frozenset[str]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def crowned(self) -> str:
        """The champion by the log, or empty."""
        return self.line[-1] if self.line else ""

    @property
    def alias(self) -> str:
        """The champion by the alias, or empty."""
        return self.aliases.get(CHAMPION, "")

    @property
    def challenger(self) -> str:
        """The challenger by the alias, or empty."""
        return self.aliases.get(CHALLENGER, "")

    @property
    def unsettled(self) -> bool:
        """Whether the alias may lag behind the log: a process is at it, or was killed before it came to it."""
        return self.settled < self.latest or bool(self.settling)

    @property
    def moved(self) -> bool:
        """Whether somebody else moved the alias: it said what the log says, does no more, and none of us was at it."""
        ours = any(self.alias in versions for versions in self.settling.values())
        return self.settled >= self.latest and self.alias != self.crowned and not ours

    @property
    def champion(self) -> str:
        """The champion, or empty."""
        return self.alias if self.moved else self.crowned

    @property
    def champions(self) -> tuple[str, ...]:
        """The line of champions with the present one last, wherever the alias was moved to."""
        return moved_line(self.line, self.alias) if self.moved else self.line

    def entry_of(self, token: str) -> Entry | None:
        """Return the entry of a record; a request that was written twice has the number of the first."""
        return next((entry for entry in self.entries if entry.record.token == token), None)

    def marks_of(self, home_id: str) -> tuple[str, ...]:
        """Return the marks that were set from a home."""
        return tuple(mark for mark in self.settling if mark.startswith(mark_of(home_id, "")))


def log_name(name: str) -> str:
    """Return under which name the log of a registered model is kept."""
    return f"{name}{LOG_SUFFIX}"


def read(mlflow: Any, uri: str, name: str) -> Standing:
    """Return how a registered model stands; nothing is written.

    Raises:
        ModelError: an entry was written by a later version of Vesalius, or the server does not answer.
    """
    with answering(uri, f"read the promotions of '{name}'", ModelError):
        standing = _read_once(mlflow, uri, name)
        while standing.moved:
            # Log and alias are read one after the other: a promotion in between looks like an alias moved by hand.
            again = _read_once(mlflow, uri, name)
            if (again.latest, again.alias, again.moved) == (standing.latest, standing.alias, standing.moved):
                break
            standing = again
        return standing


def _read_once(mlflow: Any, uri: str, name: str) -> Standing:
    marks = _tags(mlflow, log_name(name))
    versions = all_versions(mlflow, uri, log_name(name)) if marks is not None else []
    try:
        registered = mlflow.get_registered_model(name)
    except Exception as cause:  # MlflowException, imported only where MLflow is used
        if not missing(cause):
            raise
        return Standing(name=name, latest=_last(versions), settled=_last(versions))
    life = int(registered.creation_timestamp or 0)
    told = [_entry(name, version) for version in versions]
    entries, head, line, archived = fold([one for one in told if one is not None and one.record.life == life])
    marks = marks or {}
    settled = marks.get(_SETTLED, "")
    return Standing(
        name=name,
        exists=True,
        life=life,
        entries=tuple(entries),
        head=head,
        line=tuple(line),
        archived=archived,
        latest=_last(versions),
        settled=int(settled) if settled.isdecimal() else 0,
        settling={key: _versions(value) for key, value in sorted(marks.items()) if key.startswith(_SETTLING)},
        aliases={alias: str(version) for alias, version in dict(registered.aliases).items()},
        tags=dict(registered.tags),
    )


def append(mlflow: Any, uri: str, record: PromotionRecord) -> None:
    """Write an entry to the end of the log; its number, and whether it counts, the log then says.

    MLflow's own client may send a request again whose answer was lost, so one entry can be there twice.

    Raises:
        ModelError: the server does not take it.
    """
    text = _bounded(record)
    place = log_name(record.name)

    def write() -> None:
        try:
            mlflow.create_model_version(
                place,
                source=f"vesalius:/{place}",
                run_id=record.run_id or None,
                tags={_RECORD: text},
                description=record.sentence[:1000],
            )
        except Exception:  # raised again where the entry is not there
            # It may have been written all the same, its answer lost; and many at once are in each other's way.
            known = [_entry(record.name, version) for version in all_versions(mlflow, uri, place)]
            if not any(one is not None and one.record.token == record.token for one in known):
                raise

    with answering(uri, f"record the promotion of '{record.name}'", ModelError):
        _ensure_log(mlflow, record.name)
        retried(write, when=lambda cause: isinstance(cause, Exception))


def begin_settling(mlflow: Any, name: str, mark: str, versions: Collection[str]) -> None:
    """Mark that the champion's alias is about to be pointed: where it is found at these versions, it may be by us.

    Args:
        mlflow: the client.
        name: of the registered model.
        mark: of the process; see :func:`mark_of`.
        versions: those that it has pointed the alias at, and the one that comes now; an empty one takes it away.
    """
    value = ",".join(sorted(version or _NOBODY for version in versions))
    retried(lambda: mlflow.set_registered_model_tag(log_name(name), mark, value))


def end_settling(mlflow: Any, name: str, latest: int, marks: Collection[str]) -> None:
    """Say that aliases and tags are those of the log up to an entry, and take marks away.

    Marks must be of processes that will not point the alias any more: the caller's own, and those that have ended.
    """
    retried(lambda: mlflow.set_registered_model_tag(log_name(name), _SETTLED, str(latest)))
    for mark in marks:
        try:
            retried(partial(mlflow.delete_registered_model_tag, log_name(name), mark))
        except Exception as cause:  # MlflowException, imported only where MLflow is used
            if not missing(cause):
                raise


def mark_of(home_id: str, token: str) -> str:
    """Return the tag that :func:`begin_settling` sets: of a home, and of one call there."""
    return f"{_SETTLING}{home_id}.{token}"


def _versions(mark: str) -> frozenset[str]:
    return frozenset("" if version == _NOBODY else version for version in mark.split(","))


def _ensure_log(mlflow: Any, name: str) -> None:
    try:
        mlflow.create_registered_model(
            log_name(name), description=f"Who promoted which version of {name}, when and why. Written by Vesalius."
        )
    except Exception as cause:  # MlflowException, imported only where MLflow is used
        if getattr(cause, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(mlflow: Any, name: str) -> dict[str, str] | None:
    try:
        return dict(mlflow.get_registered_model(name).tags)
    except Exception as cause:  # MlflowException, imported only where MLflow is used
        if not missing(cause):
            raise
        return None


def _last(versions: list[Any]) -> int:
    return int(versions[-1].version) if versions else 0


def _entry(name: str, version: Any) -> Entry | None:
    """Read an entry; None where somebody has spoilt it, which takes its effect."""
    try:
        value = json.loads(version.tags.get(_RECORD, ""))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise ModelError(
            f"entry {version.version} of the promotions of '{name}' was written by a later version of Vesalius: update"
        )
    try:
        record = PromotionRecord.model_validate(value)
    except ValidationError:
        return None
    return Entry(number=int(version.version), record=record) if record.name == name else None


def _bounded(record: PromotionRecord) -> str:
    """Return a record as text that a tag holds; details that would not fit are in its attachment."""
    text = record.model_dump_json()
    if len(text) > _LONGEST_RECORD:
        verdicts = [{**verdict, "details": []} for verdict in record.promotion.get("verdicts", [])]
        slim = {**record.promotion, "verdicts": verdicts, "test_figures": {}, "champion_test_figures": {}}
        text = record.model_copy(update={"promotion": slim}).model_dump_json()
    return text
