"""Writes that are in each other's way.

MLflow writes a tag or an alias by looking whether it is there and inserting, changing or deleting it: of two who do so
at the same moment, one is refused by the database's key, or finds nothing left to delete. Nothing is wrong with either;
a second try finds things as they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

if TYPE_CHECKING:
    from collections.abc import Callable

AnswerT = TypeVar("AnswerT")

_SAID = re.compile(
    r"unique|duplicate key|is locked|deadlock|serializ|giving up after|expected to (delete|update) \d+ row",
    re.IGNORECASE,
)
_STOP, _WAIT = stop_after_attempt(12), wait_random_exponential(multiplier=0.03, max=2)


def retried(write: Callable[[], AnswerT], when: Callable[[BaseException], bool] | None = None) -> AnswerT:
    """Make a write, again where another one was in its way; it must be one that may be made twice.

    Args:
        write: what is tried.
        when: what it is tried again after, instead of a collision.

    Raises:
        Exception: whatever else it raises, and a collision after the last try.
    """
    return Retrying(retry=retry_if_exception(when or collided), stop=_STOP, wait=_WAIT, reraise=True)(write)


def collided(cause: BaseException) -> bool:
    """Say whether another write was in the way: the database's own words, which MLflow passes on."""
    module = type(cause).__module__.partition(".")[0]
    return module in ("mlflow", "sqlalchemy", "sqlite3") and bool(_SAID.search(str(cause)[:2000]))
